//! Plugins that are killed or stopped in the middle of a verb. The kernel asks us before a process opens a
//! file in the folder of the node's ledger (fanotify), and the process waits for our answer. So a plugin that
//! is hit then is in the middle of its work for certain.

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::fanotify::{
    EventFFlags, Fanotify, FanotifyResponse, InitFlags, MarkFlags, MaskFlags, Response,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long to wait for plugins.
const PATIENCE: Duration = Duration::from_secs(10);
/// So many are hit at most.
const MOST: usize = 3;
/// How many files an ADD opens in that folder, about.
pub const OPENINGS: usize = 6;
const PAUSE: Duration = Duration::from_millis(1);

/// Sends a signal to plugins as they open files in this folder: to the first before its opening number
/// `first`, from 0 on, to the next one opening later, and so on. Returns the ids of those that it has hit.
///
/// It blocks, and nobody else opens a file there meanwhile without its answer. So it needs a thread of its
/// own.
///
/// # Errors
/// When the kernel doesn't ask.
pub fn hunt(folder: &Path, first: usize, what: Signal) -> Result<Vec<u32>> {
    let how = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK;
    let kernel = Fanotify::init(how, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC)?;
    let opened = File::open(folder).with_context(|| folder.display().to_string())?;
    let asks = MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_EVENT_ON_CHILD;
    kernel.mark(MarkFlags::FAN_MARK_ADD, asks, &opened, None::<&Path>)?;
    let until = Instant::now() + PATIENCE;
    let mut openings: BTreeMap<i32, usize> = BTreeMap::new();
    let mut hit = BTreeSet::new();
    // What still waits for an answer at the end goes on when `kernel` is dropped.
    while Instant::now() < until && hit.len() < MOST {
        let events = match kernel.read_events() {
            Err(Errno::EAGAIN) => {
                std::thread::sleep(PAUSE);
                continue;
            }
            events => events?,
        };
        for event in events {
            let pid = event.pid();
            let number = openings.entry(pid).or_default();
            let is_due = *number == (first + hit.len()) % OPENINGS;
            *number += 1;
            if is_due && is_plugin(pid) && kill(Pid::from_raw(pid), what).is_ok() {
                hit.insert(pid);
            }
            if let Some(file) = event.fd() {
                kernel.write_response(FanotifyResponse::new(file, Response::FAN_ALLOW))?;
            }
        }
    }
    Ok(hit.into_iter().map(i32::cast_unsigned).collect())
}

fn is_plugin(pid: i32) -> bool {
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let program = arguments.split(|byte| *byte == 0).next().unwrap_or_default();
    program.rsplit(|byte| *byte == b'/').next().is_some_and(|name| name == b"vnetpool")
}
