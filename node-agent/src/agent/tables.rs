//! The tables that the agent keeps in nftables. Inspections put them in place; changes by others are undone
//! at once, beside the inspection that may be under way.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, MutexGuard, Notify, watch},
    time::sleep,
};

use super::LONGEST_RETRY;
use super::notes::Notes;
use crate::firewall::{
    Family,
    apply::{Error, Firewall},
    known::Known,
};

/// Between two repairs: a daemon that fights with us costs no more.
const REPAIRS_APART: Duration = Duration::from_secs(1);
/// Between two checks of the tables because the kernel reported a change that wasn't one, or that couldn't be
/// undone; twice as long after each further one.
const FIRST_CHECK_APART: Duration = Duration::from_millis(100);

/// Shared by the inspections, the guard and the reconciles, which wait for no program.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    kept: Arc<Mutex<InPlace>>,
    pub known: watch::Sender<Known>,
}

/// The tables as this process has put them in place.
#[derive(Debug)]
pub(super) struct InPlace {
    pub inet: Firewall,
    pub arp: Firewall,
}

impl Default for Tables {
    fn default() -> Tables {
        let known = watch::Sender::default();
        let [inet, arp] = Family::ALL.map(|family| Firewall::hearing(family, &known));
        Tables { kept: Arc::new(Mutex::new(InPlace { inet, arp })), known }
    }
}

impl Tables {
    pub async fn lock(&self) -> MutexGuard<'_, InPlace> {
        self.kept.lock().await
    }

    /// Whether table `inet vnetpool` may have been changed since it was seen to stand.
    pub fn are_in_doubt(&self) -> bool {
        self.known.borrow().is_in_doubt(Family::Inet)
    }

    /// Returns whether there was something to put back.
    async fn restore(&self, notes: &Notes) -> Result<bool, Error> {
        let mut kept = self.kept.lock().await;
        let inet = kept.inet.restore().await.map(|ensured| notes.kept(Family::Inet, ensured));
        let arp = kept.arp.restore().await.map(|ensured| notes.kept(Family::Arp, ensured));
        Ok(inet? | arp?)
    }
}

/// Puts the tables back whenever others have changed them, and goes on until they stand. Has the node
/// inspected when there was something to put back, or it couldn't be: the program that did it may have done
/// more.
pub(super) async fn guard(tables: Tables, notes: Notes, disturbed: &Notify) -> anyhow::Result<()> {
    let mut known = tables.known.subscribe();
    let mut pause = FIRST_CHECK_APART;
    loop {
        known.wait_for(Known::is_any_in_doubt).await?;
        match tables.restore(&notes).await {
            Ok(false) => {}
            Ok(true) => {
                disturbed.notify_one();
                pause = REPAIRS_APART;
            }
            Err(error) => {
                tracing::warn!(%error, "can't put a table of nftables back");
                disturbed.notify_one();
            }
        }
        sleep(pause).await;
        let is_in_doubt = known.borrow().is_any_in_doubt();
        pause = if is_in_doubt { (pause * 2).min(LONGEST_RETRY) } else { FIRST_CHECK_APART };
    }
}
