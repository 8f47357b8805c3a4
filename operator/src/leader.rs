//! Leader election by a Lease. A replica that loses the Lease ends all that it has begun as leader, so it
//! can't go on acting as one.
//!
//! A standby never compares its clock with the holder's: it counts for itself how long the Lease has stood
//! unchanged, as Kubernetes' own components do. A leader that was paused beyond its lease sends no write, see
//! [`crate::fence`]. Writes on the wire by then are stopped by resourceVersions and ETags. Conditions and
//! public addresses have none: the next leader corrects, or finds, them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{info, warn};

use crate::api_server::{CONFLICT, NOT_FOUND, is_status};
use crate::lock::lock;

/// After this long without a renewal the next one may take over.
pub const LEASE: Duration = Duration::from_secs(15);
/// One small request to the API server each.
const RENEW: Duration = Duration::from_secs(5);
/// A leader that couldn't renew for this long stops: before another replica may start.
const GIVE_UP: Duration = Duration::from_secs(12);
/// No single request may use up the time for the next one.
const REQUEST: Duration = Duration::from_secs(4);

/// A replica's part in the election.
pub struct Candidate {
    leases: Api<Lease>,
    name: &'static str,
    identity: String,
    /// The Lease's newest version that this process has seen.
    newest: u64,
    was_set_back: bool,
}

/// The Lease, held.
pub struct Leadership<'a> {
    candidate: &'a mut Candidate,
    lease: Lease,
    tenure: Tenure,
    gap: Option<Duration>,
}

/// Since when the Lease has stood unrenewed, for the tasks that depend on it, and whether it has been lost.
#[derive(Clone)]
pub struct Tenure {
    renewed: Arc<Mutex<Instant>>,
    is_over: Arc<AtomicBool>,
}

impl Tenure {
    pub fn new(renewed: Instant) -> Tenure {
        Tenure { renewed: Arc::new(Mutex::new(renewed)), is_over: Arc::default() }
    }

    fn renewed(&self) -> Instant {
        *lock(&self.renewed)
    }

    fn renew(&self, asked: Instant) {
        *lock(&self.renewed) = asked;
    }

    /// Another replica may lead from now on, however short ago the Lease was renewed.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::SeqCst);
    }

    /// Whether no other replica can lead yet. A process that was paused may find that another one leads.
    pub fn is_sure(&self) -> bool {
        !self.is_over.load(Ordering::SeqCst) && self.renewed().elapsed() < GIVE_UP
    }
}

/// How one attempt to take the Lease has ended.
enum Attempt {
    /// With the time since its last renewal.
    Won(Box<Lease>, Option<Duration>),
    /// By another replica, or another one was faster.
    Held,
    SetBack,
}

/// Why leading, or standing by, ended.
#[derive(Debug, thiserror::Error)]
pub enum Ending {
    #[error("the Lease could not be renewed for {} s: {last}", GIVE_UP.as_secs())]
    NotRenewed { last: String },
    #[error("the Lease was taken over by {holder}")]
    TakenOver { holder: String },
    #[error(
        "the API server's store was set back to an earlier state, as from a backup; what was read before counts no more"
    )]
    SetBack,
}

impl Candidate {
    /// `identity` must differ between replicas, and from one start of a replica to the next.
    pub fn new(client: Client, namespace: &str, name: &'static str, identity: String) -> Candidate {
        let leases = Api::namespaced(client, namespace);
        Candidate { leases, name, identity, newest: 0, was_set_back: false }
    }

    /// Waits until this replica leads. Errors of the API server are logged and retried.
    ///
    /// # Errors
    /// When the store turns out to be set back: what this replica has cached is of a state that never was.
    pub async fn acquire(&mut self) -> Result<Leadership<'_>, Ending> {
        let mut seen: Option<(Option<String>, Instant)> = None;
        loop {
            let asked = Instant::now();
            match timeout(REQUEST, self.attempt(&mut seen)).await {
                Ok(Ok(Attempt::Won(lease, gap))) => {
                    let gap_seconds = gap.map(|gap| gap.as_secs_f64());
                    info!(lease = self.name, identity = self.identity, gap_seconds, "leading");
                    return Ok(Leadership {
                        candidate: self,
                        lease: *lease,
                        tenure: Tenure::new(asked),
                        gap,
                    });
                }
                Ok(Ok(Attempt::SetBack)) => return Err(Ending::SetBack),
                Ok(Ok(Attempt::Held)) => {}
                Ok(Err(error)) => warn!(lease = self.name, %error, "can't ask for the Lease"),
                Err(_) => warn!(lease = self.name, "can't ask for the Lease: the API server doesn't answer"),
            }
            sleep(RENEW).await;
        }
    }

    /// Reads the Lease once, and tries to take it if it is free.
    async fn attempt(
        &mut self,
        seen: &mut Option<(Option<String>, Instant)>,
    ) -> Result<Attempt, kube::Error> {
        let Some(lease) = self.leases.get_opt(self.name).await? else {
            let first = Lease {
                metadata: ObjectMeta { name: Some(self.name.into()), ..Default::default() },
                spec: Some(self.claim(0)),
            };
            return self.took(self.leases.create(&PostParams::default(), &first).await, None);
        };
        if self.is_set_back(&lease) {
            return Ok(Attempt::SetBack);
        }
        let version = lease.resource_version();
        let unchanged_since = match seen {
            Some((known, since)) if *known == version => *since,
            _ => seen.insert((version, Instant::now())).1,
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let is_free = spec.holder_identity.as_deref().unwrap_or_default().is_empty();
        // The holder goes by this time whatever duration others have written into the Lease.
        if !is_free && unchanged_since.elapsed() < LEASE {
            return Ok(Attempt::Held);
        }
        let gap = spec.renew_time.map(|at| Timestamp::now().duration_since(at.0).unsigned_abs());
        let claimed = Lease {
            spec: Some(self.claim(spec.lease_transitions.unwrap_or_default().saturating_add(1))),
            ..lease
        };
        self.took(self.leases.replace(self.name, &PostParams::default(), &claimed).await, gap)
    }

    /// A conflict means that another client was faster.
    fn took(
        &mut self,
        answer: Result<Lease, kube::Error>,
        gap: Option<Duration>,
    ) -> Result<Attempt, kube::Error> {
        match answer {
            Ok(lease) if self.is_set_back(&lease) => Ok(Attempt::SetBack),
            Ok(lease) => Ok(Attempt::Won(Box::new(lease), gap)),
            Err(error) if is_status(&error, CONFLICT) => Ok(Attempt::Held),
            Err(error) => Err(error),
        }
    }

    /// Whether the store is back at an earlier state than it was when this replica saw it last: otherwise the
    /// versions of an object only grow.
    fn is_set_back(&mut self, lease: &Lease) -> bool {
        let found = version(lease);
        let is_back = found < self.newest;
        self.newest = found;
        self.was_set_back |= is_back;
        is_back
    }

    fn claim(&self, transitions: i32) -> LeaseSpec {
        let now = Some(MicroTime(Timestamp::now()));
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(LEASE.as_secs() as i32),
            acquire_time: now.clone(),
            renew_time: now,
            lease_transitions: Some(transitions),
            ..Default::default()
        }
    }
}

