//! Publishes Events so that each is there once, however often that has to be tried. An Event has its name
//! before the first try, and a series its count: what a request without an answer has done is not done twice.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event as Published, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::runtime::events::{Event, EventType};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::time::{Instant, sleep};
use tracing::warn;
use vnetpool_apiserver::answer::{CONFLICT, NOT_FOUND, is_status};
use vnetpool_apiserver::{doubled, jittered};
use vnetpool_crds::names::OPERATOR;

/// The same Event within this time is one more of a series, which `kubectl` shows as one with a count.
const SERIES: Duration = Duration::from_secs(6 * 60);
/// Between two tries.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
/// An Event that is refused for its own sake, such as by a namespace that ends, is given up after so many
/// tries: others wait behind it.
const TRIES: u32 = 3;
/// After so long without any success each has one try only, so that they don't gather for ever.
const OUTAGE: Duration = Duration::from_secs(600);

pub(super) struct Publisher {
    client: Client,
    /// Which replica this is.
    instance: String,
    /// The series that may go on, by what is the same of all their Events.
    series: HashMap<String, Published>,
    failing_since: Option<Instant>,
}

impl Publisher {
    pub fn new(client: Client, instance: &str) -> Publisher {
        Publisher { client, instance: instance.to_owned(), series: HashMap::new(), failing_since: None }
    }

    /// Publishes an Event about this object. One that can't be published is logged and given up: it changes
    /// nothing.
    pub async fn publish(&mut self, event: &Event, about: &ObjectReference) {
        let now = Timestamp::now();
        self.series.retain(|_, last| now.duration_since(seen(last)).unsigned_abs() < SERIES);
        let kind = json!([about, event.secondary, event.reason, event.action, type_of(event)]).to_string();
        let mut next = match self.series.get(&kind) {
            Some(last) => again(last, now),
            None => self.first(event, about, now),
        };
        let events = Api::<Published>::namespaced(self.client.clone(), namespace(about));
        for tries in 1_u32.. {
            let answer = match next.series {
                Some(_) => {
                    events.patch(&next.name_any(), &PatchParams::default(), &Patch::Merge(&next)).await
                }
                None => events.create(&PostParams::default(), &next).await,
            };
            let error = match answer {
                Err(error) if !is_done(&error, &next) => error,
                _ => {
                    self.failing_since = None;
                    self.series.insert(kind, next);
                    return;
                }
            };
            let since = *self.failing_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= OUTAGE || (is_about_it(&error) && tries >= TRIES) {
                warn!(object = about.name, reason = event.reason, %error, "Event not published");
                return;
            }
            if next.series.is_some() && is_status(&error, NOT_FOUND) {
                // Another has removed it.
                next = self.first(event, about, now);
            }
            sleep(jittered(doubled(FIRST, tries - 1, LONGEST))).await;
        }
    }

    fn first(&self, event: &Event, about: &ObjectReference, now: Timestamp) -> Published {
        let name = format!("{}.{:x}", about.name.as_deref().unwrap_or(OPERATOR), now.as_nanosecond());
        Published {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(namespace(about).to_owned()),
                ..ObjectMeta::default()
            },
            action: Some(event.action.clone()),
            event_time: Some(MicroTime(now)),
            note: event.note.clone(),
            reason: Some(event.reason.clone()),
            regarding: Some(about.clone()),
            related: event.secondary.clone(),
            reporting_controller: Some(OPERATOR.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(type_of(event).to_owned()),
            ..Published::default()
        }
    }
}

/// Once more the same.
fn again(last: &Published, now: Timestamp) -> Published {
    let count = last.series.as_ref().map_or(1, |series| series.count) + 1;
    Published { series: Some(EventSeries { count, last_observed_time: MicroTime(now) }), ..last.clone() }
}

/// When it was last seen.
fn seen(event: &Published) -> Timestamp {
    let last = event.series.as_ref().map(|series| &series.last_observed_time);
    last.or(event.event_time.as_ref()).map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

/// Where Events about this object are: about objects without a namespace, in `default`.
fn namespace(about: &ObjectReference) -> &str {
    about.namespace.as_deref().unwrap_or("default")
}

fn type_of(event: &Event) -> &'static str {
    match event.type_ {
        EventType::Normal => "Normal",
        EventType::Warning => "Warning",
    }
}

/// Whether an earlier try whose answer was lost has made it.
fn is_done(error: &kube::Error, event: &Published) -> bool {
    let exists = matches!(error, kube::Error::Api(status) if status.reason == "AlreadyExists");
    event.series.is_none() && exists
}

