//! Other programs that the agent runs. Each ends: one that hangs is killed, and fails.

use std::{io, process::Output, process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// A program lists or changes rules of the kernel, or prints a line. On a node that does much else a list of
/// thousands of rules takes seconds.
pub const WITHIN: Duration = Duration::from_secs(10);

/// Runs a program with this on its standard input until it ends, at most for so long.
pub async fn run(command: &mut Command, stdin: &[u8], within: Duration) -> io::Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let ended = async move {
        if let Some(mut pipe) = child.stdin.take() {
            // A program that ends without having read this does no harm.
            let _ = pipe.write_all(stdin).await;
        }
        child.wait_with_output().await
    };
    let killed = |_| io::Error::new(io::ErrorKind::TimedOut, format!("killed after {} s", within.as_secs()));
    timeout(within, ended).await.map_err(killed)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_gets_its_input_and_one_that_hangs_is_killed() {
        let output = run(&mut Command::new("cat"), b"given", WITHIN).await.unwrap();
        assert_eq!(output.stdout, b"given");
        let (mut hangs, within) = (Command::new("sleep"), Duration::from_millis(50));
        let error = run(hangs.arg("3600"), b"", within).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
