//! The tables, and the pods that wait, while others change the tables or nft doesn't work.

use super::*;
use crate::child;
use crate::firewall::{
    Family::{Arp, Inet},
    apply,
    events::Events,
    known::Known,
    netlink::generation,
};
use tokio::time::{self, timeout};

/// How long a test waits for an event that comes in milliseconds.
const SOON: Duration = Duration::from_secs(30);

/// Runs this while the kernel's events are heard and the tables guarded.
pub(super) async fn guarded(
    tables: Tables,
    notes: Notes,
    disturbed: &Notify,
    test: impl Future<Output = ()>,
) {
    tokio::select! {
        ended = firewall::events::watch(tables.known.clone(), notes.metrics.clone()) => panic!("{ended:?}"),
        ended = guard(tables.clone(), notes, disturbed) => panic!("{ended:?}"),
        () = test => {}
    }
}

pub(super) async fn until(tables: &Tables, is_so: impl FnMut(&Known) -> bool) {
    let mut known = tables.known.subscribe();
    let waited = timeout(SOON, known.wait_for(is_so)).await.is_ok();
    assert!(waited, "{:?}", tables.known.borrow());
}

fn listens(known: &Known) -> bool {
    known.heard.is_some()
}

fn stands(known: &Known) -> bool {
    listens(known) && known.seen[Inet as usize].is_some() && !known.is_any_in_doubt()
}

/// Until the tables stand, all of the kernel's events have been read, and the guard is done with them.
pub(super) async fn at_rest(tables: &Tables) {
    until(tables, stands).await;
    let now = generation().unwrap();
    let has_read = || tables.known.borrow().heard.is_some_and(|heard| heard.has_read(now));
    let reading = async {
        while !has_read() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, reading).await.expect("the events haven't been read");
    drop(tables.lock().await);
}

pub(super) fn nft(args: &str) -> bool {
    Command::new("nft").args(args.split(' ')).output().unwrap().status.success()
}

/// A firewall that lets nothing through.
pub(super) const FORWARD: &str =
    "add chain inet other drops { type filter hook forward priority filter ; policy drop ; }";
/// How the run begins in which an inspection reads it.
const LISTS_OTHERS: &str = "-j --stateless list chain inet other drops";

#[tokio::test]
async fn a_table_that_is_flushed_is_put_back_beside_an_inspection_that_is_under_way() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let (mut agent, _) = settled(&dir).await;
    assert!(nft("add table inet other") && nft(FORWARD));
    fs::write(dir.join("hangs"), LISTS_OTHERS).unwrap();
    let keeper = agent.keeper.take().unwrap();
    let inspection = keeper.inspect(agent.wanted.clone(), agent.reserved.clone());
    let disturbed = Notify::new();
    let back = async {
        until(&agent.tables, listens).await;
        timeout(SOON, hung(&dir)).await.expect("the inspection hasn't come to where nft hangs");
        for _ in 0..2 {
            assert!(nft("flush ruleset"));
            timeout(SOON, disturbed.notified()).await.expect("not noticed");
            assert!(nft("list table inet vnetpool") && nft("list table arp vnetpool"), "not back");
        }
    };
    tokio::select! {
        () = guarded(agent.tables.clone(), agent.notes.clone(), &disturbed, back) => {}
        _ = inspection => panic!("the inspection has ended"),
    }
    assert_eq!(agent.notes.undisturbed().verdict.reason, Reason::Repaired, "{:?}", agent.notes.undisturbed());
}

