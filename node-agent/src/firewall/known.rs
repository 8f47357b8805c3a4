//! What the agent knows of its tables: whether they may have been changed since they were seen to stand.
//! Pure.
//!
//! The kernel counts the transactions of all programs, and each of its events names the one that it is part
//! of. So an event proves a change after a look at the table, or before it, whenever it is read.

use tokio::sync::watch;

use super::Family;

/// A state of all rules in a network namespace. Each transaction, of any program, begins the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation(pub(super) u32);

impl Generation {
    /// Whether this came after the other. The count begins anew after its end.
    fn is_after(self, other: Generation) -> bool {
        (1..=u32::MAX / 2).contains(&self.0.wrapping_sub(other.0))
    }

    /// The kernel leaves 0 out.
    fn next(self) -> Generation {
        Generation(self.0.checked_add(1).unwrap_or(1))
    }

    /// The one that ends in these bits and is nearest to this.
    fn near(self, low: u16) -> Generation {
        let ahead = low.wrapping_sub(self.0 as u16) as i16;
        Generation(self.0.wrapping_add_signed(ahead.into()))
    }
}

/// The meaning of one of the kernel's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Our table of this family was changed in the generation that ends in these bits.
    Touched(Family, u16),
    /// All events of this generation have come.
    End(Generation),
}

/// What the kernel has reported of our tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The last generation whose events have all been read.
    read: Generation,
    /// The last generation in which each table was changed, or may have been.
    touched: [Generation; Family::ALL.len()],
    /// Events are missing, and it isn't known yet up to which generation.
    is_incomplete: bool,
}

impl Heard {
    /// Up to this generation nothing was read; what comes after it will be.
    pub(super) fn from(generation: Generation) -> Heard {
        Heard { read: generation, touched: [generation; _], is_incomplete: false }
    }

    /// Events were lost, and more may be lost now.
    pub(super) fn lost(self) -> Heard {
        Heard { is_incomplete: true, ..self }
    }

    pub(super) fn and(self, event: Event) -> Heard {
        let Heard { read, mut touched, .. } = self;
        match event {
            Event::Touched(family, low) => {
                let (before, generation) = (&mut touched[family as usize], read.near(low));
                if generation.is_after(*before) {
                    *before = generation;
                }
                Heard { touched, ..self }
            }
            Event::End(generation) if generation.is_after(read.next()) => {
                Heard { is_incomplete: self.is_incomplete, ..Heard::from(generation) }
            }
            Event::End(generation) if generation.is_after(read) => Heard { read: generation, ..self },
            // Of the transaction during which the socket was opened.
            Event::End(_) => self,
        }
    }

    pub fn is_incomplete(&self) -> bool {
        self.is_incomplete
    }

    /// Whether all events up to this generation have been read.
    pub fn has_read(&self, generation: Generation) -> bool {
        !self.is_incomplete && !generation.is_after(self.read)
    }

    /// Whether the table may have been changed after this generation.
    pub fn is_touched_since(&self, family: Family, generation: Generation) -> bool {
        self.is_incomplete || self.touched[family as usize].is_after(generation)
    }
}

/// The state of our tables by the kernel's events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// None as long as no events are read.
    pub heard: Option<Heard>,
    /// The generation in which each table was last seen to stand as it was put. None: this process hasn't put
    /// it there.
    pub seen: [Option<Generation>; Family::ALL.len()],
}

impl Known {
    /// Whether the table may have been changed since it was seen.
    pub fn is_in_doubt(&self, family: Family) -> bool {
        let both = self.heard.zip(self.seen[family as usize]);
        both.is_some_and(|(heard, seen)| heard.is_touched_since(family, seen))
    }

    pub fn is_any_in_doubt(&self) -> bool {
        Family::ALL.into_iter().any(|family| self.is_in_doubt(family))
    }

    /// Whether the events alone show that the table stands in generation `now`, the kernel's present one.
    pub fn stands(&self, family: Family, now: Generation) -> bool {
        self.seen[family as usize].is_some()
            && self.heard.is_some_and(|heard| heard.has_read(now))
            && !self.is_in_doubt(family)
    }

    /// What others wait for. Most events are of other programs' tables, and change nothing here.
    fn news(&self) -> (bool, [bool; Family::ALL.len()]) {
        (self.heard.is_some(), Family::ALL.map(|family| self.is_in_doubt(family)))
    }

