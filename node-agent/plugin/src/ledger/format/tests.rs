use super::*;

fn read(text: &str) -> Result<Ledger, Malformed> {
    super::read(&Arc::new(text.into()))
}

/// As text, formatted anew and not copied from the lines that were read.
pub(super) fn write(ledger: &Ledger) -> String {
    let anew = |record: &Record| Record::new(record.entry().clone(), record.state().clone());
    let anew = Ledger { records: ledger.records.iter().map(anew).collect(), ..ledger.clone() };
    let bytes = |text: &Text| text.pieces().flatten().copied().collect::<Vec<u8>>();
    let text = bytes(&super::write(&anew));
    assert!(super::write(&anew).is(&text));
    assert_eq!(super::read(&Arc::new(bytes(&super::write(ledger)))).as_ref(), Ok(&anew));
    String::from_utf8(text).unwrap()
}

/// As the first release writes it. Never change it: a later format is another text with another version.
const VERSION_1: &str = "\
ledger 1
boot 0c164634-574d-42e3-9c75-2b20a7cb207f
node node-uid
spec object-uid 7
cooldown 30000 1234
had-first-address yes
free vnp-00c1 10.1.2.3 pod-uid 81023
free vnp-00c6 10.1.2.8 - -
assigned vnp-00c2 10.1.2.4 - 90511 vnp0123456789a 4f1c eth0 uid-0 default web-0 -
assigned - 10.1.2.7 - 90600 vnp0123456789b 5a2d eth0 - - - vanished
withdrawn vnp-00c3 10.1.2.5 - -
relinquished vnp-00c4
waiting 95002 77aa eth0 uid-1 default web-1
end
";

#[test]
fn the_text_of_the_first_release_is_read_and_written() {
    let ledger = read(VERSION_1).unwrap();
    assert_eq!(write(&ledger), VERSION_1);
    let counts = ledger.counts(200_000);
    assert_eq!((counts.held, counts.free, counts.assigned, counts.vanished), (3, 1, 2, 1));
    assert_eq!((counts.withdrawn, counts.relinquished, counts.waiting), (1, 1, 1));
}

/// Each version, as release 0.2.0 wrote it: what it has is known, and none of it is lost when it is written.
#[test]
fn the_ledgers_of_release_0_2_0_are_read_and_written_as_they_stand() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/0.2.0");
    for version in VERSIONS {
        let text = std::fs::read_to_string(format!("{folder}/ledger-{version}")).unwrap();
        let ledger = read(&text).unwrap();
        assert_eq!(write(&ledger), text);
        let counts = ledger.counts(200_000);
        assert_eq!((counts.assigned, counts.vanished, counts.relinquished, counts.waiting), (2, 1, 1, 1));
        assert_eq!(ledger.is_ruled(), version < 3, "{version}");
        // Both are kept for the pod they are attached to, and so cool, or are free.
        let kept = if version < 3 { (counts.cooling + counts.free, 0) } else { (2, counts.withheld - 2) };
        assert_eq!(kept, (2, 0), "{version}: {counts:?}");
    }
}

/// The same in version 2: a sandbox that has an address and one that waits are known by their namespaces.
fn by_namespace() -> String {
    VERSION_1
        .replacen("ledger 1", "ledger 2", 1)
        .replacen(" vnp0123456789a ", " /run/netns/cni-1#4026532001 ", 1)
        .replacen("web-1\n", "web-1 /run/netns/cni-2\n", 1)
}

#[test]
fn a_sandbox_known_by_its_namespace_takes_version_2_and_nothing_else_does() {
    let text = by_namespace();
    let ledger = read(&text).unwrap();
    assert_eq!(write(&ledger), text);
    let proofs: Vec<_> = ledger.assignments().map(|(_, assignment)| &assignment.proof).collect();
    let namespace = Proof::Namespace { path: "/run/netns/cni-1".to_owned(), inode: Some(4026532001) };
    assert_eq!(proofs, [&namespace, &Proof::Link("vnp0123456789b".to_owned())]);
    // The text of a release that knows no namespaces is written so that this release can read it again.
    assert_eq!(write(&read(VERSION_1).unwrap()).lines().next(), Some("ledger 1"));
}

#[test]
fn a_node_that_lacks_its_rules_takes_version_3_and_with_them_the_version_is_as_it_was() {
    for before in [VERSION_1, &by_namespace()] {
        let mut ledger = read(before).unwrap();
        assert!(ledger.is_ruled());
        ledger.rule(false);
        let text = write(&ledger);
        let head: Vec<&str> = text.lines().take(7).collect();
        assert_eq!((head[0], head[5], head[6]), ("ledger 3", "had-first-address yes", "ruled no"));
        let mut ledger = read(&text).unwrap();
        assert!(!ledger.is_ruled());
        ledger.rule(true);
        assert_eq!(write(&ledger), before);
    }
    assert_eq!(read(&VERSION_1.replacen('1', "3", 1)).unwrap_err(), Malformed::Line(7));
}