#[tokio::test]
async fn a_program_that_flushes_the_tables_all_the_while_costs_one_repair_a_second() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let (agent, _) = settled(&dir).await;
    let put = || agent.metrics.rules.get();
    let fight = async {
        until(&agent.tables, stands).await;
        let (begun, before) = (Instant::now(), put());
        while begun.elapsed() < Duration::from_secs(5) {
            assert!(nft("flush ruleset"));
            sleep(Duration::from_millis(50)).await;
        }
        // Both tables at once, and the first time without a wait.
        let (tables, most) = (put() - before, 2 * (begun.elapsed().as_secs() + 2));
        assert!(tables <= most, "{tables} tables in {:?}", begun.elapsed());
        let back = async {
            while !(nft("list table inet vnetpool") && nft("list table arp vnetpool")) {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(SOON, back).await.expect("the agent has given up");
    };
    guarded(agent.tables.clone(), agent.notes.clone(), &Notify::new(), fight).await;
}

#[tokio::test]
async fn while_nft_hangs_a_node_has_its_rules_as_long_as_the_kernel_reports_no_change() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let is = |status: &str, reason: &str| (status.to_owned(), reason.to_owned());
    let (mut agent, hangs) = (agent(&dir), dir.join("hangs"));
    let object = object(&agent, 2, 2, "192.168.0.0/16");
    let lacks = Counts { withheld: 2, ..Counts::default() };
    let has = Counts { held: 2, free: 2, ..Counts::default() };
    settle(&mut agent, &object).await;
    fs::write(&hangs, "--stateless list table inet").unwrap();
    settle(&mut agent, &object).await;
    assert_eq!(
        reported(&agent, condition::RULES_APPLIED),
        is("False", "TableInDoubt"),
        "the socket isn't open"
    );
    assert_eq!(counts(&agent), lacks);
    fs::remove_file(&hangs).unwrap();

    let (tables, notes) = (agent.tables.clone(), agent.notes.clone());
    let listening = async {
        until(&tables, listens).await;
        settle(&mut agent, &object).await;
        at_rest(&tables).await;
        fs::write(&hangs, "--stateless list table inet").unwrap();
        let began = Instant::now();
        settle(&mut agent, &object).await;
        assert_eq!(reported(&agent, condition::RULES_APPLIED), is("True", "Applied"));
        assert!(began.elapsed() < child::WITHIN, "nft was asked");
        time::pause();
        time::advance(apply::LIST_EVERY).await;
        time::resume();
        settle(&mut agent, &object).await;
        assert_eq!(reported(&agent, condition::RULES_APPLIED), is("True", "Applied"));
        let message = condition(&agent, condition::RULES_APPLIED).message;
        assert!(message.contains("nft doesn't answer"), "{message}");
        assert_eq!(counts(&agent), has);
        assert!(nft("delete table inet vnetpool"));
        until(&tables, |known| known.is_in_doubt(Inet)).await;
        agent.reconcile(Some(&object)).await.unwrap();
        assert_eq!(counts(&agent), lacks);
    };
    guarded(tables.clone(), notes, &Notify::new(), listening).await;
}

#[tokio::test]
async fn a_table_that_cannot_be_put_back_is_lacking_at_once_and_until_it_stands_again() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let (mut agent, broken) = (agent(&dir), dir.join("broken"));
    let object = object(&agent, 2, 2, "192.168.0.0/16");
    let (tables, notes, disturbed) = (agent.tables.clone(), agent.notes.clone(), Notify::new());
    let listening = async {
        until(&tables, listens).await;
        settle(&mut agent, &object).await;
        until(&tables, stands).await;
        agent.reconcile(Some(&object)).await.unwrap();
        assert_eq!(counts(&agent), Counts { held: 2, free: 2, ..Counts::default() });

        // As if one that has passed the rules were under way: none ends from here on.
        let _inspection = agent.keeper.take();
        fs::write(&broken, "-f").unwrap();
        assert!(nft("flush ruleset"));
        timeout(SOON, disturbed.notified()).await.expect("not noticed");
        agent.reconcile(Some(&object)).await.unwrap();
        assert_eq!(counts(&agent), Counts { withheld: 2, ..Counts::default() });
        fs::remove_file(&broken).unwrap();
        until(&tables, stands).await;
        assert!(nft("list table inet vnetpool"));
        agent.reconcile(Some(&object)).await.unwrap();
        assert_eq!(counts(&agent), Counts { held: 2, free: 2, ..Counts::default() });
    };
    guarded(tables.clone(), notes, &disturbed, listening).await;
    assert_eq!(agent.notes.undisturbed().verdict.reason, Reason::Repaired, "{:?}", agent.notes.undisturbed());
}

/// What flushes the tables may end the agent, too.
#[tokio::test]
async fn an_agent_that_starts_without_the_api_server_withholds_addresses_until_it_has_put_the_rules_back() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let (agent, _) = settled(&dir).await;
    drop(agent);
    let tables = || Command::new("nft").args(["--stateless", "list", "ruleset"]).output().unwrap().stdout;
    let before = tables();
    let mut agent = super::agent(&dir);
    agent.reconcile(None).await.unwrap();
    let has = Counts { held: 2, free: 2, ..Counts::default() };
    assert_eq!(counts(&agent), has, "a pod would wait for each agent that is replaced");
    assert!(nft("flush ruleset"));
    agent.reconcile(None).await.unwrap();
    assert_eq!(counts(&agent), Counts { withheld: 2, ..Counts::default() });
    inspect(&mut agent).await;
    agent.reconcile(None).await.unwrap();
    assert_eq!(counts(&agent), has);
    assert_eq!(String::from_utf8(tables()), String::from_utf8(before));
}

/// An agent of an earlier release has kept none.
#[tokio::test]
async fn an_agent_that_knows_no_rules_withholds_addresses_while_there_is_no_table() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let (agent, _) = settled(&dir).await;
    fs::remove_file(agent.config.state_dir.join("rules.json")).unwrap();
    let mut agent = super::agent(&dir);
    assert!(nft("flush ruleset"));
    for _ in 0..2 {
        agent.reconcile(None).await.unwrap();
        assert_eq!(counts(&agent), Counts { withheld: 2, ..Counts::default() });
        inspect(&mut agent).await;
    }
}

