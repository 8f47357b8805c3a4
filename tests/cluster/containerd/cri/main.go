// Command cri asks a container runtime what a kubelet asks: its network's status, a pod's sandbox, the
// end of one.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "cri SOCKET status | run NAME | remove ID")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	answer, err := ask(ctx, os.Args[1], os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = json.NewEncoder(os.Stdout).Encode(answer)
}

func ask(ctx context.Context, socket string, words []string) (any, error) {
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	client := runtime.NewRuntimeServiceClient(connection)
	switch {
	case words[0] == "status":
		return status(ctx, client)
	case words[0] == "run" && len(words) == 2:
		return run(ctx, client, words[1])
	case words[0] == "remove" && len(words) == 2:
		if _, err := client.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: words[1]}); err != nil {
			return nil, err
		}
		return client.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: words[1]})
	}
	return nil, fmt.Errorf("no such request: %q", words)
}

// status is whether the network is ready, which containerd 2 asks its CNI plugins by STATUS.
func status(ctx context.Context, client runtime.RuntimeServiceClient) (any, error) {
	answer, err := client.Status(ctx, &runtime.StatusRequest{})
	if err != nil {
		return nil, err
	}
	for _, condition := range answer.Status.Conditions {
		if condition.Type == runtime.NetworkReady {
			return map[string]any{"ready": condition.Status, "message": condition.Message}, nil
		}
	}
	return nil, fmt.Errorf("no condition %s", runtime.NetworkReady)
}

// run makes a pod's sandbox and returns the address it got.
func run(ctx context.Context, client runtime.RuntimeServiceClient, name string) (any, error) {
	made, err := client.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Linux:    &runtime.LinuxPodSandboxConfig{},
	}})
	if err != nil {
		return nil, err
	}
	found, err := client.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: made.PodSandboxId})
	if err != nil {
		return nil, err
	}
	return map[string]any{"id": made.PodSandboxId, "address": found.Status.Network.Ip}, nil
}
