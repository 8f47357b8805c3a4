//! The usual lines of records: those in the form that almost all have. A verb reads every line and changes
//! one or two, and every pod waits for it. So it checks a usual line, takes from it what it needs of every
//! record, and parses it only if it needs more.
//!
//! No word of a usual line is encoded but an empty one, and nothing is attached to its address. A line that
//! isn't usual may still be sound, which only the reader decides.

use std::{net::Ipv4Addr, ops::Range, slice};

use crate::ledger::{Millis, Usage};

/// What a usual line has, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Usual {
    pub(super) address: Ipv4Addr,
    pub(super) usage: Usage,
    pub(super) name: Range<usize>,
    /// Where the words of its sandbox begin, if it has one.
    pub(super) sandbox: usize,
    /// Where the next line begins.
    pub(super) end: usize,
}

impl Usual {
    /// The line of this text that begins here, if it is a usual one.
    pub(super) fn at(start: usize, text: &[u8]) -> Option<Usual> {
        let line = Rest(text.get(start..)?);
        let at = |rest: Rest<'_>| text.len() - rest.0.len();
        let is_assigned = line.behind(b"assigned ");
        let entry = is_assigned.or_else(|| line.behind(b"free ")).or_else(|| line.behind(b"withdrawn "))?;
        let (name, rest) = entry.name()?;
        let (address, rest) = rest.address()?;
        let (since, rest) = rest.behind(b" - ")?.time()?;
        let name = at(entry)..at(entry) + name;
        if is_assigned.is_none() {
            let is_free = line.0.starts_with(b"f");
            let usage = if is_free { Usage::Free { since } } else { Usage::Withdrawn { since } };
            return Some(Usual { address, usage, name, sandbox: 0, end: at(rest.behind(b"\n")?) });
        }
        let (tenant, _) = (rest.behind(b" ")?, since?);
        let (usage, sandbox, length) = tenant.tenant()?;
        let start = at(tenant);
        Some(Usual { address, usage, name, sandbox: start + sandbox, end: start + length })
    }
}

/// The text from a place in a line on.
#[derive(Clone, Copy)]
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn behind<const N: usize>(self, prefix: &[u8; N]) -> Option<Rest<'a>> {
        self.0.strip_prefix(prefix).map(Rest)
    }

    /// The length of the name that begins here, and what is behind the blank at its end.
    fn name(self) -> Option<(usize, Rest<'a>)> {
        match Stops::of(self.0).next()? {
            (length @ 1.., b' ') if !self.0.starts_with(b"-") => {
                Some((length, Rest(self.0.get(length + 1..)?)))
            }
            _ => None,
        }
    }

    /// The address that begins here, in the one form in which it is written, and what is behind it.
    fn address(self) -> Option<(Ipv4Addr, Rest<'a>)> {
        let (mut octets, mut rest) = ([0; 4], self);
        for (index, octet) in octets.iter_mut().enumerate() {
            if index > 0 {
                rest = rest.behind(b".")?;
            }
            (*octet, rest) = rest.octet()?;
        }
        Some((Ipv4Addr::from(octets), rest))
    }

    /// The number up to 255 that begins here, without a zero ahead, and what is behind it.
    fn octet(self) -> Option<(u8, Rest<'a>)> {
        let (first, mut rest) = self.digit()?;
        let mut octet = u32::from(first);
        while let Some((digit, behind)) = rest.digit() {
            octet = octet * 10 + u32::from(digit);
            // None but 0 begins with a zero.
            if first == 0 || octet > 255 {
                return None;
            }
            rest = behind;
        }
        Some((octet as u8, rest))
    }

    fn digit(self) -> Option<(u8, Rest<'a>)> {
        let (byte, behind) = self.0.split_first()?;
        let digit = byte.wrapping_sub(b'0');
        (digit < 10).then_some((digit, Rest(behind)))
    }

    /// The time that begins here, or that there is none, and what is behind it.
    fn time(self) -> Option<(Option<Millis>, Rest<'a>)> {
        const MOST_DIGITS: usize = 19; // any number of so many is a u64
        if let Some(rest) = self.behind(b"-") {
            return Some((None, rest));
        }
        let mut time: Millis = 0;
        for (index, byte) in self.0.iter().enumerate() {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                return (1..=MOST_DIGITS).contains(&index).then(|| (Some(time), Rest(&self.0[index..])));
            }
            time = time.wrapping_mul(10).wrapping_add(digit.into());
        }
        None
    }

    /// The use of an address by the tenant that begins here, where the words of its sandbox begin, and where
    /// the next line does. All words of the tenant are there, and none is encoded: they can be parsed.
    fn tenant(self) -> Option<(Usage, usize, usize)> {
        // Behind the proof of life, two words of the sandbox and three of the pod.
        const VANISHED: usize = 6;
        let mut blanks = [0; VANISHED + 1];
        let mut count = 0;
        for (at, byte) in Stops::of(self.0) {
            match byte {
                b' ' => {
                    if let Some(blank) = blanks.get_mut(count) {
                        *blank = at;
                    }
                    count += 1;
                }
                b'\n' if count >= VANISHED => {
                    let end = if count > VANISHED { blanks[VANISHED] } else { at };
                    let vanished = self.0.get(blanks[VANISHED - 1] + 1..end)? == b"vanished";
                    let usage = Usage::Assigned { vanished, is_by_namespace: self.0.starts_with(b"/") };
                    return Some((usage, blanks[0] + 1, at + 1));
                }
                b'!'..=b'$' => {}
                _ => return None,
            }
        }
        None
    }
}

