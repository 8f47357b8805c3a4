//! Reads lines and words. It is made for speed, since every pod waits for it.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::str::FromStr;

use crate::ledger::Millis;
use crate::ledger::tenant::{Entry, Proof, Tenant};
use crate::sandbox::{Pod, Sandbox};

/// Versions of the format that are read. The first line has the version. A reader ignores words behind those
/// it knows, and they are lost when it changes their line; any other change needs a new version. A ledger is
/// written in the lowest version that can express it, so that a neighbouring release can read it as long as
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

/// The tenant in these words, which were found sound.
pub(in crate::ledger) fn tenant(words: &str) -> Tenant {
    Words::of(words).tenant().map(|(tenant, _)| tenant).unwrap_or_default()
}

/// Whether the tenant in these words is this sandbox.
pub(in crate::ledger) fn is_tenant(words: &str, Sandbox { container_id, ifname }: &Sandbox) -> bool {
    let mut words = Words::of(words);
    let is_next = |words: &mut Words<'_>, text: &str| match words.rest {
        // Most are others': their words needn't be read to an end.
        Some(rest) if !is_encoded(rest) && !rest.starts_with(text) => false,
        _ => words.text().is_ok_and(|word| word == text),
    };
    words.word().is_ok() && is_next(&mut words, container_id) && is_next(&mut words, ifname)
}

/// The name in the line of a record whose entry was found in its usual form.
pub(in crate::ledger) fn name(line: &str) -> &str {
    let mut words = Words::of(line);
    words.word().and_then(|_| words.word()).unwrap_or_default()
}

/// A number with 1 in each byte.
const EACH: u64 = u64::from_le_bytes([0x01; 8]);

/// Tests eight bytes at a time, of which the first is the lowest here: gives those that are `wanted` as 1 and
/// the others as 0. A program that is optimized for size does so for no loop by itself.
fn found(bytes: [u8; 8], wanted: u8) -> u64 {
    const LOW: u64 = u64::from_le_bytes([0x7f; 8]);
    let differences = u64::from_le_bytes(bytes) ^ (EACH * u64::from(wanted));
    // The high bit of each byte without a difference, moved to the low one.
    !(((differences & LOW) + LOW) | differences | LOW) >> 7
}

/// How often a byte is in a text.
pub(super) fn count(text: &str, wanted: u8) -> usize {
    let (eights, rest) = text.as_bytes().as_chunks();
    let sum = |&bytes: &[u8; 8]| (found(bytes, wanted).wrapping_mul(EACH) >> 56) as usize;
    eights.iter().map(sum).sum::<usize>() + rest.iter().filter(|byte| **byte == wanted).count()
}

/// Where a byte is in a text for the first time. Lines are short: this is faster than `find` and
/// `split_once`, which prepare for long ones.
pub(super) fn position(text: &str, wanted: u8) -> Option<usize> {
    let (eights, rest) = text.as_bytes().as_chunks();
    let first = |(index, &bytes): (usize, &[u8; 8])| match found(bytes, wanted) {
        0 => None,
        found => Some(8 * index + found.trailing_zeros() as usize / 8),
    };
    let in_rest = || Some(text.len() - rest.len() + rest.iter().position(|byte| *byte == wanted)?);
    eights.iter().enumerate().find_map(first).or_else(in_rest)
}

/// Whether a word, or what begins with it, isn't the text itself.
fn is_encoded(word: &str) -> bool {
    word.starts_with(['-', '%'])
}

/// The address in the one form in which it is written: the standard library is prepared for more.
pub(super) fn address(word: &str) -> Option<Ipv4Addr> {
    let (mut address, mut octet, mut octets, mut is_begun) = (0, 0, 1, false);
    for byte in word.bytes() {
        match byte {
            b'0'..=b'9' if octet > 0 || !is_begun => {
                (octet, is_begun) = (octet * 10 + u32::from(byte - b'0'), true);
                if octet > u32::from(u8::MAX) {
                    return None;
                }
            }
            b'.' if is_begun => {
                (address, octet, octets, is_begun) = (address << 8 | octet, 0, octets + 1, false);
            }
            _ => return None,
        }
    }
    (octets == 4 && is_begun).then(|| Ipv4Addr::from(address << 8 | octet))
}

/// The text that a word encodes; `None` if it encodes none.
fn decode(word: &str) -> Option<String> {
    if word == "-" {
        return Some(String::new());
    }
    let bytes: Option<Vec<u8>> =
        word.split('%').skip(1).map(|hex| u8::from_str_radix(hex, 16).ok()).collect();
    String::from_utf8(bytes?).ok()
}

/// Goes through the lines of a text.
pub(super) struct Lines<'a> {
    text: &'a str,
    /// Of the last line.
    number: usize,
    start: usize,
    pub(super) end: usize,
}

impl<'a> Lines<'a> {
    pub(super) fn of(text: &'a str) -> Lines<'a> {
        Lines { text, number: 0, start: 0, end: 0 }
    }

    pub(super) fn next(&mut self) -> Option<Words<'a>> {
        self.start = if self.number == 0 { 0 } else { self.end + 1 };
        let rest = self.text.get(self.start..)?;
        self.number += 1;
        let line = &rest[..position(rest, b'\n').unwrap_or(rest.len())];
        self.end = self.start + line.len();
        Some(Words { line: self.number, end: self.end, rest: Some(line) })
    }

