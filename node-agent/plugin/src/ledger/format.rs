//! The text of a ledger: one line for each record, words separated by one blank.
//!
//! ```text
//! ledger 1
//! boot 0c164634-574d-42e3-9c75-2b20a7cb207f
//! node f00d7a1e-0000-4000-8000-000000000001
//! spec 5eed0000-0000-4000-8000-000000000002 7          object's UID, generation
//! cooldown 30000 -                                    and when new entries count as freed
//! had-first-address yes
//! free vnp-00c1 10.1.2.3 - 81023                       name, address, attached to, freed at
//! assigned vnp-00c2 10.1.2.4 - 90511 vnp0123456789a 4f1c… eth0 <uid> default web-0 - vnetpool    network last
//! assigned vnp-00c5 10.1.2.9 - 90733 /run/netns/cni-1#4026532 81ab… eth0 - - - -    known by its namespace
//! withdrawn vnp-00c3 10.1.2.5 - -
//! relinquished vnp-00c4
//! waiting 95002 77aa… eth0 <uid> default web-1 vnetpool
//! end
//! ```
//!
//! It is not JSON, because every pod waits for it to be read and written: with 250 records a transaction took
//! about 0.6 ms as JSON and takes about 0.3 ms like this. An empty word is written `-`. Bytes that would
//! break a word are written `%XX`.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use super::{Assignment, Entry, Ledger, Millis, Pod, Proof, Record, Sandbox, State, Waiter};

/// Versions of the format that are read. The first line has the version. A reader ignores words behind those
/// it knows, and they are lost when it writes; any other change needs a new version. What is written has the
/// lowest version that can express it, so that a neighbouring release can read it as long as possible: 2 only
/// where a sandbox is known by its namespace.
pub const VERSIONS: std::ops::RangeInclusive<u32> = 1..=2;

/// Why a text isn't a ledger.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error(
        "its format version is {0}, this release reads {VERSIONS:?}: agent and plugin are not of \
         neighbouring releases"
    )]
    Version(u32),
    #[error("its line {0} is not what it should be")]
    Line(usize),
    #[error("its end is missing")]
    CutOff,
}

/// About the size of an assigned record.
const LINE_SIZE: usize = 256;

/// The ledger as text.
pub(super) fn write(ledger: &Ledger) -> String {
    let Ledger {
        boot_id,
        node_uid,
        object,
        generation,
        cooldown,
        freed_at,
        had_first_address,
        records,
        relinquished,
        waiting,
    } = ledger;
    let mut out = Writer(String::with_capacity(LINE_SIZE * (2 + records.len() + waiting.len())));
    let version = version_of(ledger);
    out.line("ledger").number(version);
    out.line("boot").text(boot_id);
    out.line("node").text(node_uid);
    out.line("spec").text(object).number(generation);
    out.line("cooldown").number(cooldown).time(*freed_at);
    out.line("had-first-address").text(if *had_first_address { "yes" } else { "no" });
    for Record { entry, state } in records {
        match state {
            State::Free { since } => out.line("free").entry(entry).time(*since),
            State::Withdrawn { since } => out.line("withdrawn").entry(entry).time(*since),
            State::Assigned(Assignment { sandbox, pod, network, since, proof, vanished }) => {
                let vanished = if *vanished { "vanished" } else { "" };
                out.line("assigned")
                    .entry(entry)
                    .number(since)
                    .proof(proof)
                    .sandbox(sandbox)
                    .pod(pod)
                    .text(vanished)
                    .last(network)
            }
        };
    }
    for name in relinquished {
        out.line("relinquished").text(name);
    }
    for Waiter { sandbox, pod, network, since, proof } in waiting {
        let line = out.line("waiting").number(since).sandbox(sandbox).pod(pod);
        if version > 1 {
            line.proof(proof);
        }
        line.last(network);
    }
    out.line("end");
    out.0.push('\n');
    out.0
}

fn version_of(ledger: &Ledger) -> u32 {
    let assigned = ledger.assignments().map(|(_, assignment)| &assignment.proof);
    let mut proofs = assigned.chain(ledger.waiting.iter().map(|waiter| &waiter.proof));
    if proofs.any(|proof| matches!(proof, Proof::Namespace { .. })) { 2 } else { 1 }
}

