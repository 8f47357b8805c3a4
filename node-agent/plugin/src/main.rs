//! The CNI plugin: a container runtime runs it once for every verb, as `vnetpool`; another plugin does, as `vnetpool-ipam`.

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
    // What can't be read can't be decoded either, and that is reported as CNI wants it.
    let _ = stdin().lock().read_to_end(&mut input);
    let program = Program::of(Path::new(&std::env::args_os().next().unwrap_or_default()));
    let Answer { stdout: output, exit_code } = run(program, |name| std::env::var(name).ok(), &input);
    let written = stdout().lock().write_all(&output);
    std::process::exit(if written.is_ok() { exit_code } else { 1 });
}
