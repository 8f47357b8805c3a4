package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestOnlyOurNamespacesAreOurs(t *testing.T) {
	for name, ours := range map[string]bool{
		"vnp-fabric": true, "vnp-control-plane": true, "vnp-internet": true, "vnp-node-12": true, "vnp-node-a": true, "vnp-vm-1": true,
		"vnp-test-7": false, "my-vnp-node-1": false, "vnp-vm-1-old": false, "fabric": false,
	} {
		if ourNetns.MatchString(name) != ours {
			t.Errorf("%s", name)
		}
	}
}

func TestAFolderWithForeignFilesIsNeitherTakenNorCleared(t *testing.T) {
	cluster := &Cluster{dir: t.TempDir()}
	precious := cluster.path("nodes", "precious")
	if err := writeFile(precious, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := cluster.claimFolder(); err == nil || !strings.Contains(err.Error(), "nodes") {
		t.Errorf("claimed: %v", err)
	}
	if err := cluster.clear(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
}

func TestAClearedFolderKeepsItsLogsAndCanBeTakenAgain(t *testing.T) {
	cluster := &Cluster{dir: filepath.Join(t.TempDir(), "new")}
	if err := cluster.claimFolder(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{cluster.kubeconfig(), cluster.log("etcd")} {
		if err := writeFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := cluster.clear(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(cluster.kubeconfig()); !os.IsNotExist(err) {
		t.Errorf("the kubeconfig: %v", err)
	}
	if _, err := os.Stat(cluster.log("etcd")); err != nil {
		t.Error(err)
	}
	if err := cluster.claimFolder(); err != nil {
		t.Error(err)
	}
}

func TestChangesOfTheStateAtTheSameTimeAreAllKept(t *testing.T) {
	cluster := &Cluster{dir: t.TempDir()}
	if err := cluster.writeState(State{}); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if err := cluster.change(func(s *State) { s.Nodes = append(s.Nodes, Node{}) }); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	state, err := cluster.state()
	if err != nil || len(state.Nodes) != 20 {
		t.Errorf("%d nodes, %v", len(state.Nodes), err)
	}
}

func TestAnUnknownNameIsAnsweredWithTheKnownOnes(t *testing.T) {
	state := State{Nodes: []Node{{Name: "node-1", Netns: "vnp-node-1"}}, Internet: &Machine{Name: "internet", Netns: "vnp-internet"}}
	if netns, err := state.netns("internet"); err != nil || netns != "vnp-internet" {
		t.Errorf("%q %v", netns, err)
	}
	if _, err := state.netns("node-2"); err == nil || !strings.Contains(err.Error(), "node-1") {
		t.Error(err)
	}
}

func TestTheHookIsAddedToTheSpecificationAndNothingElseChanges(t *testing.T) {
	spec, err := addHook([]byte(`{"ociVersion":"1.0.2","process":{"cwd":"/"}}`))
	if err != nil {
		t.Fatal(err)
	}
	var found struct {
		OCIVersion string `json:"ociVersion"`
		Process    struct{ Cwd string }
		Hooks      struct{ CreateContainer []struct{ Path string } }
	}
	parse(t, spec, &found)
	if found.OCIVersion != "1.0.2" || found.Process.Cwd != "/" || found.Hooks.CreateContainer[0].Path != "/usr/local/bin/cluster" {
		t.Errorf("%s", spec)
	}
}

func TestAKubeletHasItsOwnCgroupAndItsProviderID(t *testing.T) {
	content, err := json.Marshal(kubeletConfig(Node{Name: "node-7", ProviderID: "azure:///x"}))
	if err != nil {
		t.Fatal(err)
	}
	var found struct{ CgroupRoot, ProviderID string }
	parse(t, content, &found)
	if found.CgroupRoot != "/vnp-node-7" || found.ProviderID != "azure:///x" {
		t.Errorf("%+v", found)
	}
}

func TestWaitingEndsAtOnceWhenThereIsNoHope(t *testing.T) {
	asked := 0
	err := wait(t.Context(), "it", 5*time.Second, func() error {
		asked++
		return errors.Join(errDoomed, errors.New("dead"))
	})
	if !errors.Is(err, errDoomed) || asked != 1 {
		t.Errorf("asked %d times: %v", asked, err)
	}
}

func TestATimeoutNamesTheLastError(t *testing.T) {
	err := wait(t.Context(), "the door", time.Millisecond, func() error { return errors.New("it is locked") })
	if err == nil || !strings.Contains(err.Error(), "the door") || !strings.Contains(err.Error(), "locked") {
		t.Error(err)
	}
}

func TestAMarkIsThatOfOneClusterAndNoOther(t *testing.T) {
	environment := []byte("HOME=/root\x00" + marker + "=/clusters/one\x00LANG=C\x00")
	for dir, ours := range map[string]bool{"/clusters/one": true, "/clusters": false, "/clusters/one/more": false, "": false} {
		if marked(environment, dir) != ours {
			t.Errorf("%q", dir)
		}
	}
}

// It kills by number, one child of this test. Code that searches for processes all over the machine stays out
// of unit tests: an error there would end other programs.
func TestAProcessIsKilledOnlyByItsOwnCluster(t *testing.T) {
	ours, theirs := &Cluster{dir: t.TempDir()}, &Cluster{dir: t.TempDir()}
	if err := os.Mkdir(ours.path("logs"), 0o755); err != nil {
		t.Fatal(err)
	}
	sleeper, err := ours.start(process{name: "sleeper", argv: []string{"/bin/sleep", "60"}})
	if err != nil {
		t.Fatal(err)
	}
	// The mark is there once the program is.
	if err := wait(t.Context(), "the mark", 10*time.Second, func() error {
		if !belongs(sleeper.pid, ours.dir) {
			return errors.New("not there")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(theirs.kill(sleeper.pid), sleeper.alive()); err != nil {
		t.Error(err)
	}
	if err := ours.kill(sleeper.pid); err != nil {
		t.Error(err)
	}
	<-sleeper.gone
}

func TestOnlyThePartsThatAreAskedForAreBuilt(t *testing.T) {
	all, err := parts(nil)
	if err != nil || len(all)+3 != len(programs) {
		t.Errorf("%d of %d, %v: all but the three that have to be named", len(all), len(programs), err)
	}
	named, err := parts([]string{"conformance", "agnhost", "kube-older"})
	if err != nil || len(named) != 3 || slices.ContainsFunc(named, func(p program) bool { return !p.onRequest }) {
		t.Errorf("%v, %v", named, err)
	}
	some, err := parts([]string{"kube", "helm"})
	if err != nil || len(some) != 2 || some[0].name != "kube" || some[1].name != "helm-"+helmVersion {
		t.Errorf("%v, %v", some, err)
	}
	if _, err := parts([]string{"kube", "cni"}); err == nil || !strings.Contains(err.Error(), "cnitool") {
		t.Errorf("an unknown part: %v", err)
	}
}

func TestOnlyAPartOfTheControlPlaneCanCrash(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{{"crash", "--dir", dir, "kubelet"}, {"crash", "--dir", dir}, {"crash", "--dir", dir, "etcd", "etcd"}} {
		if err := dispatch(t.Context(), args); !errors.Is(err, errUsage) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if err := dispatch(t.Context(), []string{"crash", "--dir", dir, "etcd"}); err == nil || !strings.Contains(err.Error(), "no etcd runs") {
		t.Errorf("without a cluster: %v", err)
	}
}