/// Reads a ledger from its text.
pub(super) fn read(text: &str) -> Result<Ledger, Malformed> {
    let mut lines =
        text.split('\n').enumerate().map(|(index, line)| Words { line: index + 1, rest: Some(line) });
    let mut line = |keyword| {
        let mut words = lines.next().ok_or(Malformed::CutOff)?;
        if words.word()? == keyword { Ok(words) } else { Err(Malformed::Line(words.line)) }
    };
    let version = line("ledger")?.number()?;
    if !VERSIONS.contains(&version) {
        return Err(Malformed::Version(version));
    }
    let boot_id = line("boot")?.text()?;
    let node_uid = line("node")?.text()?;
    let mut spec = line("spec")?;
    let (object, generation) = (spec.text()?, spec.number()?);
    let mut times = line("cooldown")?;
    let mut ledger = Ledger {
        boot_id,
        node_uid,
        object,
        generation,
        cooldown: times.number()?,
        freed_at: times.time()?,
        had_first_address: line("had-first-address")?.word()? == "yes",
        records: Vec::with_capacity(text.len() / LINE_SIZE + 16),
        relinquished: Vec::new(),
        waiting: Vec::new(),
    };
    for mut words in lines {
        match words.word()? {
            "free" => {
                let (entry, state) = (words.entry()?, State::Free { since: words.time()? });
                ledger.records.push(Record { entry, state });
            }
            "withdrawn" => {
                let (entry, state) = (words.entry()?, State::Withdrawn { since: words.time()? });
                ledger.records.push(Record { entry, state });
            }
            "assigned" => {
                let entry = words.entry()?;
                let (since, proof) = (words.number()?, words.proof()?);
                let (sandbox, pod) = (words.sandbox()?, words.pod()?);
                let vanished = words.word()? == "vanished";
                let network = words.last()?;
                let state = State::Assigned(Assignment { sandbox, pod, network, since, proof, vanished });
                ledger.records.push(Record { entry, state });
            }
            "relinquished" => ledger.relinquished.push(words.text()?),
            "waiting" => {
                let since = words.number()?;
                let (sandbox, pod) = (words.sandbox()?, words.pod()?);
                let proof = match version {
                    1 => Proof::Link(sandbox.host_link(&pod)),
                    _ => words.proof()?,
                };
                let network = words.last()?;
                ledger.waiting.push(Waiter { sandbox, pod, network, since, proof });
            }
            // A text without an end was cut off and would lack records.
            "end" => return Ok(ledger),
            _ => return Err(Malformed::Line(words.line)),
        }
    }
    Err(Malformed::CutOff)
}

struct Writer(String);

impl Writer {
    fn line(&mut self, keyword: &str) -> &mut Writer {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.0.push_str(keyword);
        self
    }

    fn text(&mut self, text: &str) -> &mut Writer {
        self.0.push(' ');
        if text.is_empty() {
            self.0.push('-');
        } else if text != "-" && is_plain(text) {
            self.0.push_str(text);
        } else {
            text.bytes().for_each(|byte| self.0.push_str(&format!("%{byte:02X}")));
        }
        self
    }

    /// A word that was added to a line after the format's version was fixed. It is left out if it is empty,
    /// as releases do that don't know it.
    fn last(&mut self, text: &str) -> &mut Writer {
        if text.is_empty() { self } else { self.text(text) }
    }

    fn number(&mut self, number: impl fmt::Display) -> &mut Writer {
        use fmt::Write;
        let _ = write!(self.0, " {number}"); // a String takes everything
        self
    }

    fn time(&mut self, time: Option<Millis>) -> &mut Writer {
        match time {
            Some(time) => self.number(time),
            None => self.text(""),
        }
    }

    fn entry(&mut self, Entry { name, address, attached_to }: &Entry) -> &mut Writer {
        self.text(name).number(address).text(attached_to.as_deref().unwrap_or_default())
    }

    /// A link's name has no slash in it, and the path of a namespace begins with one.
    fn proof(&mut self, proof: &Proof) -> &mut Writer {
        match proof {
            Proof::Link(link) => self.text(link),
            Proof::Namespace { path, inode: Some(inode) } => self.text(&format!("{path}#{inode}")),
            Proof::Namespace { path, inode: None } => self.text(path),
        }
    }

    fn sandbox(&mut self, Sandbox { container_id, ifname }: &Sandbox) -> &mut Writer {
        self.text(container_id).text(ifname)
    }

    fn pod(&mut self, Pod { namespace, name, uid }: &Pod) -> &mut Writer {
        self.text(uid).text(namespace).text(name)
    }
}

/// Whether a text can be a word as it is. It looks at every byte without a branch, sixteen and more at a
/// time.
fn is_plain(text: &str) -> bool {
    text.bytes().fold(true, |is_plain, byte| is_plain & byte.is_ascii_graphic() & (byte != b'%'))
}

