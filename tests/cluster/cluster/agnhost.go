// Agnhost: the image of the pods in which Kubernetes' own specs for a cluster's network run what
// they need.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const agnhostPackage = "k8s.io/kubernetes/test/images/agnhost"

// The programs that the specs start in its containers by a shell, beside agnhost: Debian's, by their paths.
var agnhostTools = []string{busybox, "/usr/bin/curl", "/usr/bin/dig", "/usr/bin/getent", "/usr/bin/nc"}

const busybox = "/usr/bin/busybox"

// agnhostNames are those under which the specs of Kubernetes 1.36.3 ask for images, with the registry that
// conformance/registries.yaml puts in the place of theirs. All it takes of the other three is that they run,
// or have the tools.
var agnhostNames = []string{
	"localhost/agnhost:2.63.0", "localhost/glibc-dns-testing:2.0.0", "localhost/nginx:1.15-4", "localhost/pause:3.10.2",
}

// agnhostImage is made as Kubernetes' own is: a container without a command of its own waits.
func agnhostImage() image {
	config := imageConfig{Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}}
	return image{
		archive: "agnhost", names: agnhostNames, recipe: recipe{root: "target/cluster/rootfs/agnhost", config: config},
		programs: append([]string{"agnhost"}, agnhostTools...), more: stageAgnhost, onRequest: true,
	}
}

// stageAgnhost adds busybox's other names, and the certificate with which agnhost serves where a
// spec asks for TLS.
func stageAgnhost(root repo, folder string) error {
	names, err := exec.Command(busybox, "--list-full").Output()
	if err != nil {
		return fmt.Errorf("%s --list-full: %w", busybox, err)
	}
	for _, name := range strings.Fields(string(names)) {
		link := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			return err
		}
		// A tool that was staged before busybox' own stays: nc, of which the specs want OpenBSD's.
		if err := os.Symlink(busybox, link); err != nil && !os.IsExist(err) {
			return err
		}
	}
	list := exec.Command("go", "list", "-f", "{{.Dir}}", agnhostPackage)
	list.Dir = root.source()
	output, err := list.Output()
	if err != nil {
		return fmt.Errorf("where Go has %s: %w", agnhostPackage, err)
	}
	source := filepath.Join(strings.TrimSpace(string(output)), "porter")
	for _, name := range []string{"localhost.crt", "localhost.key"} {
		content, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(folder, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
