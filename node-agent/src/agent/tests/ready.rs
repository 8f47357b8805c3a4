//! When an agent counts as ready: an upgrade replaces further ones only then.

use super::*;

#[tokio::test]
async fn an_agent_without_a_ledger_is_ready_once_it_knows_that_there_is_no_object() {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut agent = agent(root.path());
    agent.reconcile(None).await.unwrap();
    assert!(!is_ready(&agent), "there may be one");
    agent.objects.send_replace(Seen::Absent);
    agent.reconcile(None).await.unwrap();
    assert!(is_ready(&agent));

    let first = object(&agent, 2, 1, "192.168.0.0/16");
    agent.reconcile(Some(&first)).await.unwrap();
    assert!(!is_ready(&agent), "its rules and its ledger are yet to come");
    has_inspected(&mut agent);
    agent.reconcile(Some(&first)).await.unwrap();
    assert!(!is_ready(&agent), "the plugin is yet to come");
    agent.inspected.is_installed = true;
    assert!(is_ready(&agent));
}

#[tokio::test]
async fn an_agent_that_has_started_beside_a_ledger_is_not_ready_before_it_knows_the_object() {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let (mut before, object) = ruled(root.path());
    before.reconcile(Some(&object)).await.unwrap();

    let mut agent = agent(root.path());
    agent.reconcile(None).await.unwrap();
    assert!(agent.reports.borrow().is_some() && !is_ready(&agent));
    agent.objects.send_replace(Seen::There(Arc::new(object.clone())));
    agent.reconcile(Some(&object)).await.unwrap();
    assert!(!is_ready(&agent), "the plugin may be an earlier release's");
}

/// The ledger stays until the node's next boot.
#[tokio::test]
async fn an_agent_whose_node_has_left_its_pool_is_ready_as_long_as_the_rules_stand() {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let (mut agent, first) = ruled(root.path());
    agent.reconcile(Some(&first)).await.unwrap();
    agent.objects.send_replace(Seen::Absent);
    agent.reconcile(None).await.unwrap();
    assert!(agent.reports.borrow().is_some() && is_ready(&agent));
    agent.inspected.is_ruled = false;
    assert!(!is_ready(&agent), "pods may still run there");
}

/// Its subnet is full, for instance, or the pool is for another subnet.
#[tokio::test]
async fn an_agent_whose_node_gets_no_address_is_ready_with_the_rules_alone() {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut agent = agent(root.path());
    let none = object(&agent, 2, 0, "192.168.0.0/16");
    agent.reconcile(Some(&none)).await.unwrap();
    assert!(!is_ready(&agent));
    has_inspected(&mut agent);
    agent.reconcile(Some(&none)).await.unwrap();
    assert!(is_ready(&agent));
    agent.inspected.is_ruled = false;
    assert!(!is_ready(&agent));
}

/// The operator may never find a NIC. One that it has read for another boot it reads again soon.
#[tokio::test]
async fn an_agent_is_ready_before_a_nic_was_read_for_its_node_and_not_while_it_was_for_another_boot() {
    for (boot, expected) in [("", true), ("another", false)] {
        let root = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut agent = agent(root.path());
        let mut unread = object(&agent, 2, 0, "192.168.0.0/16");
        unread.spec.boot_id = boot.to_owned();
        agent.objects.send_replace(Seen::There(Arc::new(unread.clone())));
        agent.reconcile(Some(&unread)).await.unwrap();
        assert_eq!(reported(&agent, condition::SUPPLIED), ("False".to_owned(), "OtherBoot".to_owned()));
        assert_eq!(is_ready(&agent), expected, "{boot:?}");
    }
}

#[tokio::test]
async fn a_spec_that_is_refused_leaves_the_node_as_ready_as_it_was() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let (mut agent, object) = settled(&dir).await;
    settle(&mut agent, &object).await;
    assert!(is_ready(&agent));
    let mut refused = object.clone();
    refused.metadata.generation = Some(3);
    refused.spec.interfaces[0].ip_configurations[0].address = "10.240.250.1/31".to_owned();
    agent.objects.send_replace(Seen::There(Arc::new(refused.clone())));
    settle(&mut agent, &refused).await;
    assert_eq!(reported(&agent, condition::SUPPLIED), ("False".to_owned(), "InvalidSpec".to_owned()));
    assert_eq!(reported(&agent, condition::CNI_INSTALLED).0, "True");
    assert!(is_ready(&agent));
}
