// Up: from nothing to a cluster whose kubelets have registered.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
)

// ownerFile names the folder of the one cluster that may have nodes at a time: names of namespaces are
// this machine's.
const ownerFile = "/run/vnetpool-test-cluster"

// settings is what `cluster up` was asked for.
type settings struct {
	nodes, vms       int
	proxyMode        string
	azureSim         string
	template         string
	controlPlaneOnly bool
	older            bool
}

func upCommand(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("up", flag.ContinueOnError)
	var s settings
	dir := flags.String("dir", "", "the cluster's folder")
	flags.IntVar(&s.nodes, "nodes", 3, "how many nodes")
	flags.IntVar(&s.vms, "vms", 1, "how many plain VMs")
	flags.StringVar(&s.proxyMode, "proxy-mode", "iptables", "kube-proxy's mode: iptables or nftables")
	flags.StringVar(&s.azureSim, "azure-sim", "", "the simulated Azure's binary")
	flags.StringVar(&s.template, "template", "", "an ARM template that makes the network, instead of the simulator's own")
	flags.BoolVar(&s.controlPlaneOnly, "control-plane-only", false, "an API server on loopback, nothing else")
	flags.BoolVar(&s.older, "older", false, "with --control-plane-only: of the oldest Kubernetes that the chart takes")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 0 {
		return errUsage
	}
	if s.older && !s.controlPlaneOnly {
		return errors.New("--older takes --control-plane-only: there is no kubelet of that release")
	}
	cluster, err := open(*dir)
	if err != nil {
		return err
	}
	if s.azureSim == "" {
		s.azureSim = cluster.repo.program("azure-sim")
	}
	if s.proxyMode != "iptables" && s.proxyMode != "nftables" {
		return fmt.Errorf("--proxy-mode %s is unknown: use iptables or nftables", s.proxyMode)
	}
	return cluster.up(ctx, s)
}

// up brings the cluster up, or leaves nothing but logs behind.
func (c *Cluster) up(ctx context.Context, s settings) error {
	began := time.Now()
	if err := c.claim(s); err != nil {
		return err
	}
	bringUp := c.bringUp
	if s.controlPlaneOnly {
		bringUp = c.bringUpControlPlane
	}
	if err := bringUp(ctx, s); err != nil {
		// The context may be what ended it.
		if problem := c.down(context.WithoutCancel(ctx)); problem != nil {
			err = errors.Join(err, problem)
		}
		return fmt.Errorf("%w\nlogs are in %s", err, c.path("logs"))
	}
	fmt.Printf("up after %.1f s: export KUBECONFIG=%s\n", time.Since(began).Seconds(), c.kubeconfig())
	return nil
}

// claim makes the folder ours, and for a cluster with nodes the machine.
func (c *Cluster) claim(s settings) error {
	if os.Geteuid() != 0 && !s.controlPlaneOnly {
		return errors.New("a cluster with nodes needs namespaces: run this as root")
	}
	needed := []string{"kube-apiserver", "probe"}
	if s.older {
		needed = append(needed, "kube-older")
	}
	for _, name := range needed {
		if _, err := os.Stat(c.repo.bin(name)); err != nil {
			return fmt.Errorf("%s is missing: run cluster build first", c.repo.bin(name))
		}
	}
	if running, err := c.processes(); err != nil {
		return err
	} else if len(running) > 0 {
		return fmt.Errorf("a cluster is up in %s: take it down with: cluster down --dir %s", c.dir, c.dir)
	}
	if err := c.claimFolder(); err != nil {
		return err
	}
	if !s.controlPlaneOnly {
		if err := c.claimMachine(); err != nil {
			return err
		}
	}
	if err := c.clear(); err != nil {
		return err
	}
	if err := os.RemoveAll(c.path("logs")); err != nil {
		return err
	}
	return os.MkdirAll(c.path("logs"), 0o755)
}

// claimFolder marks the folder, and refuses one with files of others: taking a cluster down deletes.
func (c *Cluster) claimFolder() error {
	found, err := os.ReadDir(c.dir)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	if _, err := os.Stat(c.mark()); err != nil && len(found) > 0 {
		return fmt.Errorf("%s holds files that are no cluster's, such as %s: name an empty or a new folder", c.dir, found[0].Name())
	}
	return writeFile(c.mark(), nil, 0o644)
}

