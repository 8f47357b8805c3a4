//! The announcement of a write: the condition `Writing`, which the API server confirms between the write's
//! turn within Azure's limits and its first byte. In a rush nodes wait for minutes. If they announced before
//! their turn, the next leader would read all of their NICs, though nothing was sent.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::{Client, ResourceExt};
use tokio::time::timeout;
use vnetpool_crds::NodeIPAllocation;

use super::conditions;
use crate::azure::Urgency;
use crate::cluster::Cluster;
use crate::context::Context;
use crate::lock::lock;
use crate::node::error::Error;
use crate::node::memory::Memory;
use crate::node::progress::Progress;
use crate::node_object::Node;
use crate::writes::Writes;

/// A write that the API server doesn't confirm in this time gives its turn to others.
const LATE: Duration = Duration::from_secs(5);

/// A write that is to be announced when its turn comes.
#[derive(Clone)]
pub struct Announcement {
    client: Client,
    writes: Arc<Writes>,
    cluster: Cluster,
    /// The state for which the write was planned.
    node: Arc<Node>,
    allocation: Arc<NodeIPAllocation>,
    answer: Answer,
}

/// The API server's answer. `None` until it was asked.
type Answer = Arc<Mutex<Option<Result<NodeIPAllocation, kube::Error>>>>;

/// The API server hasn't confirmed in time.
#[derive(Debug, thiserror::Error)]
#[error("a write to Azure wasn't confirmed within {} s", LATE.as_secs())]
struct Late;

impl Announcement {
    pub fn of(ctx: &Context, progress: &Progress, node: &Node) -> Announcement {
        Announcement {
            client: ctx.client.clone(),
            writes: ctx.writes.clone(),
            cluster: ctx.cluster.clone(),
            node: Arc::new(node.clone()),
            allocation: progress.allocation.clone(),
            answer: Answer::default(),
        }
    }

    /// The same urgency for a write that isn't sent before it was announced.
    pub fn before(&self, write: Urgency) -> Urgency {
        let announcement = self.clone();
        write.confirmed(move || {
            let announcement = announcement.clone();
            async move { announcement.is_confirmed().await }
        })
    }

    /// Announces the write, and returns whether it may be sent.
    async fn is_confirmed(&self) -> bool {
        // Many may have their turns at the same moment: the wait for others isn't the API server's.
        self.writes.announcement(self.announce()).await
    }

    async fn announce(&self) -> bool {
        let name = self.allocation.name_any();
        let is_same_machine =
            self.cluster.node(&name).is_some_and(|newest| self.node.is_same_machine(&newest));
        // Its other conditions are as of now, and not as of before the wait for the turn.
        let Some(newest) =
            self.cluster.allocation(&name).filter(|newest| is_same_machine && self.is_ours(newest))
        else {
            return false;
        };
        let conditions = conditions::announced(&newest, Timestamp::now());
        let asked = super::apply_conditions(&self.client, &newest, &conditions);
        let answer = timeout(LATE, asked).await;
        let answer = answer.unwrap_or_else(|_| Err(kube::Error::Service(Late.into())));
        let is_ours = answer.as_ref().is_ok_and(|answer| self.is_ours(answer));
        *lock(&self.answer) = Some(answer);
        is_ours
    }

    /// Another client that writes `spec`, or ends the object, may write the NIC, too: that is checked first.
    fn is_ours(&self, newest: &NodeIPAllocation) -> bool {
        let [planned, newest] = [&self.allocation.metadata, &newest.metadata];
        (&planned.uid, planned.generation, &planned.deletion_timestamp)
            == (&newest.uid, newest.generation, &newest.deletion_timestamp)
    }

