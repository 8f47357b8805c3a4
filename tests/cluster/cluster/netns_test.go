package main

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inside marks that the test is in a mount namespace of its own, where it may do as it likes with /run.
const inside = "VNETPOOL_TEST_INSIDE"

func TestANamespaceCanBeDeletedThoughSomebodyHasUsedIPNetnsMeanwhile(t *testing.T) {
	if os.Getenv(inside) == "" {
		again(t)
		return
	}
	for _, mount := range []func() error{
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return unix.Mount("tmpfs", "/run", "tmpfs", 0, "") },
		func() error { return createNetns("vnp-vm-1") },
	} {
		if err := mount(); err != nil {
			t.Fatal(err)
		}
	}
	if output, err := exec.Command("ip", "netns", "add", "somebodys").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	if err := deleteNetns("vnp-vm-1"); err != nil {
		t.Error(err)
	}
	if names, err := netnsNames(); err != nil || len(names) > 0 {
		t.Errorf("%v, %v", names, err)
	}
}

// again runs the present test once more in namespaces of its own; a user other than root is root there.
func again(t *testing.T) {
	command := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	command.Env = append(os.Environ(), inside+"=yes")
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		command.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		command.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		command.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	if output, err := command.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, output)
	}
}
