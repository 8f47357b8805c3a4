// Processes that outlive the command that started them, and how a later command finds them again.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// marker is the environment variable that every process of a cluster carries, its value the cluster's folder.
// It is there from the first instruction on and goes only with the process, so no crash, and no deleted
// folder, can make us lose one.
const marker = "VNETPOOL_TEST_CLUSTER"

// process is what to start.
type process struct {
	name   string   // its log's name
	netns  string   // named network namespace; empty: the one we are in
	clone  uintptr  // further new namespaces, CLONE_NEW…
	argv   []string // absolute path first
	listen *net.TCPListener
}

// running is a started process.
type running struct {
	name string
	log  string
	pid  int
	gone chan struct{}
}

// start starts a process in a session of its own, its output in the cluster's logs.
func (c *Cluster) start(p process) (*running, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(c.log(p.name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	argv := p.argv
	if p.netns != "" {
		argv = append([]string{self, "enter", p.netns}, argv...)
	}
	command := exec.Command(argv[0], argv[1:]...)
	command.Dir = "/"
	command.Stdout, command.Stderr = log, log
	command.Env = append(os.Environ(), marker+"="+c.dir)
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: p.clone}
	if p.listen != nil {
		file, err := p.listen.File()
		if err != nil {
			return nil, err
		}
		defer file.Close()
		command.ExtraFiles = []*os.File{file}
	}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	started := &running{name: p.name, log: c.log(p.name), pid: command.Process.Pid, gone: make(chan struct{})}
	go func() {
		_ = command.Wait()
		close(started.gone)
	}()
	return started, nil
}

// alive is nil, or has the process's last message.
func (r *running) alive() error {
	select {
	case <-r.gone:
		return fmt.Errorf("%w: %s has ended; the end of %s:\n%s", errDoomed, r.name, r.log, tail(r.log))
	default:
		return nil
	}
}

// await waits for a condition that needs this process.
func (r *running) await(ctx context.Context, what string, limit time.Duration, condition func() error) error {
	return wait(ctx, what, limit, func() error { return errors.Join(r.alive(), condition()) })
}

// enter joins a network namespace and becomes another program: `nsenter --net`, without its search
// through $PATH.
func enter(args []string) error {
	if len(args) < 2 {
		return errUsage
	}
	// Only this thread joins; exec makes it the whole process.
	runtime.LockOSThread()
	if err := joinNetns(args[0]); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", args[1], syscall.Exec(args[1], args[1:], os.Environ()))
}

// belongs reports whether a process was started for the cluster in this folder.
func belongs(pid int, dir string) bool {
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	return err == nil && marked(environment, dir)
}

// marked searches for the cluster's mark in an environment as /proc shows it.
func marked(environment []byte, dir string) bool {
	for variable := range bytes.SplitSeq(environment, []byte{0}) {
		if string(variable) == marker+"="+dir {
			return true
		}
	}
	return false
}

// processes gives every process of the cluster, those inside the nodes included.
func (c *Cluster) processes() ([]int, error) {
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(filepath.Base(entry))
		if err == nil && pid != os.Getpid() && belongs(pid, c.dir) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// kill ends a process of this cluster; one that is gone, or whose number is another process's now, is left
// alone.
func (c *Cluster) kill(pid int) error {
	handle, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(handle)
	// The handle pins the process, so what we check is what we end.
	if !belongs(pid, c.dir) {
		return nil
	}
	if err := unix.PidfdSendSignal(handle, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// ended is nil once a process is no more; a zombie is no more.
func ended(pid int) error {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	// The state follows the command's name, which may hold blanks and brackets.
	_, rest, _ := strings.Cut(string(status[bytes.LastIndexByte(status, ')')+1:]), " ")
	if strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X") {
		return nil
	}
	return fmt.Errorf("process %d still runs", pid)
}
