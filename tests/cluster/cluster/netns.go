// Named network namespaces, as `ip netns` knows them.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"

	"golang.org/x/sys/unix"
)

const netnsFolder = "/run/netns"

// Our namespaces' names; no other name has this prefix.
var ourNetns = regexp.MustCompile(`^vnp-(fabric|control-plane|internet|node-[a-z0-9-]+|vm-[0-9]+)$`)

// freshSysctls are a machine's before it is configured. A new namespace inherits IPv4's from this machine's,
// which may forward already; rp_filter is what Ubuntu, AKS' node image, ships.
var freshSysctls = map[string]string{
	"net/ipv4/ip_forward":             "0",
	"net/ipv4/conf/all/rp_filter":     "2",
	"net/ipv4/conf/default/rp_filter": "2",
}

func netnsPath(name string) string { return filepath.Join(netnsFolder, name) }

// createNetns makes a namespace; that it exists already is an error.
func createNetns(name string) error {
	if err := shareNetnsFolder(); err != nil {
		return err
	}
	file, err := os.OpenFile(netnsPath(name), os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	file.Close()
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace %s: %w", name, err)
		}
		if err := mount("/proc/thread-self/ns/net", netnsPath(name), "", unix.MS_BIND, ""); err != nil {
			return err
		}
		for sysctl, value := range freshSysctls {
			if err := os.WriteFile("/proc/sys/"+sysctl, []byte(value), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
}

// shareNetnsFolder makes the folder of all namespaces a mount that is shared, as the first `ip netns` on this
// machine does. Done later, while namespaces of ours are bound in it, that would bind them twice, and no name
// could be removed any more. The mount stays, as iproute2's does.
func shareNetnsFolder() error {
	if err := os.MkdirAll(netnsFolder, 0o755); err != nil {
		return err
	}
	share := func() error { return mount("", netnsFolder, "", unix.MS_SHARED|unix.MS_REC, "") }
	if err := share(); !errors.Is(err, unix.EINVAL) {
		return err
	}
	// It was no mount yet.
	if err := mount(netnsFolder, netnsFolder, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	return share()
}

// deleteNetns removes a namespace's name; the kernel removes it when its last process is gone, too.
func deleteNetns(name string) error {
	if err := unix.Unmount(netnsPath(name), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", netnsPath(name), err)
	}
	if err := os.Remove(netnsPath(name)); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// unplug removes eth0, eth1 and so on from a namespace, and so their peers in the fabric, at once: the kernel
// takes its time with namespaces.
func unplug(name string) error {
	err := inNetns(name, func() error {
		links, err := filepath.Glob("/proc/sys/net/ipv4/conf/eth[0-9]*")
		for _, link := range links {
			if output, err := exec.Command("ip", "link", "delete", filepath.Base(link)).CombinedOutput(); err != nil {
				return fmt.Errorf("unplug %s: %w: %s", name, err, output)
			}
		}
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// joinNetns moves the present thread, which the caller has locked.
func joinNetns(name string) error {
	file, err := os.Open(netnsPath(name))
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("join network namespace %s: %w", name, err)
	}
	return nil
}

// inNetns runs an action inside a namespace; what it starts or opens there stays there.
func inNetns(name string, action func() error) error {
	return onThread(func() error {
		if err := joinNetns(name); err != nil {
			return err
		}
		return action()
	})
}

// onThread runs an action on a thread of its own, which ends with it and takes its namespaces along.
func onThread(action func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		result <- action()
	}()
	return <-result
}

// netnsNames gives the namespaces that are ours by name.
func netnsNames() ([]string, error) {
	entries, err := os.ReadDir(netnsFolder)
	if os.IsNotExist(err) {
		return nil, nil
	}
	var names []string
	for _, entry := range entries {
		if ourNetns.MatchString(entry.Name()) {
			names = append(names, entry.Name())
		}
	}
	return names, err
}
