//! Bytes for those who read them. A target reads bytes as one of our readers does, and panics where what it
//! accepts breaks a rule. It is a test like any other: it reads the cases that are kept in `corpus`. In
//! programs that `make fuzz` builds, libFuzzer makes more of them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "only tests link this")]

#[cfg(feature = "libfuzzer")]
mod engine;

use std::{fs, path::PathBuf};

/// Has `target` read each case in `corpus/NAME`, and each beginning of it, as after a write that was broken
/// off. `target` returns whether it accepts the bytes: at least one case must be.
///
/// In a program that was started to search, libFuzzer does so instead, and ends it.
pub fn search(name: &str, target: fn(&[u8]) -> bool) {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "corpus", name].iter().collect();
    #[cfg(feature = "libfuzzer")]
    engine::run_if_wanted(name, &folder, target);
    let cases = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut cases: Vec<PathBuf> = cases.map(|case| case.unwrap().path()).collect();
    cases.sort();
    let is_accepted = |case: &PathBuf| {
        println!("{}", case.display());
        let bytes = fs::read(case).unwrap();
        (0..bytes.len()).for_each(|end| _ = target(&bytes[..end]));
        target(&bytes)
    };
    let accepted = cases.iter().filter(|case| is_accepted(case)).count();
    assert!(accepted > 0, "none of {} cases in {} is accepted", cases.len(), folder.display());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, sync::Mutex};

    #[test]
    fn each_kept_case_and_each_beginning_of_it_is_read() {
        static READ: Mutex<BTreeSet<Vec<u8>>> = Mutex::new(BTreeSet::new());
        search("id", |bytes| READ.lock().unwrap().insert(bytes.to_owned()));
        let read = READ.lock().unwrap();
        for case in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/id")).unwrap() {
            let case = fs::read(case.unwrap().path()).unwrap();
            assert!((0..=case.len()).all(|end| read.contains(&case[..end])), "{case:?}");
        }
    }

    #[test]
    #[should_panic(expected = "is accepted")]
    fn a_target_that_accepts_no_case_fails() {
        search("id", |_| false);
    }
}
