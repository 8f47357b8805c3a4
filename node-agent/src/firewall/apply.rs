//! Puts a table into the kernel in one transaction, and only when it isn't there as it was put.

use std::{collections::BTreeMap, io, mem, net::Ipv4Addr, time::Duration};

use serde_json::Value;
use tokio::{
    process::Command,
    sync::watch,
    time::{Instant, timeout},
};
use vnetpool_crds::refusal::Service;

use super::{
    ASKED, Family,
    known::{Generation, Known},
    netlink::generation,
};
use crate::child;

/// How often a table is listed that stands by the kernel's events: a mistake of theirs or ours lasts no
/// longer.
pub const LIST_EVERY: Duration = Duration::from_secs(300);
/// How long a new table waits for the counts of the one before.
const COUNTED: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't run nft: {0}")]
    Run(#[from] io::Error),
    #[error("the kernel doesn't report its generation of nftables: {0}")]
    Uncounted(#[source] io::Error),
    #[error("nft refuses table {0} vnetpool: {1}")]
    Refused(Family, String),
    #[error("nft doesn't show table {0} vnetpool, which it has just put in place")]
    Missing(Family),
    #[error("what nft prints can't be read: {0}")]
    Unreadable(#[from] serde_json::Error),
}

/// The outcome for a table that was to be in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// It stood as it was put.
    Standing,
    /// nft couldn't show it when that was due. The kernel has reported no change since it was seen last.
    Unseen,
    /// It was put in place, since the wanted content has changed.
    Put,
    /// It was put in place, since another program had changed or removed it.
    Restored,
}

/// The table `vnetpool` of a family in the kernel, as far as this process has put it there.
#[derive(Debug)]
pub struct Firewall {
    family: Family,
    known: watch::Sender<Known>,
    /// What was asked for last and isn't known to have come there.
    tried: Option<Tried>,
    /// What came there last, unless something of ours may have replaced it.
    done: Option<Done>,
    /// The packets that it has dropped, by the names of its counters.
    dropped: Tally<String>,
    /// Of these, those that pods have sent to Azure's services: by the pod's address and the service.
    asked: Tally<(Ipv4Addr, Service)>,
}

/// Counts that begin anew with each table, and are taken apart from it.
#[derive(Debug)]
struct Tally<K> {
    /// As they were read last.
    seen: BTreeMap<K, u64>,
    /// What has come to them since they were taken last, in this table and those before.
    news: BTreeMap<K, u64>,
}

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Tally { seen: BTreeMap::new(), news: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Tally<K> {
    /// Takes in the present values. A smaller one has begun anew.
    fn read(&mut self, now: BTreeMap<K, u64>) {
        for (name, &count) in &now {
            let seen = self.seen.get(name).filter(|&&seen| seen <= count);
            *self.news.entry(name.clone()).or_default() += count - seen.copied().unwrap_or_default();
        }
        self.seen = now;
    }

    fn take(&mut self) -> BTreeMap<K, u64> {
        mem::take(&mut self.news)
    }
}

/// A table that is to be in place. Once it is, that is reported as `ensured`.
#[derive(Debug)]
struct Tried {
    text: String,
    ensured: Ensured,
}

#[derive(Debug)]
struct Done {
    /// The wanted content.
    text: String,
    /// How the kernel showed it right afterwards, without counters.
    listing: Option<String>,
    /// When it last did so.
    listed: Instant,
}

impl Default for Firewall {
    fn default() -> Self {
        Firewall::of(Family::Inet)
    }
}

impl Firewall {
    /// The table of this family, whose changes aren't followed.
    pub fn of(family: Family) -> Firewall {
        Firewall::hearing(family, &watch::Sender::default())
    }

    /// The table of this family, of which nothing is known yet but its changes from now on.
    pub fn hearing(family: Family, known: &watch::Sender<Known>) -> Firewall {
        let (dropped, asked) = (Tally::default(), Tally::default());
        Firewall { family, known: known.clone(), tried: None, done: None, dropped, asked }
    }

    /// Puts `text`, a transaction that makes the table, in place unless it stands as after the last time: by
    /// the kernel's events, which report each change, or else by a listing. If nft refuses it, the table
    /// before it counts on.
    pub async fn ensure(&mut self, text: &str) -> Result<Ensured, Error> {
        let ensured = match (&self.tried, &self.done) {
            (None, Some(done)) if done.text == text => match self.standing().await? {
                Some(ensured) => return Ok(ensured),
                None => Ensured::Restored,
            },
            (Some(tried), _) if tried.text == text => tried.ensured,
            _ => Ensured::Put,
        };
        self.put(text.to_owned(), ensured).await
    }

    /// How what came there last stands; `None` if it doesn't.
    async fn standing(&mut self) -> Result<Option<Ensured>, Error> {
        let Some(done) = &mut self.done else { return Ok(None) };
        let now = generation().map_err(Error::Uncounted)?;
        let stands = |now| self.known.borrow().stands(self.family, now);
        if stands(now) && done.listed.elapsed() < LIST_EVERY {
            return Ok(Some(Ensured::Standing));
        }
        match list(self.family).await {
            Ok(listing) if listing == done.listing => {
                done.listed = Instant::now();
                self.saw(now);
                Ok(Some(Ensured::Standing))
            }
            Ok(_) => Ok(None),
            Err(error) if generation().is_ok_and(stands) => {
                tracing::warn!(%error, "can't read a table of nftables, which nobody has changed");
                Ok(Some(Ensured::Unseen))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn put(&mut self, text: String, ensured: Ensured) -> Result<Ensured, Error> {
        self.keep_counts().await;
        let text = self.tried.insert(Tried { text, ensured }).text.clone();
        // An nft that is killed may have replaced it or not. One that refuses has replaced nothing.
        let before = self.done.take();
        if let Err(refusal) = nft(&["-f", "-"], &text).await? {
            self.done = before;
            return Err(Error::Refused(self.family, refusal));
        }
        // The new table counts from nought.
        (self.dropped.seen, self.asked.seen) = (BTreeMap::new(), BTreeMap::new());
        // Of our own transaction, or a later one: its events, read late, cast no doubt.
        let now = generation().map_err(Error::Uncounted)?;
        let listing = list(self.family).await?;
        if listing.is_none() && text != super::no_table(self.family) {
            return Err(Error::Missing(self.family));
        }
        self.tried = None;
        self.done = Some(Done { text, listing, listed: Instant::now() });
        self.saw(now);
        Ok(ensured)
    }

    /// Notes that it stood as it was put, in this generation or a later one. Until then one that was seen
    /// before counts: what couldn't be put in place has replaced nothing.
    fn saw(&self, generation: Generation) {
        Known::change(&self.known, |known| known.seen[self.family as usize] = Some(generation));
    }

    /// Puts the last table that came there back, if another program has changed or removed it: if nft refuses
    /// the one that is wanted now, pods keep the rules that they had. Where it is unknown which of the two is
    /// there, the wanted one is put.
    pub async fn restore(&mut self) -> Result<Ensured, Error> {
        let (text, ensured) = match (&self.tried, &self.done) {
            (_, Some(done)) => {
                let text = done.text.clone();
                if let Some(ensured) = self.standing().await? {
                    return Ok(ensured);
                }
                (text, Ensured::Restored)
            }
            (Some(Tried { text, ensured }), None) => (text.clone(), *ensured),
            (None, None) => return Ok(Ensured::Standing),
        };
        self.put(text, ensured).await
    }

    /// Whether this process has put a table in place, or tried to.
    fn is_kept(&self) -> bool {
        self.tried.is_some() || self.done.is_some()
    }

    /// Counts what the table has dropped, if this process has put one in place. Fails if nft doesn't show it,
    /// as when it is gone: what was counted before can be taken all the same.
    pub async fn count(&mut self) -> Result<(), Error> {
        if !self.is_kept() {
            return Ok(());
        }
        // The whole table: for a list of its counters alone nft first reads all tables of all programs.
        let printed = nft(&["-j", "list", "table", self.family.word(), "vnetpool"], "").await?;
        let printed = printed.map_err(|refusal| Error::Refused(self.family, refusal))?;
        let document: Value = serde_json::from_str(&printed)?;
        let listed = document["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
        self.dropped.read(dropped(listed));
        self.asked.read(asked(listed));
        Ok(())
    }

    /// The dropped packets that were counted since this was taken last, by the name of their counter.
    pub fn take_dropped(&mut self) -> BTreeMap<String, u64> {
        self.dropped.take()
    }

    /// Of the packets that were counted since this was taken last, those that pods have sent to Azure's
    /// services in vain, by the pod's address and the service.
    pub fn take_asked(&mut self) -> BTreeMap<(Ipv4Addr, Service), u64> {
        self.asked.take()
    }

    /// Counts what a table of this process's that is about to be replaced has dropped, if it is still there
    /// and can be read at once: pods wait for the table. Only the packets of the few milliseconds until then
    /// are lost.
    async fn keep_counts(&mut self) {
        if self.family != Family::Inet {
            return;
        }
        match timeout(COUNTED, self.count()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "can't read what a table of nftables has counted"),
            Err(_) => tracing::debug!("what a table of nftables has counted wasn't read in time"),
        }
    }
}

/// The packets by the name of each counter in nft's lists.
fn dropped(listed: &[Value]) -> BTreeMap<String, u64> {
    let counter = |one: &Value| {
        let counter = one.get("counter")?;
        Some((counter["name"].as_str()?.to_owned(), counter["packets"].as_u64()?))
    };
    listed.iter().filter_map(counter).collect()
}

/// The packets of each element of [`ASKED`] in nft's lists, the only set whose elements count.
fn asked(listed: &[Value]) -> BTreeMap<(Ipv4Addr, Service), u64> {
    let elements = listed.iter().filter_map(|one| one["set"]["elem"].as_array()).flatten();
    let packets = |element: &Value| {
        let element = element.get("elem")?;
        let [pod, to] = element["val"]["concat"].as_array()?.as_slice() else { return None };
        let to: Ipv4Addr = to.as_str()?.parse().ok()?;
        let service = Service::ALL.into_iter().find(|service| service.address() == to)?;
        Some(((pod.as_str()?.parse().ok()?, service), element["counter"]["packets"].as_u64()?))
    };
    elements.filter_map(packets).collect()
}

/// Removes the tables; fine if there are none.
pub async fn remove() -> Result<(), Error> {
    for family in Family::ALL {
        let removed = nft(&["-f", "-"], &super::no_table(family)).await?;
        // A kernel without the family has no table of it.
        if family == Family::Inet {
            removed.map_err(|refusal| Error::Refused(family, refusal))?;
        }
    }
    Ok(())
}

/// The table as the kernel has it, without the parts that packets change; `None` if it has none.
async fn list(family: Family) -> io::Result<Option<String>> {
    let listing = nft(&["--stateless", "list", "table", family.word(), "vnetpool"], "").await?.ok();
    Ok(listing.map(|listing| without_asked(&listing)))
}

/// The listing without the set whose elements packets put there.
fn without_asked(listing: &str) -> String {
    let begins = format!("\tset {ASKED} {{");
    let mut is_inside = false;
    let stays = |line: &&str| {
        is_inside |= *line == begins;
        let stays = !is_inside;
        is_inside &= *line != "\t}";
        stays
    };
    listing.lines().filter(stays).flat_map(|line| [line, "\n"]).collect()
}

/// Runs nft. The inner error is its standard error when it failed.
pub(crate) async fn nft(args: &[&str], stdin: &str) -> io::Result<Result<String, String>> {
    let output = child::run(Command::new("nft").args(args), stdin.as_bytes(), child::WITHIN).await?;
    Ok(if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_that_packets_add_are_no_change_of_the_table() {
        let listing = "table inet vnetpool {\n\tset asked {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.1,\n\t\t\t     \
                       10.0.0.2 }\n\t}\n\n\tset direct {\n\t\ttype ipv4_addr\n\t}\n}\n";
        let expected = "table inet vnetpool {\n\n\tset direct {\n\t\ttype ipv4_addr\n\t}\n}\n";
        assert_eq!(without_asked(listing), expected);
    }
}
