// kubectl and helm, started so that they leave nothing in the home folder.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// The binary behind each client's name.
var clients = map[string]string{"kubectl": "kube", "helm": "helm-" + helmVersion}

// client becomes kubectl or helm, with their caches beside the binaries.
func client(name string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	folder := filepath.Dir(self)
	home := filepath.Join(filepath.Dir(folder), "clients")
	environment := os.Environ()
	for _, variable := range []string{"KUBECACHEDIR", "HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"} {
		if os.Getenv(variable) == "" {
			environment = append(environment, variable+"="+filepath.Join(home, variable))
		}
	}
	path := filepath.Join(folder, clients[name])
	return fmt.Errorf("%s: %w", path, syscall.Exec(path, append([]string{name}, os.Args[1:]...), environment))
}
