//! A line as it was read, to be written again.

use std::{ops::Range, sync::Arc};

/// A part of the text that a ledger was read from.
#[derive(Clone, Debug)]
pub(in crate::ledger) struct Line {
    text: Arc<String>,
    range: Range<u32>,
}

impl Line {
    /// This part of the text, which is shorter than 4 GiB.
    pub(in crate::ledger) fn of(text: &Arc<String>, range: Range<usize>) -> Line {
        Line { text: text.clone(), range: range.start as u32..range.end as u32 }
    }

    pub(in crate::ledger) fn as_str(&self) -> &str {
        self.text.get(self.range.start as usize..self.range.end as usize).unwrap_or_default()
    }

    /// This line and `next` as one, if `next` follows it in the same text.
    pub(in crate::ledger) fn joined(&self, next: &Line) -> Option<Line> {
        let follows = Arc::ptr_eq(&self.text, &next.text) && self.range.end == next.range.start;
        follows.then(|| Line { text: self.text.clone(), range: self.range.start..next.range.end })
    }
}
