//! A program that is killed right before a system call of its own, so that the one before was its last.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    process::{Child, Command},
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
#[expect(clippy::zombie_processes, reason = "one that has ended was waited for, to hear that it has")]
pub fn kill_before(call: usize, command: &mut Command, input: &[u8]) -> bool {
    let mut child = spawn_traced(command);
    child.stdin.take().unwrap().write_all(input).unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    assert_eq!(waitpid(pid, None), Ok(WaitStatus::Stopped(pid, Signal::SIGTRAP)), "it has just been started");
    ptrace::setoptions(pid, Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL).unwrap();
    // A call stops it twice, as it is made and as it returns.
    for stop in 0.. {
        ptrace::syscall(pid, None).unwrap();
        match waitpid(pid, None).unwrap() {
            WaitStatus::PtraceSyscall(_) if stop == 2 * (call - 1) => break,
            WaitStatus::PtraceSyscall(_) => {}
            WaitStatus::Exited(..) => return false,
            other => panic!("call {}: {other:?}", stop / 2 + 1),
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    true
}

fn spawn_traced(command: &mut Command) -> Child {
    #[allow(unsafe_code)] // between fork and exec it makes one system call and allocates nothing
    unsafe {
        command.pre_exec(|| Ok(ptrace::traceme()?));
    }
    command.spawn().unwrap()
}
