//! `kubectl vnetpool` with the real operator and agents.

use crate::chapters::MINIMUM;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::Duration;
use vnetpool_plugin::ledger::{Assign, Claim, Pod, Sandbox, file::Store};
use vnetpool_tests::cluster::{Cluster, Host};
use vnetpool_tests::eventually;
use vnetpool_tests::place::arm;

const SOON: Duration = Duration::from_secs(90);
/// How long an agent and the operator take to repair the differences that `check` finds here: a suspected
/// leak is watched for a minute first.
const HEALED: Duration = Duration::from_secs(180);

pub async fn the_plugin_of_kubectl_shows_the_views_of_operator_ledger_and_kernel(
    cluster: &Cluster,
) -> Result<()> {
    cluster.deploy("asked", 4, None).await?;
    let pods = cluster.running("asked", 4, SOON).await?;
    agrees(cluster, SOON).await?;
    let pod = pods.first().context("no pod")?;
    let address = pod.address.to_string();
    let of_address = json(cluster, &["who", &address]).await?;
    let of_pod = json(cluster, &["who", &format!("default/{}", pod.name)]).await?;
    ensure!(of_address == of_pod && of_address.get("unread").is_none(), "{of_address} {of_pod}");
    let one = &of_address["addresses"][0];
    ensure!(one["state"] == "assigned" && one["pod"] == format!("default/{}", pod.name), "{one}");
    ensure!(one["node"] == pod.node.as_str() && one["pool"] == "default", "{one}");
    let host = cluster.host(&pod.node)?;
    ensure!(one["nic"].as_str().is_some_and(|nic| nic.eq_ignore_ascii_case(&host.nic_id)), "{one}");
    let ledger = host.ledger()?;
    let free = ledger.records().iter().find(|one| !pods.iter().any(|pod| pod.address == one.entry().address));
    let free = free.context("no free address")?.entry().clone();
    let found = json(cluster, &["who", &free.address.to_string()]).await?;
    let one = &found["addresses"][0];
    let state = one["state"].as_str().unwrap_or_default();
    ensure!(["free", "cooling"].contains(&state) && one["reservation"] == free.name.as_str(), "{one}");
    let status = output(cluster, &["status"]).await?;
    ensure!(status.lines().any(|line| line.starts_with("default") && line.contains(" 3/3 ")), "{status}");
    let explained = json(cluster, &["explain", &pod.node]).await?;
    let bound = pods.iter().filter(|other| other.node == pod.node).count();
    ensure!(
        explained["demand"]["bound"] == bound && explained["held"] == ledger.records().len(),
        "{explained}"
    );
    let preflight = output(cluster, &["preflight"]).await?;
    ensure!(!preflight.trim().is_empty());
    cluster.undeploy("asked").await?;
    cluster.settled(MINIMUM, HEALED).await
}

pub async fn a_bundle_has_everything_and_no_id_of_the_subscription(cluster: &Cluster) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bundle = folder.path().join("bundle");
    let printed = output(cluster, &["bundle", &bundle.to_string_lossy()]).await?;
    ensure!(!printed.contains("missing"), "{printed}");
    let (mut files, mut logs, mut ledgers) = (0, 0, 0);
    for entry in std::fs::read_dir(&bundle)? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path)?;
        let name = path.file_name().context("no name")?.to_string_lossy().into_owned();
        ensure!(!text.trim().is_empty(), "{name} is empty");
        ensure!(!text.contains("00000000-0000-0000-0000-000000000001"), "{name} names the subscription");
        if name.ends_with(".json") {
            let _: Value = serde_json::from_str(&text).with_context(|| name.clone())?;
        }
        files += 1;
        logs += usize::from(name.starts_with("log-"));
        ledgers += usize::from(name.starts_with("ledger-"));
    }
    ensure!((logs, ledgers) == (5, 3) && files >= 16, "{files} files, {logs} logs, {ledgers} ledgers");
    Ok(())
}

