//! Puts the table into the kernel in one transaction, and only when it isn't there as it was put.

use std::{collections::BTreeMap, io, process::Stdio};

use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't run nft: {0}")]
    Run(#[from] io::Error),
    #[error("nft refuses table inet vnetpool: {0}")]
    Refused(String),
    #[error("what nft prints can't be read: {0}")]
    Unreadable(#[from] serde_json::Error),
}

/// The table in the kernel, as far as this process has put it there.
#[derive(Debug, Default)]
pub struct Firewall {
    applied: Option<Applied>,
    /// What its counters said last, by name. A table that is put in place begins with none.
    counted: BTreeMap<String, u64>,
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
        self.counted.clear();
        nft(&["-f", "-"], text).await?.map_err(Error::Refused)?;
        self.applied = Some(Applied { text: text.to_owned(), listing: list().await? });
        Ok(true)
    }

    /// The packets that the table has dropped since this was asked last, by the name of its counter.
    pub async fn dropped(&mut self) -> Result<Vec<(String, u64)>, Error> {
        let printed = nft(&["-j", "list", "counters", "table", "inet", "vnetpool"], "").await?;
        let document: Value = serde_json::from_str(&printed.map_err(Error::Refused)?)?;
        let listed = document["nftables"].as_array().into_iter().flatten();
        let now: BTreeMap<String, u64> = listed
            .filter_map(|one| {
                let counter = one.get("counter")?;
                Some((counter["name"].as_str()?.to_owned(), counter["packets"].as_u64()?))
            })
            .collect();
        let before = |name: &String| self.counted.get(name).copied().unwrap_or_default();
        let news =
            now.iter().map(|(name, &count)| (name.clone(), count.saturating_sub(before(name)))).collect();
        self.counted = now;
        Ok(news)
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
