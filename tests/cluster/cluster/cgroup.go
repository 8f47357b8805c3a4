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
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupFolder = "/sys/fs/cgroup"

// cgroupRoot is the kubelet's setting; the folders of that name are ours.
func cgroupRoot(node string) string { return "/vnp-" + node }

// unifiedCgroups says whether this machine has cgroup v2 only.
func unifiedCgroups() (bool, error) {
	var stat unix.Statfs_t
	err := unix.Statfs(cgroupFolder, &stat)
	return stat.Type == unix.CGROUP2_SUPER_MAGIC, err
}

// hierarchies gives the mount points that need a folder for each node: all on a machine with v1, or the one of v2.
func hierarchies() ([]string, error) {
	unified, err := unifiedCgroups()
	if err != nil || unified {
		return []string{cgroupFolder}, err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	return cgroupMounts(string(mounts)), err
}

// cgroupMounts picks the hierarchies out of mountinfo(5): v1's, which may be mounted under several names, and the one of v2 that
// runc uses beside them where there is one.
func cgroupMounts(mountinfo string) []string {
	var found []string
	for line := range strings.Lines(mountinfo) {
		before, after, _ := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if strings.HasPrefix(after, "cgroup") && len(fields) > 4 && strings.HasPrefix(fields[4], cgroupFolder) {
			found = append(found, fields[4])
		}
	}
	return found
}

// createCgroups makes the node's folder in every hierarchy, usable at once.
func createCgroups(node string) error {
	mounts, err := hierarchies()
	if err != nil {
		return err
	}
	unified, err := unifiedCgroups()
	if err != nil {
		return err
	}
	for _, mount := range mounts {
		folder := filepath.Join(mount, cgroupRoot(node))
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		if unified {
			// The kubelet does this below its root, not for it.
			if err := delegate(mount); err != nil {
				return err
			}
		} else if _, err := os.Stat(filepath.Join(folder, "cpuset.cpus")); err == nil {
			// A new v1 cpuset is empty, and nothing runs in an empty one.
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				value, err := os.ReadFile(filepath.Join(mount, file))
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

// deleteCgroups removes the node's folders; its processes have been killed, and the kernel may still be at it.
func deleteCgroups(ctx context.Context, node string) error {
	mounts, err := hierarchies()
	if err != nil {
		return err
	}
	return wait(ctx, "the cgroups of "+node, 10*time.Second, func() error {
		var problems []error
		for _, mount := range mounts {
			problems = append(problems, removeTree(filepath.Join(mount, cgroupRoot(node))))
		}
		return errors.Join(problems...)
	})
}

// removeTree removes folders from the leaves up; a cgroup's files go with it.
func removeTree(root string) error {
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

// cgroupNodes gives the nodes that have cgroups.
func cgroupNodes() ([]string, error) {
	mounts, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var nodes []string
	for _, mount := range mounts {
		found, err := filepath.Glob(filepath.Join(mount, cgroupRoot("node-*")))
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
