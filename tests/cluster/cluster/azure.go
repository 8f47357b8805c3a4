// Simulated Azure: its process and the requests to its admin socket.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

const (
	fabricNetns     = "vnp-fabric"
	armEndpoint     = "http://198.51.100.10"
	internetAddress = "203.0.113.10"
	resolverAddress = "168.63.129.16" // Azure's, for machines
)

// virtualMachine is the answer to POST /vms.
type virtualMachine struct {
	ProviderID string `json:"provider_id"`
	NICID      string `json:"nic_id"`
	Address    string `json:"address"`
	MAC        string `json:"mac"`
}

// startAzure starts the simulator inside the fabric and waits until it answers.
func (c *Cluster) startAzure(ctx context.Context, binary, template string) error {
	if _, err := os.Stat(binary); err != nil {
		return fmt.Errorf("simulated Azure is missing (%w): build it with `cargo build -p vnetpool-azure-sim`, or name it with --azure-sim", err)
	}
	argv := []string{binary, "--admin-socket", c.adminSocket(), "--fabric"}
	if template != "" {
		argv = append(argv, "--template", template)
	}
	azure, err := c.start(process{name: "azure-sim", netns: fabricNetns, argv: argv})
	if err != nil {
		return err
	}
	return azure.await(ctx, "simulated Azure", 20*time.Second, func() error {
		return c.azure(ctx, http.MethodGet, "/state", nil, nil)
	})
}

// azure sends a request to the admin socket.
func (c *Cluster) azure(ctx context.Context, method, path string, body, into any) error {
	client := &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", c.adminSocket())
			},
		},
	}
	content, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://azure-sim"+path, bytes.NewReader(content))
	if err != nil {
		return err
	}
	if body == nil {
		request.Body, request.ContentLength = nil, 0
	}
	request.Header.Set("Content-Type", "application/json")
	return exchange(client, request, into)
}

// createVM makes the VM and plugs it into its namespace.
func (c *Cluster) createVM(ctx context.Context, name, netns string) (virtualMachine, error) {
	var vm virtualMachine
	err := c.azure(ctx, http.MethodPost, "/vms", map[string]string{"name": name, "netns": netns}, &vm)
	return vm, err
}

// deleteVM succeeds, too, when a test has deleted the VM already.
func (c *Cluster) deleteVM(ctx context.Context, name string) error {
	return unlessMissing(c.azure(ctx, http.MethodDelete, "/vms/"+name+"?keep_nic=false", nil, nil))
}

// replugVM gives a VM a new eth0 after its namespace was made anew.
func (c *Cluster) replugVM(ctx context.Context, name string) error {
	return c.azure(ctx, http.MethodPost, "/vms/"+name+"/replug", nil, nil)
}

func (c *Cluster) joinInternet(ctx context.Context, machine Machine) error {
	return c.azure(ctx, http.MethodPost, "/internet", machine, nil)
}

// unlessMissing forgives that what was to be deleted is not there.
func unlessMissing(err error) error {
	if status := new(statusError); errors.As(err, &status) && status.status == http.StatusNotFound {
		return nil
	}
	return err
}