/// Whether the API server has refused this Event, and not whatever is asked of it now.
fn is_about_it(error: &kube::Error) -> bool {
    let passes = |code| [408, CONFLICT, 429].contains(&code) || code >= 500;
    matches!(error, kube::Error::Api(status) if !passes(status.code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{Method, Request, Response, StatusCode};
    use kube::client::Body;
    use serde_json::Value;
    use std::collections::{BTreeMap, VecDeque};
    use std::sync::{Arc, Mutex};
    use tower::BoxError;

    use super::super::{full, reserved};
    use crate::lock::lock;

    /// What becomes of a request.
    #[derive(Clone, Copy)]
    enum Fate {
        /// It is done, and the connection cut.
        Lost,
        Refused(u16),
    }

    /// An API server.
    #[derive(Default)]
    struct Server {
        /// Of the next requests; all others are done.
        fates: VecDeque<Fate>,
        /// Which Events it has, by name, and how often each was published.
        shown: BTreeMap<String, i64>,
        asked: usize,
    }

    impl Server {
        fn answer(&mut self, is_series: bool, event: &Value) -> Result<Response<Body>, BoxError> {
            self.asked += 1;
            let name = event["metadata"]["name"].as_str().unwrap().to_owned();
            let fate = self.fates.pop_front();
            if let Some(Fate::Refused(code)) = fate {
                return Ok(refusal(code, "Trouble"));
            }
            if !is_series && self.shown.contains_key(&name) {
                return Ok(refusal(409, "AlreadyExists"));
            }
            if is_series && !self.shown.contains_key(&name) {
                return Ok(refusal(404, "NotFound"));
            }
            self.shown.insert(name, event["series"]["count"].as_i64().unwrap_or(1));
            match fate {
                Some(_) => Err("the connection is cut".into()),
                None => Ok(Response::new(Body::from(event.to_string().into_bytes()))),
            }
        }

        fn counts(&self) -> Vec<i64> {
            self.shown.values().copied().collect()
        }
    }

    fn refusal(code: u16, reason: &str) -> Response<Body> {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
            "reason": reason, "message": "no"});
        let mut answer = Response::new(Body::from(status.to_string().into_bytes()));
        *answer.status_mut() = StatusCode::from_u16(code).unwrap();
        answer
    }

    fn publisher(fates: &[Fate]) -> (Publisher, Arc<Mutex<Server>>) {
        let server = Server { fates: fates.iter().copied().collect(), ..Server::default() };
        let server = Arc::new(Mutex::new(server));
        let behind = server.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = behind.clone();
            async move {
                let is_series = request.method() == Method::PATCH;
                let body = request.into_body().collect_bytes().await?;
                let event = serde_json::from_slice(&body)?;
                lock(&server).answer(is_series, &event)
            }
        });
        (Publisher::new(Client::new(service, "default"), "us"), server)
    }

    fn node() -> ObjectReference {
        ObjectReference { kind: Some("Node".into()), name: Some("n".into()), ..ObjectReference::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_that_is_refused_or_whose_answer_is_lost_is_there_once() {
        use Fate::{Lost, Refused};
        let all: [&[Fate]; 5] = [
            &[],
            &[Refused(500), Refused(429), Refused(503)],
            &[Lost],
            &[Refused(409), Lost],
            &[Refused(422), Lost],
        ];
        for fates in all {
            let (mut publisher, server) = publisher(fates);
            publisher.publish(&full("m"), &node()).await;
            assert_eq!(lock(&server).counts(), [1]);
            // Once more the same, whose first answer is lost, too.
            lock(&server).fates.push_back(Lost);
            publisher.publish(&full("m"), &node()).await;
            assert_eq!(lock(&server).counts(), [2]);
            publisher.publish(&reserved(1, 1, "nic"), &node()).await;
            assert_eq!(lock(&server).counts().iter().sum::<i64>(), 3);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_that_is_refused_for_its_own_sake_holds_up_no_other_for_long() {
        let (mut publisher, server) = publisher(&[Fate::Refused(403); TRIES as usize]);
        publisher.publish(&full("m"), &node()).await;
        let asked = lock(&server).asked;
        assert_eq!((asked, lock(&server).counts().len()), (3, 0));
        publisher.publish(&reserved(1, 1, "nic"), &node()).await;
        assert_eq!(lock(&server).counts(), [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_long_outage_events_do_not_gather_and_each_is_tried_once() {
        let (mut publisher, server) = publisher(&[Fate::Refused(503); 1000]);
        publisher.publish(&full("m"), &node()).await;
        let tried = lock(&server).asked;
        assert!((20..50).contains(&tried), "{tried}");
        for _ in 0..10 {
            publisher.publish(&full("m"), &node()).await;
        }
        assert_eq!(lock(&server).asked, tried + 10);
        lock(&server).fates.clear();
        publisher.publish(&full("m"), &node()).await;
        assert_eq!(lock(&server).counts(), [1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_series_whose_event_another_removes_begins_anew() {
        let (mut publisher, server) = publisher(&[]);
        publisher.publish(&full("m"), &node()).await;
        lock(&server).shown.clear();
        publisher.publish(&full("m"), &node()).await;
        assert_eq!(lock(&server).counts(), [1]);
    }
}
