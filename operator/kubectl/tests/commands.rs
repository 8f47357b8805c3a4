//! The program as its user starts it, with a kubectl on the PATH that answers for a cluster.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

const SUBSCRIPTION: &str = "0f1e2d3c-0000-4000-8000-00000000000a";
const POOLS: &str = "/apis/vnetpool.io/v1alpha1/nodeippools";
const ALLOCATIONS: &str = "/apis/vnetpool.io/v1alpha1/nodeipallocations";

/// A kubectl that answers from files, one for each path and command, and records its arguments.
struct Cluster {
    folder: TempDir,
}

impl Cluster {
    fn new() -> Cluster {
        let cluster = Cluster { folder: TempDir::new().unwrap() };
        let kubectl = r#"#!/bin/sh
here=$(dirname "$0")/..
echo "$*" >> "$here/calls"
case "$1 $2" in
    "get --raw") name=$(echo "$3" | sed -E 's/[?&](limit|fieldSelector)=[^&]*//g' | tr -c 'a-zA-Z0-9\n' _) ;;
    "logs "*) name=log_$4 ;;
    *" vnetpool-operator reserved") name=reserved ;;
    "exec "*) name=exec_$4 ;;
    "annotate "*) name=annotated; [ -d "$here/after" ] && cp "$here"/after/* "$here/answers/" ;;
esac
case "$*" in *"vnetpool-operator reserved") name=reserved; cat > "$here/asked" ;; esac
[ -e "$here/answers/$name" ] && exec cat "$here/answers/$name"
cat "$here/answers/refused" >&2
exit 1
"#;
        for name in ["bin", "answers"] {
            fs::create_dir(cluster.path(name)).unwrap();
        }
        fs::write(cluster.path("bin/kubectl"), kubectl).unwrap();
        fs::set_permissions(cluster.path("bin/kubectl"), fs::Permissions::from_mode(0o755)).unwrap();
        cluster.answer("refused", "refused");
        for program in ["operator", "node_agent"] {
            cluster.list(&pods_of(program), &[]);
        }
        for path in [POOLS, ALLOCATIONS, "/api/v1/nodes", "/api/v1/pods"] {
            cluster.list(path, &[]);
        }
        cluster
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn answer(&self, name: &str, text: &str) {
        let name: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        let name = if name.starts_with("_a") { name.replace('-', "_") } else { name };
        fs::write(self.path("answers").join(name), text).unwrap();
    }

    fn list(&self, path: &str, items: &[Value]) {
        self.answer(path, &json!({"items": items}).to_string());
    }

    fn run(&self, args: &[&str]) -> Output {
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        Command::new(env!("CARGO_BIN_EXE_kubectl-vnetpool")).args(args).env("PATH", path).output().unwrap()
    }

    fn calls(&self, part: &str) -> usize {
        fs::read_to_string(self.path("calls")).unwrap().lines().filter(|line| line.contains(part)).count()
    }

    /// Two nodes with one route table, and a program of each kind in a pod.
    fn filled() -> Cluster {
        let cluster = Cluster::new();
        cluster.list(ALLOCATIONS, &[allocation("node-1", 1), allocation("node-2", 2)]);
        cluster.list(&pods_of("operator"), &[pod("op", "node-1")]);
        cluster.list(&pods_of("node_agent"), &[pod("agent-1", "node-1"), pod("agent-2", "node-2")]);
        let view = |n: u8| {
            json!({"bootID": "boot", "generation": 1, "relinquished": [], "waiting": [], "wired": [],
                "addresses": [{"address": format!("10.9.0.{n}"), "name": format!("vnp-{n}"), "state": "Free"}]})
        };
        cluster.answer("exec_agent-1", &view(1).to_string());
        cluster.answer("exec_agent-2", &view(2).to_string());
        let route = |n: u8| {
            json!({"name": format!("vnp-{n}"), "address": format!("10.9.0.{n}/32"), "nextHop": format!("10.240.0.{n}"),
                "state": "Succeeded"})
        };
        let answer = json!({"id": table(), "reservations": [route(1), route(2)], "others": 0});
        cluster.answer("reserved", &format!("{answer}\n"));
        cluster
    }
}

fn pods_of(program: &str) -> String {
    format!(
        "/api/v1/namespaces/vnetpool-system/pods?labelSelector=app.kubernetes.io/name%3Dvnetpool,app.kubernetes.io/component%3D{program}"
    )
}

fn pod(name: &str, node: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "vnetpool-system"}, "spec": {"nodeName": node, "containers": []},
        "status": {"phase": "Running"}})
}

fn group() -> String {
    format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/acme")
}

fn table() -> String {
    format!("{}/providers/Microsoft.Network/routeTables/table", group())
}

fn allocation(node: &str, n: u8) -> Value {
    let nic = format!("{}/providers/Microsoft.Network/networkInterfaces/{node}-nic", group());
    json!({"apiVersion": "vnetpool.io/v1alpha1", "kind": "NodeIPAllocation",
        "metadata": {"name": node, "generation": 1, "uid": format!("u-{node}"),
            "managedFields": [{"fieldsV1": {(format!("k:{{\"id\":\"{nic}\"}}")): {}}}]},
        "spec": {"nodeUID": format!("uid-{node}"), "bootID": "boot", "pool": "default", "cooldown": "30s", "target": 1,
            "mode": "Route", "routeTableID": table(),
            "interfaces": [{"id": nic, "mac": "m", "primaryAddress": format!("10.240.0.{n}"), "subnet": {"id": "s"},
                "ipConfigurations": [{"name": format!("vnp-{n}"), "address": format!("10.9.0.{n}/32")}]}]}})
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The names and the text of all files.
fn content(folder: &Path) -> (Vec<String>, String) {
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<PathBuf> = files.collect();
    files.sort();
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let text: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    (files.iter().map(name).collect(), text)
}

#[test]
fn a_bundle_has_all_there_is_to_read_and_neither_ids_nor_secrets() {
    let cluster = Cluster::filled();
    // The operator knows a group that no object names, and reports that after the others have been written.
    cluster.answer("log_op", "{\"message\":\"late and {\\\"clientSecret\\\":\\\"s3cret\\\"}\"}\n");
    cluster
        .answer("log_agent-1", &format!("{{\"message\":\"GET {}/x\"}}\n", group().replace("acme", "late")));
    let deployment = json!({"metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration":
            "{\"name\":\"X_PASSWORD\",\"value\":\"s3cret\"}"}},
        "spec": {"containers": [{"args": ["--password=s3cret", "--password", "s3cret"],
            "env": [{"name": "PRIVATE_KEY", "value": "s3cret"}]}]}});
    cluster.list("/apis/apps/v1/namespaces/vnetpool_system/deployments", &[deployment]);
    let node =
        json!({"metadata": {"name": "node-1", "labels": {"kubernetes.azure.com/cluster": "MC_acme_k8s_x"}}});
    cluster.list("/api/v1/nodes", &[node]);
    let folder = cluster.path("bundle");
    cluster.answer("refused", &format!("User \"{SUBSCRIPTION}\" may not, by http://joe:s3cret@proxy"));

    let output = cluster.run(&["bundle", folder.to_str().unwrap()]);
    let (names, all) = content(&folder);
    let printed = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{printed}");
    for shown in [&all, &printed] {
        for secret in [SUBSCRIPTION, "s3cret", "acme", "late", "MC_", "managedFields"] {
            let safe = shown.replace(cluster.folder.path().to_str().unwrap(), "");
            assert!(!safe.contains(secret), "{secret} is in {safe}");
        }
    }
    let expected = [
        "ledger-node-1.json",
        "ledger-node-2.json",
        "log-agent-1.txt",
        "log-op.txt",
        "missing.txt",
        "nodeipallocations.json",
        "nodeippools.json",
        "nodes.json",
        "reserved.json",
        "workloads-deployments.json",
    ];
    assert_eq!(names, expected);
    let missing = fs::read_to_string(folder.join("missing.txt")).unwrap();
    for what in ["log-agent-2.txt: User \"id-", "pods.json: ", "events.json: ", "version.json: "] {
        assert!(missing.contains(what) && printed.contains(what), "no {what} in {missing} {printed}");
    }
    let asked = fs::read_to_string(cluster.path("asked")).unwrap();
    assert_eq!(asked.lines().count(), 1, "the table of both nodes is read once: {asked}");
    assert_eq!(
        cluster.calls("component%3Dnode-agent"),
        2,
        "agents' pods are listed once for logs and once for ledgers"
    );
}

/// Node 1 has left two NICs, of which one is gone.
fn with_left_nics() -> Cluster {
    let cluster = Cluster::filled();
    let nic = |name: &str| {
        let group = group().replace("acme", "former-group");
        format!("{group}/providers/Microsoft.Network/networkInterfaces/{name}")
    };
    let left = |name: &str| json!({"id": nic(name), "mac": "m", "primaryAddress": "10.240.0.9", "subnet": {"id": "s"}});
    let mut node = allocation("node-1", 1);
    node["spec"]["leftInterfaces"] = json!([left("locked"), left("deleted")]);
    cluster.list(ALLOCATIONS, &[node, allocation("node-2", 2)]);
    let one = json!({"name": "vnp-9", "address": "10.240.0.10/32", "state": "Succeeded"});
    let locked = json!({"id": nic("locked"), "reservations": [one], "others": 1});
    let deleted = json!({"id": nic("deleted"), "error": "not found", "isAbsent": true, "reservations": [], "others": 0});
    let table = fs::read_to_string(cluster.path("answers/reserved")).unwrap();
    cluster.answer("reserved", &format!("{table}{locked}\n{deleted}\n"));
    cluster
}

#[test]
fn a_bundle_has_what_left_nics_hold_and_neither_their_ids_nor_their_groups() {
    let cluster = with_left_nics();
    let folder = cluster.path("bundle");
    cluster.run(&["bundle", folder.to_str().unwrap()]);
    let (_, all) = content(&folder);
    assert!(!all.contains(SUBSCRIPTION) && !all.contains("former-group"), "{all}");
    let reserved = fs::read_to_string(folder.join("reserved.json")).unwrap();
    for part in ["/locked", "vnp-9", "/deleted", "isAbsent"] {
        assert!(reserved.contains(part), "no {part} in {reserved}");
    }
    let missing = fs::read_to_string(folder.join("missing.txt")).unwrap();
    assert!(!missing.contains("reserved.json"), "{missing}");
}

#[test]
fn a_check_reads_left_nics_too_and_finds_no_fault_in_what_is_recorded() {
    let cluster = with_left_nics();
    let output = cluster.run(&["check"]);
    let printed = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success() && printed.contains("agree on each node: 2"), "{printed}");
    assert!(printed.contains("vnp-9") && printed.contains("the node has left this NIC"), "{printed}");
    let asked = fs::read_to_string(cluster.path("asked")).unwrap();
    assert_eq!(asked.lines().count(), 3, "the table, and each left NIC: {asked}");
}

#[test]
fn a_bundle_names_the_parts_that_it_could_not_read() {
    let cluster = Cluster::filled();
    fs::remove_file(cluster.path("answers").join(POOLS.replace(['/', '.'], "_"))).unwrap();
    let mut unreadable = allocation("node-2", 2);
    unreadable["spec"]["cooldown"] = json!("never");
    let folder = cluster.path("bundle");
    cluster.run(&["bundle", folder.to_str().unwrap()]);
    let missing = || fs::read_to_string(folder.join("missing.txt")).unwrap();
    assert!(missing().contains("ledgers and reserved.json: "), "{}", missing());

    fs::remove_dir_all(&folder).unwrap();
    cluster.list(POOLS, &[]);
    cluster.list(ALLOCATIONS, &[allocation("node-1", 1), unreadable]);
    cluster.run(&["bundle", folder.to_str().unwrap()]);
    assert!(missing().contains("NodeIPAllocation node-2 can't be read"), "{}", missing());
    assert!(folder.join("ledger-node-2.json").exists(), "the ledger of a node whose object can't be read");
}

#[test]
fn a_check_reads_each_table_once_and_names_a_node_that_is_not_there() {
    let cluster = Cluster::filled();
    let output = cluster.run(&["check"]);
    let printed = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success() && printed.contains("agree on each node: 2"), "{printed}");
    assert_eq!(cluster.calls("vnetpool-operator reserved"), 1);

    let unknown = cluster.run(&["check", "node-7"]);
    let printed = text(&unknown.stderr);
    assert!(
        unknown.status.code() == Some(2) && printed.contains("node node-7 has no NodeIPAllocation"),
        "{printed}"
    );
}

/// The route of node-2 is gone, and the operator, asked to read it again, brings it back.
fn without_a_route() -> Cluster {
    let cluster = Cluster::filled();
    let (answer, after) = (cluster.path("answers/reserved"), cluster.path("after"));
    fs::create_dir(&after).unwrap();
    fs::copy(&answer, after.join("reserved")).unwrap();
    fs::write(after.join("annotated"), "").unwrap();
    let mut reserved: Value = serde_json::from_str(&fs::read_to_string(&answer).unwrap()).unwrap();
    reserved["reservations"].as_array_mut().unwrap().pop();
    fs::write(answer, format!("{reserved}\n")).unwrap();
    cluster
}

#[test]
fn a_check_that_repairs_asks_for_a_read_where_nic_and_spec_differ_and_checks_again() {
    let cluster = without_a_route();
    let output = cluster.run(&["check", "--apart", "0"]);
    assert!(output.status.code() == Some(1) && text(&output.stdout).contains("vnp-2"));
    assert_eq!(cluster.calls("annotate"), 0, "a check alone writes nothing");

    let output = cluster.run(&["check", "--apart", "0", "--repair"]);
    let printed = text(&output.stdout) + &text(&output.stderr);
    let asked = "The operator was asked to read the NICs of node-2. After that:\n\nNIC, spec, ledger";
    assert!(output.status.success() && printed.starts_with(asked), "{printed}");
    assert_eq!(cluster.calls("annotate --overwrite nodeipallocation node-2 vnetpool.io/read=2"), 1);
    assert_eq!(cluster.calls("annotate"), 1);
}

#[test]
fn a_check_that_repairs_asks_nothing_where_only_agents_repair_and_reports_a_refusal() {
    let cluster = Cluster::filled();
    let unwired = json!({"bootID": "boot", "generation": 1, "relinquished": [], "waiting": [], "wired": [],
        "addresses": [{"address": "10.9.0.1", "name": "vnp-1", "state": "Assigned"}]});
    cluster.answer("exec_agent-1", &unwired.to_string());
    let output = cluster.run(&["check", "--apart", "0", "--repair"]);
    let printed = text(&output.stdout);
    assert!(output.status.code() == Some(1) && printed.contains("no link of the node"), "{printed}");
    assert_eq!(cluster.calls("annotate"), 0);

    let cluster = without_a_route();
    fs::remove_file(cluster.path("after/annotated")).unwrap();
    let output = cluster.run(&["check", "--apart", "0", "--repair"]);
    let printed = text(&output.stderr);
    let refused = "asking the operator to read NICs: refused";
    assert!(output.status.code() == Some(2) && printed.contains(refused), "{printed}");
}

#[test]
fn a_check_names_unread_nodes_and_reads_only_these_again() {
    let cluster = Cluster::filled();
    fs::remove_file(cluster.path("answers/exec_agent-2")).unwrap();
    let output = cluster.run(&["check", "--apart", "0"]);
    let printed = text(&output.stdout);
    assert!(output.status.code() == Some(1) && printed.contains("node node-2: refused"), "{printed}");
    assert_eq!((cluster.calls("agent-1"), cluster.calls("agent-2")), (1, 2));
}

#[test]
fn the_answers_read_before_the_operator_ended_are_kept() {
    let cluster = Cluster::filled();
    let mut other = allocation("node-2", 2);
    other["spec"]["routeTableID"] = json!(table() + "-2");
    cluster.list(ALLOCATIONS, &[allocation("node-1", 1), other]);
    let printed = text(&cluster.run(&["check", "--apart", "0", "--output", "json"]).stdout);
    let found: Value = serde_json::from_str(&printed).unwrap();
    let unseen = format!("{}-2: the operator gave no answer", table());
    assert_eq!(found, json!({"nodes": 2, "differences": [], "unseen": [unseen]}));
}

#[test]
fn a_list_is_read_page_by_page() {
    let cluster = Cluster::filled();
    let first = json!({"items": [allocation("node-1", 1)], "metadata": {"continue": "next"}});
    cluster.answer(ALLOCATIONS, &first.to_string());
    cluster.list(&format!("{ALLOCATIONS}&continue=next"), &[allocation("node-2", 2)]);
    let printed = text(&cluster.run(&["check"]).stdout);
    assert!(printed.contains("agree on each node: 2"), "{printed}");
}

#[test]
fn a_preflights_output_and_exit_code_reach_the_user() {
    let cluster = Cluster::filled();
    assert_eq!(cluster.run(&["preflight"]).status.code(), Some(1));
    cluster.answer("exec_op", "all permissions are there");
    let output = cluster.run(&["preflight"]);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), "all permissions are there"));
}
