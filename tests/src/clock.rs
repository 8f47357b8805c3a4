//! The clock of a running program, set from outside of it, and of no other program. Programs ask for the time
//! without a system call, by a function that the kernel puts into each process (vdso(7)). Here that function
//! is replaced in one process, so that the program needs no build of its own. The clocks that only run on
//! stay as they are.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSymbol};
use std::fs::{File, read_dir, read_to_string};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// How long a process may take to stand still, outside of the function. One that has the lowest priority on a
/// busy machine has needed more than ten seconds.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(1);
const FUNCTION: &str = "__vdso_clock_gettime";

/// The function's new beginning, for x86-64: the system call of the same name, and then so many seconds more
/// if the time was asked for.
fn code(seconds: i32) -> Vec<u8> {
    let before_seconds = [
        0xb8, 0xe4, 0, 0, 0, // mov eax, 228: clock_gettime
        0x0f, 0x05, // syscall
        0x85, 0xff, // test edi, edi: is the clock CLOCK_REALTIME, which is 0?
        0x75, 0x07, // jnz: else go to the end
        0x48, 0x81, 0x06, // add qword [rsi], seconds: the answer begins with its seconds
    ];
    let end = [0xc3]; // ret
    [&before_seconds[..], &seconds.to_le_bytes(), &end].concat()
}

/// A process whose clock is set wrong.
pub struct Wrong {
    process: Process,
    before: Vec<u8>,
    now: Vec<u8>,
}

/// Sets the clock of a process forward by so many seconds, or back. It blocks for some milliseconds.
///
/// # Errors
/// When there is no such process, it doesn't stand still, or this machine isn't an x86-64.
pub fn set(pid: u32, seconds: i32) -> Result<Wrong> {
    ensure!(cfg!(target_arch = "x86_64"), "clocks are set on x86-64 only");
    let process = Process::of(pid).with_context(|| format!("process {pid}"))?;
    let now = code(seconds);
    let before = process.read(now.len())?;
    process.write(&now)?;
    Ok(Wrong { process, before, now })
}

impl Wrong {
    /// Sets the clock right again, unless the process has ended.
    ///
    /// # Errors
    /// When the process doesn't stand still.
    pub fn set_right(self) -> Result<()> {
        // Another one may have its id by now.
        let is_it = self.process.read(self.now.len()).is_ok_and(|found| found == self.now);
        if is_it { self.process.write(&self.before) } else { Ok(()) }
    }
}

/// A process, and where in its memory that function is.
struct Process {
    pid: u32,
    /// All that the kernel has put there.
    library: Range<u64>,
    function: u64,
}

impl Process {
    fn of(pid: u32) -> Result<Self> {
        let maps = read_to_string(format!("/proc/{pid}/maps"))?;
        let line =
            maps.lines().find(|line| line.ends_with("[vdso]")).context("the kernel has put nothing")?;
        let (first, rest) = line.split_once('-').unwrap_or_default();
        let end = rest.split(' ').next().unwrap_or_default();
        let library = u64::from_str_radix(first, 16)?..u64::from_str_radix(end, 16)?;
        let mut bytes = vec![0; usize::try_from(library.end - library.start)?];
        memory(pid)?.read_exact_at(&mut bytes, library.start)?;
        let file = ElfFile64::<LittleEndian>::parse(&*bytes)?;
        let mut symbols = file.dynamic_symbols();
        let symbol = symbols.find(|symbol| symbol.name() == Ok(FUNCTION)).context(FUNCTION)?;
        ensure!(symbol.size() >= code(0).len() as u64, "{FUNCTION} is too short: {}", symbol.size());
        Ok(Self { pid, function: library.start + symbol.address(), library })
    }

    fn read(&self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        memory(self.pid)?.read_exact_at(&mut bytes, self.function)?;
        Ok(bytes)
    }