    /// Changes what is known, and wakes others only if there is news for them.
    pub fn change(known: &watch::Sender<Known>, change: impl FnOnce(&mut Known)) {
        known.send_if_modified(|known| {
            let before = known.news();
            change(known);
            known.news() != before
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Family::{Arp, Inet};

    /// Both tables were seen in generation `seen`; all events were read up to generation `read`.
    fn known(seen: u32, read: u32) -> Known {
        Known { heard: Some(Heard::from(Generation(read))), seen: [Some(Generation(seen)); _] }
    }

    fn and(known: Known, event: Event) -> Known {
        Known { heard: known.heard.map(|heard| heard.and(event)), ..known }
    }

    #[test]
    fn of_two_generations_the_later_is_known_also_where_the_count_begins_anew() {
        let is_after = |one, other| Generation(one).is_after(Generation(other));
        assert!(is_after(8, 7) && !is_after(7, 8) && !is_after(7, 7));
        assert!(is_after(1, u32::MAX) && !is_after(u32::MAX, 1));
        assert_eq!(Generation(u32::MAX).next(), Generation(1));
        for (base, low, expected) in [
            (7, 8, 8),
            (7, 7, 7),
            (7, 6, 6),
            (0x1_ffff, 1, 0x2_0001),
            (0x2_0001, 0xffff, 0x1_ffff),
            (u32::MAX, 1, 1),
        ] {
            assert_eq!(Generation(base).near(low), Generation(expected), "{base} {low}");
        }
    }

    #[test]
    fn a_table_is_in_doubt_from_a_change_after_it_was_seen_until_it_is_seen_again() {
        let quiet = known(7, 7);
        assert!(!quiet.is_any_in_doubt() && quiet.stands(Inet, Generation(7)));
        let mut touched = and(quiet, Event::Touched(Inet, 8));
        assert!(touched.is_in_doubt(Inet), "the transaction's other events don't matter any more");
        assert!(!touched.is_in_doubt(Arp), "the other table");
        touched = and(touched, Event::End(Generation(8)));
        assert!(!touched.stands(Inet, Generation(8)) && touched.stands(Arp, Generation(8)));
        touched.seen[Inet as usize] = Some(Generation(8));
        assert!(!touched.is_in_doubt(Inet) && touched.stands(Inet, Generation(8)));
    }

    #[test]
    fn an_event_of_a_change_before_the_table_was_seen_casts_no_doubt_however_late_it_is_read() {
        let (mut late, now) = (known(9, 7), Generation(9));
        assert!(!late.is_in_doubt(Inet));
        assert!(!late.stands(Inet, now), "what hasn't been read may be a change");
        for event in [Event::End(Generation(8)), Event::Touched(Inet, 9), Event::End(Generation(9))] {
            late = and(late, event);
            assert!(!late.is_any_in_doubt(), "{event:?}");
        }
        assert!(late.stands(Inet, now));
    }

    #[test]
    fn other_programs_transactions_cast_no_doubt() {
        let later = (8..100).fold(known(7, 7), |known, n| and(known, Event::End(Generation(n))));
        assert!(later.stands(Inet, Generation(99)) && !later.stands(Inet, Generation(100)));
    }

    #[test]
    fn a_table_that_was_seen_before_anybody_listened_is_in_doubt_if_there_was_a_transaction_since() {
        assert!(!known(7, 7).is_in_doubt(Inet));
        assert!(known(7, 8).is_in_doubt(Inet));
        let deaf = Known { heard: None, ..known(7, 7) };
        assert!(!deaf.is_in_doubt(Inet) && !deaf.stands(Inet, Generation(7)));
        let unseen = Known { seen: [None; _], ..known(7, 7) };
        assert!(!unseen.is_in_doubt(Inet) && !unseen.stands(Inet, Generation(7)));
    }

    #[test]
    fn the_end_of_the_transaction_in_which_the_socket_was_opened_is_no_news() {
        let opened = and(and(known(7, 7), Event::Touched(Inet, 7)), Event::End(Generation(7)));
        assert_eq!(opened, known(7, 7));
        assert_eq!(and(opened, Event::End(Generation(6))), known(7, 7));
    }

    #[test]
    fn lost_events_put_every_table_in_doubt_until_it_was_seen_later() {
        let mut lost = known(9, 7);
        lost.heard = lost.heard.map(Heard::lost);
        assert!(lost.is_in_doubt(Inet) && lost.is_in_doubt(Arp), "more may be lost");
        assert!(!lost.stands(Inet, Generation(7)));
        assert!(and(lost, Event::End(Generation(8))).is_in_doubt(Inet));
        lost.heard = Some(Heard::from(Generation(10)));
        assert!(lost.is_in_doubt(Inet) && lost.is_in_doubt(Arp));
        lost.seen = [Some(Generation(10)), Some(Generation(9))];
        assert!(lost.stands(Inet, Generation(10)) && lost.is_in_doubt(Arp));
    }

    #[test]
    fn a_generation_that_is_missing_in_the_count_puts_every_table_in_doubt() {
        let gap = and(known(7, 7), Event::End(Generation(9)));
        assert_eq!(gap, known(7, 9));
        assert!(gap.is_in_doubt(Inet) && gap.is_in_doubt(Arp));
    }

    #[test]
    fn only_a_doubt_that_comes_or_goes_wakes_others() {
        let sender = watch::Sender::new(Known { heard: None, seen: [Some(Generation(7)); _] });
        let mut receiver = sender.subscribe();
        let mut wakes = |change: &dyn Fn(&mut Known)| {
            Known::change(&sender, change);
            let has_changed = receiver.has_changed().unwrap();
            receiver.mark_unchanged();
            has_changed
        };
        let hear = |event: Event| move |known: &mut Known| *known = and(*known, event);
        assert!(wakes(&|known| known.heard = Some(Heard::from(Generation(7)))), "somebody listens");
        assert!(!wakes(&hear(Event::End(Generation(8)))), "another program's transaction");
        assert!(wakes(&hear(Event::Touched(Inet, 9))), "a doubt comes");
        assert!(!wakes(&hear(Event::End(Generation(9)))));
        assert!(!wakes(&hear(Event::Touched(Inet, 10))), "it is there");
        assert!(wakes(&|known| known.seen[Inet as usize] = Some(Generation(10))), "it goes");
        assert_eq!(
            sender.borrow().heard,
            Some(Heard {
                read: Generation(9),
                touched: [Generation(10), Generation(7)],
                is_incomplete: false
            })
        );
    }
}