pub async fn check_finds_leaks_on_a_nic_in_a_ledger_and_on_a_link(cluster: &Cluster) -> Result<()> {
    agrees(cluster, SOON).await?;
    let [nic, ledger, link] = ["node-1", "node-2", "node-3"].map(|name| cluster.host(name));
    let (nic, ledger, link) = (nic?, ledger?, link?);
    let reservation = leak_on_nic(cluster, &nic).await?;
    let record = leak_in_ledger(&ledger)?;
    let routed = "10.240.15.250";
    for command in [
        "ip link add vnp0123456789a type veth peer name leaked",
        "ip link set vnp0123456789a up",
        &format!("ip route add {routed}/32 dev vnp0123456789a"),
    ] {
        cluster.run_on(&link.name, &command.split(' ').collect::<Vec<_>>()).await?;
    }
    let (code, output) = cluster.vnetpool(&["check", "--apart", "2", "--output", "json"]).await?;
    cluster.run_on(&link.name, &["ip", "link", "delete", "vnp0123456789a"]).await?;
    ensure!(code == Some(1), "check ends with {code:?}: {output}");
    let found: Value = serde_json::from_str(&output)?;
    let has = |node: &Host, between: &str, what: &str| {
        let all = found["differences"].as_array().into_iter().flatten();
        all.into_iter()
            .any(|one| one["node"] == node.name.as_str() && one["between"] == between && one["what"] == what)
    };
    ensure!(has(&nic, "NicAndSpec", &reservation), "no {reservation} on the NIC in {found:#}");
    ensure!(has(&ledger, "LedgerAndPods", &record), "no pod for {record} in {found:#}");
    ensure!(has(&ledger, "LedgerAndKernel", &record), "no link for {record} in {found:#}");
    ensure!(has(&link, "LedgerAndKernel", routed), "no link to {routed} in {found:#}");
    ensure!(found["differences"].as_array().map(Vec::len) == Some(4), "{found:#}");
    // The operator finds the NIC's with its next write, and the agent frees addresses without a sandbox.
    cluster.patch_pool(json!({ "sizing": { "minimum": MINIMUM + 4 } })).await?;
    let healed = agrees(cluster, HEALED).await;
    cluster.patch_pool(json!({ "sizing": { "minimum": MINIMUM } })).await?;
    healed?;
    cluster.settled(MINIMUM, HEALED).await
}

/// A reservation that bears our name and that no `spec` knows, as an operator leaves it that loses a write's
/// answer and never comes back.
async fn leak_on_nic(cluster: &Cluster, host: &Host) -> Result<String> {
    let name = host.nic_id.rsplit('/').next().unwrap_or_default();
    let nic = arm(cluster, "GET", &format!("networkInterfaces/{name}"), json!({})).await?;
    let mut all = nic["properties"]["ipConfigurations"].as_array().context("no ipConfigurations")?.clone();
    let subnet = &all[0]["properties"]["subnet"]["id"];
    let leaked = json!({ "name": "vnp-leaked", "properties": {
        "primary": false, "privateIPAllocationMethod": "Dynamic", "subnet": { "id": subnet },
    } });
    all.push(leaked);
    let patch = json!({ "properties": { "ipConfigurations": all } });
    cluster.azure.admin("PATCH", &format!("/nics/{name}"), patch).await?;
    Ok("vnp-leaked".to_owned())
}

/// A record of a sandbox that never was.
fn leak_in_ledger(host: &Host) -> Result<String> {
    let boot_id = std::fs::read_to_string(host.path("/proc/sys/kernel/random/boot_id"))?;
    let store = Store::at(host.path("/run/vnetpool")).of_boot(boot_id.trim());
    let sandbox = Sandbox { container_id: "0".repeat(64), ifname: "eth0".to_owned() };
    let pod = Pod { namespace: "default".into(), name: "never".into(), uid: "never".into() };
    match store.with(|ledger, now| ledger.assign(&Claim::wired(&sandbox, &pod, "vnetpool"), now))? {
        Assign::Assigned(address) => Ok(address.to_string()),
        other => anyhow::bail!("the ledger of {} gives no address: {other:?}", host.name),
    }
}

/// Waits until `check` finds nothing: while addresses come and go it may see a difference twice.
async fn agrees(cluster: &Cluster, within: Duration) -> Result<()> {
    eventually("NIC, spec, ledger, kernel and pods agree", within, || async {
        let (code, output) = cluster.vnetpool(&["check", "--apart", "1"]).await?;
        ensure!(code == Some(0), "{output}");
        ensure!(output == "NIC, spec, ledger, kernel and pods agree on each node: 3.\n", "{output}");
        Ok(Some(()))
    })
    .await
}

async fn output(cluster: &Cluster, args: &[&str]) -> Result<String> {
    let (code, output) = cluster.vnetpool(args).await?;
    ensure!(code == Some(0), "kubectl vnetpool {args:?} ends with {code:?}: {output}");
    Ok(output)
}

async fn json(cluster: &Cluster, args: &[&str]) -> Result<Value> {
    let output = output(cluster, &[args, &["--output", "json"]].concat()).await?;
    serde_json::from_str(&output).with_context(|| output)
}
