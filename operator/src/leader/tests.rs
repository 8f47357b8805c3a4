//! Each way in which leading begins and ends, on paused time against a scripted API server on loopback.

use super::*;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::net::TcpListener;

/// How the server treats a request.
enum Act {
    /// As a real one does.
    Answer,
    /// Done, but the answer never comes.
    Lose,
    /// Neither done nor answered.
    Ignore,
    Refuse(StatusCode),
    /// Before it is answered, another client writes the Lease.
    Before(fn(&mut Value)),
}

#[derive(Default)]
struct Script {
    lease: Option<Value>,
    version: u64,
    /// For the next requests; then `otherwise`.
    next: VecDeque<Act>,
    /// From then on no request is answered.
    is_silent: bool,
    asked: Vec<(Method, Instant)>,
}

#[derive(Clone)]
struct Server {
    script: Arc<Mutex<Script>>,
    client: Client,
}

impl Server {
    async fn start() -> (Server, Candidate) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let client = vnetpool_apiserver::client::client(kube::Config::new(url)).unwrap();
        let server = Server { script: Arc::default(), client };
        let routes = Router::new().fallback(handle).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let candidate = server.candidate("us");
        (server, candidate)
    }

    fn candidate(&self, identity: &str) -> Candidate {
        Candidate::new(self.client.clone(), "ns", "lease", identity.into())
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    fn next(&self, act: Act) {
        self.script().next.push_back(act);
    }

    /// Another client writes the Lease.
    fn write(&self, change: impl FnOnce(&mut Value)) {
        let mut script = self.script();
        let mut lease =
            script.lease.take().unwrap_or_else(|| json!({"metadata": {"name": "lease"}, "spec": {}}));
        change(&mut lease);
        script.store(lease);
    }

    fn holder(&self) -> Option<String> {
        Some(self.script().lease.as_ref()?["spec"]["holderIdentity"].as_str()?.to_owned())
    }
}

impl Script {
    fn store(&mut self, mut lease: Value) -> Value {
        self.version += 1;
        lease["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.lease = Some(lease.clone());
        lease
    }

    fn answer(&mut self, method: &Method, body: &[u8]) -> Response {
        let sent: Value = serde_json::from_slice(body).unwrap_or_default();
        let lease = match (method, &self.lease) {
            (&Method::GET, None) | (&Method::PUT, None) => return status(StatusCode::NOT_FOUND),
            (&Method::GET, Some(lease)) => lease.clone(),
            (&Method::POST, Some(_)) => return status(StatusCode::CONFLICT),
            (&Method::PUT, Some(lease))
                if lease["metadata"]["resourceVersion"] != sent["metadata"]["resourceVersion"] =>
            {
                return status(StatusCode::CONFLICT);
            }
            _ => self.store(sent),
        };
        lease.to_string().into_response()
    }
}

/// As the API server words it.
fn status(code: StatusCode) -> Response {
    let reason = code.canonical_reason().unwrap_or_default().replace(' ', "");
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(),
        "reason": reason, "message": "m", "metadata": {}});
    (code, status.to_string()).into_response()
}

async fn handle(State(server): State<Server>, method: Method, body: Bytes) -> Response {
    let answer = {
        let mut script = server.script();
        script.asked.push((method.clone(), Instant::now()));
        match script.next.pop_front().unwrap_or(Act::Answer) {
            _ if script.is_silent => None,
            Act::Answer => Some(script.answer(&method, &body)),
            Act::Lose => {
                script.answer(&method, &body);
                None
            }
            Act::Ignore => None,
            Act::Refuse(code) => Some(status(code)),
            Act::Before(change) => {
                let mut lease = script.lease.take().unwrap_or_default();
                change(&mut lease);
                script.store(lease);
                Some(script.answer(&method, &body))
            }
        }
    };
    match answer {
        Some(answer) => answer,
        None => std::future::pending().await,
    }
}

fn held_by(holder: &str) -> impl FnOnce(&mut Value) {
    let spec = json!({"holderIdentity": holder, "leaseDurationSeconds": LEASE.as_secs()});
    move |lease| lease["spec"] = spec
}

