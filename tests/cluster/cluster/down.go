// Down: in any state of a cluster, nothing of it stays but its logs.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

func downCommand(ctx context.Context, args []string) error {
	cluster, rest, err := dirFlags("down", args)
	if err != nil {
		return err
	}
	if len(rest) != 0 {
		return errUsage
	}
	if err := cluster.down(ctx); err != nil {
		return err
	}
	fmt.Printf("nothing of the cluster in %s is left but %s\n", cluster.dir, cluster.path("logs"))
	return nil
}

// down goes on past errors and gives them all. It needs no file of the cluster: processes carry its mark, and
// namespaces and cgroups have names of their own, which the machine's owner file ascribes to one cluster.
func (c *Cluster) down(ctx context.Context) error {
	owner, err := owner()
	problems := []error{err, c.killAll(ctx)}
	if owner == c.dir {
		problems = append(problems, deleteNames(ctx))
	}
	problems = append(problems, c.clear())
	if err := errors.Join(problems...); err != nil || owner != c.dir {
		return err
	}
	// Last, so that a down that failed can be repeated.
	return os.Remove(ownerFile)
}

// owner gives the folder of the machine's cluster, empty if there is none.
func owner() (string, error) {
	content, err := os.ReadFile(ownerFile)
	if os.IsNotExist(err) {
		return "", nil
	}
	return strings.TrimSpace(string(content)), err
}

// killAll ends every process of the cluster; killing may race with the start of further ones, so it repeats
// until none is left.
func (c *Cluster) killAll(ctx context.Context) error {
	return wait(ctx, "the end of the cluster's processes", 30*time.Second, func() error {
		pids, err := c.processes()
		if err != nil {
			return err
		}
		problems := []error{}
		for _, pid := range pids {
			problems = append(problems, c.kill(pid), ended(pid))
		}
		return errors.Join(problems...)
	})
}

// deleteNames removes the namespaces and cgroups of the machine's cluster.
func deleteNames(ctx context.Context) error {
	var problems []error
	namespaces, err := netnsNames()
	problems = append(problems, err)
	for _, name := range namespaces {
		problems = append(problems, deleteNetns(name))
	}
	nodes, err := cgroupNodes()
	problems = append(problems, err)
	for _, node := range nodes {
		problems = append(problems, deleteCgroups(ctx, cgroupRoot(node)))
	}
	return errors.Join(problems...)
}

// clear removes the cluster's files, all but its logs and the mark of the folder.
func (c *Cluster) clear() error {
	owner, err := owner()
	if err != nil {
		return err
	}
	if _, err := os.Stat(c.mark()); os.IsNotExist(err) && owner != c.dir {
		// Not a cluster's folder: its files may be another program's.
		return nil
	}
	var problems []error
	for _, name := range entries {
		problems = append(problems, os.RemoveAll(c.path(name)))
	}
	return errors.Join(problems...)
}