/// The words of a line that are still to be read.
struct Words<'a> {
    line: usize,
    rest: Option<&'a str>,
}

impl<'a> Words<'a> {
    fn word(&mut self) -> Result<&'a str, Malformed> {
        let rest = self.rest.ok_or(Malformed::Line(self.line))?;
        // Words are short: looking at each byte is faster than `split_once`, which prepares for long ones.
        let (word, rest) = match rest.bytes().position(|byte| byte == b' ') {
            Some(blank) => (&rest[..blank], Some(&rest[blank + 1..])),
            None => (rest, None),
        };
        self.rest = rest;
        Ok(word)
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let word = self.word()?;
        if word == "-" {
            return Ok(String::new());
        }
        if !word.starts_with('%') {
            return Ok(word.to_owned());
        }
        let bytes: Option<Vec<u8>> =
            word.split('%').skip(1).map(|hex| u8::from_str_radix(hex, 16).ok()).collect();
        bytes.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or(Malformed::Line(self.line))
    }

    /// A word that may be missing, which means the same as an empty one.
    fn last(&mut self) -> Result<String, Malformed> {
        if self.rest.is_none() { Ok(String::new()) } else { self.text() }
    }

    fn number<T: FromStr>(&mut self) -> Result<T, Malformed> {
        self.word()?.parse().map_err(|_| Malformed::Line(self.line))
    }

    fn time(&mut self) -> Result<Option<Millis>, Malformed> {
        if self.rest.is_some_and(|rest| rest.starts_with('-')) {
            return self.word().map(|_| None);
        }
        self.number().map(Some)
    }

    fn entry(&mut self) -> Result<Entry, Malformed> {
        let (name, address, attached_to) = (self.text()?, self.number::<Ipv4Addr>()?, self.text()?);
        Ok(Entry { name, address, attached_to: Some(attached_to).filter(|uid| !uid.is_empty()) })
    }

    fn proof(&mut self) -> Result<Proof, Malformed> {
        let text = self.text()?;
        if !text.starts_with('/') {
            return Ok(Proof::Link(text));
        }
        let inode = text.rsplit_once('#').and_then(|(path, inode)| Some((path, inode.parse().ok()?)));
        Ok(match inode {
            Some((path, inode)) => Proof::Namespace { path: path.to_owned(), inode: Some(inode) },
            None => Proof::Namespace { path: text, inode: None },
        })
    }

    fn sandbox(&mut self) -> Result<Sandbox, Malformed> {
        Ok(Sandbox { container_id: self.text()?, ifname: self.text()? })
    }

    fn pod(&mut self) -> Result<Pod, Malformed> {
        let (uid, namespace, name) = (self.text()?, self.text()?, self.text()?);
        Ok(Pod { namespace, name, uid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_sandbox_known_by_its_namespace_takes_version_2_and_nothing_else_does() {
        let text = VERSION_1
            .replacen("ledger 1", "ledger 2", 1)
            .replacen(" vnp0123456789a ", " /run/netns/cni-1#4026532001 ", 1)
            .replacen("web-1\n", "web-1 /run/netns/cni-2\n", 1);
        let ledger = read(&text).unwrap();
        assert_eq!(write(&ledger), text);
        let proofs: Vec<_> = ledger.assignments().map(|(_, assignment)| &assignment.proof).collect();
        let namespace = Proof::Namespace { path: "/run/netns/cni-1".to_owned(), inode: Some(4026532001) };
        assert_eq!(proofs, [&namespace, &Proof::Link("vnp0123456789b".to_owned())]);
        // The text of a release that knows no namespaces is written so that this release can read it again.
        assert_eq!(write(&read(VERSION_1).unwrap()).lines().next(), Some("ledger 1"));
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
            assert!(
                networks.chain(ledger.waiting().iter().map(|waiter| &waiter.network)).eq(["vnetpool"; 3])
            );
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
        assert_eq!(refusal(&VERSION_1.replacen('1', "3", 1)), Malformed::Version(3));
        assert_eq!(refusal(""), Malformed::Line(1));
        for line in 1..VERSION_1.lines().count() {
            let cut: String = VERSION_1.lines().take(line).map(|line| format!("{line}\n")).collect();
            assert!(read(&cut).is_err(), "cut off after line {line}");
            let garbled =
                VERSION_1.lines().enumerate().map(|(index, text)| if index == line - 1 { "?" } else { text });
            assert_eq!(refusal(&garbled.collect::<Vec<_>>().join("\n")), Malformed::Line(line));
        }
    }
}