    /// Takes up the API server's answer, if it was asked.
    ///
    /// # Errors
    /// The announcement's own error: then nothing was sent to Azure.
    pub fn take_in(self, ctx: &Context, progress: &mut Progress, memory: &mut Memory) -> Result<(), Error> {
        let Some(answer) = lock(&self.answer).take() else { return Ok(()) };
        let answer = answer.map_err(Error::Report)?;
        memory.nic.writing = true;
        super::applied(ctx, progress, memory, answer);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::extract::Request;
    use axum::{Json, Router};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
    use kube::runtime::reflector;
    use kube::runtime::watcher::Event;
    use serde_json::{Value, json};
    use tokio::net::TcpListener;
    use tokio::sync::watch;
    use vnetpool_crds::condition;

    fn object(generation: i64) -> Value {
        json!({"apiVersion": "vnetpool.io/v1", "kind": "NodeIPAllocation",
            "metadata": {"name": "n", "uid": "u", "resourceVersion": "5", "generation": generation},
            "spec": {"nodeUID": "n", "pool": "p", "cooldown": "30s"}})
    }

    fn node(uid: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n", "uid": uid}})).unwrap()
    }

    /// An announcement for a node and object of which the watches show the present value of `newest`. The API
    /// server answers with that object, or never. Also returns how often it was asked.
    async fn announcement(
        (machine, generation): (&str, i64),
        answer: Option<Value>,
    ) -> (Announcement, Arc<Mutex<Vec<Value>>>) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let asked = Arc::new(Mutex::new(vec![]));
        let bodies = asked.clone();
        let routes = Router::new().fallback(move |request: Request| async move {
            let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
            lock(&bodies).push(serde_json::from_slice(&body).unwrap());
            match answer {
                Some(answer) => Json(answer),
                None => std::future::pending().await,
            }
        });
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let (allocations, mut writer) = reflector::store();
        writer.apply_watcher_event(&Event::Apply(serde_json::from_value(object(generation)).unwrap()));
        let (nodes, mut writer) = reflector::store();
        writer.apply_watcher_event(&Event::Apply(node(machine)));
        let announcement = Announcement {
            client: vnetpool_apiserver::client::client(kube::Config::new(url)).unwrap(),
            writes: Arc::default(),
            cluster: Cluster::new(nodes, allocations, reflector::store().0, watch::channel(true).1),
            node: Arc::new(node("vm")),
            allocation: Arc::new(serde_json::from_value(object(1)).unwrap()),
            answer: Answer::default(),
        };
        (announcement, asked)
    }

    #[tokio::test]
    async fn a_write_is_announced_once_the_api_server_has_confirmed_it() {
        let (announcement, asked) = announcement(("vm", 1), Some(object(1))).await;
        assert!(announcement.is_confirmed().await);
        let conditions = lock(&asked)[0]["status"]["conditions"].clone();
        let conditions: Vec<Condition> = serde_json::from_value(conditions).unwrap();
        assert!(condition::is_true(&conditions, condition::WRITING), "{conditions:?}");
    }

    #[tokio::test]
    async fn a_spec_of_another_writer_stops_the_write() {
        let (announcement, _) = announcement(("vm", 1), Some(object(2))).await;
        assert!(!announcement.is_confirmed().await);
        assert!(lock(&announcement.answer).as_ref().is_some_and(Result::is_ok));
    }

    #[tokio::test]
    async fn a_write_that_the_watches_know_to_be_stale_is_not_announced() {
        for newest in [("another", 1), ("vm", 2)] {
            let (announcement, asked) = announcement(newest, Some(object(1))).await;
            assert!(!announcement.is_confirmed().await, "{newest:?}");
            assert!(lock(&asked).is_empty() && lock(&announcement.answer).is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_is_late_stops_the_write_and_gives_the_turn_to_others() {
        let (announcement, _) = announcement(("vm", 1), None).await;
        let start = tokio::time::Instant::now();
        assert!(!announcement.is_confirmed().await);
        assert_eq!(start.elapsed().as_secs(), LATE.as_secs());
        let Some(Err(late)) = lock(&announcement.answer).take() else { panic!("no answer") };
        assert!(late.to_string().contains("wasn't confirmed within 5 s"), "{late}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_for_other_announcements_is_not_the_api_servers() {
        let (announcement, _) = announcement(("vm", 1), Some(object(1))).await;
        for _ in 0..100 {
            let writes = announcement.writes.clone();
            tokio::spawn(async move { writes.announcement(std::future::pending::<()>()).await });
        }
        tokio::task::yield_now().await;
        let mut asks = Box::pin(announcement.is_confirmed());
        assert!(timeout(2 * LATE, &mut asks).await.is_err(), "it waits");
        assert!(lock(&announcement.answer).is_none());
    }
}
