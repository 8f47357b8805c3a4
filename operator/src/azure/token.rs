//! The operator's token. It is fetched before the old one expires, used until it expires, and requested once
//! for all callers that wait.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use azure_core::credentials::TokenCredential;
use azure_core::error::ErrorKind;
use azure_core::time::OffsetDateTime;
use reqwest::header::HeaderValue;
use tokio::time::Instant;
use tracing::{info, warn};
use vnetpool_apiserver::doubled;

use super::Error;
use super::credential::SignIn;
use super::error::steady;
use crate::deadline::uncounted;
use crate::lock::lock;

/// A token that expires within this time is replaced while it still works. `azure_identity`, too, keeps it
/// until then.
const EARLY: Duration = Duration::from_secs(300);
/// A token that expires within this time might do so before the request arrives.
const MARGIN: Duration = Duration::from_secs(2);
/// Between two attempts to replace a token that still works.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a failure is the answer to all callers: a thousand nodes mustn't repeat a sign-in that has just
/// been refused.
const FAILURE_KEPT: Duration = Duration::from_secs(5);
/// After ARM has refused a new token, no further one is requested for this long, at first and at most. A
/// managed identity is given the same token until that ends, whatever ARM thinks of it.
const FIRST_BAR: Duration = Duration::from_secs(5);
const LONGEST_BAR: Duration = Duration::from_secs(60);
/// When to try again if sign-in got no answer.
const RETRY: Duration = Duration::from_secs(10);

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Tokens(Arc<Inner>);

struct Inner {
    sign_in: SignIn,
    scope: String,
    state: Mutex<State>,
    /// Held by the caller that signs in.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    /// Made anew when ARM has refused its last token: it caches its tokens and can't forget one.
    source: Option<Arc<dyn TokenCredential>>,
    token: Option<Token>,
    failure: Option<(Instant, Failure)>,
    refusal: Option<Refusal>,
}

#[derive(Clone)]
struct Token {
    header: HeaderValue,
    ends: Instant,
}

/// ARM refuses tokens, and has accepted none since.
struct Refusal {
    /// The one it refused last.
    header: HeaderValue,
    /// How many in a row.
    times: u32,
    /// Until then none is asked for.
    until: Instant,
}

impl Refusal {
    /// One more refusal; `last` is the token that was refused before.
    fn after(last: Option<&Refusal>, header: HeaderValue, now: Instant) -> Refusal {
        let times = last.map_or(0, |last| last.times).saturating_add(1);
        // The first may have been revoked, and a new one may be had at once.
        let bar = match times {
            1 => Duration::ZERO,
            _ => doubled(FIRST_BAR, times - 2, LONGEST_BAR),
        };
        Refusal { header, times, until: now + bar }
    }

    fn failure(&self) -> Failure {
        Failure::refusal(format!(
            "Azure Resource Manager has refused {} tokens of the operator's in a row, before their end",
            self.times
        ))
    }
}

/// Why there was no token.
#[derive(Clone)]
struct Failure {
    message: String,
    /// Whether Azure refused the sign-in. Otherwise no answer came, or one that leaves it open.
    is_refusal: bool,
}

/// What to do for a caller that needs a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Use,
    /// No caller waits for the new token.
    UseAndReplace,
    Ask,
    /// The last attempt has only just failed.
    Fail,
    /// ARM has only just refused the token of the last attempt.
    Barred,
}

fn next(
    now: Instant,
    token_ends: Option<Instant>,
    failed: Option<Instant>,
    barred_until: Option<Instant>,
) -> Next {
    let failed_within = |time| failed.is_some_and(|at| now < at + time);
    match token_ends.map(|ends| ends.saturating_duration_since(now)) {
        Some(left) if left > EARLY => Next::Use,
        Some(left) if left > MARGIN && failed_within(PATIENCE) => Next::Use,
        Some(left) if left > MARGIN => Next::UseAndReplace,
        _ if barred_until.is_some_and(|until| now < until) => Next::Barred,
        _ if failed_within(FAILURE_KEPT) => Next::Fail,
        _ => Next::Ask,
    }
}

