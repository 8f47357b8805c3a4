//! What else lives on a node, and what the agent does about it: seen by what arrives.

use crate::stage::{OTHER, Stage, eventually, seen};
use anyhow::Result;
use std::net::IpAddr;

pub fn an_address_that_somebody_puts_on_eth0_is_taken_off_and_said(stage: &mut Stage) -> Result<()> {
    stage.boot("vm1", 2)?;
    let _agent = stage.start_agent("vm1", &[])?;
    let (pid, container) = stage.bare("vm1")?;
    let address = stage.attach("vm1", &["--container", "web", "--pid", &pid.to_string()])?;
    stage.sh("vm1", &format!("ip address add {address}/24 dev eth0"));
    eventually("the container is reached again", || seen(&stage.machine("other"), address).is_ok());
    assert_eq!(seen(&container, OTHER)?, IpAddr::from(address));
    Ok(())
}
