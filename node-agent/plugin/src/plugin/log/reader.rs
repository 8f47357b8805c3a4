//! Follows the log of a plugin that others run.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{LOG, SIZE};

/// The fields of a line about an invocation. A line of a neighbour release may lack some of them; one without
/// its duration is of a release with other units, and isn't counted.
#[derive(Debug, Deserialize)]
pub struct Invocation {
    pub verb: String,
    /// How long the invocation took.
    pub took_seconds: f64,
    /// Each stage's name, and the seconds that it took.
    #[serde(default)]
    pub phases: Vec<(String, f64)>,
    /// The error's, if it failed.
    #[serde(default)]
    pub code: Option<u32>,
}

/// The invocations since the reader was made. They go uncounted only if their log was turned over twice
/// between two reads.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    /// The file that is being read. It stays readable when it is renamed.
    file: Option<File>,
    /// The beginning of a line whose end isn't written yet.
    rest: Vec<u8>,
}

impl Reader {
    /// Of the invocations that are logged in `dir` from now on.
    pub fn from_now(dir: &Path) -> Reader {
        let path = dir.join(LOG);
        let at_its_end = |mut file: File| file.seek(SeekFrom::End(0)).is_ok().then_some(file);
        let file = File::open(&path).ok().and_then(at_its_end);
        Reader { path, file, rest: Vec::new() }
    }

    /// Gives each invocation that was logged since the last read to `see`. Lines that can't be read are left
    /// out, which does no harm.
    pub fn read(&mut self, mut see: impl FnMut(Invocation)) {
        // The earlier file to its end, then the one that has taken its place.
        for _ in 0..2 {
            self.take(&mut see);
            let place = std::fs::metadata(&self.path).map(|now| now.ino());
            let is_same = |file: &File| {
                file.metadata().is_ok_and(|own| place.as_ref().is_ok_and(|now| *now == own.ino()))
            };
            if place.is_err() || self.file.as_ref().is_some_and(is_same) {
                break;
            }
            self.file = File::open(&self.path).ok();
            self.rest.clear();
        }
    }

    fn take(&mut self, see: &mut impl FnMut(Invocation)) {
        let Some(file) = &mut self.file else { return };
        // Bounded, for any file may lie there.
        let mut bytes = std::mem::take(&mut self.rest);
        let read: io::Result<usize> = file.take(2 * SIZE).read_to_end(&mut bytes);
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        for line in bytes[..whole].split(|byte| *byte == b'\n') {
            serde_json::from_slice(line).into_iter().for_each(&mut *see);
        }
        if read.is_ok() {
            self.rest = bytes.split_off(whole);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cni,
        ledger::{Pod, Sandbox},
        plugin::log::{Line, OLD_LOG},
    };
    use std::fs;

    fn log(dir: &Path, verb: &'static str, error: Option<&cni::Error>) {
        let mut line = Line::new(verb);
        line.about(&Sandbox { container_id: "a".to_owned(), ifname: "eth0".to_owned() }, &Pod::default());
        line.phase("lock");
        line.write(dir, error);
    }

    fn read(reader: &mut Reader) -> Vec<String> {
        let mut seen = vec![];
        reader.read(|invocation| seen.push(invocation.verb));
        seen
    }

    /// Its errors and its units were others.
    #[test]
    fn a_line_of_a_release_with_other_units_is_not_counted() {
        let dir = tempfile::tempdir().unwrap();
        log(dir.path(), "ADD", None);
        let mut reader = Reader::from_now(dir.path());
        let older = r#"{"verb":"ADD","micros":900,"phases":[["ledger",700]],"error":{"code":11,"msg":"x"}}"#;
        let mut file = fs::File::options().append(true).open(dir.path().join(LOG)).unwrap();
        io::Write::write_all(&mut file, format!("{older}\n").as_bytes()).unwrap();
        log(dir.path(), "DEL", None);
        assert_eq!(read(&mut reader), ["DEL"]);
    }

    #[test]
    fn each_verb_is_seen_once_also_when_the_log_is_turned_over_in_between() {
        let dir = tempfile::tempdir().unwrap();
        log(dir.path(), "CHECK", None);
        let mut reader = Reader::from_now(dir.path());
        assert!(read(&mut reader).is_empty(), "what was before isn't counted");
        log(dir.path(), "ADD", None);
        log(dir.path(), "DEL", None);
        assert_eq!(read(&mut reader), ["ADD", "DEL"]);
        assert!(read(&mut reader).is_empty());
        log(dir.path(), "ADD", None);
        fs::rename(dir.path().join(LOG), dir.path().join(OLD_LOG)).unwrap();
        log(dir.path(), "DEL", None);
        assert_eq!(read(&mut reader), ["ADD", "DEL"]);
        log(dir.path(), "CHECK", None);
        assert_eq!(read(&mut reader), ["CHECK"]);
    }

    #[test]
    fn a_log_that_comes_later_is_read_from_its_beginning_and_half_a_line_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = Reader::from_now(dir.path());
        assert!(read(&mut reader).is_empty());
        let path = dir.path().join(LOG);
        fs::write(&path, "{\"took_seconds\":1.0,\"verb\":\"ADD\"}\nnonsense\n{\"verb\":").unwrap();
        assert_eq!(read(&mut reader), ["ADD"]);
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        io::Write::write_all(&mut file, b"\"DEL\",\"took_seconds\":1.0}\n").unwrap();
        assert_eq!(read(&mut reader), ["DEL"]);
    }

    #[test]
    fn an_invocation_reports_its_duration_and_its_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut reader = Reader::from_now(dir.path());
        log(dir.path(), "ADD", Some(&cni::Error::new(11, "none", "wait")));
        let mut invocations = vec![];
        reader.read(|invocation| invocations.push(invocation));
        let invocation = invocations.pop().unwrap();
        assert_eq!(invocation.code, Some(11));
        assert_eq!(invocation.phases[0].0, "lock");
        assert!(invocation.took_seconds >= invocation.phases[0].1);
    }
}
