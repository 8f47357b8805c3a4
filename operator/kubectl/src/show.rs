//! Tables as kubectl prints them, and the parts that several commands print alike.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;
use vnetpool_crds::NodeIPAllocation;
use vnetpool_crds::allocation::Interface;
use vnetpool_crds::condition::{self, Polarity, TYPES};

/// A fact that isn't as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trouble {
    /// Kind and name.
    pub object: String,
    pub what: String,
    pub message: String,
}

/// Columns are as wide as their longest cell, and three spaces apart.
pub fn table(headers: &[&str], rows: &[Vec<String>]) -> String {
    let all: Vec<Vec<&str>> = std::iter::once(headers.to_vec())
        .chain(rows.iter().map(|row| row.iter().map(String::as_str).collect()))
        .collect();
    let width = |column: usize| {
        all.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headers.len()).map(width).collect();
    let line = |row: &Vec<&str>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("   ").trim_end().to_owned() + "\n"
    };
    all.iter().map(line).collect()
}

/// How long something has lasted, as kubectl prints it.
pub fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// The same of a length of time.
pub fn length(time: Duration) -> String {
    age(Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH.saturating_add(time).unwrap_or(Timestamp::MAX))
}

pub fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or("-".to_owned(), |value| value.to_string())
}

/// The conditions of an object that aren't as they are when all is well. `Ready` repeats others, and is shown
/// only if no other gives the reason.
pub fn troubles(object: &str, conditions: &[Condition], now: Timestamp) -> Vec<Trouble> {
    let abnormal = |condition: &&Condition| {
        let row = TYPES.iter().find(|row| condition.type_ == row.name);
        row.is_some_and(|row| match row.polarity {
            _ if repeats(row.type_) => false,
            Polarity::Either => false,
            Polarity::True => condition.status != "True",
            Polarity::False => condition.status != "False",
        })
    };
    let trouble = |condition: &Condition| Trouble {
        object: object.to_owned(),
        what: format!(
            "{} is {} for {} ({})",
            condition.type_,
            condition.status,
            age(condition.last_transition_time.0, now),
            condition.reason
        ),
        message: condition.message.clone(),
    };
    let all: Vec<Trouble> = conditions.iter().filter(abnormal).map(trouble).collect();
    match condition::find(conditions, condition::READY) {
        Some(ready) if all.is_empty() && ready.status != "True" => vec![trouble(ready)],
        Some(_) => all,
        None => all.into_iter().chain([unreported(object)]).collect(),
    }
}

/// The conditions of a node's object that aren't as they are when all is well, and the NICs that the node has
/// left.
pub fn troubles_of(allocation: &NodeIPAllocation, now: Timestamp) -> Vec<Trouble> {
    let object = format!("NodeIPAllocation {}", allocation.name_any());
    let mut all = troubles(&object, allocation.conditions(), now);
    all.extend(allocation.spec.left_interfaces.iter().map(|nic| left(&object, allocation, nic)));
    all
}

/// A NIC that a node has left. No count of the node's has its addresses, and yet nobody else can have them.
fn left(object: &str, allocation: &NodeIPAllocation, nic: &Interface) -> Trouble {
    let of_nic = allocation.spec.left_reservations().filter(|(of, _)| of.id == nic.id);
    let count = of_nic.map(|(_, one)| one.count()).fold(0, u32::saturating_add);
    Trouble {
        object: object.to_owned(),
        what: format!("its node has left NIC {}", short(&nic.id)),
        message: format!(
            "The record of that NIC has {}, which none of the node's counts has. All of it goes back; the condition \
             InterfaceFound shows what that waits for.",
            addresses(count)
        ),
    }
}

fn unreported(object: &str) -> Trouble {
    Trouble {
        object: object.to_owned(),
        what: "has no condition Ready".to_owned(),
        message: "The operator hasn't reported on it. If it doesn't within a minute, read its log."
            .to_owned(),
    }
}

/// A condition that is made of others.
fn repeats(type_: condition::Type) -> bool {
    matches!(type_, condition::READY | condition::NODES_READY | condition::STALLED)
}

/// A paragraph for each.
pub fn list(troubles: &[Trouble]) -> String {
    let paragraph = |one: &Trouble| format!("{}: {}\n{}", one.object, one.what, indented(&one.message));
    troubles.iter().map(paragraph).collect()
}

/// So many of them, in words.
pub fn addresses(count: u32) -> String {
    format!("{count} address{}", if count == 1 { "" } else { "es" })
}

/// In lines of at most 100 columns, two spaces in.
pub fn indented(text: &str) -> String {
    let mut lines = String::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > 98 {
            lines += &format!("  {line}\n");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line += word;
    }
    if line.is_empty() { lines } else { lines + &format!("  {line}\n") }
}

/// The last parts of a resource id, by which people know it: a subnet with its virtual network.
pub fn short(id: &str) -> String {
    let parts: Vec<&str> = id.split('/').collect();
    match parts.as_slice() {
        [.., network, kind, subnet] if kind.eq_ignore_ascii_case("subnets") => format!("{network}/{subnet}"),
        [.., name] => (*name).to_owned(),
        [] => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vnetpool_crds::reason::Reason;
    use vnetpool_crds::verdict::Verdict;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["longer".to_owned(), String::new()]];
        assert_eq!(table(&["NAME", "N"], &rows), "NAME     N\na        1\nlonger\n");
    }

    #[test]
    fn a_missing_or_false_ready_is_listed_without_another_condition() {
        let at = Timestamp::UNIX_EPOCH;
        let found = |conditions: &[Condition]| -> Vec<String> {
            troubles("o", conditions, at).into_iter().map(|one| one.what).collect()
        };
        let full =
            |holds, type_| Verdict::new(Some(holds), Reason::SubnetFull, "").condition(type_, None, at);
        let ready = |holds| full(holds, condition::READY);
        let reserved = full(false, condition::RESERVED);
        assert_eq!(found(&[]), ["has no condition Ready"]);
        assert_eq!(found(&[ready(true)]), Vec::<String>::new());
        assert_eq!(found(&[ready(false)]), ["Ready is False for 0s (SubnetFull)"]);
        assert_eq!(found(&[ready(false), reserved]), ["Reserved is False for 0s (SubnetFull)"]);
    }

    #[test]
    fn an_age_has_one_unit() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let ages = [5, 119, 130, 7199, 7200, 200_000].map(|second| age(at(0), at(second)));
        assert_eq!(ages, ["5s", "119s", "2m", "119m", "2h", "2d"]);
    }
}
