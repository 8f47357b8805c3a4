//! The tables that the agent keeps in nftables. Looks put them in place; what somebody else does to them is
//! undone at once, beside whatever look is under way.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, Notify},
    time::sleep,
};

use super::notes::Notes;
use crate::firewall::apply::{Error, Firewall};

/// Between two repairs: a daemon that fights with us costs no more.
const REPAIRS_APART: Duration = Duration::from_secs(1);

/// Shared by the looks and by the guard.
pub(super) type Tables = Arc<Mutex<Kept>>;

/// The tables as this process has put them in place.
#[derive(Debug)]
pub(super) struct Kept {
    pub inet: Firewall,
    pub arp: Firewall,
}

impl Default for Kept {
    fn default() -> Kept {
        Kept { inet: Firewall::default(), arp: Firewall::of("arp") }
    }
}

/// Puts the tables back whenever somebody has `changed` them. Has the node looked at when there was something
/// to put back, or it couldn't be: whoever did that may have done more.
pub(super) async fn guard(tables: Tables, notes: Notes, changed: &Notify, disturbed: &Notify) -> ! {
    loop {
        changed.notified().await;
        match restore(&tables, &notes).await {
            Ok(false) => {}
            Ok(true) => disturbed.notify_one(),
            Err(error) => {
                tracing::warn!(%error, "can't put a table of nftables back");
                disturbed.notify_one();
            }
        }
        sleep(REPAIRS_APART).await;
    }
}

/// Returns whether there was something to put back.
async fn restore(tables: &Tables, notes: &Notes) -> Result<bool, Error> {
    let mut tables = tables.lock().await;
    let inet = notes.kept("inet vnetpool", tables.inet.restore().await?);
    let arp = notes.kept("arp vnetpool", tables.arp.restore().await?);
    Ok(inet || arp)
}
