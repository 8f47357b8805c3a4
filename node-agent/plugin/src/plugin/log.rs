//! The plugin's log: one JSON line for each invocation, in a file whose size is bounded. It never fails a
//! verb. The agent makes metrics of it ([`Reader`]), since a process that lives for milliseconds can't be
//! asked for any.

mod reader;

use std::{
    fs, io,
    io::Write,
    net::Ipv4Addr,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

use crate::{
    cni,
    ledger::{Pod, Sandbox, file::PRIVATE},
};

pub use reader::{Failure, Invocation, Reader};

const LOG: &str = "plugin.log";
const OLD_LOG: &str = "plugin.log.1";
/// The folder is in memory. Log and old log use at most twice this.
const SIZE: u64 = 1 << 20;

/// One invocation's work, as it will be logged.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Line {
    /// When it ended: milliseconds since 1970.
    unix_ms: u64,
    verb: &'static str,
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<Sandbox>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<Pod>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<Ipv4Addr>,
    /// The stages in their order, with the microseconds that each took.
    phases: Vec<(&'static str, u64)>,
    /// How long all of it took, in microseconds.
    micros: u64,
    #[serde(skip)]
    begun: Instant,
    #[serde(skip)]
    last: Instant,
}

/// The line as it goes out.
#[derive(Serialize)]
struct Entry<'a> {
    #[serde(flatten)]
    line: &'a Line,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a cni::Error>,
}

impl Line {
    pub(super) fn new(verb: &'static str) -> Line {
        let now = Instant::now();
        Line {
            unix_ms: 0,
            verb,
            pid: std::process::id(),
            sandbox: None,
            pod: None,
            address: None,
            phases: Vec::new(),
            micros: 0,
            begun: now,
            last: now,
        }
    }

    pub(super) fn about(&mut self, sandbox: &Sandbox, pod: &Pod) {
        self.sandbox = Some(sandbox.clone());
        self.pod = Some(pod.clone());
    }

    pub(super) fn address(&mut self, address: Ipv4Addr) {
        self.address = Some(address);
    }

    /// The stage of this name has just ended.
    pub(super) fn phase(&mut self, name: &'static str) {
        let now = Instant::now();
        self.phases.push((name, (now - self.last).as_micros() as u64));
        self.last = now;
    }

    /// Appends the line to the log in `dir`. A successful STATUS or VERSION isn't logged.
    pub(super) fn write(mut self, dir: &Path, error: Option<&cni::Error>) {
        if error.is_none() && self.sandbox.is_none() && self.verb != "GC" {
            return;
        }
        self.unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
        self.micros = self.begun.elapsed().as_micros() as u64;
        // A failure is ignored: the verb's outcome must not depend on its log.
        let _ = self.append(dir, error);
    }

    fn append(&self, dir: &Path, error: Option<&cni::Error>) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(&Entry { line: self, error })?;
        bytes.push(b'\n');
        let path = dir.join(LOG);
        let mut file = fs::OpenOptions::new().append(true).create(true).mode(PRIVATE).open(&path)?;
        file.write_all(&bytes)?;
        if file.metadata()?.len() > SIZE {
            fs::rename(&path, dir.join(OLD_LOG))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_log_does_not_outgrow_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let (log, old) = (dir.path().join(LOG), dir.path().join(OLD_LOG));
        fs::write(&log, vec![b'x'; SIZE as usize]).unwrap();
        Line::new("GC").write(dir.path(), None);
        assert!(!log.exists());
        assert!(fs::metadata(&old).unwrap().len() > SIZE);
        Line::new("GC").write(dir.path(), None);
        assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 1);
    }

    #[test]
    fn only_root_reads_the_log() {
        let dir = tempfile::tempdir().unwrap();
        Line::new("GC").write(dir.path(), None);
        let mode = fs::metadata(dir.path().join(LOG)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_log_that_can_not_be_written_is_no_matter() {
        Line::new("GC").write(Path::new("/does/not/exist"), None);
    }
}
