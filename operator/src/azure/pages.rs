//! Lists that ARM gives page by page.

use reqwest::Url;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::Error;
use super::transport::{Call, Transport};

/// None of the lists that are read here comes near to this. It ends the reading of a list that has no end.
const MOST: usize = 200;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page<T> {
    value: Vec<T>,
    next_link: Option<String>,
}

/// Reads all pages of the list at `url`, each with a request of its own.
pub(super) async fn read<T: DeserializeOwned>(
    transport: &Transport,
    call: &Call,
    mut url: Url,
) -> Result<Vec<T>, Error> {
    let unexpected = |message: String| Error::unexpected(&call.resource, message);
    let mut all = vec![];
    for _ in 0..MOST {
        let answer = transport.send(call, url, None, None).await?;
        let page: Page<T> =
            serde_json::from_slice(&answer.body).map_err(|error| unexpected(error.to_string()))?;
        all.extend(page.value);
        match page.next_link.filter(|link| !link.is_empty()) {
            None => return Ok(all),
            Some(link) => url = Url::parse(&link).map_err(|error| unexpected(format!("{link}: {error}")))?,
        }
    }
    Err(unexpected(format!("its list has more than {MOST} pages")))
}
