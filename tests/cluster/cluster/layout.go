// Where everything is: the repository's folders and a cluster's own.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// repo is the root of the working tree.
type repo string

// findRepo gives the working tree this binary was built into, or else the one around the current folder.
func findRepo() (repo, error) {
	var starts []string
	if self, err := os.Executable(); err == nil {
		starts = append(starts, filepath.Dir(self))
	}
	if here, err := os.Getwd(); err == nil {
		starts = append(starts, here)
	}
	for _, start := range starts {
		for folder := start; ; folder = filepath.Dir(folder) {
			if _, err := os.Stat(filepath.Join(folder, "tests/cluster/go.mod")); err == nil {
				return repo(folder), nil
			}
			if folder == "/" {
				break
			}
		}
	}
	return "", errors.New("no working tree found: run this from inside the repository")
}

func (r repo) path(parts ...string) string {
	return filepath.Join(append([]string{string(r)}, parts...)...)
}

func (r repo) source(parts ...string) string {
	return r.path(append([]string{"tests/cluster"}, parts...)...)
}

func (r repo) output(parts ...string) string {
	return r.path(append([]string{"target/cluster"}, parts...)...)
}

func (r repo) bin(name string) string { return r.output("bin", name) }

// program is one of the Rust programs, which cargo builds for this machine's architecture.
func (r repo) program(name string) string {
	architecture := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	return r.path("target", architecture+"-unknown-linux-gnu", "debug", name)
}

// entries are what a cluster keeps in its folder beside its logs.
var entries = []string{"nodes", "etcd", "etcd.saved", "pki", "kubeconfig", "state.json", "state.json.new", "state.lock", "azure.sock"}

// Cluster is one cluster, known by the folder that holds all of its state.
type Cluster struct {
	dir  string
	repo repo
}

// open gives the cluster of a folder, which need not exist.
func open(dir string) (*Cluster, error) {
	if dir == "" {
		return nil, errors.New("--dir is missing: name the folder that holds the cluster's state")
	}
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	root, err := findRepo()
	if err != nil {
		return nil, err
	}
	cluster := &Cluster{dir: absolute, repo: root}
	// sun_path holds 107 bytes and a NUL.
	if socket := cluster.adminSocket(); len(socket) > 107 {
		return nil, fmt.Errorf("%s is %d bytes long and a socket's path may have 107: choose a shorter --dir", socket, len(socket))
	}
	return cluster, nil
}

func (c *Cluster) path(parts ...string) string {
	return filepath.Join(append([]string{c.dir}, parts...)...)
}

func (c *Cluster) mark() string                { return c.path("vnetpool-test-cluster") }
func (c *Cluster) adminSocket() string         { return c.path("azure.sock") }
func (c *Cluster) kubeconfig() string          { return c.path("kubeconfig") }
func (c *Cluster) log(name string) string      { return c.path("logs", name+".log") }
func (c *Cluster) pki(name string) string      { return c.path("pki", name) }
func (c *Cluster) home(node string) string     { return c.path("nodes", node) }
func (c *Cluster) archives() ([]string, error) { return filepath.Glob(c.repo.output("images/*.tar")) }
func (c *Cluster) etc(node, path string) string {
	return filepath.Join(c.home(node), "etc/upper", path)
}

// writeFile creates the folders above a file, too.
func writeFile(path string, content []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, content, mode)
}
