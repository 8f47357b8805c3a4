// A node from the inside: its mounts, and the process number 1 that keeps its services running.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	toolsFolder = "/usr/local/bin" // where a node finds the binaries of target/cluster/bin
	bootIDFile  = "/run/boot-id"
	bootIDPath  = "/proc/sys/kernel/random/boot_id"
	runSize     = "64m" // small, so that a test can fill it without using up this machine's memory
)

// machineSysctls are not per namespace and the kubelet sets them on the whole machine unless it finds them as
// it wants them: so a node sees them so. (kubelet: setupKernelTunables)
var machineSysctls = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// service is a program that runs as long as its node does.
type service struct {
	argv []string
	log  *os.File
}

// boot is a node's process number 1, in new mount, PID and host name namespaces and the node's
// network namespace.
func boot(args []string) error {
	if len(args) != 5 {
		return errUsage
	}
	dir, name, address, bootID, proxyMode := args[0], args[1], args[2], args[3], args[4]
	cluster := &Cluster{dir: dir}
	services, err := cluster.services(name, address, proxyMode)
	if err != nil {
		return err
	}
	if err := cluster.mountNode(name, bootID); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return err
	}
	return supervise(services)
}

// services opens the logs while the cluster's folder is still to be seen.
func (c *Cluster) services(name, address, proxyMode string) ([]service, error) {
	services := []service{
		{argv: []string{"/usr/bin/containerd", "--config=/etc/containerd/config.toml"}},
		{argv: []string{toolsFolder + "/kubelet", "--config=/etc/kubernetes/kubelet.yaml", "--kubeconfig=/etc/kubernetes/kubelet.kubeconfig",
			"--hostname-override=" + name, "--node-ip=" + address, "--v=2"}},
		{argv: []string{toolsFolder + "/kube-proxy", "--kubeconfig=/etc/kubernetes/kube-proxy.kubeconfig", "--proxy-mode=" + proxyMode,
			"--hostname-override=" + name, "--conntrack-max-per-core=0", "--oom-score-adj=0"}},
	}
	for i := range services {
		path := c.log(name + "." + filepath.Base(services[i].argv[0]))
		file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return nil, err
		}
		services[i].log = file
	}
	return services, nil
}

