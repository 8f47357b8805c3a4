//! The commands of README and the documents, typed.

use crate::chapters::MINIMUM;
use anyhow::{Context, Result, ensure};
use std::time::Duration;
use vnetpool_tests::cluster::Cluster;
use vnetpool_tests::project::root;
use vnetpool_tests::snippets;

/// Installs the chart by the README, but with the images and the Azure of the test.
pub async fn install(cluster: &Cluster) -> Result<()> {
    let values = root().join("tests/cluster/values.yaml");
    let (values, endpoint) = (values.display(), &cluster.state.arm_endpoint);
    let helm = format!(
        "helm() {{ command helm \"$@\" --values {values} --set azure.armEndpoint={endpoint},monitoring.expose=true \
         --timeout 4m; }}"
    );
    for snippet in snippets::of("install")? {
        cluster.type_in(&snippet, &[("REGISTRY", "localhost")], &helm).await?;
    }
    cluster.nodes_ready().await
}

pub async fn the_documented_commands_work(cluster: &Cluster) -> Result<()> {
    // One pod: two nodes have none, as on any morning.
    cluster.deploy("typed", 1, None).await?;
    let pods = cluster.running("typed", 1, Duration::from_secs(60)).await?;
    let pod = pods.first().context("no pod")?;
    let address = pod.address.to_string();
    let group = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/vnetpool";
    let subnet = format!("{group}/providers/Microsoft.Network/virtualNetworks/vnet/subnets/nodes");
    let variables = [
        ("NODE", pod.node.as_str()),
        ("ADDRESS", &address),
        ("SUBSCRIPTION", "00000000-0000-0000-0000-000000000001"),
        ("GROUP", "vnetpool"),
        ("NODES", "vnetpool"),
        ("SUBNET", &subnet),
    ];
    for snippet in snippets::of("read")? {
        let printed = cluster.type_in(&snippet, &variables, "").await?;
        println!("{}\n{}{printed}", snippet.place, snippet.script);
        ensure!(!printed.trim().is_empty(), "{}: prints nothing", snippet.place);
        for header in snippet.headers() {
            let found = printed.lines().any(|line| line.split_whitespace().eq(header.iter().copied()));
            ensure!(found, "{}: no line {header:?} in:\n{printed}", snippet.place);
        }
    }
    cluster.undeploy("typed").await?;
    cluster.settled(MINIMUM, Duration::from_secs(180)).await
}

/// A program that collects the cluster's logs needs one parser.
pub async fn both_programs_log_by_one_schema(cluster: &Cluster) -> Result<()> {
    for program in ["deployment/vnetpool-operator", "daemonset/vnetpool-node-agent"] {
        let log = cluster.kubectl(&["logs", "-n", "vnetpool-system", program, "--all-pods"]).await?;
        let mut lines = 0;
        for line in log.lines() {
            let (_, json) = line.split_at(line.find('{').with_context(|| format!("{program}: {line}"))?);
            let entry: serde_json::Value = serde_json::from_str(json)?;
            for key in ["timestamp", "level", "target", "message"] {
                ensure!(entry[key].is_string(), "{program}: no {key} in {line}");
            }
            lines += 1;
        }
        ensure!(lines > 0, "{program} has written nothing");
    }
    Ok(())
}

/// A healthy cluster passes it as the documents have it typed.
pub async fn helm_test_names_a_node_that_pods_do_not_reach(cluster: &Cluster) -> Result<()> {
    let port = ["-p", "tcp", "--dport", "10250", "-j", "DROP"];
    cluster.run_on("node-2", &[&["iptables", "-I", "INPUT"], &port[..]].concat()).await?;
    let tested = cluster.helm(&["test", "vnetpool", "--timeout", "90s"]).await;
    cluster.run_on("node-2", &[&["iptables", "-D", "INPUT"], &port[..]].concat()).await?;
    ensure!(tested.is_err(), "helm test passes: {tested:?}");
    let log = cluster.kubectl(&["logs", "-n", "vnetpool-system", "vnetpool-test"]).await?;
    let wrong: Vec<_> = log.lines().filter(|line| line.starts_with("WRONG")).collect();
    ensure!(wrong.len() == 1 && wrong[0].contains("node node-2 isn't reached"), "{log}");
    ensure!(log.lines().filter(|line| line.starts_with("good")).count() == 3, "{log}");
    cluster.kubectl(&["delete", "pod", "-n", "vnetpool-system", "vnetpool-test"]).await?;
    cluster.settled(MINIMUM, Duration::from_secs(180)).await
}

/// A request a second on one connection; it ends when an answer doesn't come.
const REQUESTS: &str = r"exec 3<>/dev/tcp/ADDRESS/8080
while printf 'GET /whoami HTTP/1.1\r\nHost: pod\r\n\r\n' >&3; do
  while read -r -t 10 line <&3 || exit 1; [[ $line != *HTTP/1.1* ]]; do :; done
  sleep 1
done";

/// The next release is this one under another tag: each pod of ours is replaced twice, no other is.
pub async fn an_upgrade_and_a_rollback_as_documented_restart_no_pod(cluster: &Cluster) -> Result<()> {
    for node in &cluster.state.nodes {
        for image in ["operator", "node-agent"].map(|name| format!("localhost/vnetpool/{name}")) {
            let [from, to] = ["dev", "next"].map(|tag| format!("{image}:{tag}"));
            let tag = ["ctr", "--namespace", "k8s.io", "images", "tag", "--force", &from, &to];
            cluster.run_on(&node.name, &tag).await?;
        }
    }
    let pods = cluster.state.nodes.len();
    cluster.deploy("kept", u32::try_from(pods)?, None).await?;
    let mut kept = cluster.running("kept", pods, Duration::from_secs(60)).await?;
    let pod = kept.first().context("no pod")?;
    let requests = REQUESTS.replace("ADDRESS", &pod.address.to_string());
    let mut connection = cluster.start_on("vm-1", "connection", &["bash", "-c", &requests])?;
    let snippets = snippets::of("upgrade")?;
    ensure!(snippets.len() == 2, "{snippets:?}");
    for (snippet, tag) in snippets.iter().zip(["next", "dev"]) {
        cluster.type_in(snippet, &[("VERSION", "next")], "").await?;
        let images = [
            "get",
            "deployment,daemonset",
            "--namespace=vnetpool-system",
            "--output=jsonpath={.items[*].spec.template.spec.containers[*].image}",
        ];
        let images = cluster.kubectl(&images).await?;
        let are_of = images.split(' ').filter(|image| image.ends_with(&format!(":{tag}"))).count();
        ensure!(are_of == 2, "{}: {images}", snippet.place);
        let still = cluster.running("kept", kept.len(), Duration::from_secs(60)).await?;
        ensure!(still == kept, "{}: {kept:?} were there, and now {still:?}", snippet.place);
        let ended = connection.try_wait()?;
        ensure!(
            ended.is_none(),
            "{}: the connection with {} has ended: {ended:?}",
            snippet.place,
            still[0].name
        );
        // More pods on the nodes whose agent and plugin have just been replaced.
        let more = kept.len() + pods;
        cluster.scale("kept", u32::try_from(more)?).await?;
        kept = cluster.running("kept", more, Duration::from_secs(60)).await?;
    }
    let restarts = "--output=jsonpath={.items[*].status.containerStatuses[*].restartCount}";
    let restarts = cluster.kubectl(&["get", "pods", "--selector=app=kept", restarts]).await?;
    ensure!(restarts.split(' ').all(|count| count == "0"), "{restarts}");
    cluster.undeploy("kept").await?;
    cluster.settled(MINIMUM, Duration::from_secs(180)).await
}
