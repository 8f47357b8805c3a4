//! Whether the view is as new as the Lease. A standby's view may lack the last writes of the leader before,
//! or the objects on which it decided: a watch brings them some time later, and each kind's watch has its own
//! delay.
//!
//! A leader of long standing has written everything in the allocations, from a view that is no older than
//! what it wrote. A new one has that only once it is proved:
//! - of a NodeIPAllocation, a `spec` that is missing, or a `Writing`, would be believed to be absent;
//! - with an old Node, a NIC that its successor has come to would be taken for one that it has left, and be
//!   emptied; and a Node that isn't known yet would be taken for gone;
//! - with an old pool, addresses would be given back that its edit keeps;
//! - a pod that isn't known yet would be taken for one that has ended: the attachments of its address would
//!   be deleted, or the address that another plugin gave it taken off the NIC. There are too many pods for a
//!   list, so a node's are requested once, before the first decision of this leader that rests on the absence
//!   of one.

use std::collections::HashMap;
use std::time::Duration;

use kube::api::{ListParams, ObjectList};
use kube::core::Request;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;
use vnetpool_apiserver::jittered;
use vnetpool_apiserver::reading::Reading;
use vnetpool_crds::{NodeIPAllocation, names};

use super::Cluster;
use super::renewal::Renewal;
use super::unreadable::Unknown;
use crate::demand::pod::{self, Decoded};
use crate::leader::Ending;
use crate::lock::lock;
use crate::planner::attachments::pod_of;
use crate::resource_id::ResourceId;

/// After an error of the API server, and until a list is made anew: objects that have gone since it was made
/// are never shown.
const RETRY: Duration = Duration::from_secs(2);
/// How often to check whether the watch has caught up.
const CHECK_EVERY: Duration = Duration::from_millis(50);
/// So many objects come in one answer, without their content: some two megabytes of text.
pub(super) const PAGE: u32 = 500;

/// A page of a list of objects without their content. Most of the text is their managedFields, which would
/// take several times as much once decoded.
pub(super) type Page = ObjectList<Named>;

#[derive(Clone, Deserialize)]
pub(super) struct Named {
    metadata: Metadata,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    uid: Option<String>,
    resource_version: Option<String>,
}

/// All objects of a kind at one moment, without their content.
#[derive(Debug, Default)]
struct Listed {
    /// UID and version by name.
    objects: HashMap<String, Identity>,
    /// The version of the whole.
    at: u64,
}

/// UID and version.
type Identity = (Option<String>, u64);

/// Why it isn't known whether a node's pods are.
#[derive(Debug, thiserror::Error)]
pub enum Unproved {
    #[error("{0}")]
    Asked(#[from] kube::Error),
    #[error("the watch of Pods hasn't shown all pods of this node yet")]
    Behind,
}

impl Cluster {
    /// Waits until the view shows all Nodes, NodeIPAllocations and NodeIPPools as they were when the wait
    /// began, or later.
    ///
    /// # Errors
    /// When the view shows a version that the store hasn't reached yet: the store was set back, and a watch
    /// from before shows nothing of that.
    pub async fn catch_up_with(&self, client: &Client) -> Result<(), Ending> {
        futures::try_join!(
            catch_up(client, &self.nodes, &self.unknown_nodes, &self.renewals.nodes),
            catch_up(client, &self.allocations, &self.unknown_allocations, &self.renewals.allocations),
            catch_up(client, &self.pools, &self.unknown_pools, &self.renewals.pools),
        )
        .map(|_| ())
    }

    /// Whether a decision about this node rests on the absence of a pod: of a pod with an attachment to its
    /// address, of one whose public address is detached, or of a pod without an address of ours.
    pub fn misses_pods(&self, allocation: &NodeIPAllocation) -> bool {
        let wishes = self.wishes(&allocation.name_any());
        let marks = allocation.spec.ip_configurations().filter_map(|one| one.attached_to.clone());
        let detached = allocation.spec.detached_public_addresses.iter();
        let detached = detached.filter_map(|id| Some(pod_of(&id.parse::<ResourceId>().ok()?)?.to_owned()));
        allocation.spec.report_holders
            || marks.chain(detached).any(|uid| uid != names::OTHERS && !wishes.contains_key(&uid))
    }

    /// Has the watch of Pods begun anew if the view has lacked a pod for long, ever since then.
    pub fn lacks_pods_since(&self, since: Instant) {
        self.renewals.pods.lags_since(since);
    }

