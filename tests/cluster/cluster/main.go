// Cluster brings up a real Kubernetes cluster on one machine, its nodes network namespaces in
// simulated Azure.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

const usage = `usage:
  cluster build [PART...]                        build everything that clusters and tests need, or only these parts of it, such as
                                                 kube, helm, probe, cluster; install missing Debian packages;
                                                 Kubernetes' conformance suite only as PART: conformance agnhost
  cluster images                                 build the images of the operator, the node agent, probe and pause
  cluster release [--registry NAME/] --tag VERSION [--architectures amd64,arm64] --out DIR
                                                 write the images of the operator and the node agent as archives of a release
  cluster up --dir DIR [--nodes 3] [--vms 1] [--proxy-mode iptables|nftables] [--azure-sim PATH] [--template FILE]
             [--control-plane-only [--older]]
  cluster down --dir DIR                         take it down, also after a crash
  cluster node add|delete|stop|start|reboot --dir DIR NAME
  cluster backup save|restore --dir DIR          keep what the API server stores, and bring it back: the control plane starts anew
  cluster crash --dir DIR [--for 1s] PART        SIGKILL to etcd, kube-apiserver, kube-controller-manager or kube-scheduler, which starts
                                                 again after that time
  cluster load --dir DIR ARCHIVE...              import image archives into every running node
  cluster apart COMMAND...                       run a command in namespaces of its own, where a cluster can be up beside others
  cluster exec --dir DIR NAME -- COMMAND...      run a command inside a node, a VM or the internet host
`

// errUsage asks main for the usage text.
var errUsage = errors.New("usage")

func main() {
	if name := filepath.Base(os.Args[0]); clients[name] != "" {
		fmt.Fprintln(os.Stderr, client(name))
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := dispatch(ctx, os.Args[1:])
	if errors.Is(err, errUsage) || errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "cluster: %v\n", err)
		os.Exit(1)
	}
}

func dispatch(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	switch command, args := args[0], args[1:]; command {
	case "build":
		return build(ctx, args)
	case "images":
		return images(ctx)
	case "release":
		return releaseCommand(args)
	case "up":
		return upCommand(ctx, args)
	case "down":
		return downCommand(ctx, args)
	case "node":
		return nodeCommand(ctx, args)
	case "backup":
		return backupCommand(ctx, args)
	case "crash":
		return crashCommand(ctx, args)
	case "load":
		return loadCommand(ctx, args)
	case "exec":
		return execCommand(args)
	case "apart":
		return apart(ctx, args)
	// The following commands are for the tool's own processes; people don't type them.
	case "enter":
		return enter(args)
	case "boot":
		return boot(args)
	case "forward":
		return forward(args)
	case "apart-inside":
		return apartInside(args)
	case "boot-id-hook":
		return bootIDHook()
	}
	return errUsage
}

// dirFlags parses the flags of a command that acts on one cluster and gives that cluster and the
// remaining arguments.
func dirFlags(command string, args []string) (*Cluster, []string, error) {
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	dir := flags.String("dir", "", "the cluster's folder")
	if err := flags.Parse(args); err != nil {
		return nil, nil, err
	}
	cluster, err := open(*dir)
	return cluster, flags.Args(), err
}
