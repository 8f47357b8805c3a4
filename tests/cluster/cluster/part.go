// The parts of a control plane that runs: found by their processes, ended, and started again as they were.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// controlPlaneParts end in this order and start in the opposite one.
var controlPlaneParts = []string{"kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"}

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

// end ends a part at once.
func (c *Cluster) end(ctx context.Context, one *part) error {
	if err := c.kill(one.pid); err != nil {
		return err
	}
	return wait(ctx, "the end of "+one.process.name, 10*time.Second, func() error { return ended(one.pid) })
}

// begin starts a part that has ended; if it is the API server, it serves when this returns.
func (c *Cluster) begin(ctx context.Context, one *part) error {
	started, err := c.start(one.process)
	if err != nil || one.process.name != "kube-apiserver" {
		return err
	}
	return started.await(ctx, "the API server", time.Minute, func() error { return c.serves(ctx) })
}

// serves is nil if the API server does.
func (c *Cluster) serves(ctx context.Context) error {
	api, err := c.apiServer()
	if err != nil {
		return err
	}
	return api.do(ctx, http.MethodGet, "/readyz", nil)
}

func crashCommand(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("crash", flag.ContinueOnError)
	dir := flags.String("dir", "", "the cluster's folder")
	away := flags.Duration("for", time.Second, "how long until its supervisor starts it again")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 || !slices.Contains(controlPlaneParts, flags.Arg(0)) {
		return errUsage
	}
	cluster, err := open(*dir)
	if err != nil {
		return err
	}
	return cluster.crash(ctx, flags.Arg(0), *away)
}

// crash ends a part at once and starts it again after a while; the API server serves when this returns.
func (c *Cluster) crash(ctx context.Context, name string, away time.Duration) error {
	one, err := c.partOf(name)
	if err != nil {
		return err
	}
	if one == nil {
		return fmt.Errorf("no %s runs for %s: bring the cluster up first", name, c.dir)
	}
	if err := c.end(ctx, one); err != nil {
		return err
	}
	time.Sleep(away)
	if err := c.begin(ctx, one); err != nil {
		return err
	}
	return wait(ctx, "the API server", time.Minute, func() error { return c.serves(ctx) })
}