    /// Fails unless the view shows all pods of this node that existed when the check began.
    pub async fn prove_pods(&self, client: &Client, node: &str) -> Result<(), Unproved> {
        let bound = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let pods = Api::<Reading<Decoded>>::all(client.clone()).list(&bound).await?;
        let mut pods = pods.items.into_iter().filter_map(pod::read_one);
        let demand = lock(&self.demand);
        if pods.all(|pod| demand.shows(&pod)) { Ok(()) } else { Err(Unproved::Behind) }
    }
}

async fn catch_up<K>(
    client: &Client,
    store: &Store<K>,
    unknown: &Unknown,
    renewal: &Renewal,
) -> Result<(), Ending>
where
    K: Resource<DynamicType = ()> + Clone,
{
    let mut lags_since = None;
    loop {
        let versions = store.state().into_iter().map(|one| number(one.resource_version()));
        let newest = versions.max().unwrap_or_default();
        match Listed::now::<K>(client).await {
            Ok(listed) if newest > listed.at => return Err(Ending::SetBack),
            Ok(listed) => {
                let since = *lags_since.get_or_insert_with(Instant::now);
                let caught_up = async {
                    while lags_behind(store, unknown, &listed) {
                        sleep(CHECK_EVERY).await;
                    }
                };
                if timeout(RETRY, caught_up).await.is_ok() {
                    return Ok(());
                }
                warn!(kind = %K::kind(&()), "the cache isn't as new as the Lease yet");
                renewal.lags_since(since);
            }
            Err(error) => {
                warn!(kind = %K::kind(&()), %error, "can't tell yet whether the cache is as new as the Lease");
                sleep(jittered(RETRY)).await;
            }
        }
    }
}

fn lags_behind<K>(store: &Store<K>, unknown: &Unknown, listed: &Listed) -> bool
where
    K: Resource<DynamicType = ()> + Clone,
{
    let is_shown = |(name, (uid, version)): (&String, &Identity)| {
        let shows = |shown: Identity| {
            // An object that was made anew since is newer, too.
            shown.1 >= *version && (shown.0 == *uid || shown.1 > listed.at)
        };
        let read = store.get(&ObjectRef::new(name)).map(|one| (one.uid(), number(one.resource_version())));
        let unread = unknown
            .get(name)
            .map(|one| (one.metadata.uid.clone(), number(one.metadata.resource_version.clone())));
        read.into_iter().chain(unread).any(shows)
    };
    // An object that was shown before and isn't listed is gone; one that came after the list isn't listed
    // either.
    let is_gone = |one: &K| {
        !listed.objects.contains_key(&one.name_any()) && number(one.resource_version()) <= listed.at
    };
    !listed.objects.iter().all(is_shown) || store.find(is_gone).is_some()
}

impl Listed {
    /// As the store behind the API server has them, not a cache.
    async fn now<K>(client: &Client) -> Result<Listed, kube::Error>
    where
        K: Resource<DynamicType = ()>,
    {
        let request = Request::new(K::url_path(&(), None));
        let mut listed = Listed::default();
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let asked = request.list_metadata(&params).map_err(kube::Error::BuildRequest)?;
            let page: Page = client.request(asked).await?;
            listed.at = number(page.metadata.resource_version);
            for Named { metadata: Metadata { name, uid, resource_version } } in page.items {
                listed.objects.insert(name, (uid, number(resource_version)));
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = ListParams::default().limit(PAGE).continue_token(&token),
                None => return Ok(listed),
            }
        }
    }
}

