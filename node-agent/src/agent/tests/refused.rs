//! The report of pods that ask Azure's services on the host in vain.

use super::tables::nft;
use super::*;

/// The node's table as if packets of pods with these addresses had been dropped. The next inspection replaces
/// it.
async fn have_asked(agent: &Agent, pods: &[Ipv4Addr]) {
    for pod in pods {
        let element = format!("{pod} . 169.254.169.254 counter packets 3 bytes 84");
        assert!(nft(&format!("add element inet vnetpool asked {{ {element} }}")));
    }
    let table = &mut agent.tables.lock().await.inet;
    // As before a table is replaced, but without the second in which a busy machine may not manage to.
    table.count().await.unwrap();
    let refused = table.ensure("nonsense").await;
    assert!(refused.is_err(), "{refused:?}");
}

fn start(agent: &Agent, name: &str) -> Ipv4Addr {
    let pod = Pod { namespace: "ci".into(), name: name.into(), ..Pod::default() };
    let sandbox = sandbox(name);
    let claim = Claim::wired(&sandbox, &pod, "");
    match agent.store.with(|ledger, now| ledger.assign(&claim, now)).unwrap() {
        Assign::Assigned(address) => address,
        Assign::Waiting => panic!("no address"),
    }
}

fn sandbox(name: &str) -> Sandbox {
    Sandbox { container_id: name.to_owned(), ifname: "eth0".to_owned() }
}

/// A job that asks for a token and exits is gone when its packets are counted.
#[tokio::test]
async fn a_pod_that_has_asked_and_ended_is_named() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let (mut agent, object) = settled(&dir).await;
    let asked = start(&agent, "job");
    agent.reconcile(Some(&object)).await.unwrap();
    have_asked(&agent, &[asked]).await;
    agent.store.with(|ledger, now| ledger.free(&sandbox("job"), now)).unwrap();
    agent.reconcile(Some(&object)).await.unwrap();
    for _ in 0..2 {
        settle(&mut agent, &object).await;
        let Condition { message, .. } = condition(&agent, condition::METADATA_REFUSED);
        assert!(message.starts_with("ci/job: packets to 169.254.169.254, "), "{message}");
    }
    let series = r#"vnetpool_agent_refused_packets_total{pod="ci/job",target="metadata"} 3"#;
    let metrics = agent.metrics.text().unwrap();
    assert!(metrics.lines().any(|line| line == series), "{metrics}");
}

/// It may be the one or the other.
#[tokio::test]
async fn a_pod_is_not_named_for_what_the_one_before_it_may_have_asked() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let (mut agent, object) = settled_with_one(&dir).await;
    let asked = start(&agent, "first");
    agent.reconcile(Some(&object)).await.unwrap();
    have_asked(&agent, &[asked]).await;
    agent.store.with(|ledger, now| ledger.free(&sandbox("first"), now)).unwrap();
    assert_eq!(start(&agent, "second"), asked);
    settle(&mut agent, &object).await;
    let report = agent.reports.borrow().clone().unwrap();
    assert_eq!(condition::find(&report.conditions, condition::METADATA_REFUSED), None);
    have_asked(&agent, &[asked]).await;
    settle(&mut agent, &object).await;
    let Condition { message, .. } = condition(&agent, condition::METADATA_REFUSED);
    assert!(message.starts_with("ci/second: "), "{message}");
}

/// The next pod of its address hasn't asked.
async fn is_named_while_rules_fail(agent: &mut Agent, object: &NodeIPAllocation, reason: &str) {
    settle(agent, object).await;
    assert_eq!(reported(agent, condition::RULES_APPLIED).1, reason);
    let Condition { message, .. } = condition(agent, condition::METADATA_REFUSED);
    assert!(message.contains("ci/web"), "{message}");
    let text = agent.metrics.text().unwrap();
    let counted = |line: &str| line.contains("refused_packets_total") && line.ends_with(" 3");
    assert!(text.lines().any(counted), "{text}");
}

#[tokio::test]
async fn a_pod_that_has_asked_is_named_though_the_table_is_gone_and_its_successor_is_refused() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let (mut agent, object) = settled(&dir).await;
    let asked = start(&agent, "web");
    have_asked(&agent, &[asked]).await;
    assert!(nft("delete table inet vnetpool"));
    fs::write(dir.join("broken"), "-f").unwrap();
    is_named_while_rules_fail(&mut agent, &object, "TableRefused").await;
}

#[tokio::test]
async fn a_pod_that_has_asked_is_named_while_the_node_lacks_a_link_that_its_rules_need() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let (mut agent, object) = settled(&dir).await;
    let asked = start(&agent, "web");
    have_asked(&agent, &[asked]).await;
    let mut link = Command::new("ip");
    link.args(["link", "set", "eth0", "address", "00:0d:3a:e5:1c:c1"]);
    assert!(link.status().unwrap().success());
    is_named_while_rules_fail(&mut agent, &object, "InterfaceMissing").await;
}
