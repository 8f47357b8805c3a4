// state.json: what a test may know about the cluster.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"syscall"
)

// State is the content of state.json.
type State struct {
	Kubeconfig  string    `json:"kubeconfig"`
	AdminSocket string    `json:"admin_socket,omitempty"`
	ARMEndpoint string    `json:"arm_endpoint,omitempty"`
	APIServer   string    `json:"api_server"` // as nodes and pods reach it; the kubeconfig's is the root namespace's way
	ProxyMode   string    `json:"proxy_mode,omitempty"`
	Nodes       []Node    `json:"nodes"`
	VMs         []Machine `json:"vms"`
	Internet    *Machine  `json:"internet,omitempty"`
}

// Node is a VM that runs a kubelet. PID is its init's, 0 while it is powered off.
type Node struct {
	Name       string `json:"name"`
	Netns      string `json:"netns"`
	Address    string `json:"address"`
	MAC        string `json:"mac"`
	ProviderID string `json:"provider_id"`
	NICID      string `json:"nic_id"`
	PID        int    `json:"pid"`
}

// Machine is a plain VM or the internet host.
type Machine struct {
	Name    string `json:"name"`
	Netns   string `json:"netns"`
	Address string `json:"address"`
}

// state reads state.json.
func (c *Cluster) state() (State, error) {
	var state State
	content, err := os.ReadFile(c.path("state.json"))
	if os.IsNotExist(err) {
		return state, fmt.Errorf("no cluster in %s: bring one up with: cluster up --dir %s", c.dir, c.dir)
	}
	if err != nil {
		return state, err
	}
	if err := json.Unmarshal(content, &state); err != nil {
		return state, fmt.Errorf("%s: %w", c.path("state.json"), err)
	}
	return state, nil
}

func (c *Cluster) writeState(state State) error {
	content, err := json.MarshalIndent(state, "", "  ")
	if err != nil {
		return err
	}
	fresh := c.path("state.json.new")
	if err := os.WriteFile(fresh, append(content, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(fresh, c.path("state.json"))
}

// change edits state.json under a lock: commands on different nodes may run at once.
func (c *Cluster) change(edit func(*State)) error {
	lock, err := os.OpenFile(c.path("state.lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	state, err := c.state()
	if err != nil {
		return err
	}
	edit(&state)
	return c.writeState(state)
}

// node finds a node by name.
func (s State) node(name string) (Node, error) {
	if i := slices.IndexFunc(s.Nodes, func(n Node) bool { return n.Name == name }); i >= 0 {
		return s.Nodes[i], nil
	}
	return Node{}, fmt.Errorf("no node %q: this cluster has %s", name, s.names())
}

// netns finds the network namespace of a node, a VM or the internet host.
func (s State) netns(name string) (string, error) {
	for _, node := range s.Nodes {
		if node.Name == name {
			return node.Netns, nil
		}
	}
	machines := s.VMs
	if s.Internet != nil {
		machines = append(slices.Clone(machines), *s.Internet)
	}
	for _, machine := range machines {
		if machine.Name == name {
			return machine.Netns, nil
		}
	}
	// To test the network from there.
	if name == "fabric" || name == "control-plane" {
		return "vnp-" + name, nil
	}
	return "", fmt.Errorf("nothing is called %q: this cluster has %s", name, s.names())
}

func (s State) names() []string {
	var names []string
	for _, node := range s.Nodes {
		names = append(names, node.Name)
	}
	for _, vm := range s.VMs {
		names = append(names, vm.Name)
	}
	if s.Internet != nil {
		names = append(names, s.Internet.Name)
	}
	return names
}
