//! The commands of `docs/plain-vm.md`, typed on a plain VM.

use crate::stage::{Stage, agent_program, cnitool_program, eventually, plugin_program, probe_program, run};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use vnetpool_tests::snippets::{self, Snippet};

/// The shell of a user who has built the programs into `image`, and has them and an image of a server at
/// hand.
fn shell(stage: &Stage, snippet: &Snippet) -> Command {
    let folder = stage.folder();
    let path = format!("{}/bin:/usr/sbin:/usr/bin:/sbin:/bin", folder.display());
    let mut shell = stage.on("vm1", "env");
    // A working folder wouldn't pass nsenter's change of mounts.
    shell.arg(format!("--chdir={}", folder.display()));
    shell.args([&format!("PATH={path}"), "IMAGE=server", "NAME=job", &snippet.shell, "-euc"]);
    shell
}

fn typed(stage: &Stage, snippet: &Snippet) -> Result<String> {
    let output = run(shell(stage, snippet).arg(&snippet.script)).with_context(|| snippet.place.clone())?;
    let printed = String::from_utf8(output.stdout)?;
    println!("{}\n{}{printed}", snippet.place, snippet.script);
    Ok(printed)
}

pub fn the_documented_commands_for_a_plain_vm_work(stage: &mut Stage) -> Result<()> {
    let folder = stage.folder().to_owned();
    fs::create_dir_all(folder.join("image"))?;
    fs::create_dir_all(folder.join("bin"))?;
    fs::copy(plugin_program()?, folder.join("image/vnetpool"))?;
    symlink(agent_program()?, folder.join("bin/vnetpool-node-agent"))?;
    symlink(cnitool_program()?, folder.join("bin/cnitool"))?;
    stage.boot("vm1", 4)?;
    stage.start_daemon("vm1", "/usr/sbin/dockerd --oom-score-adjust 0 --storage-driver vfs")?;
    let version = || stage.on("vm1", "/usr/bin/docker").arg("version").output().unwrap();
    eventually("dockerd answers", version, |output| output.status.success());
    let root = folder.join("server");
    fs::create_dir_all(&root)?;
    fs::copy(probe_program()?, root.join("probe"))?;
    let archive = folder.join("server.tar");
    run(Command::new("tar").arg("-C").arg(root).arg("-cf").arg(&archive).arg("."))?;
    let mut import = stage.on("vm1", "/usr/bin/docker");
    let start = "ENTRYPOINT [\"/probe\", \"serve\", \"--listen\", \":8080\"]";
    run(import.args(["import", "--change", start]).arg(&archive).arg("server"))?;
    stage.sh("vm1", "ip netns add job");

    for snippet in snippets::of("plain-vm-agent")? {
        let mut agent = shell(stage, &snippet);
        // As a shell at a terminal it stays.
        agent
            .arg(format!("{}\necho $! >agent.pid\nwait", snippet.script))
            .stderr(fs::File::create(folder.join("agent-vm1.log"))?);
        stage.keep(agent.spawn()?);
    }
    let status = |stage: &Stage| stage.call_agent("vm1", &["status"]).unwrap_or_default();
    let holds = "holds 4 addresses";
    eventually("the agent has the VM's addresses", || status(stage), |shown| shown.starts_with(holds));
    for snippet in snippets::of("plain-vm")? {
        ensure!(!typed(stage, &snippet)?.is_empty(), "{}: prints nothing", snippet.place);
    }
    ensure!(status(stage).starts_with("holds 4 addresses: 2 assigned"), "{}", status(stage));

    let mut end = snippets::of("plain-vm-end")?;
    let cleanup = end.pop().context("no end")?;
    for snippet in &end {
        typed(stage, snippet)?;
    }
    let none = "holds 4 addresses: 0 assigned";
    eventually("no container has an address", || status(stage), |shown| shown.starts_with(none));
    run(stage.on("vm1", "sh").args(["-c", "kill $(cat \"$0\")"]).arg(folder.join("agent.pid")))?;
    typed(stage, &cleanup)?;
    for path in ["/opt/cni/bin/vnetpool", "/etc/cni/net.d/10-vnetpool.conflist"] {
        ensure!(!stage.on("vm1", "test").args(["-e", path]).status()?.success(), "{path} is still there");
    }
    Ok(())
}
