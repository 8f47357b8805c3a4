package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

func TestHierarchiesAreReadFromMountinfo(t *testing.T) {
	const mountinfo = `21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 21 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
34 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
33 21 0:27 / /elsewhere/cpu rw - cgroup cgroup rw,cpu,cpuacct
`
	want := []hierarchy{
		{"/sys/fs/cgroup/cpu,cpuacct", "cgroup", "cpu,cpuacct"},
		{"/sys/fs/cgroup/systemd", "cgroup", "xattr,name=systemd"},
		{"/sys/fs/cgroup/unified", "cgroup2", ""},
	}
	if found := cgroupMounts(mountinfo); !slices.Equal(found, want) {
		t.Errorf("%v, not %v", found, want)
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

func TestWhateverRunsInCgroupsEndsWithThem(t *testing.T) {
	name := fmt.Sprintf("vnp-test-%d", os.Getpid())
	if err := createCgroups(name); err != nil {
		t.Fatal(err)
	}
	mounts, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	below := filepath.Join(mounts[0].path, name, "pod")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	left := exec.Command("sleep", "60")
	if err := left.Start(); err != nil {
		t.Fatal(err)
	}
	defer left.Process.Kill()
	pid := strconv.Itoa(left.Process.Pid)
	if err := os.WriteFile(filepath.Join(below, "cgroup.procs"), []byte(pid), 0o644); err != nil {
		t.Error(err)
	}
	// Its parent is this test, which has to fetch its end for it to leave its cgroup.
	ended := make(chan error, 1)
	go func() { ended <- left.Wait() }()
	if err := endCgroups(context.Background(), name); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil || err.Error() != "signal: killed" {
		t.Errorf("it ended with %v", err)
	}
	if _, err := os.Stat(filepath.Join(mounts[0].path, name)); !os.IsNotExist(err) {
		t.Errorf("its cgroup is still there: %v", err)
	}
}
