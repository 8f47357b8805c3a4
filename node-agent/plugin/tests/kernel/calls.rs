//! A program that stops right before each system call of its own, so that something happens there: it is
//! killed, so that the call before was its last, or others act. Or it stops only before its end, which shows
//! its memory.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    ops::ControlFlow,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Command, ExitStatus, Output},
};

use nix::{
    errno::Errno,
    libc,
    sys::{
        ptrace::{self, Options},
        signal::{Signal, killpg, raise},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// Of this thread's children and those that it traces, with the flags below: other tests have theirs.
const ANY: Pid = Pid::from_raw(-1);

/// A program that stops from its start on.
pub fn from_start(mut command: Command) -> Command {
    #[allow(unsafe_code)] // between fork and exec it makes one system call and allocates nothing
    unsafe {
        command.pre_exec(|| Ok(ptrace::traceme()?));
    }
    command
}

/// From here on this thread stops, and all that it starts. Its process was started by [`kill_before`].
pub fn from_here() {
    ptrace::traceme().unwrap();
    raise(Signal::SIGSTOP).unwrap();
}

/// Runs a program with this input until it is about to make its system call of this number, the first after
/// it began to stop being 1, and kills it there, with the programs that it runs. Otherwise it has ended, and
/// this is its output and its end. The kernel kills it if this thread, which traces it, ends before.
pub fn kill_before(call: usize, command: &mut Command, input: &[u8]) -> Option<Output> {
    let before = |next: usize| if next == call { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    stop_before_each(command, input, before)
}

/// Runs a program with this input, and `before` ahead of each system call of its threads, which is given the
/// call's number. Kills the program if `before` breaks off; otherwise returns its output and its end.
#[expect(clippy::zombie_processes, reason = "one that has ended was waited for, to hear that it has")]
pub fn stop_before_each(
    command: &mut Command,
    input: &[u8],
    mut before: impl FnMut(usize) -> ControlFlow<()>,
) -> Option<Output> {
    let mut child = command.process_group(0).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    let (mut calls, mut is_killed) = (0, false);
    // A call stops its thread twice, as it is made and as it returns.
    let mut threads_in_calls = BTreeSet::new();
    loop {
        let (stopped, signal) = match waitpid(ANY, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
            Ok(WaitStatus::PtraceSyscall(thread)) => {
                if !threads_in_calls.insert(thread) {
                    threads_in_calls.remove(&thread);
                } else if !is_killed {
                    calls += 1;
                    if before(calls).is_break() {
                        killpg(pid, Signal::SIGKILL).unwrap();
                        is_killed = true;
                    }
                }
                (thread, None)
            }
            // The first stop of each thread.
            Ok(WaitStatus::Stopped(thread, Signal::SIGTRAP | Signal::SIGSTOP)) => {
                let options = Options::PTRACE_O_TRACESYSGOOD
                    | Options::PTRACE_O_EXITKILL
                    | Options::PTRACE_O_TRACECLONE;
                unless_gone(ptrace::setoptions(thread, options));
                (thread, None)
            }
            Ok(WaitStatus::PtraceEvent(thread, ..)) => (thread, None),
            Ok(WaitStatus::Stopped(thread, signal)) => (thread, Some(signal)),
            Ok(WaitStatus::Exited(ended, code)) if ended == pid => {
                let mut stdout = Vec::new();
                child.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
                return Some(Output { status: ExitStatus::from_raw(code << 8), stdout, stderr: Vec::new() });
            }
            Ok(WaitStatus::Signaled(ended, Signal::SIGKILL, _)) if ended == pid && is_killed => return None,
            // One of its threads.
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) if is_killed || calls > 0 => continue,
            other => panic!("call {calls}: {other:?}"),
        };
        unless_gone(ptrace::syscall(stopped, signal));
    }
}

/// A thread that was killed is gone before its end is heard of.
fn unless_gone(traced: nix::Result<()>) {
    assert!(matches!(traced, Ok(()) | Err(Errno::ESRCH)), "{traced:?}");
}

/// Runs a program with this input, which must succeed; gives the line of this name of its
/// `/proc/<pid>/status` at its end, in KiB: all the memory that it held at most is `VmHWM`, and what isn't a
/// file's `RssAnon`.
pub fn memory(command: Command, input: &[u8], name: &str) -> u64 {
    let mut child = from_start(command).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Stopped(pid, Signal::SIGTRAP)), "it has just been started");
    ptrace::setoptions(pid, Options::PTRACE_O_TRACEEXIT | Options::PTRACE_O_EXITKILL).unwrap();
    ptrace::cont(pid, None).unwrap();
    // Its memory is still there: it goes once the program runs on.
    let stopped = waitpid(pid, None).unwrap();
    let is_exit = matches!(stopped, WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXIT));
    assert!(is_exit, "{stopped:?}");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let memory = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap();
    ptrace::detach(pid, None).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    memory
}
