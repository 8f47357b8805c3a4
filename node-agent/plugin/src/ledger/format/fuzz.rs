//! Any bytes as a ledger.

use std::collections::BTreeSet;

use super::{tests::write, usual::tests::is_usual, *};
use crate::ledger::Millis;

/// What is read is written so that it is read as the same, also when each line is formatted anew. An address
/// that goes out is in no other use, however often the text has it. Returns whether it is a ledger.
fn is_sound(bytes: &[u8]) -> bool {
    bytes.split_inclusive(|byte| *byte == b'\n').for_each(|line| _ = is_usual(line));
    let Ok(ledger) = read(&Arc::new(bytes.to_vec())) else { return false };
    assert_eq!(read(&Arc::new(write(&ledger).into())).as_ref(), Ok(&ledger));

    let mut served = ledger.clone();
    served.serve(Millis::MAX, |_| true);
    let new = |(one, before): &(&Record, &Record)| matches!(one.state(), State::Assigned(_)) && one != before;
    let new = served.records.iter().zip(&ledger.records).filter(new).map(|(one, _)| one.entry().address);
    let mut in_use: BTreeSet<_> = ledger.assignments().map(|(entry, _)| entry.address).collect();
    new.for_each(|address| assert!(in_use.insert(address), "{address} goes to two sandboxes"));

    for ledger in [&ledger, &served] {
        let counts = ledger.counts(Millis::MAX);
        assert_eq!(counts.held + counts.vanished, counts.assigned + counts.cooling + counts.free);
        let records = counts.assigned + counts.cooling + counts.free + counts.withdrawn + counts.withheld;
        assert_eq!(records as usize, ledger.records.len());
    }
    for (entry, assignment) in served.assignments() {
        let mut freed = served.clone();
        let first = served.address_of(&assignment.sandbox);
        assert_eq!(freed.free(&assignment.sandbox, 0), first, "{entry:?}");
    }
    true
}

#[test]
fn any_text_that_is_read_as_a_ledger_is_written_as_the_same_and_doubles_no_address() {
    vnetpool_fuzz::search("ledger", is_sound);
}
