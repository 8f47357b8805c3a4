// A node from the outside: add, delete, stop, start, reboot.
package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

var nodeName = regexp.MustCompile(`^node-[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?$`)

func nodeCommand(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	verb, args := args[0], args[1:]
	cluster, rest, err := dirFlags("node "+verb, args)
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return errUsage
	}
	name := rest[0]
	if verb == "add" {
		return cluster.addNode(ctx, name)
	}
	state, err := cluster.state()
	if err != nil {
		return err
	}
	node, err := state.node(name)
	if err != nil {
		return err
	}
	switch verb {
	case "delete":
		return cluster.deleteNode(ctx, node)
	case "stop":
		return cluster.powerOff(ctx, node)
	case "start":
		if node.PID != 0 && ended(node.PID) != nil {
			return fmt.Errorf("%s is running already", name)
		}
		return cluster.powerOn(ctx, node)
	case "reboot":
		if err := cluster.powerOff(ctx, node); err != nil {
			return err
		}
		return cluster.powerOn(ctx, node)
	}
	return errUsage
}

// addNode gives the cluster one more node.
func (c *Cluster) addNode(ctx context.Context, name string) error {
	if !nodeName.MatchString(name) {
		return fmt.Errorf("%q can't be a node's name: choose one like node-4", name)
	}
	state, err := c.state()
	if err != nil {
		return err
	}
	if _, err := state.node(name); err == nil {
		return fmt.Errorf("%s exists already", name)
	}
	node, err := c.createNode(ctx, name)
	if err != nil {
		return err
	}
	return c.bootNode(ctx, node)
}

// createNode makes the VM of a node, powered off in everything but the simulator's eyes.
func (c *Cluster) createNode(ctx context.Context, name string) (Node, error) {
	node := Node{Name: name, Netns: "vnp-" + name}
	if err := createNetns(node.Netns); err != nil {
		return node, err
	}
	vm, err := c.createVM(ctx, name, node.Netns)
	if err != nil {
		return node, err
	}
	node.Address, node.MAC, node.ProviderID, node.NICID = vm.Address, vm.MAC, vm.ProviderID, vm.NICID
	if err := c.change(func(s *State) { s.Nodes = append(s.Nodes, node) }); err != nil {
		return node, err
	}
	state, err := c.state()
	if err != nil {
		return node, err
	}
	return node, c.writeDisk(node, state)
}

// bootNode starts a node whose namespace is plugged in, loads the images, and waits for its kubelet.
func (c *Cluster) bootNode(ctx context.Context, node Node) error {
	state, err := c.state()
	if err != nil {
		return err
	}
	bootID, err := newBootID()
	if err != nil {
		return err
	}
	if err := createCgroups(cgroupRoot(node.Name)); err != nil {
		return err
	}
	init, err := c.start(process{name: node.Name, netns: node.Netns,
		clone: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS,
		argv:  []string{c.repo.bin("cluster"), "boot", c.dir, node.Name, node.Address, bootID, state.ProxyMode}})
	if err != nil {
		return err
	}
	node.PID = init.pid
	if err := c.setPID(node.Name, node.PID); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := init.await(ctx, "containerd of "+node.Name, 30*time.Second, func() error {
			// The socket's file is there before its server listens.
			connection, err := net.Dial("unix", fmt.Sprintf("/proc/%d/root%s", node.PID, containerdSocket))
			if err == nil {
				connection.Close()
			}
			return err
		}); err != nil {
			return fmt.Errorf("%w\n%s", err, tail(c.log(node.Name+".containerd")))
		}
		archives, err := c.archives()
		if err != nil {
			return err
		}
		return load(ctx, node, archives)
	})
	group.Go(func() error {
		api, err := c.apiServer()
		if err != nil {
			return err
		}
		if err := init.await(ctx, "the kubelet of "+node.Name, time.Minute, func() error {
			return api.registered(ctx, node.Name, bootID)
		}); err != nil {
			return fmt.Errorf("%w\n%s", err, tail(c.log(node.Name+".kubelet")))
		}
		return nil
	})
	return group.Wait()
}

// powerOff ends everything on a node at once, its network included.
func (c *Cluster) powerOff(ctx context.Context, node Node) error {
	// Its init's end is the end of its PID namespace, and with that of its mounts.
	if node.PID != 0 {
		if err := c.kill(node.PID); err != nil {
			return err
		}
		if err := wait(ctx, "the end of "+node.Name, 20*time.Second, func() error { return ended(node.PID) }); err != nil {
			return err
		}
	}
	if err := unplug(node.Netns); err != nil {
		return err
	}
	if err := deleteNetns(node.Netns); err != nil {
		return err
	}
	if err := deleteCgroups(ctx, cgroupRoot(node.Name)); err != nil {
		return err
	}
	return c.setPID(node.Name, 0)
}

// powerOn boots a node that was powered off.
func (c *Cluster) powerOn(ctx context.Context, node Node) error {
	if err := createNetns(node.Netns); err != nil {
		return err
	}
	if err := c.replugVM(ctx, node.Name); err != nil {
		return err
	}
	return c.bootNode(ctx, node)
}

// deleteNode deletes the VM and, as Azure's cloud provider would, the Node.
func (c *Cluster) deleteNode(ctx context.Context, node Node) error {
	if err := c.powerOff(ctx, node); err != nil {
		return err
	}
	if err := c.deleteVM(ctx, node.Name); err != nil {
		return err
	}
	api, err := c.apiServer()
	if err != nil {
		return err
	}
	if err := unlessMissing(api.do(ctx, http.MethodDelete, "/api/v1/nodes/"+node.Name, nil)); err != nil {
		return err
	}
	if err := os.RemoveAll(c.home(node.Name)); err != nil {
		return err
	}
	return c.change(func(s *State) {
		for i := range s.Nodes {
			if s.Nodes[i].Name == node.Name {
				s.Nodes = append(s.Nodes[:i], s.Nodes[i+1:]...)
				return
			}
		}
	})
}

func (c *Cluster) setPID(name string, pid int) error {
	return c.change(func(s *State) {
		for i := range s.Nodes {
			if s.Nodes[i].Name == name {
				s.Nodes[i].PID = pid
			}
		}
	})
}

// newBootID asks the kernel for a random UUID, the form of its own boot id.
func newBootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	return strings.TrimSpace(string(id)), err
}