// claimMachine refuses if a cluster with nodes is there already, even one that has crashed.
func (c *Cluster) claimMachine() error {
	file, err := os.OpenFile(ownerFile, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if os.IsExist(err) {
		owner, err := owner()
		if err != nil {
			return err
		}
		return fmt.Errorf("a cluster is up on this machine: take it down with: cluster down --dir %s", owner)
	}
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = fmt.Fprintln(file, c.dir)
	return err
}

// bringUpControlPlane starts an API server on loopback, for tests of the API alone.
func (c *Cluster) bringUpControlPlane(ctx context.Context, s settings) error {
	p, err := loopbackPlace()
	if err != nil {
		return err
	}
	p.older = s.older
	ca, err := newAuthority()
	if err != nil {
		return err
	}
	if err := c.writeCredentials(ca, p); err != nil {
		return err
	}
	if err := c.startControlPlane(ctx, p); err != nil {
		return err
	}
	if err := c.awaitDefaultAccount(ctx); err != nil {
		return err
	}
	return c.writeState(State{Kubeconfig: c.kubeconfig(), APIServer: p.apiServer(), Nodes: []Node{}, VMs: []Machine{}})
}

// bringUp starts Azure, the control plane as its first VM, then everything else at once.
func (c *Cluster) bringUp(ctx context.Context, s settings) error {
	progress("simulated Azure")
	if err := createNetns(fabricNetns); err != nil {
		return err
	}
	if err := c.startAzure(ctx, s.azureSim, s.template); err != nil {
		return err
	}
	if err := createNetns(controlPlaneNetns); err != nil {
		return err
	}
	vm, err := c.createVM(ctx, "control-plane", controlPlaneNetns)
	if err != nil {
		return err
	}
	p, err := c.startForwarder(vm.Address)
	if err != nil {
		return err
	}
	ca, err := newAuthority()
	if err != nil {
		return err
	}
	if err := c.writeCredentials(ca, p); err != nil {
		return err
	}
	if err := c.writeState(State{
		Kubeconfig: c.kubeconfig(), AdminSocket: c.adminSocket(), ARMEndpoint: armEndpoint,
		APIServer: p.apiServer(), ProxyMode: s.proxyMode, Nodes: []Node{}, VMs: []Machine{},
	}); err != nil {
		return err
	}
	progress("control plane, %d nodes, %d VMs", s.nodes, s.vms)
	controlPlane := make(chan struct{})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := c.startControlPlane(ctx, p); err != nil {
			return err
		}
		progress("API server at %s", p.server)
		close(controlPlane)
		return c.awaitDefaultAccount(ctx)
	})
	group.Go(func() error {
		// One after the other, so that each gets the same address every time.
		for i := range s.nodes {
			node, err := c.createNode(ctx, fmt.Sprintf("node-%d", i+1))
			if err != nil {
				return err
			}
			group.Go(func() error {
				// A kubelet that finds no API server tries again ever more rarely.
				select {
				case <-controlPlane:
				case <-ctx.Done():
					return ctx.Err()
				}
				if err := c.bootNode(ctx, node); err != nil {
					return err
				}
				progress("%s at %s", node.Name, node.Address)
				return nil
			})
		}
		return c.startMachines(ctx, s.vms)
	})
	return group.Wait()
}

// startForwarder opens the root namespace's way to the API server.
func (c *Cluster) startForwarder(address string) (place, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return place{}, err
	}
	defer listener.Close()
	p := vnetPlace(address, listener.Addr().(*net.TCPAddr).Port)
	_, err = c.start(process{name: "forward", listen: listener.(*net.TCPListener),
		argv: []string{c.repo.bin("cluster"), "forward", controlPlaneNetns, fmt.Sprintf("127.0.0.1:%d", p.api)}})
	return p, err
}

// startMachines starts the plain VMs and the internet host; each serves probe on port 8080.
func (c *Cluster) startMachines(ctx context.Context, vms int) error {
	for i := range vms {
		machine := Machine{Name: fmt.Sprintf("vm-%d", i+1), Netns: fmt.Sprintf("vnp-vm-%d", i+1)}
		if err := createNetns(machine.Netns); err != nil {
			return err
		}
		vm, err := c.createVM(ctx, machine.Name, machine.Netns)
		if err != nil {
			return err
		}
		machine.Address = vm.Address
		if err := c.serveProbe(ctx, machine); err != nil {
			return err
		}
		if err := c.change(func(s *State) { s.VMs = append(s.VMs, machine) }); err != nil {
			return err
		}
	}
	internet := Machine{Name: "internet", Netns: "vnp-internet", Address: internetAddress}
	if err := createNetns(internet.Netns); err != nil {
		return err
	}
	if err := c.joinInternet(ctx, internet); err != nil {
		return err
	}
	if err := c.serveProbe(ctx, internet); err != nil {
		return err
	}
	return c.change(func(s *State) { s.Internet = &internet })
}

// serveProbe starts probe in a machine and waits until it listens.
func (c *Cluster) serveProbe(ctx context.Context, machine Machine) error {
	probe, err := c.start(process{name: machine.Name, netns: machine.Netns,
		argv: []string{c.repo.bin("probe"), "serve", "--listen", ":8080"}})
	if err != nil {
		return err
	}
	return probe.await(ctx, "probe on "+machine.Name, 10*time.Second, func() error {
		return inNetns(machine.Netns, func() error {
			connection, err := net.Dial("tcp", "127.0.0.1:8080")
			if err == nil {
				connection.Close()
			}
			return err
		})
	})
}

// progress prints a line on what is going on.
func progress(format string, args ...any) {
	fmt.Printf("%s  %s\n", time.Now().Format("15:04:05"), fmt.Sprintf(format, args...))
}
