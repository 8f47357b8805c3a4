//! Puts the table into the kernel in one transaction, and only when it isn't there as it was put.

use std::{io, process::Stdio};

use tokio::{io::AsyncWriteExt, process::Command};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't run nft: {0}")]
    Run(#[from] io::Error),
    #[error("nft refuses table inet vnetpool: {0}")]
    Refused(String),
}

/// The table in the kernel, as far as this process has put it there.
#[derive(Debug, Default)]
pub struct Firewall {
    applied: Option<Applied>,
}

#[derive(Debug)]
struct Applied {
    /// What was asked for.
    text: String,
    /// How the kernel showed it right afterwards, without counters.
    listing: Option<String>,
}

impl Firewall {
    /// Whether this text was the last to be put in place, so far as we know without asking the kernel.
    pub fn is_applied(&self, text: &str) -> bool {
        self.applied.as_ref().is_some_and(|applied| applied.text == text)
    }

    /// Puts `text`, a transaction from [`Rules::render`](super::Rules::render), in place unless the kernel still shows
    /// what it showed after the last time. Returns whether it had to.
    pub async fn ensure(&mut self, text: &str) -> Result<bool, Error> {
        if let Some(applied) = &self.applied
            && applied.text == text
            && applied.listing == list().await?
        {
            return Ok(false);
        }
        self.applied = None;
        nft(&["-f", "-"], text).await?.map_err(Error::Refused)?;
        self.applied = Some(Applied { text: text.to_owned(), listing: list().await? });
        Ok(true)
    }
}

/// Removes the table; fine if there is none.
pub async fn remove() -> Result<(), Error> {
    nft(&["-f", "-"], "table inet vnetpool\ndelete table inet vnetpool\n")
        .await?
        .map_err(Error::Refused)
        .map(|_| ())
}

/// The table as the kernel has it, without counters; None if it has none.
async fn list() -> io::Result<Option<String>> {
    Ok(nft(&["--stateless", "list", "table", "inet", "vnetpool"], "").await?.ok())
}

/// Runs nft. The inner error is what it said on standard error when it failed.
pub(crate) async fn nft(args: &[&str], stdin: &str) -> io::Result<Result<String, String>> {
    let mut child = Command::new("nft")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(stdin.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    Ok(if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    })
}
