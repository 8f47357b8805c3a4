// Images: root file systems turned into archives that containerd imports. There is no registry.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// image is a root file system and what runs in it.
type image struct {
	archive    string
	name       string
	root       string // folder with the root file system, below the repository
	entrypoint []string
	program    string // all there is in it, one of `build`'s or by its path one of Debian's; empty: somebody has staged it
	onRequest  bool   // not on every node, but where `load` brings it
}

var allImages = []image{
	{"operator", "localhost/vnetpool/operator:dev", "target/images/operator", []string{"/vnetpool-operator"}, "", false},
	{"node-agent", "localhost/vnetpool/node-agent:dev", "target/images/node-agent", []string{"/vnetpool-node-agent"}, "", false},
	{"probe", "localhost/probe:dev", "target/cluster/rootfs/probe", []string{"/probe"}, "probe", false},
	{"pause", "localhost/pause:dev", "target/cluster/rootfs/probe", []string{"/probe", "pause"}, "probe", false},
	{"coredns", "localhost/coredns:dev", "target/cluster/rootfs/coredns", []string{"/coredns"}, "coredns", true},
	{"haproxy", "localhost/haproxy:dev", "target/cluster/rootfs/haproxy", []string{"/usr/sbin/haproxy"}, "/usr/sbin/haproxy", true},
}

// images makes every archive current; an image whose root file system nobody has staged is skipped aloud.
func images(ctx context.Context) error {
	root, err := findRepo()
	if err != nil {
		return err
	}
	for _, i := range allImages {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := i.build(root); err != nil {
			return fmt.Errorf("image %s: %w", i.name, err)
		}
	}
	return nil
}

// hasProgram tells whether what runs in the image is there.
func (i image) hasProgram(root repo) bool {
	path := i.program
	if !filepath.IsAbs(path) {
		path = root.bin(path)
	}
	_, err := os.Stat(path)
	return err == nil
}

// stage puts an image's program into its root file system, and with Debian's the libraries that the linker finds for it.
func (i image) stage(root repo) error {
	files := map[string]string{"/" + i.program: root.bin(i.program)}
	if i.program == "" {
		return nil
	}
	if filepath.IsAbs(i.program) {
		output, err := exec.Command("ldd", i.program).Output()
		if err != nil {
			return fmt.Errorf("ldd %s: %w", i.program, err)
		}
		files = map[string]string{i.program: i.program}
		for _, word := range strings.Fields(string(output)) {
			if filepath.IsAbs(word) {
				files[word] = word
			}
		}
	}
	for place, source := range files {
		content, err := os.ReadFile(source)
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(root.path(i.root), place), content, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// build writes one image's archive unless it holds just that already.
func (i image) build(root repo) error {
	folder := root.path(i.root)
	if i.onRequest && !i.hasProgram(root) {
		progress("image %s skipped: its program is not built", i.name)
		return nil
	}
	if err := i.stage(root); err != nil {
		return fmt.Errorf("%w: run cluster build first", err)
	}
	if _, err := os.Stat(folder); errors.Is(err, fs.ErrNotExist) {
		progress("image %s skipped: %s is missing; stage its root file system there first", i.name, i.root)
		return nil
	}
	if _, err := os.Stat(filepath.Join(folder, i.entrypoint[0])); err != nil {
		return fmt.Errorf("%w: stage the program there first", err)
	}
	content, err := ociArchive(i.name, i.entrypoint, os.DirFS(folder))
	if err != nil {
		return err
	}
	archive := root.output("images", i.archive+".tar")
	if i.onRequest {
		archive = root.output("images", "on-request", i.archive+".tar")
	}
	if current, err := os.ReadFile(archive); err == nil && bytes.Equal(current, content) {
		return nil
	}
	progress("image %s", i.name)
	// Into a new file, then renamed: nobody imports half an archive.
	if err := writeFile(archive+".new", content, 0o644); err != nil {
		return err
	}
	return os.Rename(archive+".new", archive)
}
