//! The node's neighbour entries for its pods, from one inspection to the next.

use super::gap::Beside;
use super::*;
use vnetpool_crds::pool;
use vnetpool_plugin::wiring::{self, Identity, Netns, Sizes, Wiring};

/// A pod of the agent's node, as the plugin wires it, and its address.
fn start(agent: &Agent, wiring: Wiring) -> (Beside, Ipv4Addr) {
    let sandbox = Sandbox { container_id: "a".to_owned(), ifname: "eth0".to_owned() };
    let Assign::Assigned(address) = assign(agent, &sandbox) else { panic!("no address") };
    let pod = Beside::make();
    let identity = Identity { address, sandbox, pod: Pod::default() };
    wiring::connect(&Netns::open(&pod.path()).unwrap(), &identity, Sizes::default(), wiring).unwrap();
    (pod, address)
}

fn ip(command: &str) -> String {
    let output = Command::new("ip").args(command.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn is_known(pod: Ipv4Addr) -> bool {
    ip("neighbour show nud permanent").contains(&format!("{pod} "))
}

/// The counts of repairs that there were, by kind.
fn repairs(agent: &Agent) -> Vec<String> {
    let metrics = agent.metrics.text().unwrap();
    let counted = |line: &&str| line.starts_with("vnetpool_agent_repairs_total") && !line.ends_with(" 0");
    metrics.lines().filter(counted).map(str::to_owned).collect()
}

fn undisturbed(agent: &Agent) -> Reason {
    agent.notes.undisturbed().verdict.reason
}

/// As an earlier release has wired it: the node finds the pod by ARP.
#[tokio::test]
async fn a_pod_without_a_neighbour_entry_when_the_agent_starts_gets_one_and_nobody_is_blamed() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let (agent, object) = settled(&dir).await;
    let (_pod, address) = start(&agent, Wiring::Routed);
    let remove = || {
        let shown = ip("neighbour show nud permanent");
        let entry = shown.lines().find(|line| line.starts_with(&format!("{address} "))).unwrap();
        ip(&format!("neighbour delete {}", entry.split(" lladdr").next().unwrap()));
    };
    remove();

    let mut agent = self::agent(&dir);
    settle(&mut agent, &object).await;
    assert!(is_known(address));
    assert_eq!((undisturbed(&agent), repairs(&agent)), (Reason::Undisturbed, vec![]));
    remove();
    settle(&mut agent, &object).await;
    assert!(is_known(address));
    let counted = r#"vnetpool_agent_repairs_total{kind="neighbour"} 1"#.to_owned();
    assert_eq!((undisturbed(&agent), repairs(&agent)), (Reason::Repaired, vec![counted]));
}

/// Each repair is a warning, a count and an hour of a report.
#[tokio::test]
async fn an_inspection_of_a_bridged_pod_that_nobody_has_disturbed_repairs_nothing() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let mut agent = agent(&dir);
    let mut object = object(&agent, 2, 1, "192.168.0.0/16");
    object.spec.wiring = pool::Wiring::Bridge;
    agent.objects.send_replace(Some(Arc::new(object.clone())));
    settle(&mut agent, &object).await;
    let (_pod, address) = start(&agent, Wiring::Bridge);
    for _ in 0..2 {
        settle(&mut agent, &object).await;
        assert!(is_known(address));
        assert_eq!((undisturbed(&agent), repairs(&agent)), (Reason::Undisturbed, vec![]));
    }
}
