package main

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
)

func TestAKubeconfigReachesAServerThatHoldsTheSameAuthoritysCertificate(t *testing.T) {
	ca, err := newAuthority()
	if err != nil {
		t.Fatal(err)
	}
	certificate, key, err := ca.issue(subject{name: "server", addresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	clients.AddCert(ca.certificate)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller := r.TLS.PeerCertificates[0].Subject
		if caller.CommonName != "system:node:node-1" || caller.Organization[0] != "system:nodes" {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}
	server.StartTLS()
	defer server.Close()

	cluster := &Cluster{dir: t.TempDir()}
	who := subject{name: "system:node:node-1", groups: []string{"system:nodes"}}
	if err := ca.writeKubeconfig(cluster.kubeconfig(), server.URL, who); err != nil {
		t.Fatal(err)
	}
	api, err := cluster.apiServer()
	if err != nil {
		t.Fatal(err)
	}
	if err := api.do(t.Context(), http.MethodGet, "/readyz", nil); err != nil {
		t.Error(err)
	}
}

func TestASavedAuthorityIssuesForNodesAddedLater(t *testing.T) {
	cluster := &Cluster{dir: t.TempDir()}
	ca, err := newAuthority()
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.save(cluster); err != nil {
		t.Fatal(err)
	}
	again, err := loadAuthority(cluster)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.writePair(filepath.Join(cluster.dir, "node"), subject{name: "node"}); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(cluster.dir, "node.crt"), filepath.Join(cluster.dir, "node.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := pair.Leaf.CheckSignatureFrom(ca.certificate); err != nil {
		t.Error(err)
	}
}