    /// Replaces the function's beginning while the process stands still and no thread of it is in there.
    fn write(&self, bytes: &[u8]) -> Result<()> {
        let pid = Pid::from_raw(self.pid.cast_signed());
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            kill(pid, Signal::SIGSTOP)?;
            let written = self.write_if_outside(bytes, until);
            kill(pid, Signal::SIGCONT)?;
            if written? {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
        bail!("process {pid} asks for the time whenever it stands still")
    }

    /// Whether no thread was in there.
    fn write_if_outside(&self, bytes: &[u8], until: Instant) -> Result<bool> {
        while !self.threads("stat")?.iter().all(|stat| stands_still(stat)) {
            ensure!(Instant::now() < until, "process {} doesn't stand still", self.pid);
            std::thread::sleep(PAUSE);
        }
        let is_outside =
            |syscall: &String| place(syscall).is_some_and(|place| !self.library.contains(&place));
        let are_outside = self.threads("syscall")?.iter().all(is_outside);
        if are_outside {
            memory(self.pid)?.write_all_at(bytes, self.function)?;
        }
        Ok(are_outside)
    }

    /// A file of `/proc` about each thread; empty for one that has just ended.
    fn threads(&self, file: &str) -> Result<Vec<String>> {
        let threads = read_dir(format!("/proc/{}/task", self.pid))?.flatten();
        Ok({ threads }.map(|one| read_to_string(one.path().join(file)).unwrap_or_default()).collect())
    }
}

/// What the kernel lets only those write who may trace the process.
fn memory(pid: u32) -> Result<File> {
    let path = format!("/proc/{pid}/mem");
    File::options().read(true).write(true).open(&path).context(path)
}

/// By the thread's `stat`: its state follows its name, which may have brackets.
fn stands_still(stat: &str) -> bool {
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

/// Where a thread goes on, by its `syscall`: that is the last word.
fn place(syscall: &str) -> Option<u64> {
    let last = syscall.split_ascii_whitespace().next_back()?;
    u64::from_str_radix(last.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use std::io::{BufRead, BufReader, Lines, Write, stdin};
    use std::process::{Child, ChildStdout, Command, Stdio};
    use std::time::SystemTime;

    const NAME: &str = "clock::tests::a_running_program_sees_its_clock_set_and_set_right_again";
    /// By this the test program knows that it is the one whose clock is set.
    const IS_CHILD: &str = "VNETPOOL_CLOCK_IS_SET";
    const BEGIN: &str = "clocks: ";
    const HOUR: i32 = 3600;

    /// Prints the seconds since 1970 and since its own start for each line that it gets. Another thread asks
    /// for the time without end.
    fn report() {
        let start = Instant::now();
        std::thread::spawn(|| {
            loop {
                std::hint::black_box(SystemTime::now());
            }
        });
        for _ in stdin().lines() {
            println!("{BEGIN}{} {}", now(), start.elapsed().as_secs());
        }
    }

    fn now() -> u64 {
        SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
    }

    /// How far its clock is off, and the seconds since its start.
    fn asked(child: &mut Child, lines: &mut Lines<BufReader<ChildStdout>>) -> (i64, i64) {
        writeln!(child.stdin.as_mut().unwrap()).unwrap();
        let line = lines.map(Result::unwrap).find_map(|line| Some(line.split_once(BEGIN)?.1.to_owned()));
        let clocks: Vec<i64> = line.unwrap().split(' ').map(|one| one.parse().unwrap()).collect();
        (clocks[0] - now().cast_signed(), clocks[1])
    }

    /// The test's program is linked as the product is.
    #[test]
    #[cfg_attr(not(target_arch = "x86_64"), ignore = "clocks are set on x86-64 only")]
    fn a_running_program_sees_its_clock_set_and_set_right_again() {
        if std::env::var_os(IS_CHILD).is_some() {
            return report();
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", NAME, "--nocapture"]).env(IS_CHILD, "yes");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut is_off_by = |child: &mut Child, seconds: i32| {
            let (off, since_start) = asked(child, &mut lines);
            assert!((off - i64::from(seconds)).abs() < 60, "off by {off} s instead of {seconds}");
            assert!((0..600).contains(&since_start), "started {since_start} s ago");
        };
        is_off_by(&mut child, 0);
        for seconds in [-HOUR, HOUR] {
            let wrong = set(child.id(), seconds).unwrap();
            is_off_by(&mut child, seconds);
            wrong.set_right().unwrap();
            is_off_by(&mut child, 0);
        }
        let wrong = set(child.id(), HOUR).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        wrong.set_right().unwrap();
        assert!(set(child.id(), HOUR).is_err(), "the process has ended");
    }

    #[test]
    fn a_threads_state_and_place_are_read() {
        for (stat, stands) in [
            ("7 (tokio-rt) T 1 7", true),
            ("7 (a) T (b) S 1 7", false),
            ("7 (sleeps) S 1 7", false),
            ("", false),
        ] {
            assert_eq!(stands_still(stat), stands, "{stat}");
        }
        for (syscall, expected) in [
            ("-1 0x7ffd1 0x7f2a\n", Some(0x7f2a)),
            ("202 0x1 0x80 0x0 0x0 0x0 0x0 0x7ffd1 0x401000\n", Some(0x0040_1000)),
            ("running\n", None),
            ("", None),
        ] {
            assert_eq!(place(syscall), expected, "{syscall}");
        }
    }
}
