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
//! While the node lacks its rules, a line `ruled no` stands behind `had-first-address`.
//!
//! An empty word is written `-`. Bytes that would break a word are written `%XX`.
//!
//! It is not JSON, because every pod waits for it to be read and written. For the same reason no record is
//! taken apart or put together that nobody changes: see [`Record`] and [`Assignment`].

use std::{fmt, net::Ipv4Addr, ops::Range, str::FromStr, sync::Arc};

use super::{
    Assignment, Entry, Ledger, Millis, Pod, Proof, Record, Sandbox, State, Tenant, Waiter, record::Line,
};

/// Versions of the format that are read. The first line has the version. A reader ignores words behind those
/// it knows, and they are lost when it changes their line; any other change needs a new version. What is
/// written has the lowest version that can express it, so that a neighbouring release can read it as long as
/// possible: 2 only where a sandbox is known by its namespace, 3 only while the node lacks its rules, when a
/// release that doesn't know of that mustn't assign anything.
pub const VERSIONS: std::ops::RangeInclusive<u32> = 1..=3;

/// Why a text isn't a ledger.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("its format version is {0}, and this release reads {VERSIONS:?}")]
    Version(u32),
    #[error("its line {0} is not what it should be")]
    Line(usize),
    #[error("its end is missing")]
    CutOff,
}

/// The text of a ledger in pieces: what was read and stays, and what is new.
pub(super) struct Text(Vec<Piece>);

enum Piece {
    Kept(Line),
    New(String),
}

impl Text {
    pub(super) fn pieces(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|piece| match piece {
            Piece::Kept(line) => line.as_str(),
            Piece::New(text) => text,
        })
    }

    /// Whether it says the same as `other`, byte for byte.
    pub(super) fn is(&self, other: &str) -> bool {
        self.pieces().try_fold(other, |rest, piece| rest.strip_prefix(piece)).is_some_and(str::is_empty)
    }
}

/// The ledger as text.
pub(super) fn write(ledger: &Ledger) -> Text {
    let Ledger {
        boot_id,
        node_uid,
        object,
        generation,
        cooldown,
        freed_at,
        had_first_address,
        is_ruled,
        records,
        relinquished,
        waiting,
    } = ledger;
    let mut out = Writer { done: Vec::new(), text: String::with_capacity(1024) };
    let version = version_of(ledger);
    out.line("ledger").number(version).end();
    out.line("boot").text(boot_id).end();
    out.line("node").text(node_uid).end();
    out.line("spec").text(object).number(generation).end();
    out.line("cooldown").number(cooldown).time(*freed_at).end();
    out.line("had-first-address").yes_or_no(*had_first_address).end();
    if version > 2 {
        out.line("ruled").yes_or_no(*is_ruled).end();
    }
    for record in records {
        if let Some(line) = record.line() {
            out.keep(line);
            continue;
        }
        match record.state() {
            State::Free { since } => out.line("free").entry(record.entry()).time(*since).end(),
            State::Withdrawn { since } => out.line("withdrawn").entry(record.entry()).time(*since).end(),
            State::Assigned(assignment) => {
                let Tenant { sandbox, pod, network, proof } = &**assignment;
                let vanished = if assignment.vanished { "vanished" } else { "" };
                let line = out.line("assigned").entry(record.entry()).number(assignment.since);
                line.proof(proof).sandbox(sandbox).pod(pod).text(vanished).last(network).end();
            }
        };
    }
    for name in relinquished {
        out.line("relinquished").text(name).end();
    }
    for Waiter { sandbox, pod, network, since, proof } in waiting {
        let line = out.line("waiting").number(since).sandbox(sandbox).pod(pod);
        if version > 1 {
            line.proof(proof);
        }
        line.last(network).end();
    }
    out.line("end").end();
    out.finish()
}

fn version_of(ledger: &Ledger) -> u32 {
    let is_by_namespace = |record: &Record| match record.state() {
        State::Assigned(assignment) => assignment.is_by_namespace(),
        _ => false,
    };
    let waits_by_namespace = |waiter: &Waiter| matches!(waiter.proof, Proof::Namespace { .. });
    if !ledger.is_ruled {
        return 3;
    }
    let needs_2 = ledger.records.iter().any(is_by_namespace) || ledger.waiting.iter().any(waits_by_namespace);
    if needs_2 { 2 } else { 1 }
}

