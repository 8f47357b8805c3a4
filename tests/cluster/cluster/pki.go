// Keys, certificates and kubeconfigs, as kubeadm would lay them out.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"time"
)

// lifetime of every certificate: longer than any cluster of ours lives.
const lifetime = 30 * 24 * time.Hour

// authority signs the certificates of one cluster. One authority for servers, clients and kubelets is
// enough here.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	bundle      []byte // PEM
}

// subject is whom a certificate names. Hosts and addresses make it a server's as well as a client's.
type subject struct {
	name      string
	groups    []string
	hosts     []string
	addresses []net.IP
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "vnetpool test cluster"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(lifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{certificate, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}, nil
}

// issue gives a certificate and its key, both PEM.
func (a *authority) issue(s subject) (certificate, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: s.name, Organization: s.groups},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(lifetime),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:     s.hosts,
		IPAddresses:  s.addresses,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, private.Public(), a.key)
	if err != nil {
		return nil, nil, err
	}
	key, err = encodeKey(private)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key, err
}

// encodeKey gives SEC 1, the one form from which the API server derives a public key without help.
func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), err
}

// save keeps the authority for the nodes that are added later.
func (a *authority) save(c *Cluster) error {
	key, err := encodeKey(a.key)
	if err != nil {
		return err
	}
	if err := writeFile(c.pki("ca.key"), key, 0o600); err != nil {
		return err
	}
	return writeFile(c.pki("ca.crt"), a.bundle, 0o644)
}

func loadAuthority(c *Cluster) (*authority, error) {
	pair, err := tls.LoadX509KeyPair(c.pki("ca.crt"), c.pki("ca.key"))
	if err != nil {
		return nil, err
	}
	bundle, err := os.ReadFile(c.pki("ca.crt"))
	return &authority{pair.Leaf, pair.PrivateKey.(*ecdsa.PrivateKey), bundle}, err
}

// writePair issues a certificate into PREFIX.crt and PREFIX.key.
func (a *authority) writePair(prefix string, s subject) error {
	certificate, key, err := a.issue(s)
	if err != nil {
		return err
	}
	if err := writeFile(prefix+".crt", certificate, 0o644); err != nil {
		return err
	}
	return writeFile(prefix+".key", key, 0o600)
}

// writeKubeconfig issues a client's certificate and writes a kubeconfig around it; it is JSON, which every
// reader of YAML reads.
func (a *authority) writeKubeconfig(path, server string, s subject) error {
	certificate, key, err := a.issue(s)
	if err != nil {
		return err
	}
	// Byte slices turn into base64, as a kubeconfig wants them.
	content, err := json.MarshalIndent(object{
		"apiVersion": "v1",
		"kind":       "Config",
		"clusters": []object{{"name": "vnetpool", "cluster": object{
			"server": server, "certificate-authority-data": a.bundle}}},
		"users": []object{{"name": s.name, "user": object{
			"client-certificate-data": certificate, "client-key-data": key}}},
		"contexts": []object{{"name": "vnetpool", "context": object{
			"cluster": "vnetpool", "user": s.name}}},
		"current-context": "vnetpool",
	}, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(path, append(content, '\n'), 0o600)
}
