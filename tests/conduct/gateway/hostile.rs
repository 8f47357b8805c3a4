//! An API server at its worst: the fate of a request is drawn from faults that API servers, and the proxies
//! before them, have been seen to have.
//!
//! Not drawn: that an object isn't there (404, or a list without it), since the operator must believe it. A
//! Lease is spared the most: a leader that can't renew it for 12 s stands by, and a cluster without a leader
//! shows nothing.

use anyhow::Result;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use kube::Client;
use std::io;
use std::time::Duration;
use tokio::sync::watch;
use vnetpool_azure_sim::Draws;

/// The fate of one request.
pub enum Fate {
    Refused(StatusCode),
    /// JSON, and not of the requested kind.
    Garbage(&'static str),
    /// It reaches the server late.
    Late(Duration),
    /// The request has no answer; the server has done it, or hasn't.
    Silence {
        is_done: bool,
    },
    /// The connection ends in the middle of the answer.
    Half,
}

const CODES: &[u16] = &[400, 401, 403, 409, 410, 422, 429, 429, 500, 500, 502, 503, 504];
const GARBAGE: &[&str] =
    &["{}", "[]", "17", "\"text\"", "null", r#"{"kind":"Status"}"#, r#"{"metadata":{"name":7}}"#];

/// The fate of a request; `None`: it is answered as always.
pub fn draw(draws: &mut Draws, method: &Method, path: &str, query: &str) -> Option<Fate> {
    let is_watch = query.contains("watch=true");
    let random = draws.next(&format!("{method} {path} {is_watch}"));
    let (choice, detail) = (random % 100, (random / 100) as usize);
    let refused = || Some(Fate::Refused(StatusCode::from_u16(CODES[detail % CODES.len()]).ok()?));
    let late = || Fate::Late(Duration::from_millis(detail as u64 % 1500));
    if path.contains("/leases") {
        return match choice {
            0..6 => refused(),
            6..10 => Some(late()),
            10..13 => Some(Fate::Half),
            _ => None,
        };
    }
    Some(match choice {
        0..9 => refused()?,
        9..12 => Fate::Garbage(GARBAGE[detail % GARBAGE.len()]),
        12..17 => late(),
        17..18 => Fate::Silence { is_done: detail.is_multiple_of(2) },
        18..22 => Fate::Half,
        _ => return None,
    })
}

impl Fate {
    /// Requests that are held go on when the sender of `healed` is dropped.
    pub async fn answer(
        self,
        client: Client,
        request: Request,
        mut healed: watch::Receiver<()>,
    ) -> Result<Response> {
        Ok(match self {
            Fate::Refused(status) => {
                let mut answer = (status, super::status_body(status, "Trouble")).into_response();
                if status == StatusCode::TOO_MANY_REQUESTS {
                    answer.headers_mut().insert(header::RETRY_AFTER, 1.into());
                }
                answer
            }
            Fate::Garbage(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
            Fate::Late(wait) => {
                tokio::time::sleep(wait).await;
                super::hand_on(client, request).await?
            }
            Fate::Silence { is_done } => {
                if is_done {
                    super::hand_on(client, request).await?;
                }
                // Ends with an error when the sender is dropped.
                drop(healed.changed().await);
                StatusCode::GATEWAY_TIMEOUT.into_response()
            }
            Fate::Half => {
                let answer = super::hand_on(client, request).await?;
                let (mut head, body) = answer.into_parts();
                head.headers.remove(header::CONTENT_LENGTH);
                let first = body.into_data_stream().next().await.transpose()?.unwrap_or_default();
                let half: [io::Result<Bytes>; 2] =
                    [Ok(first.slice(..first.len() / 2)), Err(io::ErrorKind::ConnectionReset.into())];
                Response::from_parts(head, Body::from_stream(stream::iter(half)))
            }
        })
    }
}
