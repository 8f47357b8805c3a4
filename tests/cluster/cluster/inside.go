// Going inside: commands and images for nodes, VMs and the internet host.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// inNode is a command inside a node.
func inNode(ctx context.Context, node Node, argv ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, "nsenter", enterNode(node, argv)[1:]...)
	command.WaitDelay = time.Second
	return command
}

func enterNode(node Node, argv []string) []string {
	return append([]string{"nsenter", "--target", fmt.Sprint(node.PID), "--mount", "--uts", "--net", "--pid", "--"}, argv...)
}

// load imports image archives into a node's containerd.
func load(ctx context.Context, node Node, archives []string) error {
	for _, archive := range archives {
		// Standard input: the node doesn't see every folder of this machine.
		file, err := os.Open(archive)
		if err != nil {
			return err
		}
		command := inNode(ctx, node, "ctr", "--namespace", "k8s.io", "images", "import", "-")
		command.Stdin = file
		output, err := command.CombinedOutput()
		file.Close()
		if err != nil {
			return fmt.Errorf("import %s into %s: %w: %s", archive, node.Name, err, output)
		}
	}
	return nil
}

// loadCommand imports archives into all nodes that run.
func loadCommand(ctx context.Context, args []string) error {
	cluster, archives, err := dirFlags("load", args)
	if err != nil {
		return err
	}
	if len(archives) == 0 {
		return errUsage
	}
	state, err := cluster.state()
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, node := range state.Nodes {
		if node.PID != 0 {
			group.Go(func() error { return load(ctx, node, archives) })
		}
	}
	return group.Wait()
}

// execCommand becomes the command, inside the node, VM or internet host.
func execCommand(args []string) error {
	flags := flag.NewFlagSet("exec", flag.ContinueOnError)
	dir := flags.String("dir", "", "the cluster's folder")
	if err := flags.Parse(args); err != nil {
		return err
	}
	rest := flags.Args()
	if len(rest) < 2 {
		return errUsage
	}
	name, argv := rest[0], rest[1:]
	if argv[0] == "--" {
		argv = argv[1:]
	}
	if len(argv) == 0 {
		return errUsage
	}
	cluster, err := open(*dir)
	if err != nil {
		return err
	}
	state, err := cluster.state()
	if err != nil {
		return err
	}
	netns, err := state.netns(name)
	if err != nil {
		return err
	}
	command := append([]string{"nsenter", "--net=" + netnsPath(netns), "--"}, argv...)
	if node, err := state.node(name); err == nil {
		if node.PID == 0 || ended(node.PID) == nil {
			return fmt.Errorf("%s is powered off: start it with: cluster node start --dir %s %s", name, cluster.dir, name)
		}
		command = enterNode(node, argv)
	}
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return err
	}
	// So that probe and kubectl are found in a VM, too.
	environment := append(os.Environ(), "PATH="+cluster.repo.output("bin")+":"+os.Getenv("PATH"))
	return fmt.Errorf("nsenter: %w", syscall.Exec(nsenter, command, environment))
}
