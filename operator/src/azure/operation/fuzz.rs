//! Any bytes as an answer to a write: a line with a header, then the body.

use reqwest::header::{HeaderMap, HeaderName};

use super::*;
use crate::azure::Priority;

const ID: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/networkInterfaces/n";

/// An operation under way is polled at a bounded pace, and one that has ended badly has its reason. Returns
/// whether one is under way.
fn is_under_way(bytes: &[u8]) -> bool {
    let end = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    let line = String::from_utf8_lossy(&bytes[..end]);
    let mut headers = HeaderMap::new();
    if let Some((name, value)) = line.split_once(": ")
        && let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse())
    {
        headers.insert(name, value);
    }
    let body = bytes.get(end + 1..).unwrap_or_default().to_vec();
    let resource: Url = format!("https://management.azure.com{ID}").parse().unwrap();
    let call = Call::about(Kind::Write, Priority::WaitingPods, ID);
    match Operation::of(&Answer { status: 201, headers, body }, &resource, &call) {
        Ok(Some(Operation { url, wait })) => {
            assert!((SHORTEST..=LONGEST).contains(&wait), "{wait:?}");
            assert_eq!(Url::parse(url.as_str()).as_ref(), Ok(&url));
            true
        }
        Ok(None) => false,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

#[test]
fn any_answer_to_a_write_is_an_operation_with_a_pace_or_has_ended() {
    vnetpool_fuzz::search("operation", is_under_way);
}
