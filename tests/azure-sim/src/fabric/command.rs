//! `ip` and `nft`, fed with a batch over standard input.

use anyhow::{Context, ensure};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Runs `ip` commands, one a line, in this namespace. Continues after a failure and reports it at the end.
pub(super) async fn ip(batch: &str) -> anyhow::Result<()> {
    run("ip", &["-force", "-batch", "-"], batch).await
}

/// The file of a namespace, which is given by name or by path.
pub(super) fn place(netns: &str) -> PathBuf {
    Path::new("/var/run/netns").join(netns)
}

/// Runs `ip` commands in another namespace.
pub(super) async fn ip_in(netns: &str, batch: &str) -> anyhow::Result<()> {
    // `ip -netns` takes names only.
    let enter = format!("--net={}", place(netns).display());
    run("nsenter", &[&enter, "ip", "-force", "-batch", "-"], batch).await
}

/// Applies an nftables script as one transaction.
pub(super) async fn nft(script: &str) -> anyhow::Result<()> {
    run("nft", &["-f", "-"], script).await
}

async fn run(program: &str, arguments: &[&str], input: &str) -> anyhow::Result<()> {
    if input.is_empty() {
        return Ok(());
    }
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("running {program}"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(input.as_bytes()).await?;
    drop(stdin);
    let output = child.wait_with_output().await?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}\n{input}", arguments.join(" "), complaint.trim());
    Ok(())
}
