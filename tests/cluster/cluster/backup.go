// Backup: the API server's store, kept and brought back, as an administrator does who restores a cluster.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
)

func backupCommand(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	cluster, rest, err := dirFlags("backup "+args[0], args[1:])
	if err != nil {
		return err
	}
	if len(rest) != 0 {
		return errUsage
	}
	switch args[0] {
	case "save":
		return cluster.saveStore()
	case "restore":
		return cluster.restoreStore(ctx)
	}
	return errUsage
}

// saveStore copies etcd's files while etcd stands still: what a crash would leave, from which it
// starts again.
func (c *Cluster) saveStore() error {
	etcd, err := c.partOf("etcd")
	if err != nil {
		return err
	}
	if etcd == nil {
		return fmt.Errorf("no etcd runs for %s: bring the cluster up first", c.dir)
	}
	if err := os.RemoveAll(c.path("etcd.saved")); err != nil {
		return err
	}
	if err := syscall.Kill(etcd.pid, syscall.SIGSTOP); err != nil {
		return err
	}
	return errors.Join(copyAll(c.path("etcd"), c.path("etcd.saved")), syscall.Kill(etcd.pid, syscall.SIGCONT))
}

// restoreStore ends the control plane, puts back what was saved, and starts the same processes again.
func (c *Cluster) restoreStore(ctx context.Context) error {
	if _, err := os.Stat(c.path("etcd.saved")); err != nil {
		return fmt.Errorf("nothing was saved: run cluster backup save first: %w", err)
	}
	var parts []*part
	for _, name := range controlPlaneParts {
		one, err := c.partOf(name)
		if err != nil {
			return err
		}
		if one == nil {
			continue
		}
		if err := c.end(ctx, one); err != nil {
			return err
		}
		parts = append(parts, one)
	}
	if err := os.RemoveAll(c.path("etcd")); err != nil {
		return err
	}
	if err := copyAll(c.path("etcd.saved"), c.path("etcd")); err != nil {
		return err
	}
	slices.Reverse(parts)
	for _, one := range parts {
		if err := c.begin(ctx, one); err != nil {
			return err
		}
	}
	return nil
}

// copyAll copies a folder with the modes of its files.
func copyAll(from, to string) error {
	if output, err := exec.Command("cp", "--archive", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w: %s", from, err, output)
	}
	return nil
}