impl Tokens {
    /// Doesn't sign in yet.
    pub(super) fn new(sign_in: SignIn, scope: String) -> Result<Tokens, Error> {
        let state = State { source: Some(sign_in.source()?), ..State::default() };
        let inner = Inner { sign_in, scope, state: Mutex::new(state), asking: tokio::sync::Mutex::default() };
        Ok(Tokens(Arc::new(inner)))
    }

    /// A header with a token that is good for this request.
    pub(super) async fn header(&self) -> Result<HeaderValue, Error> {
        match self.next() {
            (Next::Use, Some(token), _) => return Ok(token.header),
            (Next::UseAndReplace, Some(token), _) => {
                self.replace();
                return Ok(token.header);
            }
            _ => {}
        }
        let _asking = uncounted(self.0.asking.lock()).await;
        // Another caller has signed in meanwhile.
        match self.next() {
            (Next::Use | Next::UseAndReplace, Some(token), _) => Ok(token.header),
            (Next::Fail | Next::Barred, _, Some(failure)) => Err(failure.into()),
            _ => self.ask().await.map_err(Error::from),
        }
    }

    /// ARM doesn't accept the token of this header, though it hasn't expired yet: the identity may have been
    /// revoked.
    pub(super) fn refused(&self, header: &HeaderValue) {
        let mut state = self.0.lock();
        if state.token.as_ref().is_some_and(|token| token.header == header) {
            state.refusal = Some(Refusal::after(state.refusal.as_ref(), header.clone(), Instant::now()));
            state.token = None;
            state.source = None;
        }
    }

    /// ARM has accepted the token of this header.
    pub(super) fn accepted(&self, header: &HeaderValue) {
        let mut state = self.0.lock();
        if state.refusal.is_some() && state.token.as_ref().is_some_and(|token| token.header == header) {
            state.refusal = None;
            info!("Azure Resource Manager accepts the operator's token again");
        }
    }

    fn next(&self) -> (Next, Option<Token>, Option<Failure>) {
        let State { token, failure, refusal, source: _ } = &*self.0.lock();
        let next = next(
            Instant::now(),
            token.as_ref().map(|one| one.ends),
            failure.as_ref().map(|one| one.0),
            refusal.as_ref().map(|one| one.until),
        );
        let why = match (next, refusal) {
            (Next::Barred, Some(refusal)) => Some(refusal.failure()),
            _ => failure.as_ref().map(|one| one.1.clone()),
        };
        (next, token.clone(), why)
    }

    fn replace(&self) {
        let tokens = self.clone();
        tokio::spawn(async move {
            // The holder is about to replace it.
            if let Ok(_asking) = tokens.0.asking.try_lock() {
                let _ = tokens.ask().await;
            }
        });
    }

