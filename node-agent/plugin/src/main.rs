//! The CNI plugin `vnetpool`: a container runtime runs it once for every verb.

use std::io::{Read, Write, stdin, stdout};

use vnetpool_plugin::plugin::{Answer, run};

fn main() {
    let mut input = Vec::with_capacity(4096); // read at once
    // What can't be read can't be decoded either, and that is reported as CNI wants it.
    let _ = stdin().lock().read_to_end(&mut input);
    let Answer { stdout: output, exit_code } = run(|name| std::env::var(name).ok(), &input);
    let written = stdout().lock().write_all(&output);
    std::process::exit(if written.is_ok() { exit_code } else { 1 });
}
