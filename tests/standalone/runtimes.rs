//! Containers of each runtime on a plain VM: an address of the VNet, and every path of a pod's.

use crate::stage::{
    INTERNET, METADATA, OTHER, PEER, PREMISES, Stage, VM1, address_in, cnitool_program, eventually, failing,
    failing_at, is_answered_by_the_resolver, metadata_name, probe_program, run, seen,
};
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

/// Every path of a container on vm1 that answers on its address: VMs, peered ones too, premises, its own
/// node, a container beside it and one on another node see it under its own address; the internet and the
/// platform under the node's.
fn every_path_holds(stage: &mut Stage, container: &File, address: Ipv4Addr) -> Result<()> {
    let own = IpAddr::from(address);
    stage.surround()?;
    eventually("the container answers its node", || seen(&stage.machine("vm1"), address), Result::is_ok);
    for (machine, its_address) in [("other", OTHER), ("vm1", VM1), ("peer", PEER), ("premises", PREMISES)] {
        assert_eq!(seen(container, its_address)?, own, "as {machine} sees it");
        assert_eq!(seen(&stage.machine(machine), address)?, IpAddr::from(its_address));
    }

    let (pid, beside) = stage.bare("vm1")?;
    let beside_address = stage.attach("vm1", &["--container", "beside", "--pid", &pid.to_string()])?;
    assert_eq!(seen(container, beside_address)?, own);
    assert_eq!(seen(&beside, address)?, IpAddr::from(beside_address));

    stage.boot("vm2", 2)?;
    let _agent = stage.start_agent("vm2", &[])?;
    let (pid, far) = stage.bare("vm2")?;
    let far_address = stage.attach("vm2", &["--container", "far", "--pid", &pid.to_string()])?;
    assert_eq!(seen(container, far_address)?, own);
    assert_eq!(seen(&far, address)?, IpAddr::from(far_address));

    assert_eq!(seen(container, INTERNET)?, IpAddr::from(VM1));
    assert_eq!(metadata_name(container)?, "vm1", "the metadata service goes by the node's own address");
    assert!(is_answered_by_the_resolver(container));
    Ok(())
}

pub fn a_bare_namespace_is_attached_and_every_path_holds(stage: &mut Stage) -> Result<()> {
    stage.boot("vm1", 4)?;
    let _agent = stage.start_agent("vm1", &[])?;
    let (pid, container) = stage.bare("vm1")?;
    let pid = pid.to_string();
    let address = stage.attach("vm1", &["--container", "web", "--pid", &pid])?;
    assert_eq!(stage.attach("vm1", &["--container", "web", "--pid", &pid])?, address, "attached twice");
    every_path_holds(stage, &container, address)?;

    let shown = stage.call_agent("vm1", &["status"])?;
    assert!(shown.starts_with("holds 4 addresses: 2 assigned"), "{shown}");
    assert!(shown.lines().any(|line| line.starts_with(&address.to_string()) && line.ends_with("web/eth0")));
    assert!(shown.contains("RulesApplied: True (Applied)"), "{shown}");
    stage.call_agent("vm1", &["detach", "--container", "web"])?;
    assert_eq!(failing(&stage.machine("other"), address)?, ErrorKind::TimedOut, "detached");
    let shown = stage.call_agent("vm1", &["status"])?;
    assert!(shown.starts_with("holds 4 addresses: 1 assigned, 1 cooling"), "{shown}");
    Ok(())
}

/// A root file system for a container: the probe, and the folders that a runtime mounts things on.
fn rootfs(stage: &Stage) -> Result<std::path::PathBuf> {
    let rootfs = stage.folder().join("rootfs");
    for folder in ["proc", "sys", "dev", "etc", "run", "tmp", "var"] {
        fs::create_dir_all(rootfs.join(folder))?;
    }
    fs::copy(probe_program()?, rootfs.join("probe"))?;
    Ok(rootfs)
}

pub fn a_container_of_podman_gets_an_address_and_every_path_holds(stage: &mut Stage) -> Result<()> {
    // As on a VM whose owner chose CNI; this machine delegates no cgroups and has no journal.
    const CONFIGURATION: &str = "[network]\nnetwork_backend = \"cni\"\n[engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\n\
                                 events_logger = \"none\"\n[containers]\nlog_driver = \"k8s-file\"\n";
    let rootfs = rootfs(stage)?;
    stage.boot("vm1", 4)?;
    let _agent = stage.start_agent("vm1", &[])?;
    let file = stage.folder().join("containers.conf");
    fs::write(&file, CONFIGURATION)?;
    stage.sh("vm1", &format!("cp {} /etc/containers/containers.conf", file.display()));
    let rootfs = rootfs.display();
    let id = stage.sh(
        "vm1",
        &format!("podman run --detach --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 --name web --network vnetpool --rootfs {rootfs} /probe serve --listen :8080"),
    );
    let pid: u32 = stage.sh("vm1", "podman inspect --format {{.State.Pid}} web").trim().parse()?;
    let container = stage.namespace_of("vm1", pid)?;
    let shown = stage.call_agent("vm1", &["status"])?;
    let line = shown.lines().find(|line| line.contains(id.trim())).context(shown.clone())?;
    let address: Ipv4Addr = line.split(' ').next().unwrap_or_default().parse()?;
    let inspected =
        stage.sh("vm1", "podman inspect --format {{.NetworkSettings.Networks.vnetpool.IPAddress}} web");
    assert_eq!(inspected.trim(), address.to_string());
    every_path_holds(stage, &container, address)?;
    drop(container);
    stage.sh("vm1", "podman rm --force --time 1 web");
    let shown = stage.call_agent("vm1", &["status"])?;
    assert!(!shown.contains(id.trim()), "{shown}");
    Ok(())
}

