// The control plane: etcd, the API server, the controller manager and the scheduler.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"time"
)

const (
	controlPlaneNetns = "vnp-control-plane"
	serviceRange      = "172.30.0.0/16"
	serviceAddress    = "172.30.0.1"  // of the Service kubernetes: the range's first
	clusterDNSAddress = "172.30.0.10" // what pods are told to ask; a test that needs names brings CoreDNS there
)

// place is where a control plane runs and how it is reached.
type place struct {
	netns   string // empty: the root namespace, everything on loopback
	address string // the nodes' way to it
	server  string // the kubeconfig's URL
	api     int
	etcd    int
	peer    int
	older   bool // the API server and its controllers are of the older Kubernetes
}

// vnetPlace is a VM of the VNet.
func vnetPlace(address string, forwarded int) place {
	return place{netns: controlPlaneNetns, address: address,
		server: fmt.Sprintf("https://127.0.0.1:%d", forwarded), api: 6443, etcd: 2379, peer: 2380}
}

// loopbackPlace is the root namespace, on ports that were free a moment ago.
func loopbackPlace() (place, error) {
	var ports [3]int
	for i := range ports {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return place{}, err
		}
		// Held until all are chosen, so that they differ.
		defer listener.Close()
		ports[i] = listener.Addr().(*net.TCPAddr).Port
	}
	return place{address: "127.0.0.1", server: fmt.Sprintf("https://127.0.0.1:%d", ports[0]),
		api: ports[0], etcd: ports[1], peer: ports[2]}, nil
}

// kube is the path of a command of the Kubernetes that runs here.
func (c *Cluster) kube(p place, name string) string {
	if p.older {
		name = filepath.Join(olderFolder, name)
	}
	return c.repo.bin(name)
}

func (p place) apiServer() string {
	return "https://" + net.JoinHostPort(p.address, strconv.Itoa(p.api))
}

// writeCredentials makes every key the control plane needs, and the administrator's kubeconfig.
func (c *Cluster) writeCredentials(ca *authority, p place) error {
	if err := ca.save(c); err != nil {
		return err
	}
	accounts, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	key, err := encodeKey(accounts)
	if err != nil {
		return err
	}
	if err := writeFile(c.pki("service-accounts.key"), key, 0o600); err != nil {
		return err
	}
	if err := ca.writePair(c.pki("apiserver"), subject{
		name:      "kube-apiserver",
		hosts:     []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		addresses: []net.IP{net.ParseIP(p.address), net.ParseIP("127.0.0.1"), net.ParseIP(serviceAddress)},
	}); err != nil {
		return err
	}
	if err := ca.writePair(c.pki("apiserver-kubelet-client"), subject{
		name: "kube-apiserver-kubelet-client", groups: []string{"system:masters"}}); err != nil {
		return err
	}
	local := fmt.Sprintf("https://127.0.0.1:%d", p.api)
	for _, component := range []string{"kube-controller-manager", "kube-scheduler"} {
		if err := ca.writeKubeconfig(c.pki(component+".kubeconfig"), local, subject{name: "system:" + component}); err != nil {
			return err
		}
	}
	return ca.writeKubeconfig(c.kubeconfig(), p.server, subject{name: "admin", groups: []string{"system:masters"}})
}

// startControlPlane gives the API server's process once it is ready; the controller manager, and for nodes
// the scheduler, run.
func (c *Cluster) startControlPlane(ctx context.Context, p place) error {
	etcdURL := fmt.Sprintf("http://127.0.0.1:%d", p.etcd)
	peerURL := fmt.Sprintf("http://127.0.0.1:%d", p.peer)
	if _, err := c.start(process{name: "etcd", netns: p.netns, argv: []string{c.repo.bin("etcd"),
		"--name=etcd", "--data-dir=" + c.path("etcd"),
		"--listen-client-urls=" + etcdURL, "--advertise-client-urls=" + etcdURL,
		"--listen-peer-urls=" + peerURL, "--initial-advertise-peer-urls=" + peerURL, "--initial-cluster=etcd=" + peerURL,
		"--unsafe-no-fsync", // this cluster's data need not outlive the machine
		"--log-level=warn",
	}}); err != nil {
		return err
	}
	bind, endpoints := "0.0.0.0", "lease"
	if p.netns == "" {
		// Nothing can reach a Service that points to loopback.
		bind, endpoints = "127.0.0.1", "none"
	}
	server, err := c.start(process{name: "kube-apiserver", netns: p.netns, argv: []string{c.kube(p, "kube-apiserver"),
		"--etcd-servers=" + etcdURL,
		"--bind-address=" + bind, "--secure-port=" + strconv.Itoa(p.api), "--advertise-address=" + p.address,
		"--endpoint-reconciler-type=" + endpoints,
		"--tls-cert-file=" + c.pki("apiserver.crt"), "--tls-private-key-file=" + c.pki("apiserver.key"),
		"--client-ca-file=" + c.pki("ca.crt"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + c.pki("service-accounts.key"),
		"--service-account-signing-key-file=" + c.pki("service-accounts.key"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--service-cluster-ip-range=" + serviceRange,
		"--kubelet-client-certificate=" + c.pki("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + c.pki("apiserver-kubelet-client.key"),
		"--kubelet-certificate-authority=" + c.pki("ca.crt"),
		"--kubelet-preferred-address-types=InternalIP",
		"--allow-privileged=true",
	}})
	if err != nil {
		return err
	}
	api, err := c.apiServer()
	if err != nil {
		return err
	}
	if err := server.await(ctx, "the API server", time.Minute, func() error {
		return api.do(ctx, http.MethodGet, "/readyz", nil)
	}); err != nil {
		return fmt.Errorf("%w\nthe end of etcd's log:\n%s", err, tail(c.log("etcd")))
	}
	controllers := "*"
	if p.netns == "" {
		// Its Nodes have no kubelet: nothing is to taint them and to report that they are gone.
		controllers = "*,-node-lifecycle-controller,-taint-eviction-controller"
	}
	if _, err := c.start(process{name: "kube-controller-manager", netns: p.netns, argv: []string{c.kube(p, "kube-controller-manager"),
		"--controllers=" + controllers,
		"--kubeconfig=" + c.pki("kube-controller-manager.kubeconfig"),
		"--service-account-private-key-file=" + c.pki("service-accounts.key"), "--root-ca-file=" + c.pki("ca.crt"),
		"--use-service-account-credentials=true",
		"--allocate-node-cidrs=false", "--leader-elect=false", "--secure-port=0",
		"--kube-api-qps=200", "--kube-api-burst=400", // its default, 20, makes the start alone take 5 s
	}}); err != nil {
		return err
	}
	if p.netns == "" {
		return nil
	}
	_, err = c.start(process{name: "kube-scheduler", netns: p.netns, argv: []string{c.repo.bin("kube-scheduler"),
		"--kubeconfig=" + c.pki("kube-scheduler.kubeconfig"), "--leader-elect=false", "--secure-port=0",
	}})
	return err
}

// awaitDefaultAccount waits for what every pod in the namespace default needs.
func (c *Cluster) awaitDefaultAccount(ctx context.Context) error {
	api, err := c.apiServer()
	if err != nil {
		return err
	}
	return wait(ctx, "the service account default", 30*time.Second, func() error {
		if err := api.do(ctx, http.MethodGet, "/api/v1/namespaces/default/serviceaccounts/default", nil); err != nil {
			return err
		}
		return api.do(ctx, http.MethodGet, "/api/v1/namespaces/default/configmaps/kube-root-ca.crt", nil)
	})
}
