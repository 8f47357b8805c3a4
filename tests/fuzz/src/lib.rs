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
