//! Reads lines and words.

use std::ops::Range;
use std::str::FromStr;

use super::usual::{self, Usual};
use crate::ledger::tenant::{Entry, Proof, Tenant};
use crate::ledger::{Assignment, Millis, State};
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

/// The entry in the line of a record, and its use. The line stands here without its end, or with it.
pub(in crate::ledger) fn record(line: &[u8]) -> Result<(Entry, State), Malformed> {
    let mut words = Words::of(1, line.strip_suffix(b"\n").unwrap_or(line))?;
    let keyword = words.word()?;
    words.record(keyword)
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
    text: &'a [u8],
    /// Of the last line.
    number: usize,
    start: usize,
    next: usize,
}

impl<'a> Lines<'a> {
    pub(super) fn of(text: &'a [u8]) -> Lines<'a> {
        Lines { text, number: 0, start: 0, next: 0 }
    }

    pub(super) fn next(&mut self) -> Result<Words<'a>, Malformed> {
        let rest = self.text.get(self.next..).ok_or(Malformed::CutOff)?;
        let end = usual::length(rest);
        self.advance(self.next + end + 1);
        Words::of(self.number, &rest[..end])
    }

    /// The next line, which has to begin with this word.
    pub(super) fn headed(&mut self, keyword: &str) -> Result<Words<'a>, Malformed> {
        let mut words = self.next()?;
        if words.word()? == keyword { Ok(words) } else { Err(words.malformed()) }
    }

    /// The next line, if it is a usual one. Otherwise it is still the next.
    pub(super) fn usual(&mut self) -> Option<Usual> {
        let usual = Usual::at(self.next, self.text)?;
        self.advance(usual.end);
        Some(usual)
    }

    fn advance(&mut self, next: usize) {
        (self.number, self.start, self.next) = (self.number + 1, self.next, next);
    }

    /// Where the last line stands in the text, with its end.
    pub(super) fn range(&self) -> Range<usize> {
        self.start..self.next
    }
}

/// The words of a line that are still to be read.
pub(super) struct Words<'a> {
    line: usize,
    rest: Option<&'a str>,
}

impl<'a> Words<'a> {
    fn of(line: usize, text: &'a [u8]) -> Result<Words<'a>, Malformed> {
        let rest = str::from_utf8(text).map_err(|_| Malformed::Line(line))?;
        Ok(Words { line, rest: Some(rest) })
    }

    pub(super) fn malformed(&self) -> Malformed {
        Malformed::Line(self.line)
    }

    pub(super) fn word(&mut self) -> Result<&'a str, Malformed> {
        let rest = self.rest.ok_or(self.malformed())?;
        // Words are short: testing each byte is faster than `split_once`, which prepares for long ones.
        let (word, rest) = match rest.bytes().position(|byte| byte == b' ') {
            Some(blank) => (&rest[..blank], Some(&rest[blank + 1..])),
            None => (rest, None),
        };
        self.rest = rest;
        Ok(word)
    }

    pub(super) fn text(&mut self) -> Result<String, Malformed> {
        match self.word()? {
            word if word == "-" || word.starts_with('%') => decode(word).ok_or(self.malformed()),
            word => Ok(word.to_owned()),
        }
    }

    /// A word that may be missing, which means the same as an empty one.
    pub(super) fn last(&mut self) -> Result<String, Malformed> {
        if self.rest.is_none() { Ok(String::new()) } else { self.text() }
    }

    pub(super) fn number<T: FromStr>(&mut self) -> Result<T, Malformed> {
        self.word()?.parse().map_err(|_| self.malformed())
    }

    pub(super) fn time(&mut self) -> Result<Option<Millis>, Malformed> {
        match self.word()? {
            "-" => Ok(None),
            word => word.parse().map(Some).map_err(|_| self.malformed()),
        }
    }

    /// The entry in the words behind such a keyword, and its use.
    pub(super) fn record(&mut self, keyword: &str) -> Result<(Entry, State), Malformed> {
        let entry = match keyword {
            "free" | "assigned" | "withdrawn" => self.entry()?,
            _ => return Err(self.malformed()),
        };
        let state = match keyword {
            "free" => State::Free { since: self.time()? },
            "withdrawn" => State::Withdrawn { since: self.time()? },
            _ => State::Assigned(self.assignment()?),
        };
        Ok((entry, state))
    }

    fn entry(&mut self) -> Result<Entry, Malformed> {
        let (name, address, attached_to) = (self.text()?, self.number()?, self.text()?);
        Ok(Entry { name, address, attached_to: Some(attached_to).filter(|uid| !uid.is_empty()) })
    }

    fn assignment(&mut self) -> Result<Assignment, Malformed> {
        let since = self.number()?;
        let (proof, sandbox, pod) = (self.proof()?, self.sandbox()?, self.pod()?);
        let vanished = self.word()? == "vanished";
        Ok(Assignment { since, vanished, tenant: Tenant { sandbox, pod, network: self.last()?, proof } })
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
