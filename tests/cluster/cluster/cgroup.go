// A cgroup per node, so that two kubelets on one machine don't take each other's pods for orphans.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupFolder = "/sys/fs/cgroup"

// cgroupRoot is the kubelet's setting; the folders of that name are ours.
func cgroupRoot(node string) string { return "/vnp-" + node }

// hierarchy is a mount of cgroups.
type hierarchy struct {
	path    string
	kind    string // cgroup or cgroup2
	options string // of v1, what tells it from the others: its controllers, or its name
}

// unified reports whether it is the only one of its machine, which has cgroup v2 only then.
func (h hierarchy) unified() bool { return h.path == cgroupFolder }

// hierarchies gives the mounts that need a folder for each node: all on a machine with v1, or the one of v2.
func hierarchies() ([]hierarchy, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	return cgroupMounts(string(mounts)), err
}

// cgroupMounts picks the hierarchies out of mountinfo(5): v1's, which may be mounted under several names, and
// the one of v2, which runc uses beside them.
func cgroupMounts(mountinfo string) []hierarchy {
	var found []hierarchy
	for line := range strings.Lines(mountinfo) {
		before, after, _ := strings.Cut(line, " - ")
		fields, mounted := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(mounted) < 3 || !strings.HasPrefix(fields[4], cgroupFolder) {
			continue
		}
		switch mounted[0] {
		case "cgroup":
			found = append(found, hierarchy{fields[4], "cgroup", strings.TrimPrefix(mounted[2], "rw,")})
		case "cgroup2":
			found = append(found, hierarchy{fields[4], "cgroup2", ""})
		}
	}
	return found
}

// createCgroups makes a folder of this name in every hierarchy, usable at once.
func createCgroups(name string) error {
	mounts, err := hierarchies()
	if err != nil {
		return err
	}
	for _, mount := range mounts {
		folder := filepath.Join(mount.path, name)
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		if mount.unified() {
			// The kubelet does this below its root, not for it.
			if err := delegate(mount.path); err != nil {
				return err
			}
		} else if _, err := os.Stat(filepath.Join(folder, "cpuset.cpus")); err == nil {
			// A new v1 cpuset is empty, and nothing runs in an empty one.
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				value, err := os.ReadFile(filepath.Join(mount.path, file))
				if err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(folder, file), value, 0o644); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// delegate hands every controller of a v2 cgroup to its children.
func delegate(folder string) error {
	controllers, err := os.ReadFile(filepath.Join(folder, "cgroup.controllers"))
	if err != nil {
		return err
	}
	enable := ""
	for _, controller := range strings.Fields(string(controllers)) {
		enable += "+" + controller + " "
	}
	return os.WriteFile(filepath.Join(folder, "cgroup.subtree_control"), []byte(enable), 0o644)
}

// deleteCgroups removes the folders of this name; its processes have ended, and the kernel may still be
// at it.
func deleteCgroups(ctx context.Context, name string) error {
	mounts, err := hierarchies()
	if err != nil {
		return err
	}
	return wait(ctx, "the end of the cgroups "+name, 10*time.Second, func() error {
		var problems []error
		for _, mount := range mounts {
			problems = append(problems, removeTree(filepath.Join(mount.path, name)))
		}
		return errors.Join(problems...)
	})
}

// endCgroups kills whatever runs in the cgroups of this name, and removes them.
func endCgroups(ctx context.Context, name string) error {
	mounts, err := hierarchies()
	if err != nil {
		return err
	}
	for _, mount := range mounts {
		root := filepath.Join(mount.path, name)
		// A process may start another while it is being killed.
		err := wait(ctx, "the end of all processes in "+root, 10*time.Second, func() error { return killTree(root) })
		if err != nil {
			return err
		}
	}
	return deleteCgroups(ctx, name)
}

// killTree kills the processes in a cgroup and those below it; an error names how many there were.
func killTree(root string) error {
	folders, err := foldersBelow(root)
	if err != nil {
		return err
	}
	running := 0
	for _, folder := range folders {
		pids, err := os.ReadFile(filepath.Join(folder, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return err
		}
		for _, word := range strings.Fields(string(pids)) {
			pid, err := strconv.Atoi(word)
			if err != nil {
				return err
			}
			running++
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	if running > 0 {
		return fmt.Errorf("%d processes ran in %s", running, root)
	}
	return nil
}

// removeTree removes folders from the leaves up; a cgroup's files go with it.
func removeTree(root string) error {
	folders, err := foldersBelow(root)
	if err != nil {
		return err
	}
	slices.Reverse(folders)
	for _, folder := range folders {
		if err := unix.Rmdir(folder); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove %s: %w", folder, err)
		}
	}
	return nil
}

// foldersBelow gives a folder and all below it, each before its own; none if it isn't there. Some may
// go meanwhile.
func foldersBelow(root string) ([]string, error) {
	var folders []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && entry.IsDir() {
			folders = append(folders, path)
		}
		return err
	})
	return folders, err
}

// cgroupNodes gives the nodes that have cgroups.
func cgroupNodes() ([]string, error) {
	mounts, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var nodes []string
	for _, mount := range mounts {
		found, err := filepath.Glob(filepath.Join(mount.path, cgroupRoot("node-*")))
		if err != nil {
			return nil, err
		}
		for _, folder := range found {
			nodes = append(nodes, strings.TrimPrefix("/"+filepath.Base(folder), cgroupRoot("")))
		}
	}
	slices.Sort(nodes)
	return slices.Compact(nodes), nil
}
