// Build: the binaries of a cluster, from their Go modules.
package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

const (
	kubernetesVersion = "v1.36.3"  // go.mod's
	olderVersion      = "v1.32.13" // older/go.mod's
	helmVersion       = "v3.22.0"  // helm/go.mod's
	cnitoolVersion    = "v1.3.0"   // cnitool/go.mod's
	containerdVersion = "v2.4.2"   // containerd/go.mod's
	corednsVersion    = "v1.15.0"  // coredns/go.mod's
	felixVersion      = "v3.28.5"  // Calico's; felix/go.mod has it by its commit
)

// A folder of target/cluster/bin: the names under which the older Kubernetes is started.
const olderFolder = "older"

// The names under which the one Kubernetes binary is started.
var kubeCommands = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"}

// Those of the older one.
var olderCommands = []string{"kube-apiserver", "kube-controller-manager"}

// program is a binary and how to build it.
type program struct {
	name    string
	label   string // for people
	folder  string // its module, below tests/cluster
	pack    string // its package
	ldflags string
	static  bool
	tags    string
	inputs  []string // all it depends on; empty: ask the Go command, which is quick for a small program
	// Of Debian, for an image that it goes into.
	packages []string
	// It is a test binary, made of a package's tests.
	tests bool
	// It is built only where it is named.
	onRequest bool
}

var programs = []program{
	{
		name: "kube", label: "Kubernetes " + kubernetesVersion + " and etcd (about 6 minutes the first time)", folder: ".", pack: "./kube",
		ldflags: "-X k8s.io/component-base/version.gitVersion=" + kubernetesVersion +
			" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36 -X k8s.io/component-base/version.gitTreeState=clean",
		inputs: []string{"go.mod", "go.sum", "kube/main.go"},
	},
	{
		// The API server and its controllers alone: `cluster up --control-plane-only --older`.
		name: "kube-older", label: "Kubernetes " + olderVersion + " (about 4 minutes the first time)", folder: "older", pack: ".",
		ldflags: "-X k8s.io/component-base/version.gitVersion=" + olderVersion +
			" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=32 -X k8s.io/component-base/version.gitTreeState=clean",
		onRequest: true,
		inputs:    []string{"older/go.mod", "older/go.sum", "older/main.go"},
	},
	{
		name: "helm-" + helmVersion, label: "helm " + helmVersion + " (about 2 minutes the first time)", folder: "helm", pack: "helm.sh/helm/v3/cmd/helm",
		ldflags: "-X helm.sh/helm/v3/internal/version.version=" + helmVersion,
		inputs:  []string{"helm/go.mod", "helm/go.sum"},
	},
	{
		name: "cnitool", label: "cnitool " + cnitoolVersion, folder: "cnitool", pack: "github.com/containernetworking/cni/cnitool", static: true,
		inputs: []string{"cnitool/go.mod", "cnitool/go.sum"},
	},
	{
		name: "containerd-2", label: "containerd " + containerdVersion + " (about 2 minutes the first time)", folder: "containerd",
		pack: "github.com/containerd/containerd/v2/cmd/containerd", static: true, tags: "no_btrfs,no_devmapper,no_zfs",
		ldflags: "-X github.com/containerd/containerd/v2/version.Version=" + containerdVersion,
		inputs:  []string{"containerd/go.mod", "containerd/go.sum"},
	},
	{
		// Of the same release: it can't use Debian's.
		name: "containerd-2-shim", label: "containerd's shim " + containerdVersion, folder: "containerd",
		pack: "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2", static: true,
		inputs: []string{"containerd/go.mod", "containerd/go.sum"},
	},
	{
		name: "cri", label: "cri", folder: "containerd", pack: "./cri", static: true,
		inputs: []string{"containerd/go.mod", "containerd/go.sum", "containerd/cri/main.go"},
	},
	{
		name: "coredns", label: "CoreDNS " + corednsVersion + " (about a minute the first time)", folder: "coredns", pack: ".", static: true,
		inputs: []string{"coredns/go.mod", "coredns/go.sum", "coredns/main.go"},
	},
	{
		name: "calico-felix", label: "Calico's Felix " + felixVersion + " (about 3 minutes the first time)", folder: "felix",
		pack: "github.com/projectcalico/calico/felix/cmd/calico-felix", static: true,
		ldflags: "-X github.com/projectcalico/calico/felix/buildinfo.GitVersion=" + felixVersion,
		inputs:  []string{"felix/go.mod", "felix/go.sum"},
	},
	{
		// Without its tag it is no package for a tool that vets or tests them all.
		name: "conformance", label: "Kubernetes' conformance specs (about 3 minutes the first time)", folder: ".", pack: "./conformance",
		tests: true, tags: "conformance", onRequest: true,
		inputs: []string{"go.mod", "go.sum", "conformance/conformance_test.go"},
	},
	{
		name: "agnhost", label: "agnhost, which those specs run in pods", folder: ".", pack: agnhostPackage, static: true, onRequest: true,
		inputs:   []string{"go.mod", "go.sum"},
		packages: []string{"bind9-dnsutils", "busybox", "curl", "netcat-openbsd"},
	},
	{
		name: "monitors", label: "the Prometheus operator's types", folder: "monitors", pack: ".", static: true,
		inputs: []string{"monitors/go.mod", "monitors/go.sum", "monitors/main.go"},
	},
	{
		name: "kstatus", label: "kstatus", folder: "kstatus", pack: ".", static: true,
		inputs: []string{"kstatus/go.mod", "kstatus/go.sum", "kstatus/main.go"},
	},
	{name: "probe", label: "probe", folder: ".", pack: "./probe", static: true},
	{name: "cluster", label: "cluster", folder: ".", pack: "./cluster", static: true},
}

