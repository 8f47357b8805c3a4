//! The secrets that an attacker in a pod would ask Azure's services on the host for.

use crate::place::Place;
use anyhow::{Result, ensure};
use futures::future::try_join_all;

/// A token of the node's identity, which by default is the operator's, and the machine's goal state.
pub const AIMS: [&str; 2] = [
    "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01\
     &resource=https://management.azure.com/",
    "http://168.63.129.16/machine?comp=goalstate",
];

/// # Errors
/// When there is no answer, or a refusal.
pub async fn ask(place: &Place, url: &str) -> Result<String> {
    place.run("curl", &["-sS", "--fail", "--max-time", "3", "-H", "metadata: true", url]).await
}

/// A pod asks, and gets no answer.
///
/// # Errors
/// When it gets one, or a refusal.
pub async fn asks_in_vain(pod: &Place, url: &str) -> Result<()> {
    let answer = ask(pod, url).await;
    let is_dropped = answer.as_ref().is_err_and(|error| error.to_string().contains("Connection timed out"));
    ensure!(is_dropped, "a pod asks for {url}: {answer:?}");
    Ok(())
}

/// A node gets all of them, and its pod none.
///
/// # Errors
/// When it is otherwise.
pub async fn are_kept_from(pod: &Place, node: &Place) -> Result<()> {
    for url in AIMS {
        ask(node, url).await?;
    }
    try_join_all(AIMS.map(|url| asks_in_vain(pod, url))).await.map(drop)
}
