//! The metadata service as the source of a VM's addresses: addresses that it adds, takes away and brings
//! back.

use crate::stage::{OTHER, PORT, Stage, eventually, failing, inside, seen};
use anyhow::Result;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::Duration;

pub fn an_address_that_leaves_the_nic_and_comes_back_stays_with_its_container(
    stage: &mut Stage,
) -> Result<()> {
    stage.boot("vm1", 1)?;
    let agent = stage.start_agent("vm1", &["--cooldown", "1h"])?;
    let (pid, container) = stage.bare("vm1")?;
    let address = stage.attach("vm1", &["--container", "web", "--pid", &pid.to_string()])?;
    // A new agent asks at once; this one would in half a minute.
    agent.stop();
    stage.give("vm1", 0)?;
    let agent = stage.start_agent("vm1", &["--cooldown", "1h"])?;
    let status = |stage: &Stage| stage.call_agent("vm1", &["status"]).unwrap();
    let shows = |stage: &Stage, what: &str| status(stage).contains(what);
    let eventually_shows = |stage: &Stage, what: &str| {
        eventually(what, || status(stage), |shown| shown.contains(what));
    };
    eventually_shows(stage, "AssignmentsBacked: False (AddressVanished)");
    assert!(shows(stage, "no longer the VM's: 1 in use, 0 not"));
    assert_eq!(failing(&container, OTHER)?, ErrorKind::TimedOut, "Azure no longer lets it through");
    agent.stop();
    stage.give("vm1", 1)?;
    let agent = stage.start_agent("vm1", &["--cooldown", "1h"])?;
    eventually_shows(stage, "AssignmentsBacked: True (Backed)");
    assert_eq!(seen(&container, OTHER)?, IpAddr::from(address));
    assert!(shows(stage, "holds 1 addresses: 1 assigned, 0 cooling, 0 free"), "it was handed out only once");
    // Free, gone and back, it still rests for as long as it would have.
    stage.call_agent("vm1", &["detach", "--container", "web"])?;
    agent.stop();
    stage.give("vm1", 0)?;
    let agent = stage.start_agent("vm1", &["--cooldown", "1h"])?;
    eventually_shows(stage, "holds 0 addresses");
    agent.stop();
    stage.give("vm1", 1)?;
    let _agent = stage.start_agent("vm1", &["--cooldown", "1h"])?;
    eventually_shows(stage, "0 assigned, 1 cooling, 0 free");
    Ok(())
}

pub fn containers_start_while_the_agent_is_down(stage: &mut Stage) -> Result<()> {
    stage.boot("vm1", 2)?;
    let agent = stage.start_agent("vm1", &[])?;
    let (pid, before) = stage.bare("vm1")?;
    let own = stage.attach("vm1", &["--container", "before", "--pid", &pid.to_string()])?;
    let mut connection = inside(&before, || TcpStream::connect((OTHER, PORT)))?;
    agent.stop();
    connection.set_read_timeout(Some(Duration::from_secs(5)))?;
    connection.write_all(b"GET /whoami HTTP/1.1\r\nhost: other\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    assert!(answer.contains(&format!("\"{own}\"")), "{answer}");
    let (pid, container) = stage.bare("vm1")?;
    let address = stage.attach("vm1", &["--container", "web", "--pid", &pid.to_string()])?;
    assert_eq!(seen(&container, OTHER)?, IpAddr::from(address));
    assert_eq!(seen(&stage.machine("other"), address)?, IpAddr::from(OTHER));
    Ok(())
}