// parts gives the programs of these names, without the version that some carry: if there are no names, all
// but those that have to be named.
func parts(names []string) ([]program, error) {
	if len(names) == 0 {
		return slices.DeleteFunc(slices.Clone(programs), func(p program) bool { return p.onRequest }), nil
	}
	var chosen []program
	for _, name := range names {
		index := slices.IndexFunc(programs, func(p program) bool { return p.part() == name })
		if index < 0 {
			var known []string
			for _, p := range programs {
				known = append(known, p.part())
			}
			return nil, fmt.Errorf("there is no part %q to build: there are %s", name, strings.Join(known, ", "))
		}
		chosen = append(chosen, programs[index])
	}
	return chosen, nil
}

// part is its usual name: helm carries its version in its file's name.
func (p program) part() string { return strings.TrimSuffix(p.name, "-"+helmVersion) }

// build makes target/cluster/bin current, all of it or only these parts.
func build(ctx context.Context, names []string) error {
	chosen, err := parts(names)
	if err != nil {
		return err
	}
	root, err := findRepo()
	if err != nil {
		return err
	}
	needed := slices.Clone(packages)
	if len(names) == 0 {
		needed = append(needed, testPackages...)
	}
	for _, p := range chosen {
		needed = append(needed, p.packages...)
	}
	if err := installPackages(ctx, needed); err != nil {
		return err
	}
	if err := os.MkdirAll(root.output("bin"), 0o755); err != nil {
		return err
	}
	for _, p := range chosen {
		began := time.Now()
		if err := p.build(ctx, root); err != nil {
			return err
		}
		if took := time.Since(began).Round(time.Second); took > 5*time.Second {
			progress("built %s in %s", p.name, took)
		}
	}
	for _, name := range kubeCommands {
		if err := link("kube", root.bin(name)); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(root.bin(olderFolder), 0o755); err != nil {
		return err
	}
	for _, name := range olderCommands {
		if err := link("../kube-older", root.bin(filepath.Join(olderFolder, name))); err != nil {
			return err
		}
	}
	for name := range clients {
		if err := link("cluster", root.bin(name)); err != nil {
			return err
		}
	}
	return nil
}

// build builds one program unless its stamp shows that it is current.
func (p program) build(ctx context.Context, root repo) error {
	stamp, err := p.stamp(root)
	if err != nil {
		return err
	}
	stampFile := root.output("stamps", p.name)
	if built, err := os.ReadFile(stampFile); err == nil && len(p.inputs) > 0 && string(built) == stamp {
		if _, err := os.Stat(root.bin(p.name)); err == nil {
			return nil
		}
	}
	if len(p.inputs) > 0 {
		progress("building %s", p.label)
		defer heartbeat("still building " + p.name)()
	}
	verb := []string{"build"}
	if p.tests {
		verb = []string{"test", "-c"}
	}
	flags := []string{"-trimpath", "-buildvcs=false", "-tags", p.tags, "-ldflags", "-s -w " + p.ldflags, "-o", root.bin(p.name), p.pack}
	command := exec.CommandContext(ctx, "go", append(verb, flags...)...)
	command.Dir = root.source(p.folder)
	// The compiler collects its garbage less often: a tenth less time, for some hundred megabytes more.
	command.Env = append(os.Environ(), "GOGC=400")
	if p.static {
		command.Env = append(command.Env, "CGO_ENABLED=0")
	}
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	if err := command.Run(); err != nil {
		return fmt.Errorf("build %s: %w", p.name, err)
	}
	return writeFile(stampFile, []byte(stamp), 0o644)
}

// stamp is a digest of everything that goes into a program.
func (p program) stamp(root repo) (string, error) {
	digest := sha256.New()
	fmt.Fprintln(digest, runtime.Version(), p.ldflags+p.tags, p.static)
	for _, input := range p.inputs {
		file, err := os.Open(root.source(input))
		if err != nil {
			return "", err
		}
		_, err = io.Copy(digest, file)
		file.Close()
		if err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%x", digest.Sum(nil)), nil
}

// heartbeat prints a line every 20 s until the returned function runs.
func heartbeat(what string) (stop func()) {
	began, done := time.Now(), make(chan struct{})
	go func() {
		tick := time.NewTicker(20 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				progress("%s: %.0f s", what, time.Since(began).Seconds())
			case <-done:
				return
			}
		}
	}()
	return func() { close(done) }
}

// link makes path a symbolic link to target, whatever it was.
func link(target, path string) error {
	if current, err := os.Readlink(path); err == nil && current == target {
		return nil
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.Symlink(target, path)
}