/// The length of the line that begins here, without its end.
pub(super) fn length(text: &[u8]) -> usize {
    let is_end = |byte: &u8| *byte == b'\n';
    match Stops::of(text).find(|(_, byte)| is_end(byte)) {
        Some((at, _)) => at,
        None => {
            let tail = text.as_chunks::<8>().1;
            text.len() - tail.len() + tail.iter().position(is_end).unwrap_or(tail.len())
        }
    }
}

/// The bytes at which a reader of words stops, with their places: blank and newline, `%`, what isn't ASCII,
/// and some more that are rare. Most bytes are none of these, so eight are passed at a time, and what remains
/// at the text's end is left out. A program that is optimized for size does so for no loop by itself.
struct Stops<'a> {
    eights: slice::Iter<'a, [u8; 8]>,
    /// Where the next eight bytes begin.
    next: usize,
    /// The eight bytes before these, the first of them lowest. Of its stops, those that weren't given yet
    /// have their high bit in `stops`.
    bytes: u64,
    stops: u64,
}

impl Stops<'_> {
    fn of(text: &[u8]) -> Stops<'_> {
        Stops { eights: text.as_chunks().0.iter(), next: 0, bytes: 0, stops: 0 }
    }
}

impl Iterator for Stops<'_> {
    type Item = (usize, u8);

    #[inline]
    fn next(&mut self) -> Option<(usize, u8)> {
        const EACH: u64 = u64::from_le_bytes([0x01; 8]);
        const HIGH: u64 = 0x80 * EACH;
        while self.stops == 0 {
            self.bytes = u64::from_le_bytes(*self.eights.next()?);
            self.next += 8;
            // All up to `%`. With its high bit a byte is so large that it borrows nothing from the next.
            let beyond = (self.bytes | HIGH) - EACH * (b'%' as u64 + 1);
            self.stops = (!beyond | self.bytes) & HIGH;
        }
        let high_bit = self.stops.trailing_zeros();
        self.stops &= self.stops - 1;
        Some((self.next - 8 + high_bit as usize / 8, (self.bytes >> (high_bit - 7)) as u8))
    }
}

#[cfg(test)]
pub(super) mod tests;
