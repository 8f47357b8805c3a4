package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestHierarchiesAreReadFromMountinfo(t *testing.T) {
	const mountinfo = `21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 21 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
33 21 0:27 / /elsewhere/cpu rw - cgroup cgroup rw,cpu,cpuacct
`
	want := []string{"/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/unified"}
	if found := cgroupMounts(mountinfo); !slices.Equal(found, want) {
		t.Errorf("%q, not %q", found, want)
	}
}

func TestATreeOfFoldersIsRemovedFromTheLeavesUp(t *testing.T) {
	root := filepath.Join(t.TempDir(), "node")
	if err := os.MkdirAll(filepath.Join(root, "kubepods/besteffort/pod"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := removeTree(root); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(root); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", root, err)
	}
	if err := removeTree(root); err != nil {
		t.Errorf("once more: %v", err)
	}
}