/// Reads a ledger from its text.
pub(super) fn read(text: &Arc<String>) -> Result<Ledger, Malformed> {
    let mut lines = Lines { text, number: 0, start: 0, end: 0 };
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
        is_ruled: version < 3 || line("ruled")?.word()? == "yes",
        records: Vec::with_capacity(count(text, b'\n')),
        relinquished: Vec::new(),
        waiting: Vec::new(),
    };
    while let Some(mut words) = lines.next() {
        match words.word()? {
            "free" => {
                let (entry, state) = (words.entry()?, State::Free { since: words.time()? });
                ledger.records.push(Record::read(entry, state, Line::of(text, lines.range())));
            }
            "withdrawn" => {
                let (entry, state) = (words.entry()?, State::Withdrawn { since: words.time()? });
                ledger.records.push(Record::read(entry, state, Line::of(text, lines.range())));
            }
            "assigned" => {
                let (entry, since) = (words.entry()?, words.number()?);
                let (start, Sound { vanished, is_by_namespace }) = (words.at(), words.sound_tenant()?);
                let tenant = Line::of(text, start..lines.end);
                let state = State::Assigned(Assignment::read(since, vanished, is_by_namespace, tenant));
                ledger.records.push(Record::read(entry, state, Line::of(text, lines.range())));
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

/// The tenant in these words, which were found sound.
pub(super) fn tenant(words: &str) -> Tenant {
    Words::of(words).tenant().map(|(tenant, _)| tenant).unwrap_or_default()
}

/// Whether the tenant in these words is this sandbox.
pub(super) fn is_tenant(words: &str, Sandbox { container_id, ifname }: &Sandbox) -> bool {
    let mut words = Words::of(words);
    let is_next = |words: &mut Words<'_>, text: &str| match words.word() {
        Ok(word) if word == "-" || word.starts_with('%') => decode(word).is_some_and(|word| word == text),
        word => word == Ok(text),
    };
    words.word().is_ok() && is_next(&mut words, container_id) && is_next(&mut words, ifname)
}

struct Writer {
    done: Vec<Piece>,
    text: String,
}

impl Writer {
    fn line(&mut self, keyword: &str) -> &mut Writer {
        self.text.push_str(keyword);
        self
    }

    fn end(&mut self) {
        self.text.push('\n');
    }

    /// A line as it was read.
    fn keep(&mut self, line: &Line) {
        if !self.text.is_empty() {
            self.done.push(Piece::New(std::mem::take(&mut self.text)));
        }
        if let Some(Piece::Kept(before)) = self.done.last_mut()
            && let Some(joined) = before.joined(line)
        {
            *before = joined;
        } else {
            self.done.push(Piece::Kept(line.clone()));
        }
    }

    fn finish(mut self) -> Text {
        self.done.push(Piece::New(self.text));
        Text(self.done)
    }

    fn text(&mut self, text: &str) -> &mut Writer {
        self.text.push(' ');
        if text.is_empty() {
            self.text.push('-');
        } else if text != "-" && is_plain(text) {
            self.text.push_str(text);
        } else {
            text.bytes().for_each(|byte| self.text.push_str(&format!("%{byte:02X}")));
        }
        self
    }

    /// A word that was added to a line after the format's version was fixed. It is left out if it is empty,
    /// as releases do that don't know it.
    fn last(&mut self, text: &str) -> &mut Writer {
        if text.is_empty() { self } else { self.text(text) }
    }

    fn yes_or_no(&mut self, is_so: bool) -> &mut Writer {
        self.text(if is_so { "yes" } else { "no" })
    }

    fn number(&mut self, number: impl fmt::Display) -> &mut Writer {
        use fmt::Write;
        let _ = write!(self.text, " {number}"); // a String takes everything
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

/// How often a byte is in a text. It counts in bytes, so that sixteen and more are looked at at a time.
fn count(text: &str, wanted: u8) -> usize {
    let in_part = |part: &[u8]| part.iter().map(|byte| u8::from(*byte == wanted)).sum::<u8>();
    text.as_bytes().chunks(usize::from(u8::MAX)).map(|part| usize::from(in_part(part))).sum()
}

/// Where a byte is in a text for the first time. Words and lines are short: looking at each byte is faster
/// than `find` and `split_once`, which prepare for long ones.
fn position(text: &str, wanted: u8) -> Option<usize> {
    text.bytes().position(|byte| byte == wanted)
}

/// A word that isn't what it says.
fn decode(word: &str) -> Option<String> {
    if word == "-" {
        return Some(String::new());
    }
    let bytes: Option<Vec<u8>> =
        word.split('%').skip(1).map(|hex| u8::from_str_radix(hex, 16).ok()).collect();
    String::from_utf8(bytes?).ok()
}

/// Goes through the lines of a text.
struct Lines<'a> {
    text: &'a str,
    /// Of the last line.
    number: usize,
    start: usize,
    end: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Option<Words<'a>> {
        self.start = if self.number == 0 { 0 } else { self.end + 1 };
        let rest = self.text.get(self.start..)?;
        self.number += 1;
        let line = &rest[..position(rest, b'\n').unwrap_or(rest.len())];
        self.end = self.start + line.len();
        Some(Words { line: self.number, end: self.end, rest: Some(line) })
    }

    /// Where the last line stands in the text, with what ends it.
    fn range(&self) -> Range<usize> {
        self.start..self.end + 1
    }
}

/// The words of a line that are still to be read.
struct Words<'a> {
    line: usize,
    /// Where the line ends in its text.
    end: usize,
    rest: Option<&'a str>,
}

/// What is known of a tenant whose words were looked at, but not taken apart.
struct Sound {
    vanished: bool,
    is_by_namespace: bool,
}

impl<'a> Words<'a> {
    fn of(words: &'a str) -> Words<'a> {
        Words { line: 0, end: words.len(), rest: Some(words) }
    }

    /// Where the next word begins in the line's text.
    fn at(&self) -> usize {
        self.end - self.rest.map_or(0, str::len)
    }

    fn word(&mut self) -> Result<&'a str, Malformed> {
        let rest = self.rest.ok_or(Malformed::Line(self.line))?;
        let (word, rest) = match position(rest, b' ') {
            Some(blank) => (&rest[..blank], Some(&rest[blank + 1..])),
            None => (rest, None),
        };
        self.rest = rest;
        Ok(word)
    }

    /// The tenant, and whether its address has vanished.
    fn tenant(&mut self) -> Result<(Tenant, bool), Malformed> {
        let (proof, sandbox, pod) = (self.proof()?, self.sandbox()?, self.pod()?);
        let vanished = self.word()? == "vanished";
        Ok((Tenant { sandbox, pod, network: self.last()?, proof }, vanished))
    }

    /// Makes sure that [`Words::tenant`] can read what follows. Where the words are as they nearly always
    /// are, it does so without taking them apart.
    fn sound_tenant(&mut self) -> Result<Sound, Malformed> {
        let rest = self.rest.ok_or(Malformed::Line(self.line))?;
        let blanks = count(rest, b' ');
        // `vanished` is the seventh word, and the network behind it may be missing.
        if !matches!(blanks, 6 | 7) || rest.starts_with('/') || count(rest, b'%') > 0 {
            let (tenant, vanished) = self.tenant()?;
            return Ok(Sound { vanished, is_by_namespace: matches!(tenant.proof, Proof::Namespace { .. }) });
        }
        let vanished = rest.rsplit(' ').nth(blanks - 6) == Some("vanished");
        Ok(Sound { vanished, is_by_namespace: false })
    }

    fn text(&mut self) -> Result<String, Malformed> {
        match self.word()? {
            word if word == "-" || word.starts_with('%') => decode(word).ok_or(Malformed::Line(self.line)),
            word => Ok(word.to_owned()),
        }
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

    fn read(text: &str) -> Result<Ledger, Malformed> {
        super::read(&Arc::new(text.to_owned()))
    }

    /// As text, with nothing kept of what it was read from.
    fn write(ledger: &Ledger) -> String {
        let anew = |record: &Record| Record::new(record.entry().clone(), record.state().clone());
        let anew = Ledger { records: ledger.records.iter().map(anew).collect(), ..ledger.clone() };
        let text: String = super::write(&anew).pieces().collect();
        assert!(super::write(&anew).is(&text));
        assert_eq!(read(&super::write(ledger).pieces().collect::<String>()).as_ref(), Ok(&anew));
        text
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
        assert_eq!(refusal(&VERSION_1.replacen('1', "4", 1)), Malformed::Version(4));
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