    /// Where the last line stands in the text, with its end.
    pub(super) fn range(&self) -> Range<usize> {
        self.start..self.end + 1
    }
}

/// The words of a line that are still to be read.
pub(super) struct Words<'a> {
    pub(super) line: usize,
    /// Where the line ends in its text.
    end: usize,
    rest: Option<&'a str>,
}

/// An entry whose words were validated.
pub(in crate::ledger) enum SoundEntry {
    /// One without an attachment, whose name stands there as it is. It isn't parsed but for the address.
    Usual(Ipv4Addr),
    Other(Box<Entry>),
}

/// A tenant whose words were validated, but not parsed.
pub(super) struct Sound {
    pub(super) vanished: bool,
    pub(super) is_by_namespace: bool,
}

impl<'a> Words<'a> {
    fn of(words: &'a str) -> Words<'a> {
        Words { line: 0, end: words.len(), rest: Some(words) }
    }

    /// Where the next word begins in the line's text.
    pub(super) fn at(&self) -> usize {
        self.end - self.rest.map_or(0, str::len)
    }

    pub(super) fn word(&mut self) -> Result<&'a str, Malformed> {
        let rest = self.rest.ok_or(Malformed::Line(self.line))?;
        // Words are shorter still: testing each byte is faster than eight at a time.
        let (word, rest) = match rest.bytes().position(|byte| byte == b' ') {
            Some(blank) => (&rest[..blank], Some(&rest[blank + 1..])),
            None => (rest, None),
        };
        self.rest = rest;
        Ok(word)
    }

    /// The tenant, and whether its address has vanished.
    pub(super) fn tenant(&mut self) -> Result<(Tenant, bool), Malformed> {
        let (proof, sandbox, pod) = (self.proof()?, self.sandbox()?, self.pod()?);
        let vanished = self.word()? == "vanished";
        Ok((Tenant { sandbox, pod, network: self.last()?, proof }, vanished))
    }

    /// Makes sure that [`Words::tenant`] can read the following words. Where the words are in their usual
    /// form, it does so without parsing them.
    pub(super) fn sound_tenant(&mut self) -> Result<Sound, Malformed> {
        let rest = self.rest.ok_or(Malformed::Line(self.line))?;
        let blanks = count(rest, b' ');
        // `vanished` is the seventh word, and the network behind it may be missing.
        if !matches!(blanks, 6 | 7) || rest.starts_with('/') || rest.as_bytes().contains(&b'%') {
            let (tenant, vanished) = self.tenant()?;
            return Ok(Sound { vanished, is_by_namespace: matches!(tenant.proof, Proof::Namespace { .. }) });
        }
        let until_vanished =
            if blanks == 6 { Some(rest) } else { rest.rsplit_once(' ').map(|(rest, _)| rest) };
        let vanished = until_vanished.is_some_and(|rest| rest.ends_with(" vanished"));
        Ok(Sound { vanished, is_by_namespace: false })
    }

    pub(super) fn text(&mut self) -> Result<String, Malformed> {
        match self.word()? {
            word if word == "-" || word.starts_with('%') => decode(word).ok_or(Malformed::Line(self.line)),
            word => Ok(word.to_owned()),
        }
    }

    /// A word that may be missing, which means the same as an empty one.
    pub(super) fn last(&mut self) -> Result<String, Malformed> {
        if self.rest.is_none() { Ok(String::new()) } else { self.text() }
    }

    pub(super) fn number<T: FromStr>(&mut self) -> Result<T, Malformed> {
        self.word()?.parse().map_err(|_| Malformed::Line(self.line))
    }

    pub(super) fn time(&mut self) -> Result<Option<Millis>, Malformed> {
        if self.rest.is_some_and(|rest| rest.starts_with('-')) {
            return self.word().map(|_| None);
        }
        self.number().map(Some)
    }

    pub(super) fn sound_entry(&mut self) -> Result<SoundEntry, Malformed> {
        let start = self.rest;
        let (name, number, attached_to) = (self.word()?, self.word()?, self.word()?);
        let address = address(number).ok_or(Malformed::Line(self.line))?;
        if attached_to == "-" && !is_encoded(name) {
            return Ok(SoundEntry::Usual(address));
        }
        self.rest = start;
        let (name, _, attached_to) = (self.text()?, self.word()?, self.text()?);
        let attached_to = Some(attached_to).filter(|uid| !uid.is_empty());
        Ok(SoundEntry::Other(Box::new(Entry { name, address, attached_to })))
    }

    pub(super) fn proof(&mut self) -> Result<Proof, Malformed> {
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

    pub(super) fn sandbox(&mut self) -> Result<Sandbox, Malformed> {
        Ok(Sandbox { container_id: self.text()?, ifname: self.text()? })
    }

    pub(super) fn pod(&mut self) -> Result<Pod, Malformed> {
        let (uid, namespace, name) = (self.text()?, self.text()?, self.text()?);
        Ok(Pod { namespace, name, uid })
    }
}
