//! The line of a record as it was read, to be written again.

use std::{ops::Range, sync::Arc};

use crate::sandbox::Sandbox;

/// A line of the text that a ledger was read from, with its end.
#[derive(Clone, Debug)]
pub(in crate::ledger) struct Line {
    text: Arc<Vec<u8>>,
    start: u32,
    end: u32,
    /// Where the name of a usual line's entry is.
    name: Range<u32>,
    /// Where in a usual line the words of its sandbox begin, if it has one.
    sandbox: u32,
}

impl Line {
    /// This part of the text, which is shorter than 4 GiB.
    pub(super) fn of(text: &Arc<Vec<u8>>, range: Range<usize>) -> Line {
        Line::usual(text, range, 0..0, 0)
    }

    /// The same, of a usual line.
    pub(super) fn usual(text: &Arc<Vec<u8>>, all: Range<usize>, name: Range<usize>, sandbox: usize) -> Line {
        Line {
            text: text.clone(),
            start: all.start as u32,
            end: all.end as u32,
            name: name.start as u32..name.end as u32,
            sandbox: sandbox as u32,
        }
    }

    fn part(&self, start: u32, end: u32) -> &[u8] {
        self.text.get(start as usize..end as usize).unwrap_or_default()
    }

    pub(in crate::ledger) fn as_bytes(&self) -> &[u8] {
        self.part(self.start, self.end)
    }

    /// The name of a usual line's entry.
    pub(in crate::ledger) fn name(&self) -> &[u8] {
        self.part(self.name.start, self.name.end)
    }

    /// Whether a usual line is that of this sandbox.
    pub(in crate::ledger) fn is_of(&self, sandbox: &Sandbox) -> bool {
        let (words, id) = (self.part(self.sandbox, self.end), sandbox.container_id.as_bytes());
        // Most are others', and differ in their first byte.
        let may_be = match words.first() {
            Some(b'-' | b' ') => true, // no id, or an empty word
            first => first == id.first() && words.starts_with(id),
        };
        may_be && begin_with(words, sandbox)
    }

    /// Whether `next` stands behind it in the same text.
    pub(super) fn is_followed_by(&self, next: &Line) -> bool {
        Arc::ptr_eq(&self.text, &next.text) && self.end == next.start
    }

    /// Takes in the line that follows it.
    pub(super) fn join(&mut self, next: &Line) {
        self.end = next.end;
    }
}

/// Whether these words of a usual line begin with those of this sandbox.
#[cold]
fn begin_with(words: &[u8], Sandbox { container_id, ifname }: &Sandbox) -> bool {
    let mut words = words.split(|byte| *byte == b' ');
    [container_id, ifname].into_iter().all(|text| match words.next() {
        Some(b"-") => text.is_empty(),
        word => word == Some(text.as_bytes()),
    })
}
