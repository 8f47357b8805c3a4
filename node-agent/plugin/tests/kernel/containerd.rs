//! containerd 2, built from its module, with our plugin: it asks for STATUS, and a pod's sandbox has an
//! address from ADD to DEL.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};
use vnetpool_plugin::ledger::file;

use crate::node::{Node, eventually, supply};

/// A file of the test cluster's, which `make cluster-build images` makes.
fn built(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/cluster").join(name);
    assert!(path.exists(), "{} is missing: run `make cluster-build images`", path.display());
    path
}

/// containerd in a node, in process and mount namespaces of its own, which end with it.
struct Containerd {
    process: Child,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Containerd {
    fn start(node: &Node) -> Containerd {
        // Not on a tmpfs: its layers are an overlay's.
        let dir = tempfile::tempdir_in(built("")).unwrap();
        let path = |name: &str| dir.path().join(name);
        for folder in ["bin", "net.d"] {
            fs::create_dir(path(folder)).unwrap();
        }
        fs::copy(env!("CARGO_BIN_EXE_vnetpool"), path("bin/vnetpool")).unwrap();
        fs::copy("/usr/lib/cni/loopback", path("bin/loopback")).unwrap();
        let plugin = json!({ "type": "vnetpool", "stateDir": node.dir.path() });
        // As the agent writes it: in 1.0.0 there is no STATUS, and containerd takes the newest it knows.
        let list = json!({ "cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0"], "name": "vnetpool", "plugins": [plugin] });
        fs::write(path("net.d/10-vnetpool.conflist"), list.to_string()).unwrap();
        let config = format!(
            r#"version = 2
root = "{root}"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:dev"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{bin}"
    conf_dir = "{net}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    runtime_path = "{shim}"
"#,
            shim = built("bin/containerd-2-shim").canonicalize().unwrap().display(),
            root = path("root").display(),
            bin = path("bin").display(),
            net = path("net.d").display(),
        );
        fs::write(path("config.toml"), config).unwrap();
        let start = format!(
            "mount -t tmpfs tmpfs /run && exec {} -c {}",
            built("bin/containerd-2").display(),
            path("config.toml").display()
        );
        let log = fs::File::create(path("log")).unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", &start])
            .stdout(Stdio::null())
            .stderr(log);
        let process = node.netns.inside(|| command.spawn().unwrap());
        // Its /run is its own: seen through its first process, the only child of unshare.
        let children = format!("/proc/{0}/task/{0}/children", process.id());
        let first = || fs::read_to_string(&children).ok()?.split_whitespace().next().map(str::to_owned);
        let first = eventually("unshare has started it", first, Option::is_some).unwrap();
        let socket = format!("/proc/{first}/root/run/containerd/containerd.sock").into();
        let containerd = Containerd { process, socket, _dir: dir };
        eventually("containerd serves", || containerd.ask(&["status"]), Result::is_ok).unwrap();
        containerd
    }

    fn ask(&self, words: &[&str]) -> Result<Value, String> {
        let output = Command::new(built("bin/cri")).arg(&self.socket).args(words).output().unwrap();
        match output.status.success() {
            true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// The pause image, imported from within its mount namespace: the import mounts layers.
    fn import(&self) {
        let mut import = Command::new("ctr");
        import
            .arg("-a")
            .arg(&self.socket)
            .args(["-n", "k8s.io", "images", "import"])
            .arg(built("images/pause.tar"));
        let output = import.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // With the first process of its process namespace everything in that ends, shims and sandboxes too.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn containerd_2_asks_for_the_status_and_gives_a_pod_an_address_until_it_ends() {
    let node = Node::holding(0);
    let containerd = Containerd::start(&node);
    let status = containerd.ask(&["status"]).unwrap();
    assert_eq!(status["ready"], false, "{status}");
    let message = status["message"].as_str().unwrap();
    assert!(message.contains("has not had an address for pods yet"), "{message}");

    node.store.with(|ledger, _| ledger.supply(&supply(2, 1))).unwrap();
    assert_eq!(containerd.ask(&["status"]).unwrap()["ready"], true);
    containerd.import();
    let pod = containerd.ask(&["run", "web"]).unwrap();
    assert_eq!(pod["address"], "10.240.1.1");
    let ledger = node.ledger();
    let (_, assignment) = ledger.assignments().next().unwrap();
    assert_eq!((assignment.pod.name.as_str(), assignment.pod.uid.as_str()), ("web", "uid-web"));
    assert_eq!(assignment.sandbox.container_id, pod["id"].as_str().unwrap());
    assert_eq!(containerd.ask(&["status"]).unwrap()["ready"], true, "a full node is a ready one");

    containerd.ask(&["remove", pod["id"].as_str().unwrap()]).unwrap();
    assert_eq!(node.ledger().counts(file::now()).free, 1);
}
