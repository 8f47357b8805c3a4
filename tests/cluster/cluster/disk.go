// A node's disk: the files that a machine's installer would have put there.
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
)

const (
	containerdSocket = "/run/containerd/containerd.sock"
	referencePlugins = "/usr/lib/cni" // Debian's
)

// The reference plugins that a node has: loopback for containerd, the others for our chain.
var plugins = []string{"loopback", "portmap", "bandwidth"}

// containerd's configuration. restrict_oom_score_adj: a machine without CAP_SYS_RESOURCE can't raise a
// score's privilege.
// base_runtime_spec: containers mount a /proc of their own, which would show this machine's boot id, not the
// node's.
const containerdConfig = `version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:dev"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      base_runtime_spec = "/etc/containerd/base-spec.json"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
`

// kubeletConfig is a kubelet's configuration. Evictions and image collection are off: the nodes share one
// disk and one memory, and their pressure isn't the node's. maxPods leaves room for 250 pods beside those of
// the node's own network.
func kubeletConfig(node Node) map[string]any {
	return object{
		"apiVersion":                    "kubelet.config.k8s.io/v1beta1",
		"kind":                          "KubeletConfiguration",
		"authentication":                object{"anonymous": object{"enabled": false}, "webhook": object{"enabled": true}, "x509": object{"clientCAFile": "/etc/kubernetes/pki/ca.crt"}},
		"authorization":                 object{"mode": "Webhook"},
		"tlsCertFile":                   "/etc/kubernetes/pki/kubelet.crt",
		"tlsPrivateKeyFile":             "/etc/kubernetes/pki/kubelet.key",
		"providerID":                    node.ProviderID,
		"containerRuntimeEndpoint":      "unix://" + containerdSocket,
		"cgroupDriver":                  "cgroupfs",
		"cgroupRoot":                    cgroupRoot(node.Name),
		"failCgroupV1":                  false,
		"failSwapOn":                    false,
		"enforceNodeAllocatable":        []string{},
		"localStorageCapacityIsolation": false,
		"evictionHard":                  object{},
		"imageGCHighThresholdPercent":   100,
		"maxPods":                       256,
		"resolvConf":                    "/etc/kubernetes/resolv.conf",
		"clusterDNS":                    []string{clusterDNSAddress},
		"clusterDomain":                 "cluster.local",
		"volumePluginDir":               "/var/lib/kubelet/volume-plugins",
	}
}

// writeDisk fills a new node's disk: /etc, /opt and /var/lib as it will see them.
func (c *Cluster) writeDisk(node Node, state State) error {
	ca, err := loadAuthority(c)
	if err != nil {
		return err
	}
	spec, err := baseSpec()
	if err != nil {
		return err
	}
	kubelet, err := json.MarshalIndent(kubeletConfig(node), "", "  ")
	if err != nil {
		return err
	}
	for _, folder := range []string{"etc/work", "etc/upper/cni", "cni/net.d", "opt/cni/bin", "var/lib/kubelet", "var/lib/containerd", "var/lib/cni"} {
		if err := os.MkdirAll(filepath.Join(c.home(node.Name), folder), 0o755); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(c.path("logs", node.Name), 0o755); err != nil {
		return err
	}
	for path, content := range map[string][]byte{
		"hostname":                  []byte(node.Name + "\n"),
		"containerd/config.toml":    []byte(containerdConfig),
		"containerd/base-spec.json": spec,
		"kubernetes/kubelet.yaml":   kubelet,
		"kubernetes/resolv.conf":    []byte("nameserver " + resolverAddress + "\n"),
		"kubernetes/pki/ca.crt":     ca.bundle,
	} {
		if err := writeFile(c.etc(node.Name, path), content, 0o644); err != nil {
			return err
		}
	}
	for _, plugin := range plugins {
		content, err := os.ReadFile(filepath.Join(referencePlugins, plugin))
		if err != nil {
			return fmt.Errorf("%w: run cluster build, which installs what is missing", err)
		}
		if err := writeFile(filepath.Join(c.home(node.Name), "opt/cni/bin", plugin), content, 0o755); err != nil {
			return err
		}
	}
	if err := ca.writePair(c.etc(node.Name, "kubernetes/pki/kubelet"), subject{
		name: "kubelet", hosts: []string{node.Name}, addresses: []net.IP{net.ParseIP(node.Address)}}); err != nil {
		return err
	}
	if err := ca.writeKubeconfig(c.etc(node.Name, "kubernetes/kubelet.kubeconfig"), state.APIServer, subject{
		name: "system:node:" + node.Name, groups: []string{"system:nodes"}}); err != nil {
		return err
	}
	return ca.writeKubeconfig(c.etc(node.Name, "kubernetes/kube-proxy.kubeconfig"), state.APIServer, subject{name: "system:kube-proxy"})
}

// baseSpec is what containerd starts a container's specification from, and our hook added.
func baseSpec() ([]byte, error) {
	output, err := exec.Command("ctr", "oci", "spec").Output()
	if err != nil {
		return nil, fmt.Errorf("ctr oci spec: %w", err)
	}
	return addHook(output)
}

// addHook makes every container run our hook once its mounts are there and before it sees them.
func addHook(spec []byte) ([]byte, error) {
	var object map[string]any
	if err := json.Unmarshal(spec, &object); err != nil {
		return nil, fmt.Errorf("the runtime specification of `ctr oci spec`: %w", err)
	}
	object["hooks"] = map[string]any{"createContainer": []any{map[string]any{
		"path": toolsFolder + "/cluster", "args": []string{"cluster", "boot-id-hook"}}}}
	return json.Marshal(object)
}
