// Apart: a command in namespaces of its own. Names of network namespaces and of cgroups are free there, so
// that a cluster with nodes can be up in it beside others on the same machine.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// apart runs a command to its end in cgroups, and in cgroup, mount and network namespaces, of its own.
// Processes that it leaves running, as a command does that was interrupted with its cluster up, end with it.
func apart(ctx context.Context, argv []string) error {
	if len(argv) == 0 {
		return errUsage
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	name := fmt.Sprintf("vnp-apart-%d", os.Getpid())
	if err := createCgroups(name); err != nil {
		return errors.Join(err, deleteCgroups(context.WithoutCancel(ctx), name))
	}
	command := exec.CommandContext(ctx, self, append([]string{"apart-inside", name}, argv...)...)
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET}
	return errors.Join(command.Run(), endCgroups(context.WithoutCancel(ctx), name))
}

// apartInside becomes the command, once its process is in the cgroups of this name and sees them as
// the root of all.
func apartInside(args []string) error {
	if len(args) < 2 {
		return errUsage
	}
	name, argv := args[0], args[1:]
	program, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	mounts, err := hierarchies()
	if err != nil {
		return err
	}
	for _, mount := range mounts {
		if err := joinCgroup(filepath.Join(mount.path, name)); err != nil {
			return err
		}
	}
	// The namespace is this thread's, and the command takes over this thread's.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("new cgroup namespace: %w", err)
	}
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	if err := os.Mkdir("/run/lock", 0o755); err != nil {
		return err
	}
	for _, one := range mounts {
		// Whatever reads mountinfo shall find only what this namespace can use.
		if err := unix.Unmount(one.path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", one.path, err)
		}
		if err := mount(one.kind, one.path, one.kind, 0, one.options); err != nil {
			return err
		}
		if !one.unified() {
			continue
		}
		// A cgroup of v2 with processes of its own can't hand controllers to its children.
		if err := os.Mkdir(filepath.Join(one.path, "vnp-main"), 0o755); err != nil {
			return err
		}
		if err := joinCgroup(filepath.Join(one.path, "vnp-main")); err != nil {
			return err
		}
	}
	if output, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("loopback: %w: %s", err, output)
	}
	return fmt.Errorf("%s: %w", program, syscall.Exec(program, argv, os.Environ()))
}

// joinCgroup moves this process, all its threads, into a cgroup.
func joinCgroup(folder string) error {
	return os.WriteFile(filepath.Join(folder, "cgroup.procs"), []byte("0"), 0o644)
}
