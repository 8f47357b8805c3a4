// Monitors fails on an object of the Prometheus operator's that its own types don't know. It reads the
// objects as YAML documents, and ignores those of other APIs.
package main

import (
	"bytes"
	"fmt"
	"io"
	"os"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"sigs.k8s.io/yaml"
)

func main() {
	if err := run(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(in io.Reader) error {
	all, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	found := 0
	for _, document := range bytes.Split(all, []byte("\n---\n")) {
		var kind struct{ APIVersion, Kind string }
		if err := yaml.Unmarshal(document, &kind); err != nil {
			return err
		}
		if kind.APIVersion != "monitoring.coreos.com/v1" {
			continue
		}
		object := map[string]any{"PodMonitor": &monitoring.PodMonitor{}, "PrometheusRule": &monitoring.PrometheusRule{}}[kind.Kind]
		if object == nil {
			return fmt.Errorf("there is no kind %s", kind.Kind)
		}
		if err := yaml.UnmarshalStrict(document, object); err != nil {
			return fmt.Errorf("%s: %w", kind.Kind, err)
		}
		found++
	}
	fmt.Println(found)
	return nil
}