pub fn a_namespace_given_an_address_by_cnitool_keeps_every_path(stage: &mut Stage) -> Result<()> {
    stage.boot("vm1", 4)?;
    let _agent = stage.start_agent("vm1", &[])?;
    let (pid, container) = stage.bare("vm1")?;
    let cnitool = |stage: &Stage, verb: &str| -> Result<String> {
        let mut command = stage.on("vm1", cnitool_program()?);
        command.env("CNI_PATH", "/opt/cni/bin").env("NETCONFPATH", "/etc/cni/net.d");
        let output = run(command.args([verb, "vnetpool", &format!("/proc/{pid}/ns/net")]))?;
        Ok(String::from_utf8(output.stdout)?)
    };
    let address = address_in(&cnitool(stage, "add")?)?;
    cnitool(stage, "check")?;
    every_path_holds(stage, &container, address)?;
    cnitool(stage, "del")?;
    assert_eq!(failing(&stage.machine("other"), address)?, ErrorKind::TimedOut, "deleted");
    Ok(())
}

/// A VM of no cluster has no pool that could say so.
pub fn containers_reach_the_metadata_service_unless_a_flag_closes_it(stage: &mut Stage) -> Result<()> {
    stage.boot("vm1", 2)?;
    let agent = stage.start_agent("vm1", &[])?;
    let (pid, container) = stage.bare("vm1")?;
    stage.attach("vm1", &["--container", "web", "--pid", &pid.to_string()])?;
    assert_eq!(metadata_name(&container)?, "vm1");
    agent.stop();
    let _agent = stage.start_agent("vm1", &["--pod-metadata-access", "None"])?;
    let asked = || metadata_name(&container).map_err(|error| format!("{error:#}"));
    eventually("the container is kept from it", asked, Result::is_err);
    assert_eq!(failing_at(&container, METADATA, 80)?, ErrorKind::TimedOut);
    assert!(is_answered_by_the_resolver(&container));
    assert_eq!(metadata_name(&stage.machine("vm1"))?, "vm1", "the VM itself is free to ask");
    // Whatever changes the table has the node inspected at once, and takes no count with it.
    stage.sh("vm1", "nft flush chain inet vnetpool egress");
    let status = || stage.call_agent("vm1", &["status"]).unwrap();
    let is_reported = |shown: &String| {
        let line = shown.lines().find(|line| line.starts_with("MetadataRefused: True (PodsAsk): web"));
        line.is_some_and(|line| line.contains("run the agent with --pod-metadata-access All"))
    };
    eventually("the report names the container, and the flag", status, is_reported);
    Ok(())
}

pub fn a_container_of_docker_is_attached_and_every_path_holds(stage: &mut Stage) -> Result<()> {
    let rootfs = rootfs(stage)?;
    let archive = stage.folder().join("rootfs.tar");
    run(Command::new("tar").arg("-C").arg(rootfs).arg("-cf").arg(&archive).arg("."))?;
    stage.boot("vm1", 4)?;
    // No process on this machine may lower its score, and a plain folder works on any disk.
    stage.start_daemon("vm1", "/usr/sbin/dockerd --oom-score-adjust 0 --storage-driver vfs")?;
    let version = || stage.on("vm1", "/usr/bin/docker").arg("version").output().unwrap();
    eventually("dockerd answers", version, |output| output.status.success());
    let agent = stage.start_agent("vm1", &[])?;
    stage.sh("vm1", &format!("/usr/bin/docker import {} probe", archive.display()));
    let run = "/usr/bin/docker run --detach --network none --name web probe /probe serve --listen :8080";
    let id = stage.sh("vm1", run).trim().to_owned();
    let pid = stage.sh("vm1", "/usr/bin/docker inspect --format {{.State.Pid}} web").trim().to_owned();
    let address = stage.attach("vm1", &["--container", &id, "--pid", &pid])?;
    let container = stage.namespace_of("vm1", pid.parse()?)?;
    // dockerd sets the policy of the forward chain to drop when it is the one that turns forwarding on: the
    // agent names that, and opens the chain only if configured to.
    let status = || stage.call_agent("vm1", &["status"]).unwrap();
    let named =
        "Undisturbed: False (InTheWay): chain FORWARD of table ip filter drops what pods send or receive";
    eventually("docker's chain is named", status, |shown| shown.contains(named));
    assert_eq!(failing(&container, OTHER)?, ErrorKind::TimedOut);
    agent.stop();
    let _agent = stage.start_agent("vm1", &["--open-forward"])?;
    eventually("docker's chain is open", || seen(&container, OTHER), Result::is_ok);
    every_path_holds(stage, &container, address)?;
    stage.sh("vm1", "/usr/bin/docker rm --force web");
    Ok(())
}
