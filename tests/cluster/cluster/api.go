// The few requests this tool has for the API server.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// apiServer is an administrator's way to the API server.
type apiServer struct {
	url    string
	client *http.Client
}

// apiServer reads the cluster's kubeconfig.
func (c *Cluster) apiServer() (*apiServer, error) {
	content, err := os.ReadFile(c.kubeconfig())
	if err != nil {
		return nil, err
	}
	var config struct {
		Clusters []struct {
			Cluster struct {
				Server string `json:"server"`
				CA     []byte `json:"certificate-authority-data"`
			} `json:"cluster"`
		} `json:"clusters"`
		Users []struct {
			User struct {
				Certificate []byte `json:"client-certificate-data"`
				Key         []byte `json:"client-key-data"`
			} `json:"user"`
		} `json:"users"`
	}
	if err := json.Unmarshal(content, &config); err != nil || len(config.Clusters) != 1 || len(config.Users) != 1 {
		return nil, fmt.Errorf("%s is not as this tool wrote it (%v): take the cluster down and up again", c.kubeconfig(), err)
	}
	pair, err := tls.X509KeyPair(config.Users[0].User.Certificate, config.Users[0].User.Key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(config.Clusters[0].Cluster.CA)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}}
	return &apiServer{
		url:    config.Clusters[0].Cluster.Server,
		client: &http.Client{Transport: transport, Timeout: 5 * time.Second},
	}, nil
}

// do sends a request without a body and decodes the answer's, unless into is nil.
func (a *apiServer) do(ctx context.Context, method, path string, into any) error {
	request, err := http.NewRequestWithContext(ctx, method, a.url+path, nil)
	if err != nil {
		return err
	}
	return exchange(a.client, request, into)
}

// statusError is an answer that is not a success.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string { return e.text }

func exchange(client *http.Client, request *http.Request, into any) error {
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode/100 != 2 {
		return &statusError{response.StatusCode, fmt.Sprintf("%s %s: %s: %s", request.Method, request.URL.Path, response.Status, body)}
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("%s %s: %w", request.Method, request.URL.Path, err)
	}
	return nil
}

// nodeObject is the part of a Node that we read.
type nodeObject struct {
	Spec struct {
		ProviderID string `json:"providerID"`
	} `json:"spec"`
	Status struct {
		NodeInfo struct {
			BootID string `json:"bootID"`
		} `json:"nodeInfo"`
	} `json:"status"`
}

// registered is nil once the node's kubelet has reported this boot.
func (a *apiServer) registered(ctx context.Context, node, bootID string) error {
	var object nodeObject
	if err := a.do(ctx, http.MethodGet, "/api/v1/nodes/"+node, &object); err != nil {
		return err
	}
	if found := object.Status.NodeInfo.BootID; found != bootID {
		return fmt.Errorf("Node %s reports boot %q, not yet %q", node, found, bootID)
	}
	return nil
}
