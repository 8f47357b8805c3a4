// Debian packages that a node needs and a clean machine lacks.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

var packages = []string{
	"conntrack", "containerd", "containernetworking-plugins", "iproute2", "ipset", "iptables", "nftables", "runc",
}

// Programs that some tests run beside or instead of a node's own, or that the documents' commands ask for.
var testPackages = []string{"docker.io", "haproxy", "jq", "podman", "prometheus", "strace", "systemd"}

// Debian's own switch against services that start upon installation: a script that forbids
// it (invoke-rc.d(8)).
const (
	policyFile   = "/usr/sbin/policy-rc.d"
	policyScript = "#!/bin/sh\nexit 101\n"
)

// installPackages installs what is missing of these and starts none of it.
func installPackages(ctx context.Context, needed []string) (err error) {
	missing := missingPackages(needed)
	if len(missing) == 0 {
		return nil
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("these Debian packages are missing: %s: run this as root, or install them", strings.Join(missing, " "))
	}
	progress("installing Debian packages: %s", strings.Join(missing, " "))
	defer heartbeat("still installing packages")()
	// A policy that is there already is the machine's owner's: it stays as it is.
	policy, err := os.OpenFile(policyFile, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err == nil {
		defer func() { err = errors.Join(err, os.Remove(policyFile)) }()
		_, err = policy.WriteString(policyScript)
		policy.Close()
		if err != nil {
			return err
		}
	} else if !os.IsExist(err) {
		return err
	}
	if err := apt(ctx, "update", "--quiet"); err != nil {
		return err
	}
	return apt(ctx, append([]string{"install", "--yes", "--quiet", "--no-install-recommends"}, missing...)...)
}

func missingPackages(needed []string) []string {
	var missing []string
	for _, name := range needed {
		status, err := exec.Command("dpkg-query", "--show", "--showformat=${db:Status-Status}", name).Output()
		if err != nil || string(status) != "installed" {
			missing = append(missing, name)
		}
	}
	return missing
}

func apt(ctx context.Context, args ...string) error {
	command := exec.CommandContext(ctx, "apt-get", args...)
	command.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	if err := command.Run(); err != nil {
		return fmt.Errorf("apt-get %s: %w", strings.Join(args, " "), err)
	}
	return nil
}
