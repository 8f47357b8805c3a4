//! The rules of other programs on the node.

use super::tables::{FORWARD, nft};
use super::*;
use nix::sys::resource::{UsageWho, getrusage};

fn iptables(args: &str) {
    let output = Command::new("iptables-legacy").args(args.split(' ')).output().unwrap();
    assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
}

/// As the agent's own advice has it.
#[tokio::test]
async fn a_policy_of_the_older_iptables_is_in_the_way_until_a_chain_of_others_lets_pods_through() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let (mut agent, object) = settled(&dir).await;
    for args in ["-P FORWARD DROP", "-N DOCKER-USER", "-A FORWARD -j DOCKER-USER"] {
        iptables(args);
    }
    settle(&mut agent, &object).await;
    let Verdict { reason, message, .. } = agent.notes.undisturbed().verdict;
    assert_eq!(reason, Reason::InTheWay, "{message}");
    let advice = "chain FORWARD of iptables-legacy's table filter drops what pods send or receive: accept there what \
                  comes in by links vnp* and what goes out by them (docker: in DOCKER-USER)";
    assert!(message.starts_with(advice), "{message}");
    iptables("-I DOCKER-USER -i vnp+ -j ACCEPT");
    settle(&mut agent, &object).await;
    assert_eq!(
        agent.notes.undisturbed().verdict.reason,
        Reason::InTheWay,
        "what goes to pods isn't let through"
    );
    iptables("-I DOCKER-USER -o vnp+ -j ACCEPT");
    settle(&mut agent, &object).await;
    let Verdict { reason, message, .. } = agent.notes.undisturbed().verdict;
    assert_eq!(reason, Reason::Undisturbed, "{message}");
}

/// As portmap makes them where there is no iptables.
#[tokio::test]
async fn a_host_port_in_portmaps_own_table_is_missed_when_it_is_flushed() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let (mut agent, object) = settled(&dir).await;
    let [with, without] = sandboxes();
    for sandbox in [&with, &without] {
        assert!(matches!(assign(&agent, sandbox), Assign::Assigned(_)));
    }
    assert!(nft("add table ip cni_hostport") && nft("add chain ip cni_hostport hostports"));
    let rule = "tcp dport 8081 dnat to 10.240.250.1:80";
    let id = &with.container_id;
    assert!(nft(&format!("add rule ip cni_hostport hostports {rule} comment \"{id}\"")));
    settle(&mut agent, &object).await;
    let undisturbed = |agent: &Agent| agent.notes.undisturbed().verdict;
    assert_eq!(undisturbed(&agent).reason, Reason::Undisturbed, "{}", undisturbed(&agent).message);
    assert!(nft("delete table ip cni_hostport"));
    for _ in 0..2 {
        settle(&mut agent, &object).await;
    }
    let Verdict { reason, message, .. } = undisturbed(&agent);
    assert_eq!(reason, Reason::InTheWay, "{message}");
    assert!(message.starts_with(&format!("the hostPort of pods {id} leads nowhere")), "{message}");
}

/// The most memory that this process has had so far, and the most that a program has had which it ran, in
/// KiB.
fn peaks() -> [i64; 2] {
    [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN].map(|who| getrusage(who).unwrap().max_rss())
}

/// As kube-proxy has them, all of a cluster's on each node.
#[tokio::test]
async fn the_rules_of_thousands_of_services_hide_no_firewall_and_take_no_memory() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let (mut agent, object) = settled(&dir).await;
    let rule = "ip saddr 10.0.0.1 meta l4proto tcp counter comment \"default/service-1:http\"\n";
    for some in 0..80 {
        let chain = |n| format!("chain KUBE-SVC-{some:08}{n:08} {{\n{rule}{rule}}}\n");
        let chains: String = (0..50).map(chain).collect();
        let file = dir.join("services");
        fs::write(&file, format!("table ip nat {{\n{chains}}}\n")).unwrap();
        assert!(nft(&format!("-f {}", file.display())));
    }
    assert!(nft("add table inet other") && nft(FORWARD));
    let before = peaks();
    settle(&mut agent, &object).await;
    let more: Vec<i64> = peaks().iter().zip(before).map(|(now, before)| now - before).collect();
    let Verdict { reason, message, .. } = agent.notes.undisturbed().verdict;
    assert_eq!(reason, Reason::InTheWay, "{message}");
    assert!(message.contains("chain drops of table inet other"), "{message}");
    assert!(more.iter().all(|more| *more < 4 * 1024), "{more:?} KiB more than {before:?}");
}
