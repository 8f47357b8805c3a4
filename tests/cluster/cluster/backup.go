// Backup: the API server's store, kept and brought back, as an administrator does who restores a cluster.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// controlPlaneParts end in this order and start in the opposite one.
var controlPlaneParts = []string{"kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"}

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

// part is a process of the control plane as it can be started again.
type part struct {
	pid     int
	process process
}

// partOf gives the process of this name; nil if there is none.
func (c *Cluster) partOf(name string) (*part, error) {
	pids, err := c.processes()
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue
		}
		argv := strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00")
		if filepath.Base(argv[0]) != name {
			continue
		}
		netns, err := netnsOf(pid)
		if err != nil {
			return nil, err
		}
		return &part{pid, process{name: name, netns: netns, argv: argv}}, nil
	}
	return nil, nil
}

// netnsOf is empty for a process in our own namespace; the control plane has no other but its VM's.
func netnsOf(pid int) (string, error) {
	ours, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return "", err
	}
	its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil || its == ours {
		return "", err
	}
	return controlPlaneNetns, nil
}

// saveStore copies etcd's files while etcd stands still: what a crash would leave, from which it starts again.
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
		if err := c.kill(one.pid); err != nil {
			return err
		}
		if err := wait(ctx, "the end of "+name, 10*time.Second, func() error { return ended(one.pid) }); err != nil {
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
	api, err := c.apiServer()
	if err != nil {
		return err
	}
	slices.Reverse(parts)
	for _, one := range parts {
		started, err := c.start(one.process)
		if err != nil {
			return err
		}
		if one.process.name != "kube-apiserver" {
			continue
		}
		ready := func() error { return api.do(ctx, http.MethodGet, "/readyz", nil) }
		if err := started.await(ctx, "the API server", time.Minute, ready); err != nil {
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
