//! Which part of a write may be why Azure has refused all of it. The next write goes without that part, so
//! that it doesn't keep the node from the rest. Pure.
//!
//! Azure doesn't say which part it objects to. So first all parts go that others don't need, then addresses
//! that pods lost, and what is refused by itself at last is growth. Each comes back at a time of its own.

use std::time::Duration;

use ipnet::Ipv4Net;

use super::mending;
use crate::azure::{Error, Remedy};
use crate::planner::Change;

/// A part of a write that no other part needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Application security groups that are joined or left.
    Groups,
    /// The removal of others' ipConfigurations.
    Adoption,
    /// The release of ours.
    Release,
}

impl Part {
    /// Those that a write has.
    pub fn of(change: &Change) -> Vec<Part> {
        let all = [
            (Part::Groups, !change.join.is_empty() || !change.leave.is_empty()),
            (Part::Adoption, !change.adopt.is_empty()),
            (Part::Release, !change.release.is_empty()),
        ];
        all.into_iter().filter(|(_, has)| *has).map(|(part, _)| part).collect()
    }
}

/// What Azure may object to.
#[derive(Debug, PartialEq, Eq)]
pub enum Blamed {
    /// All of the write, or what can't be left out of it.
    All,
    /// These parts.
    Parts(Vec<Part>),
    /// Addresses that pods lost, which can't be had for a while, and for how long at first.
    Restored(Vec<Ipv4Net>, Duration),
    /// New addresses.
    Growth,
}

/// What is to blame for the refusal of `change`. `taken` are addresses that certainly can't be had any more.
/// An error that may pass must have come before, which is `is_again`.
pub fn blame(error: &Error, taken: &[Ipv4Net], change: &Change, is_again: bool) -> Blamed {
    let growth = || if change.reserve > 0 { Blamed::Growth } else { Blamed::All };
    let restored = |addresses: Vec<Ipv4Net>, first| match addresses.is_empty() {
        true => None,
        false => Some(Blamed::Restored(addresses, first)),
    };
    let all_restored = |first| restored(change.restore.clone(), first);
    match error {
        // One of these is; later requests for one at a time show which.
        Error::AddressTaken { .. } if taken.is_empty() => {
            return all_restored(mending::REFUSED).unwrap_or(Blamed::All);
        }
        Error::AddressTaken { .. } => return Blamed::All,
        Error::AddressBeingFreed { .. } => {
            return restored(error.being_freed(&change.restore), mending::FREEING).unwrap_or(Blamed::All);
        }
        // Growth waits for its turn.
        Error::SubnetFull { .. } | Error::NetworkFull { .. } if change.reserve > 0 => return Blamed::Growth,
        Error::SubnetFull { .. } | Error::NetworkFull { .. } => {
            return all_restored(mending::REFUSED).unwrap_or(Blamed::All);
        }
        Error::QuotaExceeded { .. } => return all_restored(mending::REFUSED).unwrap_or_else(growth),
        // What is referred to can't be, or a right to it is missing, and never one to an address.
        Error::Denied { .. } | Error::DenyAssignment { .. } | Error::Unattachable { .. }
            if Part::of(change).contains(&Part::Groups) =>
        {
            return Blamed::Parts(vec![Part::Groups]);
        }
        Error::Denied { .. } | Error::DenyAssignment { .. } => return Blamed::All,
        _ if !error.may_be_about_a_part() => return Blamed::All,
        _ => {}
    }
    let first = match error.remedy() {
        Remedy::RetryAfter(_) if !is_again => return Blamed::All,
        Remedy::RetryAfter(first) => first,
        Remedy::WaitForChange { .. } | Remedy::ReadAgain => mending::REFUSED,
    };
    let parts = Part::of(change);
    if !parts.is_empty() {
        return Blamed::Parts(parts);
    }
    // Pods that have lost their addresses are cut off: those are left out last.
    let is_growth_alone = || Change { reserve: 0, ..change.clone() }.is_empty();
    all_restored(first).unwrap_or_else(|| if is_growth_alone() { growth() } else { Blamed::All })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost() -> [Ipv4Net; 2] {
        ["10.0.0.5/32", "10.0.0.16/28"].map(|one| one.parse().unwrap())
    }

    #[test]
    fn where_azure_names_no_address_that_is_taken_each_is_asked_for_by_itself_before_it_is_given_up() {
        let [one, other] = lost();
        let error = Error::AddressTaken { resource: "nic".into(), message: "somebody has it".into() };
        let outcome = |restore: &[Ipv4Net]| {
            let taken = error.taken(restore);
            let change = Change { restore: restore.to_vec(), ..Change::default() };
            (taken.clone(), blame(&error, &taken, &change, false))
        };
        assert_eq!(outcome(&[one, other]), (vec![], Blamed::Restored(vec![one, other], mending::REFUSED)));
        assert_eq!(outcome(&[other]), (vec![other], Blamed::All));
    }

    #[test]
    fn lost_addresses_that_find_no_room_are_left_out_for_a_while_and_growth_waits_for_its_turn() {
        let [one, _] = lost();
        let subnet =
            || Error::SubnetFull { subnet: "s".into(), resource: "n".into(), message: String::new() };
        let network = || Error::NetworkFull { resource: "n".into(), message: String::new() };
        for error in [subnet(), network()] {
            let of = |reserve| Change { restore: vec![one], reserve, ..Change::default() };
            assert_eq!(blame(&error, &[], &of(0), false), Blamed::Restored(vec![one], mending::REFUSED));
            assert_eq!(blame(&error, &[], &of(1), false), Blamed::Growth);
        }
    }

    #[test]
    fn what_concerns_the_whole_write_leaves_no_part_of_it_out() {
        let all = Change {
            reserve: 1,
            restore: lost().to_vec(),
            release: vec!["vnp-1".into()],
            adopt: vec!["ipconfig2".into()],
            ..Change::default()
        };
        let (resource, message) = (|| "nic".to_owned(), || "m".to_owned());
        for error in [
            Error::Stale { resource: resource() },
            Error::Locked { resource: resource(), scope: "s".into(), message: message() },
            Error::NotFound { resource: resource(), message: message() },
            Error::Credential { message: message() },
            Error::Denied { action: "a".into(), scope: "s".into(), message: message() },
            // They may pass.
            Error::Conflict { resource: resource(), code: "Novel".into(), message: message() },
            Error::Failed { resource: resource(), code: "Novel".into(), message: message() },
        ] {
            assert_eq!(blame(&error, &[], &all, false), Blamed::All, "{error}");
        }
    }
}
