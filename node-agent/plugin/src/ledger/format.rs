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
//! It is not JSON, because every pod waits for it to be read and written. For the same reason a record in
//! its usual form isn't parsed, nor an unchanged one formatted: see [`Record`].

pub(super) mod line;
pub(super) mod reader;
mod usual;
mod writer;

use std::sync::Arc;

use super::{Ledger, Proof, Record, State, Tenant, Waiter};
use line::Line;
use reader::Lines;
pub use reader::{Malformed, VERSIONS};
use usual::Usual;
use writer::{Text, Writer};

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
    let mut out = Writer::new();
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
    // Version 1 has no word for it: there each waits with the link that its sandbox is given.
    let waits_otherwise = |Waiter { sandbox, pod, proof, .. }: &Waiter| match proof {
        Proof::Link(link) => *link != sandbox.host_link(pod),
        Proof::Namespace { .. } => true,
    };
    if !ledger.is_ruled {
        return 3;
    }
    let needs_2 =
        ledger.records.iter().any(Record::is_by_namespace) || ledger.waiting.iter().any(waits_otherwise);
    if needs_2 { 2 } else { 1 }
}

/// Reads a ledger from its text.
pub(super) fn read(text: &Arc<Vec<u8>>) -> Result<Ledger, Malformed> {
    let mut lines = Lines::of(text);
    let version = lines.headed("ledger")?.number()?;
    if !VERSIONS.contains(&version) {
        return Err(Malformed::Version(version));
    }
    let boot_id = lines.headed("boot")?.text()?;
    let node_uid = lines.headed("node")?.text()?;
    let mut spec = lines.headed("spec")?;
    let (object, generation) = (spec.text()?, spec.number()?);
    let mut times = lines.headed("cooldown")?;
    let mut ledger = Ledger {
        boot_id,
        node_uid,
        object,
        generation,
        cooldown: times.number()?,
        freed_at: times.time()?,
        had_first_address: lines.headed("had-first-address")?.word()? == "yes",
        is_ruled: version < 3 || lines.headed("ruled")?.word()? == "yes",
        records: Vec::new(), // which grows in place: reading a usual line allocates nothing else
        relinquished: Vec::new(),
        waiting: Vec::new(),
    };
    loop {
        if let Some(Usual { address, usage, name, sandbox, .. }) = lines.usual() {
            let line = Line::usual(text, lines.range(), name, sandbox);
            ledger.records.push(Record::usual(address, usage, line));
            continue;
        }
        let mut words = lines.next()?;
        match words.word()? {
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
            keyword => {
                let (entry, state) = words.record(keyword)?;
                ledger.records.push(Record::read(entry, state, Line::of(text, lines.range())));
            }
        }
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
