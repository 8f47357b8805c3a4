//! The CNI plugin. A container runtime runs it once for every verb, as `vnetpool`. Another plugin runs it as
//! `vnetpool-ipam`.

use std::{
    io::{Read, Write, stdin, stdout},
    path::Path,
};

use vnetpool_plugin::{
    cni::Program,
    plugin::{Answer, run},
};

fn main() {
    let mut input = Vec::with_capacity(4096); // read at once
    // Input that can't be read can't be decoded either, which is then reported as CNI demands.
    let _ = stdin().lock().read_to_end(&mut input);
    let program = Program::of(Path::new(&std::env::args_os().next().unwrap_or_default()));
    let Answer { stdout: output, exit_code } = run(program, |name| std::env::var(name).ok(), &input);
    let written = stdout().lock().write_all(&output);
    std::process::exit(if written.is_ok() { exit_code } else { 1 });
}
