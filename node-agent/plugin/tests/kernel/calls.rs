//! A program that stops right before each system call of its own, so that something happens there: it is
//! killed, so that the call before was its last, or others act. Or it stops only before its end, which shows
//! its memory.

use std::{
    fs,
    io::{Read, Write},
    ops::ControlFlow,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitStatus, Output},
};

use nix::{
    libc,
    sys::{
        ptrace::{self, Options},
        signal::Signal,
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// Runs a program with this input until it is about to make its system call of this number, the first after
/// its start being 1, and kills it there. Whether it came so far; otherwise it has ended. The kernel kills it
/// if this thread, which traces it, ends before.
pub fn kill_before(call: usize, command: &mut Command, input: &[u8]) -> bool {
    let before = |next: usize| if next == call { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    stop_before_each(command, input, before).is_none()
}

/// Runs a program with this input, and `before` ahead of each of its system calls, which is given the call's
/// number. Kills the program if `before` breaks off; otherwise returns its output and its end.
#[expect(clippy::zombie_processes, reason = "one that has ended was waited for, to hear that it has")]
pub fn stop_before_each(
    command: &mut Command,
    input: &[u8],
    mut before: impl FnMut(usize) -> ControlFlow<()>,
) -> Option<Output> {
    let (mut child, pid) = spawn_traced(command, input, Options::PTRACE_O_TRACESYSGOOD);
    // A call stops it twice, as it is made and as it returns.
    for stop in 0.. {
        ptrace::syscall(pid, None).unwrap();
        match waitpid(pid, None).unwrap() {
            WaitStatus::PtraceSyscall(_) if stop % 2 == 0 && before(stop / 2 + 1).is_break() => break,
            WaitStatus::PtraceSyscall(_) => {}
            WaitStatus::Exited(_, code) => {
                let mut stdout = Vec::new();
                child.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
                return Some(Output { status: ExitStatus::from_raw(code << 8), stdout, stderr: Vec::new() });
            }
            other => panic!("call {}: {other:?}", stop / 2 + 1),
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

/// Runs a program with this input, which must succeed; gives the line of this name of its
/// `/proc/<pid>/status` at its end, in KiB: all the memory that it held at most is `VmHWM`, and what isn't a
/// file's `RssAnon`.
pub fn memory(command: &mut Command, input: &[u8], name: &str) -> u64 {
    let (child, pid) = spawn_traced(command, input, Options::PTRACE_O_TRACEEXIT);
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

/// Starts a program that this thread traces, up to its first instruction, and gives it this input.
fn spawn_traced(command: &mut Command, input: &[u8], options: Options) -> (Child, Pid) {
    #[allow(unsafe_code)] // between fork and exec it makes one system call and allocates nothing
    unsafe {
        command.pre_exec(|| Ok(ptrace::traceme()?));
    }
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Stopped(pid, Signal::SIGTRAP)), "it has just been started");
    ptrace::setoptions(pid, options | Options::PTRACE_O_EXITKILL).unwrap();
    (child, pid)
}
