//! The plugin's log: one JSON line for each invocation, in a file whose size is bounded. It never fails a
//! verb. The agent makes metrics of it ([`Reader`]), since a process that lives for milliseconds can't be
//! asked for any. Its keys are those of all logs of Vnetpool's (`docs/reference/logs.md`).

mod reader;

use std::{
    fs, io,
    io::Write,
    net::Ipv4Addr,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

use crate::{
    cni,
    ledger::{Pod, Sandbox, file::PRIVATE},
};

pub use reader::{Invocation, Reader};

const LOG: &str = "plugin.log";
const OLD_LOG: &str = "plugin.log.1";
/// The folder is in memory. Log and old log use at most twice this.
const SIZE: u64 = 1 << 20;

/// One invocation's work, as it will be logged.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    /// When it ended.
    timestamp: String,
    level: &'static str,
    target: &'static str,
    message: &'static str,
    verb: &'static str,
    pid: u32,
    /// As `container/interface`.
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<String>,
    /// As `namespace/name`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pod: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pod_uid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<Ipv4Addr>,
    /// The stages in their order, with the seconds that each took.
    phases: Vec<(&'static str, f64)>,
    /// How long all of it took.
    took_seconds: f64,
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
    error: Option<String>,
    /// The error's.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u32>,
}

impl Line {
    pub(super) fn new(verb: &'static str) -> Line {
        let now = Instant::now();
        Line {
            timestamp: String::new(),
            level: "INFO",
            target: "vnetpool_plugin",
            message: "done",
            verb,
            pid: std::process::id(),
            sandbox: None,
            pod: String::new(),
            pod_uid: String::new(),
            address: None,
            phases: Vec::new(),
            took_seconds: 0.0,
            begun: now,
            last: now,
        }
    }

    pub(super) fn about(&mut self, sandbox: &Sandbox, pod: &Pod) {
        self.sandbox = Some(format!("{}/{}", sandbox.container_id, sandbox.ifname));
        (self.pod, self.pod_uid) = (pod.to_string(), pod.uid.clone());
    }

    pub(super) fn address(&mut self, address: Ipv4Addr) {
        self.address = Some(address);
    }

    /// The stage of this name has just ended.
    pub(super) fn phase(&mut self, name: &'static str) {
        let now = Instant::now();
        self.phases.push((name, (now - self.last).as_secs_f64()));
        self.last = now;
    }

    /// Appends the line to the log in `dir`. A successful STATUS or VERSION isn't logged.
    pub(super) fn write(mut self, dir: &Path, error: Option<&cni::Error>) {
        if error.is_none() && self.sandbox.is_none() && self.verb != "GC" {
            return;
        }
        if error.is_some() {
            (self.level, self.message) = ("WARN", "failed");
        }
        self.timestamp = rfc3339(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        self.took_seconds = self.begun.elapsed().as_secs_f64();
        // A failure is ignored: the verb's outcome must not depend on its log.
        let _ = self.append(dir, error);
    }

    fn append(&self, dir: &Path, error: Option<&cni::Error>) -> io::Result<()> {
        let code = error.map(|error| error.code);
        let error = error.map(|error| format!("{}: {}", error.msg, error.details));
        let mut bytes = serde_json::to_vec(&Entry { line: self, error, code })?;
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

/// The time that is so long after 1970, as the other programs write it: in UTC, with microseconds.
fn rfc3339(time: Duration) -> String {
    let (days, seconds) = (time.as_secs() / 86_400, time.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let micros = time.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Year, month and day, so many days after 1970 began. In years that begin with March the leap day is the
/// last one, and eras of 400 years all have as many days.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // since March of the year 0
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153; // March is 0
    let day = day - (153 * month + 2) / 5 + 1;
    let year = 400 * era + year;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use vnetpool_process::log::{DETAILS, OF_EACH_LINE};

    use super::*;

    #[test]
    fn a_time_is_written_as_other_programs_write_it() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000001Z"),
            (951_782_399, "2000-02-28T23:59:59.000001Z"),
            (951_782_400, "2000-02-29T00:00:00.000001Z"),
            (951_868_800, "2000-03-01T00:00:00.000001Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000001Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000001Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000001Z"),
        ] {
            assert_eq!(rfc3339(Duration::new(seconds, 1000)), text);
        }
    }

    #[test]
    fn a_line_has_only_keys_that_the_other_programs_have_too() {
        let dir = tempfile::tempdir().unwrap();
        let mut line = Line::new("ADD");
        let pod = Pod { namespace: "default".to_owned(), name: "web".to_owned(), uid: "1".to_owned() };
        line.about(&Sandbox { container_id: "a".to_owned(), ifname: "eth0".to_owned() }, &pod);
        line.address(Ipv4Addr::new(10, 0, 0, 1));
        line.phase("lock");
        line.write(dir.path(), Some(&cni::Error::new(11, "no address", "wait")));
        let text = fs::read_to_string(dir.path().join(LOG)).unwrap();
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        let there_are: Vec<_> = OF_EACH_LINE.iter().chain(DETAILS).map(|key| key.name).collect();
        let keys: Vec<_> = line.as_object().unwrap().keys().map(String::as_str).collect();
        assert!(keys.iter().all(|key| there_are.contains(key)), "{keys:?}");
        assert_eq!(keys.len(), 14, "{keys:?}");
        assert_eq!((&line["pod"], &line["sandbox"]), (&"default/web".into(), &"a/eth0".into()));
        assert_eq!((&line["error"], &line["code"]), (&"no address: wait".into(), &11.into()));
        assert_eq!((&line["level"], &line["message"]), (&"WARN".into(), &"failed".into()));
    }

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