/// The networks came one release after the version they are in, so they may be missing.
fn with_networks(text: &str) -> String {
    let add = |line: &str| match line.split(' ').next() {
        Some("assigned" | "waiting") => format!("{line} vnetpool\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(add).collect()
}

#[test]
fn the_network_stands_behind_the_words_that_the_release_before_knows() {
    let version_2 = VERSION_1.replacen("ledger 1", "ledger 2", 1);
    let version_2 = version_2.replacen(" vnp0123456789a ", " /run/netns/cni-1 ", 1);
    let version_2 = version_2.replacen("web-1\n", "web-1 /run/netns/cni-2\n", 1);
    for text in [with_networks(VERSION_1), with_networks(&version_2)] {
        let ledger = read(&text).unwrap();
        let networks = ledger.assignments().map(|(_, assignment)| &assignment.network);
        assert!(networks.chain(ledger.waiting().iter().map(|waiter| &waiter.network)).eq(["vnetpool"; 3]));
        assert_eq!(write(&ledger), text);
    }
    let before = read(VERSION_1).unwrap();
    assert!(before.assignments().all(|(_, assignment)| assignment.network.is_empty()));
}

#[test]
fn words_that_a_later_release_adds_to_a_line_are_no_matter() {
    let now = with_networks(VERSION_1);
    let later: String = now.lines().map(|line| format!("{line} new words\n")).collect();
    assert_eq!(write(&read(&later).unwrap()), now);
}

#[test]
fn a_text_of_another_version_or_cut_off_or_garbled_is_no_ledger() {
    let refusal = |text: &str| read(text).unwrap_err();
    assert_eq!(refusal(&VERSION_1.replacen('1', "4", 1)), Malformed::Version(4));
    let newer_and_no_text = Arc::new(b"ledger 4\n\xff\xff\n".to_vec());
    assert_eq!(super::read(&newer_and_no_text).unwrap_err(), Malformed::Version(4));
    assert_eq!(refusal(""), Malformed::Line(1));
    for line in 1..VERSION_1.lines().count() {
        let cut: String = VERSION_1.lines().take(line).map(|line| format!("{line}\n")).collect();
        assert!(read(&cut).is_err(), "cut off after line {line}");
        let garbled =
            VERSION_1.lines().enumerate().map(|(index, text)| if index == line - 1 { "?" } else { text });
        assert_eq!(refusal(&garbled.collect::<Vec<_>>().join("\n")), Malformed::Line(line));
    }
}

/// Every line is checked by what reads usual lines, or parsed: neither lets one pass that is cut short.
#[test]
fn a_record_that_lacks_a_word_is_malformed_whatever_stands_behind_it() {
    let lines: Vec<&str> = VERSION_1.lines().collect();
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| line.contains(" 10.1.2.")) {
        let words: Vec<&str> = line.split(' ').collect();
        for count in 1..words.len() {
            let cut = words[..count].join(" ");
            let text: Vec<&str> =
                lines.iter().enumerate().map(|(at, line)| if at == index { &*cut } else { line }).collect();
            assert_eq!(read(&(text.join("\n") + "\n")).unwrap_err(), Malformed::Line(index + 1), "{cut}");
        }
    }
}

#[test]
fn a_line_with_bytes_that_are_no_text_is_malformed_wherever_they_are() {
    let before = VERSION_1.as_bytes();
    for (at, _) in
        VERSION_1.match_indices(|c: char| c != '\n').filter(|(at, _)| !before[*at..].starts_with(b"end"))
    {
        let text = [&before[..at], b"\xff", &before[at + 1..]].concat();
        let line = 1 + before[..at].iter().filter(|byte| **byte == b'\n').count();
        let read = super::read(&Arc::new(text));
        assert!(matches!(read, Err(Malformed::Line(number)) if number == line), "{at}: {read:?}");
    }
}

#[test]
fn records_in_their_usual_form_are_not_parsed_until_they_are_asked_for() {
    let ledger = read(&with_networks(VERSION_1)).unwrap();
    let parsed = || ledger.records.iter().map(|record| record.unparsed().is_none()).collect::<Vec<_>>();
    // The first is kept for a pod, and the name of the fourth isn't known.
    assert_eq!(parsed(), [true, false, false, true, false]);
    let sandbox = ledger.waiting()[0].sandbox.clone();
    assert_eq!((ledger.address_of(&sandbox), ledger.is_due(u64::MAX)), (None, true));
    assert_eq!(parsed(), [true, false, false, true, false]);
}