/// Kubernetes lets clients compare resourceVersions of a kind as numbers.
fn number(version: Option<String>) -> u64 {
    version.and_then(|version| version.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::Watched;
    use super::*;
    use crate::demand::BoundPods;
    use crate::lock::lock;
    use crate::node_object::Node;
    use axum::body::Body;
    use axum::extract;
    use axum::response::Response;
    use axum::routing::get;
    use axum::{Json, Router};
    use kube::runtime::reflector;
    use kube::runtime::watcher::Event;
    use serde_json::{Value, json};
    use std::sync::{Arc, Mutex};
    use tokio::net::TcpListener;
    use tokio::sync::watch;

    fn allocation(name: &str, uid: &str, version: u64) -> NodeIPAllocation {
        let metadata = json!({"name": name, "uid": uid, "resourceVersion": version.to_string()});
        let spec = json!({"nodeUID": "u", "pool": "p", "cooldown": "30s"});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    #[test]
    fn a_view_is_proved_once_it_shows_all_that_was_there_when_the_lease_was_won() {
        let (allocations, mut writer) = reflector::store();
        let unknown = Unknown::default();
        let object = |uid: &str, version| (Some(uid.to_owned()), version);
        let objects = HashMap::from([("a".into(), object("a", 9)), ("b".into(), object("b2", 12))]);
        let listed = Listed { objects, at: 14 };
        let mut lags = |event| {
            writer.apply_watcher_event(&event);
            lags_behind(&allocations, &unknown, &listed)
        };
        assert!(lags(Event::Apply(allocation("a", "a", 9))), "b isn't there");
        assert!(lags(Event::Apply(allocation("b", "b1", 5))), "b is another");
        assert!(lags(Event::Apply(allocation("b", "b2", 11))), "b is older");
        assert!(!lags(Event::Apply(allocation("b", "b2", 12))));
        assert!(lags(Event::Apply(allocation("c", "c", 13))), "c is gone");
        assert!(!lags(Event::Delete(allocation("c", "c", 14))));
        assert!(!lags(Event::Apply(allocation("d", "d", 15))), "d came later");
        assert!(!lags(Event::Apply(allocation("b", "b3", 16))), "b was made anew later");
    }

    /// An API server that answers with these in turn, and then with the last again and again.
    async fn server(mut answers: Vec<Value>) -> (Client, Arc<Mutex<u32>>) {
        answers.reverse();
        let (answers, asked) = (Arc::new(Mutex::new(answers)), Arc::new(Mutex::new(0)));
        let count = asked.clone();
        let answer = move || {
            *lock(&count) += 1;
            let mut answers = lock(&answers);
            let answer = if answers.len() > 1 { answers.pop() } else { answers.last().cloned() };
            std::future::ready(Json(answer.unwrap()))
        };
        (serve(Router::new().fallback(get(answer))).await, asked)
    }

    /// A client of these.
    async fn serve(routes: Router) -> Client {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        vnetpool_apiserver::client::client(kube::Config::new(url)).unwrap()
    }

    fn nodes(version: &str, names: &[&str]) -> Value {
        let item = |name: &&str| json!({"metadata": {"name": name, "uid": name, "resourceVersion": "5"}});
        let items: Vec<Value> = names.iter().map(item).collect();
        json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": {"resourceVersion": version},
            "items": items})
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_list_names_and_versions_are_decoded_and_nothing_else() {
        let mut list = nodes("9", &["a"]);
        for field in ["managedFields", "labels", "ownerReferences"] {
            list["items"][0]["metadata"][field] = json!([5]);
        }
        let (client, _) = server(vec![list]).await;
        let listed = Listed::now::<Node>(&client).await.unwrap();
        assert_eq!(listed.objects, HashMap::from([("a".into(), (Some("a".into()), 5))]));
        assert_eq!(listed.at, 9);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_of_no_objects_at_all_is_read() {
        let mut list = nodes("9", &[]);
        list["items"] = Value::Null;
        let (client, _) = server(vec![list]).await;
        let listed = Listed::now::<Node>(&client).await.unwrap();
        assert_eq!((listed.objects, listed.at), (HashMap::new(), 9));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_went_after_the_list_was_made_is_not_waited_for() {
        let (client, asked) = server(vec![nodes("9", &["a", "gone"]), nodes("12", &["a"])]).await;
        let (store, mut writer) = reflector::store::<Node>();
        let known: Node =
            serde_json::from_value(json!({"metadata": {"name": "a", "uid": "a", "resourceVersion": "5"}}))
                .unwrap();
        writer.apply_watcher_event(&Event::Apply(known));
        catch_up(&client, &store, &Unknown::default(), &Renewal::default()).await.unwrap();
        assert_eq!(*lock(&asked), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_view_newer_than_a_store_that_was_set_back_is_no_proof() {
        let (client, _) = server(vec![nodes("9", &["a"])]).await;
        let (store, mut writer) = reflector::store::<Node>();
        let ahead = json!({"metadata": {"name": "a", "uid": "a", "resourceVersion": "12"}});
        writer.apply_watcher_event(&Event::Apply(serde_json::from_value(ahead).unwrap()));
        let proved = catch_up(&client, &store, &Unknown::default(), &Renewal::default()).await;
        assert!(matches!(proved, Err(Ending::SetBack)), "{proved:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_watch_that_lacks_an_object_is_begun_anew() {
        // Its lists show the objects; later changes its watches don't deliver.
        let listed = Arc::new(Mutex::new(nodes("9", &["a"])));
        let lists = listed.clone();
        let answer = move |request: extract::Request| {
            let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
            let mut list = lock(&lists).clone();
            if !request.uri().path().ends_with("/nodes") {
                list["items"] = json!([]);
            }
            let accepted = request.headers().get("accept").and_then(|accepted| accepted.to_str().ok());
            if accepted.is_none_or(|accepted| !accepted.contains("PartialObjectMetadata")) {
                list["apiVersion"] = json!("v1");
                list["kind"] = json!("List");
            }
            let silence = futures::stream::pending::<Result<String, std::io::Error>>();
            let body = if is_watch { Body::from_stream(silence) } else { Body::from(list.to_string()) };
            std::future::ready(
                Response::builder().header("content-type", "application/json").body(body).unwrap(),
            )
        };
        let client = serve(Router::new().fallback(get(answer))).await;
        let Watched { cluster, waker: _waker, wakeups: _wakeups, watches } =
            Cluster::watch(&client, &Arc::default(), &Default::default());
        let watches = futures::future::join_all(watches.map(|(_, watch)| tokio::spawn(watch)));
        tokio::spawn(watches);
        assert!(cluster.ready().await);
        cluster.catch_up_with(&client).await.unwrap();

        *lock(&listed) = nodes("12", &["a", "b"]);
        timeout(Duration::from_secs(40), cluster.catch_up_with(&client)).await.unwrap().unwrap();
        assert!(cluster.node("b").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_the_watch_has_not_shown_yet_is_waited_for() {
        let (client, _) = server(vec![nodes("9", &["a"])]).await;
        let (store, mut writer) = reflector::store::<Node>();
        let unknown = Unknown::default();
        assert!(timeout(RETRY * 5, catch_up(&client, &store, &unknown, &Renewal::default())).await.is_err());
        let shown: Node =
            serde_json::from_value(json!({"metadata": {"name": "a", "uid": "a", "resourceVersion": "5"}}))
                .unwrap();
        writer.apply_watcher_event(&Event::Apply(shown));
        catch_up(&client, &store, &unknown, &Renewal::default()).await.unwrap();
    }

    #[tokio::test]
    async fn a_pod_with_an_attachment_is_not_taken_for_gone_before_all_pods_of_its_node_are_known() {
        let pod = json!({"metadata": {"name": "p", "uid": "p", "annotations": {names::BACKEND_POOLS: "web"}},
            "spec": {"nodeName": "n"}, "status": {}});
        let list = json!({"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "9"}, "items": [pod]});
        let (client, _) = server(vec![list]).await;
        let (store, pools) = (reflector::store().0, reflector::store().0);
        let cluster = Cluster::new(reflector::store().0, store, pools, watch::channel(true).1);
        let mut marked = serde_json::to_value(allocation("n", "a", 9)).unwrap();
        let entry = json!({"name": "vnp-1", "address": "10.0.0.9", "attachedTo": "p"});
        marked["spec"]["interfaces"] = json!([{"id": "nic", "mac": "m", "primaryAddress": "10.0.0.4",
            "subnet": {"id": "s", "prefixes": ["10.0.0.0/24"]}, "ipConfigurations": [entry]}]);
        let marked: NodeIPAllocation = serde_json::from_value(marked).unwrap();
        assert!(cluster.misses_pods(&marked) && !cluster.misses_pods(&allocation("n", "a", 9)));
        let proved = cluster.prove_pods(&client, "n").await;
        assert!(matches!(proved, Err(Unproved::Behind)), "{proved:?}");

        let shown: Reading<Decoded> = serde_json::from_value(json!({
            "metadata": {"uid": "p", "annotations": {names::BACKEND_POOLS: "web"}}, "spec": {"nodeName": "n"}
        }))
        .unwrap();
        let shown = pod::read(Event::Apply(shown)).unwrap();
        BoundPods::apply(&mut lock(&cluster.demand), shown, Instant::now().into_std());
        cluster.prove_pods(&client, "n").await.unwrap();
        assert!(!cluster.misses_pods(&marked));
    }

    #[test]
    fn a_pod_whose_public_address_is_detached_is_missed_until_it_is_known() {
        let (store, pools) = (reflector::store().0, reflector::store().0);
        let cluster = Cluster::new(reflector::store().0, store, pools, watch::channel(true).1);
        let mut named = allocation("n", "a", 9);
        let group = "/subscriptions/s/resourceGroups/g/providers";
        let public = format!("{group}/Microsoft.Network/publicIPAddresses/vnp-p");
        named.spec.detached_public_addresses = vec![public];
        assert!(cluster.misses_pods(&named));
    }
}
