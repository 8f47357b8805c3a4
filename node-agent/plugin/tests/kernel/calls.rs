//! A program that stops right before each system call of its own, so that something happens there: it is
//! killed, so that the call before was its last, or others act.

use std::{
    io::{Read, Write},
    ops::ControlFlow,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitStatus, Output},
};

use nix::{
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
    let mut child = spawn_traced(command);
    child.stdin.take().unwrap().write_all(input).unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Stopped(pid, Signal::SIGTRAP)), "it has just been started");
    ptrace::setoptions(pid, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL).unwrap();
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

fn spawn_traced(command: &mut Command) -> Child {
    #[allow(unsafe_code)] // between fork and exec it makes one system call and allocates nothing
    unsafe {
        command.pre_exec(|| Ok(ptrace::traceme()?));
    }
    command.spawn().unwrap()
}