/// The place of this version in the order of all; 0 if it isn't a number.
fn version(lease: &Lease) -> u64 {
    lease.resource_version().and_then(|version| version.parse().ok()).unwrap_or_default()
}

impl Leadership<'_> {
    /// How long the Lease hadn't been renewed when it was won, by the clocks of both leaders; `None` if there
    /// was none.
    pub fn gap(&self) -> Option<Duration> {
        self.gap
    }

    /// Whether this process has ever seen the store go back to an earlier state.
    pub fn was_set_back(&self) -> bool {
        self.candidate.was_set_back
    }

    pub fn tenure(&self) -> Tenure {
        self.tenure.clone()
    }

    /// Renews the Lease until it is lost.
    pub async fn keep(&mut self) -> Ending {
        loop {
            sleep(RENEW).await;
            let deadline = self.tenure.renewed() + GIVE_UP;
            let mut last = "the API server doesn't answer".to_owned();
            loop {
                let asked = Instant::now();
                match timeout_at(deadline.min(asked + REQUEST), self.renew()).await {
                    Ok(Ok(None)) => {
                        self.tenure.renew(asked);
                        break;
                    }
                    Ok(Ok(Some(lost))) => return lost,
                    Ok(Err(error)) => last = error.to_string(),
                    Err(_) => {}
                }
                if Instant::now() + Duration::from_secs(1) >= deadline {
                    return Ending::NotRenewed { last };
                }
                warn!(lease = self.candidate.name, error = last, "Lease not renewed, trying again");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }

    /// One request; two more only after another client's edit of the Lease, or an answer that was lost: a
    /// renewal counts when it is answered, since only then other replicas wait from that moment on.
    async fn renew(&mut self) -> Result<Option<Ending>, kube::Error> {
        let Candidate { leases, name, .. } = &*self.candidate;
        let renewed = leases.replace(name, &PostParams::default(), &self.next()).await;
        let lease = match renewed {
            Err(error) if is_status(&error, CONFLICT) || is_status(&error, NOT_FOUND) => {
                let Some(lease) = leases.get_opt(name).await? else {
                    return Ok(Some(Ending::TakenOver { holder: "nobody".into() }));
                };
                if let Some(lost) = self.take_in(lease) {
                    return Ok(Some(lost));
                }
                let Candidate { leases, name, .. } = &*self.candidate;
                leases.replace(name, &PostParams::default(), &self.next()).await?
            }
            answer => answer?,
        };
        Ok(self.take_in(lease))
    }

    /// The Lease as the next renewal writes it.
    fn next(&self) -> Lease {
        let mut next = self.lease.clone();
        let spec = next.spec.get_or_insert_default();
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        spec.lease_duration_seconds = Some(LEASE.as_secs() as i32);
        next
    }

    /// Goes on with the Lease in this version, unless it shows that this replica leads no more.
    fn take_in(&mut self, lease: Lease) -> Option<Ending> {
        if self.candidate.is_set_back(&lease) {
            return Some(Ending::SetBack);
        }
        match lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()) {
            Some(holder) if holder == self.candidate.identity => {
                self.lease = lease;
                None
            }
            holder => Some(Ending::TakenOver { holder: holder.unwrap_or_else(|| "nobody".into()) }),
        }
    }

    /// Releases the Lease so that the next leader can start at once. If this fails, the next one starts when
    /// the Lease expires.
    pub async fn release(self) {
        let mut free = self.lease;
        let spec = free.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        let Candidate { leases, name, .. } = &*self.candidate;
        match timeout(REQUEST, leases.replace(name, &PostParams::default(), &free)).await {
            Ok(Ok(_)) => info!(lease = name, "Lease released"),
            Ok(Err(error)) => warn!(lease = name, %error, "Lease not released"),
            Err(_) => warn!(lease = name, "Lease not released: the API server doesn't answer"),
        }
    }
}

#[cfg(test)]
mod tests;