    async fn ask(&self) -> Result<HeaderValue, Failure> {
        let outcome = self.fetch().await;
        let mut state = self.0.lock();
        match outcome {
            Ok(token) => {
                if state.failure.take().is_some() {
                    info!("signed in to Azure again");
                }
                let header = token.header.clone();
                // Later it is tried again: ARM may accept then what it has refused now.
                if let Some(last) =
                    state.refusal.as_ref().filter(|last| last.times == 1 && last.header == header)
                {
                    let refusal = Refusal::after(Some(last), header, Instant::now());
                    let failure = refusal.failure();
                    warn!(
                        bar_seconds = FIRST_BAR.as_secs_f64(),
                        "signing in gives the token that was refused"
                    );
                    state.refusal = Some(refusal);
                    // The source keeps its token and gives no new one.
                    state.source = None;
                    return Err(failure);
                }
                state.token = Some(token);
                Ok(header)
            }
            Err(failure) => {
                warn!(error = failure.message, has_token = state.token.is_some(), "no new token");
                state.failure = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    async fn fetch(&self) -> Result<Token, Failure> {
        let known = self.0.lock().source.clone();
        let source = match known {
            Some(source) => source,
            None => {
                let source = self.0.sign_in.source().map_err(|error| Failure::refusal(error.to_string()))?;
                self.0.lock().source = Some(source.clone());
                source
            }
        };
        let token = source.get_token(&[&self.0.scope], None).await.map_err(|error| Failure::of(&error))?;
        let mut header = HeaderValue::from_str(&format!("Bearer {}", token.token.secret()))
            .map_err(|_| Failure::refusal("the token holds characters that no header may".to_owned()))?;
        header.set_sensitive(true);
        let left = Duration::try_from(token.expires_on - OffsetDateTime::now_utc()).unwrap_or_default();
        Ok(Token { header, ends: Instant::now() + left })
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Failure {
    fn refusal(message: String) -> Failure {
        Failure { message, is_refusal: true }
    }

    /// Whether `azure_identity` reports a refusal. A server's own failure isn't one.
    fn of(error: &azure_core::Error) -> Failure {
        let mut status = None;
        let mut is_io = false;
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(one) = cause {
            if let Some(error) = one.downcast_ref::<azure_core::Error>() {
                is_io |= matches!(error.kind(), ErrorKind::Io | ErrorKind::Connection);
                status = status.or(error.http_status().map(u16::from));
            }
            cause = one.source();
        }
        let is_refusal =
            !is_io && !status.is_some_and(|status| matches!(status, 404 | 408 | 410 | 429 | 500..));
        Failure { message: error.to_string().replace('\n', " "), is_refusal }
    }
}

impl From<Failure> for Error {
    fn from(Failure { message, is_refusal }: Failure) -> Error {
        let message = steady(&message);
        if is_refusal {
            Error::Credential {
                message: format!(
                    "{message}. Check AZURE_CLIENT_ID, AZURE_TENANT_ID and the secret or token that goes \
                     with them, or that the VM has the managed identity"
                ),
            }
        } else {
            Error::Unavailable { resource: "the operator's sign-in".to_owned(), message, retry_after: RETRY }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_replaced_early_and_used_until_it_ends_despite_failures() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let ends = Some(at(3600));
        let table = [
            (None, None, 0, Next::Ask),
            (ends, None, 0, Next::Use),
            (ends, None, 3299, Next::Use),
            (ends, None, 3300, Next::UseAndReplace),
            // One attempt in half a minute, and the old token goes on being used.
            (ends, Some(at(3300)), 3301, Next::Use),
            (ends, Some(at(3300)), 3330, Next::UseAndReplace),
            (ends, Some(at(3590)), 3597, Next::Use),
            // It has ended: one attempt in five seconds, for all callers that need a token.
            (ends, Some(at(3590)), 3599, Next::Ask),
            (ends, Some(at(3599)), 3601, Next::Fail),
            (ends, Some(at(3599)), 3604, Next::Ask),
            (None, Some(at(10)), 14, Next::Fail),
        ];
        for (token_ends, failed, now, expected) in table {
            assert_eq!(next(at(now), token_ends, failed, None), expected, "{now} s");
        }
    }

    #[test]
    fn tokens_that_arm_keeps_refusing_are_asked_for_ever_less_often() {
        let now = Instant::now();
        let header = HeaderValue::from_static("Bearer t");
        let (mut refusal, mut bars) = (None, vec![]);
        for _ in 0..8 {
            let next = Refusal::after(refusal.as_ref(), header.clone(), now);
            bars.push((next.until - now).as_secs());
            refusal = Some(next);
        }
        assert_eq!(bars, [0, 5, 10, 20, 40, 60, 60, 60]);
        let until = refusal.map(|refusal| refusal.until);
        assert_eq!(next(now, None, None, until), Next::Barred);
        assert_eq!(next(now + LONGEST_BAR, None, None, until), Next::Ask);
        assert!(Refusal::after(None, header, now + LONGEST_BAR).until == now + LONGEST_BAR, "counted anew");
    }
}