#[tokio::test]
async fn a_table_that_nft_does_not_show_after_it_has_put_it_is_not_taken_for_standing() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let (mut agent, broken) = (agent(&dir), dir.join("broken"));
    let object = object(&agent, 2, 2, "192.168.0.0/16");
    fs::write(&broken, "--stateless list").unwrap();
    settle(&mut agent, &object).await;
    assert_eq!(counts(&agent), Counts { withheld: 2, ..Counts::default() });
    assert_eq!(reported(&agent, condition::RULES_APPLIED), ("False".to_owned(), "TableRefused".to_owned()));
    fs::remove_file(&broken).unwrap();
    settle(&mut agent, &object).await;
    assert_eq!(counts(&agent), Counts { held: 2, free: 2, ..Counts::default() });
}

/// The thread that reads the events may be late by any time.
#[tokio::test]
async fn its_own_writes_leave_no_table_in_doubt_however_late_their_events_are_read() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let mut agent = agent(&dir);
    let mut events = Events::open().unwrap();
    let known = agent.tables.known.clone();
    Known::change(&known, |known| known.heard = Some(events.heard()));
    for (generation_, exclusion) in [(2, "192.168.0.0/16"), (3, "172.16.0.0/12")] {
        let object = object(&agent, generation_, 2, exclusion);
        settle(&mut agent, &object).await;
        assert_eq!(counts(&agent), Counts { held: 2, free: 2, ..Counts::default() });
        let now = generation().unwrap();
        assert!(!events.heard().has_read(now), "nothing was put: what does this test show?");
        while !events.heard().has_read(now) {
            let heard = events.read().unwrap();
            Known::change(&known, |known| known.heard = Some(heard));
            assert!(!known.borrow().is_any_in_doubt(), "{:?}", known.borrow());
        }
    }
    assert!(nft("delete table arp vnetpool"));
    while !known.borrow().is_in_doubt(Arp) {
        let heard = events.read().unwrap();
        Known::change(&known, |known| known.heard = Some(heard));
    }
    assert!(!agent.tables.are_in_doubt(), "the rules that pods need stand");
}

#[tokio::test]
async fn a_table_is_listed_only_after_a_change_of_it_and_every_few_minutes() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let mut agent = agent(&dir);
    let object = object(&agent, 2, 2, "192.168.0.0/16");
    let (tables, notes) = (agent.tables.clone(), agent.notes.clone());
    let listed = || {
        let runs = fs::read_to_string(dir.join("runs")).unwrap();
        let of = |family| runs.matches(&format!("--stateless list table {family} vnetpool")).count();
        [of("inet"), of("arp")]
    };
    let listening = async {
        until(&tables, listens).await;
        settle(&mut agent, &object).await;
        at_rest(&tables).await;
        let [inet, arp] = listed();
        for unrelated in ["add table inet other", "add chain inet other some", "add table ip vnetpool"] {
            assert!(nft(unrelated));
            at_rest(&tables).await;
            settle(&mut agent, &object).await;
            assert!(agent.inspected.is_ruled);
        }
        assert_eq!(listed(), [inet, arp], "other programs' tables");

        assert!(nft("flush chain arp vnetpool guard"));
        until(&tables, |known| known.is_in_doubt(Arp)).await;
        at_rest(&tables).await;
        let [inet_then, arp_then] = listed();
        assert!(
            inet_then == inet && arp_then > arp,
            "only the one that was changed: {inet_then}, {arp_then}"
        );

        time::pause();
        time::advance(apply::LIST_EVERY).await;
        time::resume();
        settle(&mut agent, &object).await;
        assert_eq!(listed(), [inet + 1, arp_then + 1]);
        settle(&mut agent, &object).await;
        assert_eq!(listed(), [inet + 1, arp_then + 1]);
    };
    guarded(tables.clone(), notes, &Notify::new(), listening).await;
}

#[tokio::test]
async fn while_no_rule_of_the_node_changes_an_inspection_runs_nft_for_its_counters_only() {
    let Some(dir) = on_a_node(&this_test!()) else { return };
    let (mut agent, object) = settled(&dir).await;
    let (tables, notes) = (agent.tables.clone(), agent.notes.clone());
    let runs = || fs::read_to_string(dir.join("runs")).unwrap();
    let listening = async {
        until(&tables, listens).await;
        settle(&mut agent, &object).await;
        at_rest(&tables).await;
        let before = runs();
        settle(&mut agent, &object).await;
        let counters = "-j list table inet vnetpool\n";
        assert_eq!(runs(), before.clone() + counters);

        assert!(nft("add table inet other") && nft(FORWARD));
        at_rest(&tables).await;
        for _ in 0..2 {
            settle(&mut agent, &object).await;
            let Verdict { reason, message, .. } = agent.notes.undisturbed().verdict;
            assert_eq!(reason, Reason::InTheWay);
            assert!(message.contains("chain drops of table inet other"), "{message}");
        }
        let all = runs();
        let since: Vec<&str> = all.strip_prefix(&before).unwrap().lines().skip(3).collect();
        assert_eq!(since.iter().filter(|run| **run == LISTS_OTHERS).count(), 1, "{since:?}");
    };
    guarded(tables.clone(), notes, &Notify::new(), listening).await;
}
