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
}

/// The Lease, held.
pub struct Leadership {
    candidate: Candidate,
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

/// Why leading ended.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
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
        Candidate { leases: Api::namespaced(client, namespace), name, identity }
    }

    /// Waits until this replica leads. Errors of the API server are logged and retried.
    pub async fn acquire(self) -> Leadership {
        let mut seen: Option<(Option<String>, Instant)> = None;
        loop {
            let asked = Instant::now();
            match timeout(REQUEST, self.attempt(&mut seen)).await {
                Ok(Ok(Some((lease, gap)))) => {
                    info!(lease = self.name, identity = self.identity, ?gap, "leading");
                    return Leadership { candidate: self, lease, tenure: Tenure::new(asked), gap };
                }
                Ok(Ok(None)) => {}
                Ok(Err(error)) => warn!(lease = self.name, %error, "can't ask for the Lease"),
                Err(_) => warn!(lease = self.name, "can't ask for the Lease: the API server doesn't answer"),
            }
            sleep(RENEW).await;
        }
    }

    /// Reads the Lease once, and tries to take it if it is free. Returns it with the time since its last
    /// renewal.
    async fn attempt(
        &self,
        seen: &mut Option<(Option<String>, Instant)>,
    ) -> Result<Option<(Lease, Option<Duration>)>, kube::Error> {
        let Some(lease) = self.leases.get_opt(self.name).await? else {
            let first = Lease {
                metadata: ObjectMeta { name: Some(self.name.into()), ..Default::default() },
                spec: Some(self.claim(0)),
            };
            return Ok(
                won(self.leases.create(&PostParams::default(), &first).await)?.map(|lease| (lease, None))
            );
        };
        let version = lease.resource_version();
        let unchanged_since = match seen {
            Some((known, since)) if *known == version => *since,
            _ => seen.insert((version, Instant::now())).1,
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let lasts = Duration::from_secs(spec.lease_duration_seconds.unwrap_or_default().max(0) as u64);
        let is_free = spec.holder_identity.as_deref().unwrap_or_default().is_empty();
        if !is_free && unchanged_since.elapsed() < lasts {
            return Ok(None);
        }
        let gap = spec.renew_time.map(|at| Timestamp::now().duration_since(at.0).unsigned_abs());
        let claimed =
            Lease { spec: Some(self.claim(spec.lease_transitions.unwrap_or_default() + 1)), ..lease };
        let won = won(self.leases.replace(self.name, &PostParams::default(), &claimed).await)?;
        Ok(won.map(|lease| (lease, gap)))
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

/// A conflict means that another client was faster.
fn won(answer: Result<Lease, kube::Error>) -> Result<Option<Lease>, kube::Error> {
    match answer {
        Ok(lease) => Ok(Some(lease)),
        Err(error) if is_status(&error, CONFLICT) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Leadership {
    /// How long the Lease hadn't been renewed when it was won, by the clocks of both leaders; `None` if there
    /// was none.
    pub fn gap(&self) -> Option<Duration> {
        self.gap
    }

    pub fn tenure(&self) -> Tenure {
        self.tenure.clone()
    }

    /// Renews the Lease until it is lost.
    pub async fn keep(&mut self) -> Lost {
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
                    return Lost::NotRenewed { last };
                }
                warn!(lease = self.candidate.name, error = last, "Lease not renewed, trying again");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }

    /// One request; a second one only after another client's edit of the Lease, to read its holder.
    async fn renew(&mut self) -> Result<Option<Lost>, kube::Error> {
        let Candidate { leases, name, identity } = &self.candidate;
        let mut next = self.lease.clone();
        next.spec.get_or_insert_default().renew_time = Some(MicroTime(Timestamp::now()));
        match leases.replace(name, &PostParams::default(), &next).await {
            Ok(lease) => {
                self.lease = lease;
                Ok(None)
            }
            Err(error) if is_status(&error, CONFLICT) || is_status(&error, NOT_FOUND) => {
                let found = leases.get_opt(name).await?;
                let holder = found.as_ref().and_then(|lease| lease.spec.as_ref()?.holder_identity.clone());
                if found.as_ref().is_some_and(|found| version(found) < version(&self.lease)) {
                    return Ok(Some(Lost::SetBack));
                }
                match (found, holder) {
                    // Our own renewal, whose answer was lost, or an edit that left us the holder.
                    (Some(lease), Some(holder)) if holder == *identity => {
                        self.lease = lease;
                        Ok(None)
                    }
                    (_, holder) => {
                        Ok(Some(Lost::TakenOver { holder: holder.unwrap_or_else(|| "nobody".into()) }))
                    }
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Releases the Lease so that the next leader can start at once. If this fails, the next one starts when
    /// the Lease expires.
    pub async fn release(self) {
        let mut free = self.lease;
        let spec = free.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        let Candidate { leases, name, .. } = &self.candidate;
        match timeout(REQUEST, leases.replace(name, &PostParams::default(), &free)).await {
            Ok(Ok(_)) => info!(lease = name, "Lease released"),
            Ok(Err(error)) => warn!(lease = name, %error, "Lease not released"),
            Err(_) => warn!(lease = name, "Lease not released: the API server doesn't answer"),
        }
    }
}

#[cfg(test)]
mod tests;
