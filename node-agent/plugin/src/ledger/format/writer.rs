//! Writes words and lines. Unchanged lines stay as they were read.

use std::fmt;

use super::line::Line;
use crate::ledger::Millis;
use crate::ledger::tenant::{Entry, Proof};
use crate::sandbox::{Pod, Sandbox};

/// The text of a ledger in pieces: the unchanged lines that were read, and the new ones.
pub struct Text(Vec<Piece>);

enum Piece {
    Kept(Line),
    New(String),
}

impl Text {
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|piece| match piece {
            Piece::Kept(line) => line.as_bytes(),
            Piece::New(text) => text.as_bytes(),
        })
    }

    /// Whether it is the same as `other`, byte for byte.
    pub fn is(&self, other: &[u8]) -> bool {
        self.pieces().try_fold(other, |rest, piece| rest.strip_prefix(piece)).is_some_and(<[u8]>::is_empty)
    }
}

/// Writes a text line by line.
pub(super) struct Writer {
    done: Vec<Piece>,
    text: String,
}

impl Writer {
    pub(super) fn new() -> Writer {
        Writer { done: Vec::new(), text: String::with_capacity(1024) }
    }

    pub(super) fn line(&mut self, keyword: &str) -> &mut Writer {
        self.text.push_str(keyword);
        self
    }

    pub(super) fn end(&mut self) {
        self.text.push('\n');
    }

    /// A line as it was read.
    pub(super) fn keep(&mut self, line: &Line) {
        if !self.text.is_empty() {
            self.done.push(Piece::New(std::mem::take(&mut self.text)));
        }
        match self.done.last_mut() {
            Some(Piece::Kept(before)) if before.is_followed_by(line) => before.join(line),
            _ => self.done.push(Piece::Kept(line.clone())),
        }
    }

    pub(super) fn finish(mut self) -> Text {
        self.done.push(Piece::New(self.text));
        Text(self.done)
    }

    pub(super) fn text(&mut self, text: &str) -> &mut Writer {
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
    /// as by releases that don't know it.
    pub(super) fn last(&mut self, text: &str) -> &mut Writer {
        if text.is_empty() { self } else { self.text(text) }
    }

    pub(super) fn yes_or_no(&mut self, is_so: bool) -> &mut Writer {
        self.text(if is_so { "yes" } else { "no" })
    }

    pub(super) fn number(&mut self, number: impl fmt::Display) -> &mut Writer {
        use fmt::Write;
        let _ = write!(self.text, " {number}"); // a String takes everything
        self
    }

    pub(super) fn time(&mut self, time: Option<Millis>) -> &mut Writer {
        match time {
            Some(time) => self.number(time),
            None => self.text(""),
        }
    }

    pub(super) fn entry(&mut self, Entry { name, address, attached_to }: &Entry) -> &mut Writer {
        self.text(name).number(address).text(attached_to.as_deref().unwrap_or_default())
    }

    /// A link's name has no slash in it, and the path of a namespace begins with one.
    pub(super) fn proof(&mut self, proof: &Proof) -> &mut Writer {
        match proof {
            Proof::Link(link) => self.text(link),
            Proof::Namespace { path, inode: Some(inode) } => self.text(&format!("{path}#{inode}")),
            Proof::Namespace { path, inode: None } => self.text(path),
        }
    }

    pub(super) fn sandbox(&mut self, Sandbox { container_id, ifname }: &Sandbox) -> &mut Writer {
        self.text(container_id).text(ifname)
    }

    pub(super) fn pod(&mut self, Pod { namespace, name, uid }: &Pod) -> &mut Writer {
        self.text(uid).text(namespace).text(name)
    }
}

/// Whether a text can be a word as it is. It tests every byte without a branch, sixteen and more at a time.
fn is_plain(text: &str) -> bool {
    text.bytes().fold(true, |is_plain, byte| is_plain & byte.is_ascii_graphic() & (byte != b'%'))
}
