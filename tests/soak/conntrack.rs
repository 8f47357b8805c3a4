//! A node's table of connections, full of some that the kernel may not drop. Its limit is the whole machine's
//! and counts for each network namespace: so as many are put in as it takes, 80 MB of them.

use crate::world::World;
use anyhow::{Context, Result, bail, ensure};
use std::net::Ipv4Addr;
use std::ops::Range;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::{sleep, timeout};
use vnetpool_tests::cluster::Host;

/// Addresses for measurements of networks (RFC 2544). Nobody has one.
const FIRST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const ALL: &str = "198.18.0.0/15";
/// Connections of one address, each by a port of its own from this one on.
const PORTS: u32 = 16384;
/// They end by themselves after so many seconds, should nobody remove them.
const SECONDS: u32 = 120;
/// How soon room that others leave is taken, and how much there may be by then.
const BETWEEN: Duration = Duration::from_millis(500);
const ROOM: u32 = 2048;
/// The largest table that is filled: it takes 160 MB, which nothing can swap out.
const MOST: u32 = 1 << 19;
const FOLDER: &str = "/proc/sys/net/netfilter";
/// To fill the table, and to empty it.
const PATIENCE: Duration = Duration::from_secs(120);

/// The node's table has no room for a while.
///
/// # Errors
/// Also when it has room.
pub async fn fill(world: &World, host: &Host, time: Duration) -> Result<()> {
    let filled = keep_full(world, host, time).await;
    // The table's own tool prints each one that it removes.
    let mut remove = conntrack(host, &["--delete", "--src", ALL]);
    let removed = timeout(PATIENCE, remove.stdout(Stdio::null()).stderr(Stdio::null()).status()).await;
    filled?;
    let removed = removed.context("the connections aren't removed in time")??;
    ensure!(removed.success(), "the connections aren't removed: {removed}");
    Ok(())
}

async fn keep_full(world: &World, host: &Host, time: Duration) -> Result<()> {
    let limit = number(world, host, "nf_conntrack_max").await?;
    ensure!(
        limit <= MOST,
        "a table of {limit} connections takes too much of this machine's memory to be filled"
    );
    let mut put_in = 0;
    put(host, put_in..put_in + limit).await?;
    put_in += limit;
    let until = Instant::now() + time;
    while Instant::now() < until {
        let count = number(world, host, "nf_conntrack_count").await?;
        ensure!(count + ROOM > limit, "the table has {count} of {limit} connections");
        put(host, put_in..put_in + ROOM).await?;
        put_in += ROOM;
        sleep(BETWEEN).await;
    }
    Ok(())
}

/// Puts these connections in until there is no room.
async fn put(host: &Host, numbers: Range<u32>) -> Result<()> {
    let mut load = conntrack(host, &["--load-file", "-"]);
    let mut load = load.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let mut input = load.stdin.take().context("no input")?;
    let write = async move {
        for start in numbers.clone().step_by(ROOM as usize) {
            let lines: String = (start..numbers.end.min(start + ROOM)).map(line).collect();
            // It reads no further once there is no room.
            if input.write_all(lines.as_bytes()).await.is_err() {
                break;
            }
        }
    };
    let (output, ()) = timeout(PATIENCE, async { tokio::join!(load.wait_with_output(), write) }).await?;
    let output = output?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    // Its words for ENOMEM, with which the kernel refuses one more.
    if output.status.success() || complaint.contains("not enough memory") {
        return Ok(());
    }
    bail!("conntrack: {}: {complaint}", output.status)
}

/// One more connection, as the tool reads it from a file: the kernel may not drop one that both ends use.
fn line(number: u32) -> String {
    let source = Ipv4Addr::from(u32::from(FIRST) + number / PORTS);
    let port = 1024 + number % PORTS;
    format!(
        "-A -p udp -s {source} -d 198.19.0.1 --sport {port} --dport 9 -t {SECONDS} -u ASSURED,SEEN_REPLY\n"
    )
}

/// The tool in the node's network.
fn conntrack(host: &Host, arguments: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/proc/{}/ns/net", host.pid)).arg("conntrack").args(arguments);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn number(world: &World, host: &Host, name: &str) -> Result<u32> {
    let printed = world.cluster.run_on(&host.name, &["cat", &format!("{FOLDER}/{name}")]).await?;
    printed.trim().parse().with_context(|| format!("{name}: {printed}"))
}