// mountNode gives the node its own disk, /run, /proc and /sys. All of it goes with the node's last process.
func (c *Cluster) mountNode(name, bootID string) error {
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	// Opened first: a mount may hide the folder in which another's source lies.
	type bind struct{ source, target string }
	var opened []bind
	for _, b := range []bind{
		{filepath.Dir(executable()), toolsFolder},
		{filepath.Join(c.home(name), "opt"), "/opt"},
		{filepath.Join(c.home(name), "var/lib"), "/var/lib"},
		{c.path("logs", name), "/var/log"},
		// This machine's may hold another network, and a node's starts empty. One mount, net.d within it: agents
		// rename into net.d.
		{filepath.Join(c.home(name), "cni"), "/etc/cni"},
	} {
		fd, err := unix.Open(b.source, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("%s: %w", b.source, err)
		}
		opened = append(opened, bind{fmt.Sprintf("/proc/self/fd/%d", fd), b.target})
	}
	etc, err := unix.Open(filepath.Join(c.home(name), "etc"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	// By descriptor: an overlay's options can't hold a path with a comma or a colon.
	if err := mount("overlay", "/etc", "overlay", 0,
		fmt.Sprintf("lowerdir=/etc,upperdir=/proc/self/fd/%d/upper,workdir=/proc/self/fd/%d/work", etc, etc)); err != nil {
		return err
	}
	for _, b := range opened {
		if err := mount(b.source, b.target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	if err := mountRun(bootID); err != nil {
		return err
	}
	if err := mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if err := mount(bootIDFile, bootIDPath, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	for sysctl := range machineSysctls {
		if err := mount(filepath.Join("/run/sysctl", sysctl), filepath.Join("/proc/sys", sysctl), "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	if err := mountSys(); err != nil {
		return err
	}
	// As systemd leaves it: pods with mountPropagation HostToContainer see what is mounted later.
	return mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// mountRun gives the node an empty /run, and in it the files that stand for values of the kernel.
func mountRun(bootID string) error {
	// Copies of these mounts would keep other nodes' network namespaces alive.
	copies, err := filepath.Glob(netnsFolder + "/*")
	if err != nil {
		return err
	}
	for _, path := range copies {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	if err := mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size="+runSize); err != nil {
		return err
	}
	if err := writeFile(bootIDFile, []byte(bootID+"\n"), 0o444); err != nil {
		return err
	}
	if err := os.MkdirAll("/run/lock", 0o755); err != nil {
		return err
	}
	for sysctl, value := range machineSysctls {
		if err := writeFile(filepath.Join("/run/sysctl", sysctl), []byte(value+"\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// mountSys gives the node a /sys that shows its own network interfaces, with this machine's cgroups.
func mountSys() error {
	const fresh = "/run/sys"
	if err := os.Mkdir(fresh, 0o755); err != nil {
		return err
	}
	if err := mount("sysfs", fresh, "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if err := mount(cgroupFolder, filepath.Join(fresh, "fs/cgroup"), "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := mount(fresh, "/sys", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	return os.Remove(fresh)
}

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s %s on %s: %w", kind, source, target, err)
	}
	return nil
}

func executable() string {
	self, err := os.Executable()
	if err != nil {
		return os.Args[0]
	}
	return self
}

// supervise runs the services, starts each again a second after it has ended, as systemd's Restart=always
// does, and reaps everybody else's orphans.
func supervise(services []service) error {
	environment := append(os.Environ(), "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root")
	null, err := os.Open("/dev/null")
	if err != nil {
		return err
	}
	type exit struct{ pid, status int }
	exits := make(chan exit)
	restart := make(chan service)
	pids := map[int]service{}
	launch := func(s service) {
		child, err := os.StartProcess(s.argv[0], s.argv, &os.ProcAttr{Dir: "/", Env: environment, Files: []*os.File{null, s.log, s.log}})
		if err != nil {
			log.Print(err)
			time.AfterFunc(time.Second, func() { restart <- s })
			return
		}
		pids[child.Pid] = s
	}
	for _, s := range services {
		launch(s)
	}
	go func() {
		for {
			var status unix.WaitStatus
			pid, err := unix.Wait4(-1, &status, 0, nil)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				// No child at all: every service is between two runs.
				time.Sleep(100 * time.Millisecond)
				continue
			}
			exits <- exit{pid, int(status)}
		}
	}()
	for {
		select {
		case s := <-restart:
			launch(s)
		case e := <-exits:
			if s, ours := pids[e.pid]; ours {
				delete(pids, e.pid)
				log.Printf("%s ended with status %#x; starting it again", filepath.Base(s.argv[0]), e.status)
				time.AfterFunc(time.Second, func() { restart <- s })
			}
		}
	}
}

// bootIDHook shows a container the node's boot id. runc runs it in the container's mount namespace, before
// its root is changed, with the container's state on standard input (OCI runtime specification,
// createContainer hooks).
func bootIDHook() error {
	content, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var state struct {
		Bundle string `json:"bundle"`
	}
	if err := json.Unmarshal(content, &state); err != nil {
		return err
	}
	content, err = os.ReadFile(filepath.Join(state.Bundle, "config.json"))
	if err != nil {
		return err
	}
	var config struct {
		Root struct {
			Path string `json:"path"`
		} `json:"root"`
	}
	if err := json.Unmarshal(content, &config); err != nil {
		return err
	}
	root := config.Root.Path
	if !strings.HasPrefix(root, "/") {
		root = filepath.Join(state.Bundle, root)
	}
	return mount(bootIDFile, filepath.Join(root, bootIDPath), "", unix.MS_BIND, "")
}
