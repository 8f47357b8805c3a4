//! The CNI plugin. A container runtime runs it once for every verb, as `vnetpool`. Another plugin runs it as
//! `vnetpool-ipam`.
//!
//! Its `main` is C's. Rust's own start is for programs that live long: handlers and a stack for the overflow
//! of another, which it finds by reading the process's memory map. Each pod would wait for these twenty
//! system calls. Arguments and environment are there without it.

#![no_main]

use std::{
    ffi::{c_char, c_int},
    io::{Read, Write, stdin, stdout},
    path::Path,
};

use vnetpool_plugin::{
    cni::Program,
    plugin::{Answer, run},
};

#[allow(unsafe_code)] // nothing else in this program is called `main`
#[unsafe(no_mangle)]
extern "C" fn main(_count: c_int, _arguments: *const *const c_char) -> c_int {
    let mut input = Vec::with_capacity(4096); // read at once
    // Input that can't be read can't be decoded either, which is then reported as CNI demands.
    let _ = stdin().lock().read_to_end(&mut input);
    let program = Program::of(Path::new(&std::env::args_os().next().unwrap_or_default()));
    let Answer { stdout: output, exit_code } = run(program, |name| std::env::var(name).ok(), &input);
    let mut stdout = stdout().lock();
    let written = stdout.write_all(&output).and_then(|()| stdout.flush());
    std::process::exit(if written.is_ok() { exit_code } else { 1 });
}