/// Whether it goes on leading for a minute.
async fn leads_on(leadership: &mut Leadership<'_>) {
    let lost = timeout(Duration::from_secs(60), leadership.keep()).await;
    assert!(lost.is_err(), "{lost:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_can_not_renew_stops_before_another_may_start() {
    let (server, mut candidate) = Server::start().await;
    let mut leadership = candidate.acquire().await.unwrap();
    leads_on(&mut leadership).await;
    let renewed = leadership.tenure.renewed();
    server.script().is_silent = true;
    let lost = leadership.keep().await;
    assert!(matches!(&lost, Ending::NotRenewed { last } if last.contains("doesn't answer")), "{lost}");
    assert!(renewed.elapsed() <= GIVE_UP, "{:?}", renewed.elapsed());
    assert!(renewed.elapsed() < LEASE, "{:?}", renewed.elapsed());
    assert!(renewed.elapsed() + Duration::from_secs(1) >= GIVE_UP, "{:?}", renewed.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_was_paused_for_longer_than_its_lease_is_not_sure_to_lead() {
    let (_server, mut candidate) = Server::start().await;
    let mut leadership = candidate.acquire().await.unwrap();
    let tenure = leadership.tenure();
    leads_on(&mut leadership).await;
    assert!(tenure.is_sure());
    // No task of it runs meanwhile.
    tokio::time::advance(LEASE).await;
    assert!(!tenure.is_sure());
}

#[tokio::test(start_paused = true)]
async fn a_leader_reports_the_api_servers_last_answer() {
    let (server, mut candidate) = Server::start().await;
    let mut leadership = candidate.acquire().await.unwrap();
    (0..100).for_each(|_| server.next(Act::Refuse(StatusCode::INTERNAL_SERVER_ERROR)));
    let lost = leadership.keep().await;
    assert!(matches!(&lost, Ending::NotRenewed { last } if !last.contains("doesn't answer")), "{lost}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_lease_was_taken_over_stops_with_its_next_renewal() {
    let (server, mut candidate) = Server::start().await;
    let mut leadership = candidate.acquire().await.unwrap();
    server.write(held_by("another"));
    let begun = Instant::now();
    let lost = leadership.keep().await;
    assert!(matches!(&lost, Ending::TakenOver { holder } if holder == "another"), "{lost}");
    assert!(begun.elapsed() < RENEW + Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(server.holder().as_deref(), Some("another"), "left as it is");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_whose_answer_is_lost_is_found_to_be_ours() {
    let (server, mut candidate) = Server::start().await;
    let mut leadership = candidate.acquire().await.unwrap();
    server.next(Act::Lose);
    leads_on(&mut leadership).await;
    assert!(
        leadership.tenure.renewed().elapsed() <= RENEW,
        "renewed again since: {:?}",
        leadership.tenure.renewed().elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn an_edit_of_the_lease_is_no_renewal_of_it() {
    let (server, mut candidate) = Server::start().await;
    let mut leadership = candidate.acquire().await.unwrap();
    server.write(|lease| lease["metadata"]["labels"] = json!({"a": "b"}));
    let edited = Instant::now();
    // The renewal meets the edit, and no later request is answered.
    server.next(Act::Answer);
    server.next(Act::Answer);
    (0..100).for_each(|_| server.next(Act::Ignore));
    leadership.keep().await;
    assert!(edited.elapsed() < LEASE, "{:?} after the edit, from which a standby waits", edited.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_got_lost_itself_is_made_again_in_time() {
    let (server, mut candidate) = Server::start().await;
    let mut leadership = candidate.acquire().await.unwrap();
    server.next(Act::Ignore);
    server.next(Act::Refuse(StatusCode::INTERNAL_SERVER_ERROR));
    leads_on(&mut leadership).await;
}

#[tokio::test(start_paused = true)]
async fn an_edit_of_the_lease_that_leaves_us_the_holder_costs_nothing() {
    let (server, mut candidate) = Server::start().await;
    let mut leadership = candidate.acquire().await.unwrap();
    server.write(|lease| lease["metadata"]["labels"] = json!({"a": "b"}));
    leads_on(&mut leadership).await;
    assert_eq!(server.script().lease.as_ref().unwrap()["metadata"]["labels"]["a"], "b", "and survives");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_or_emptied_lease_ends_leading() {
    for empty in [false, true] {
        let (server, mut candidate) = Server::start().await;
        let mut leadership = candidate.acquire().await.unwrap();
        match empty {
            true => server.write(|lease| lease["spec"] = json!({})),
            false => server.script().lease = None,
        }
        let lost = leadership.keep().await;
        assert!(matches!(&lost, Ending::TakenOver { holder } if holder == "nobody"), "{lost}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_set_back_ends_leading_though_the_lease_still_names_us() {
    let (server, mut candidate) = Server::start().await;
    let mut leadership = candidate.acquire().await.unwrap();
    let early = server.script().lease.clone();
    leads_on(&mut leadership).await;
    server.script().lease = early;
    let lost = leadership.keep().await;
    assert!(matches!(lost, Ending::SetBack), "{lost}");
}

#[tokio::test(start_paused = true)]
async fn a_standby_waits_until_the_lease_has_stood_unchanged_for_as_long_as_it_lasts() {
    let (server, mut candidate) = Server::start().await;
    server.write(held_by("another"));
    let begun = Instant::now();
    let acquire = candidate.acquire();
    let renewal = async {
        sleep(Duration::from_secs(12)).await;
        server.write(|lease| lease["spec"]["renewTime"] = json!("2026-01-01T00:00:00.000000Z"));
    };
    let (leadership, ()) = tokio::join!(acquire, renewal);
    let leadership = leadership.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(12) + LEASE, "{:?}", begun.elapsed());
    assert!(begun.elapsed() <= Duration::from_secs(12) + LEASE + 2 * RENEW, "{:?}", begun.elapsed());
    assert_eq!(server.holder().as_deref(), Some("us"));
    assert_eq!(leadership.lease.spec.as_ref().unwrap().lease_transitions, Some(1));
    let since = Timestamp::now().duration_since("2026-01-01T00:00:00Z".parse().unwrap()).unsigned_abs();
    assert!(since - leadership.gap().unwrap() < Duration::from_secs(60), "{:?}", leadership.gap());
}

#[tokio::test(start_paused = true)]
async fn the_lease_of_release_0_2_0_holds_as_long_as_any_and_is_taken_over_then() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/0.2.0/lease.json");
    let left: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let (server, mut candidate) = Server::start().await;
    server.write(|lease| *lease = left);
    let begun = Instant::now();
    let leadership = candidate.acquire().await.unwrap();
    assert!(begun.elapsed() >= LEASE && begun.elapsed() <= LEASE + 2 * RENEW, "{:?}", begun.elapsed());
    assert_eq!(leadership.lease.spec.as_ref().unwrap().lease_transitions, Some(4));
    assert!(leadership.gap().is_some(), "the time of its last renewal is known");
}

/// Its time of renewal is no reason to lead sooner or later, and is off from now by an hour either way: so
/// the new leader reads every NIC.
#[tokio::test(start_paused = true)]
async fn a_lease_that_was_renewed_by_a_clock_an_hour_off_holds_as_long_as_any() {
    let hour = Duration::from_secs(3600);
    for renewed in [Timestamp::now() - hour, Timestamp::now() + hour] {
        let (server, mut candidate) = Server::start().await;
        server.write(held_by("another"));
        server.write(|lease| lease["spec"]["renewTime"] = json!(format!("{renewed:.6}")));
        let begun = Instant::now();
        let leadership = candidate.acquire().await.unwrap();
        assert!(begun.elapsed() >= LEASE && begun.elapsed() <= LEASE + 2 * RENEW, "{:?}", begun.elapsed());
        let gap = leadership.gap().unwrap();
        assert!(gap.abs_diff(hour) < Duration::from_secs(60), "{gap:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_that_grasp_at_a_lease_the_slower_one_waits() {
    let (server, mut candidate) = Server::start().await;
    server.write(held_by(""));
    server.next(Act::Answer);
    server.next(Act::Before(|lease| lease["spec"]["holderIdentity"] = json!("faster")));
    let led = timeout(LEASE - Duration::from_secs(1), candidate.acquire()).await;
    assert!(led.is_err(), "two lead");
    assert_eq!(server.holder().as_deref(), Some("faster"));
}

#[tokio::test(start_paused = true)]
async fn a_candidate_goes_on_past_errors_and_silence() {
    let (server, mut candidate) = Server::start().await;
    server.next(Act::Ignore);
    server.next(Act::Refuse(StatusCode::INTERNAL_SERVER_ERROR));
    candidate.acquire().await.unwrap();
    assert!(server.holder().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_released_is_free_at_once() {
    let (server, mut candidate) = Server::start().await;
    let mut other = server.candidate("next");
    candidate.acquire().await.unwrap().release().await;
    assert_eq!(server.holder().as_deref(), Some(""));
    let begun = Instant::now();
    other.acquire().await.unwrap();
    assert!(begun.elapsed() < RENEW, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_standby_that_sees_the_store_set_back_begins_anew_and_remembers_it() {
    let (server, mut candidate) = Server::start().await;
    server.write(held_by("another"));
    let early = server.script().lease.clone();
    server.write(|lease| lease["spec"]["renewTime"] = json!("2026-01-01T00:00:00.000000Z"));
    let back = async {
        sleep(Duration::from_secs(2)).await;
        server.script().lease = early;
    };
    let (outcome, ()) = tokio::join!(candidate.acquire(), back);
    assert!(matches!(&outcome, Err(Ending::SetBack)), "{:?}", outcome.err());
    let leadership = candidate.acquire().await.unwrap();
    assert!(leadership.was_set_back());
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_has_seen_no_store_go_back_knows_of_none() {
    let (server, mut candidate) = Server::start().await;
    server.write(held_by(""));
    let mut leadership = candidate.acquire().await.unwrap();
    leads_on(&mut leadership).await;
    assert!(!leadership.was_set_back());
    server.script().lease = None;
    leadership.keep().await;
    assert!(!candidate.acquire().await.unwrap().was_set_back());
}

#[tokio::test(start_paused = true)]
async fn an_edited_duration_lets_nobody_lead_sooner_or_later_than_ours() {
    for duration in [json!(0), json!(1), json!(86_400), json!(-5), Value::Null] {
        let (server, mut candidate) = Server::start().await;
        server.write(|lease| {
            lease["spec"] = json!({"holderIdentity": "another", "leaseDurationSeconds": duration});
        });
        let begun = Instant::now();
        candidate.acquire().await.unwrap();
        let waited = begun.elapsed();
        assert!(waited >= LEASE && waited <= LEASE + 2 * RENEW, "{duration}: {waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_puts_an_edited_duration_right() {
    let (server, mut candidate) = Server::start().await;
    let mut leadership = candidate.acquire().await.unwrap();
    server.write(|lease| lease["spec"]["leaseDurationSeconds"] = json!(86_400));
    leads_on(&mut leadership).await;
    assert_eq!(server.script().lease.as_ref().unwrap()["spec"]["leaseDurationSeconds"], LEASE.as_secs());
}

#[tokio::test(start_paused = true)]
async fn of_two_that_find_no_lease_the_slower_one_waits() {
    let (server, mut candidate) = Server::start().await;
    server.next(Act::Answer);
    server.next(Act::Before(|lease| {
        *lease = json!({"metadata": {"name": "lease"}, "spec": {"holderIdentity": "faster"}});
    }));
    let led = timeout(LEASE - Duration::from_secs(1), candidate.acquire()).await;
    assert!(led.is_err(), "two lead");
    assert_eq!(server.holder().as_deref(), Some("faster"));
}

#[tokio::test(start_paused = true)]
async fn a_standby_whose_lease_is_deleted_makes_it() {
    let (server, mut candidate) = Server::start().await;
    server.write(held_by("another"));
    let deletion = async {
        sleep(Duration::from_secs(2)).await;
        server.script().lease = None;
    };
    let (leadership, ()) = tokio::join!(candidate.acquire(), deletion);
    assert_eq!(leadership.unwrap().gap(), None);
    assert_eq!(server.holder().as_deref(), Some("us"));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_goes_between_a_refused_renewal_and_its_read_is_held_by_nobody() {
    let (server, mut candidate) = Server::start().await;
    let mut leadership = candidate.acquire().await.unwrap();
    server.next(Act::Refuse(StatusCode::CONFLICT));
    server.next(Act::Refuse(StatusCode::NOT_FOUND));
    let lost = leadership.keep().await;
    assert!(matches!(&lost, Ending::TakenOver { holder } if holder == "nobody"), "{lost}");
}

#[tokio::test(start_paused = true)]
async fn a_renewal_is_found_to_be_ours_though_the_read_fails_once() {
    let (server, mut candidate) = Server::start().await;
    let mut leadership = candidate.acquire().await.unwrap();
    server.next(Act::Lose);
    server.next(Act::Answer);
    server.next(Act::Refuse(StatusCode::INTERNAL_SERVER_ERROR));
    leads_on(&mut leadership).await;
}

#[tokio::test(start_paused = true)]
async fn a_release_that_is_refused_or_gets_no_answer_ends_within_a_request() {
    for act in [Act::Ignore, Act::Refuse(StatusCode::INTERNAL_SERVER_ERROR)] {
        let (server, mut candidate) = Server::start().await;
        let leadership = candidate.acquire().await.unwrap();
        server.next(act);
        let begun = Instant::now();
        leadership.release().await;
        assert!(begun.elapsed() <= REQUEST + Duration::from_millis(100), "{:?}", begun.elapsed());
        assert_eq!(server.holder().as_deref(), Some("us"));
    }
}
