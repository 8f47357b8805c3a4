//! The announcement of a write: the condition `Writing`, which the API server confirms between the write's
//! turn within Azure's limits and its first byte. In a rush nodes wait for minutes; announced before that, all
//! of them would be read by the next leader, though nothing was sent.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Client;
use tokio::time::timeout;
use vnetpool_crds::NodeIPAllocation;

use crate::azure::Urgency;
use crate::context::Context;
use crate::lock::lock;
use crate::node::error::Error;
use crate::node::memory::Memory;
use crate::node::progress::Progress;
use crate::writes::Writes;

/// A write that isn't confirmed by then gives its turn to others.
const LATE: Duration = Duration::from_secs(5);

/// A write that is to be announced when its turn comes.
pub struct Announcement {
    client: Client,
    writes: Arc<Writes>,
    allocation: Arc<NodeIPAllocation>,
    /// The operator's conditions, with what is known before the write.
    conditions: Vec<Condition>,
    answer: Answer,
}

/// What the API server has said to it; `None` until it was asked.
type Answer = Arc<Mutex<Option<Result<NodeIPAllocation, kube::Error>>>>;

/// The API server hasn't confirmed in time.
#[derive(Debug, thiserror::Error)]
#[error("a write to Azure wasn't confirmed within {} s", LATE.as_secs())]
struct Late;

impl Announcement {
    pub async fn of(
        ctx: &Context,
        progress: &Progress,
        node: &Node,
        memory: &mut Memory,
    ) -> Result<Announcement, Error> {
        let was_writing = std::mem::replace(&mut memory.nic.writing, true);
        let made = super::made(ctx, progress, node, memory, Instant::now()).await;
        memory.nic.writing = was_writing;
        Ok(Announcement {
            client: ctx.client.clone(),
            writes: ctx.writes.clone(),
            allocation: progress.allocation.clone(),
            conditions: made?.0,
            answer: Answer::default(),
        })
    }

    /// The same urgency for a write that isn't sent before it was announced.
    pub fn before(&self, write: Urgency) -> Urgency {
        let (client, writes) = (self.client.clone(), self.writes.clone());
        let (allocation, conditions) = (self.allocation.clone(), self.conditions.clone());
        let answer = self.answer.clone();
        write.confirmed(move || {
            let (client, writes) = (client.clone(), writes.clone());
            let (allocation, conditions) = (allocation.clone(), conditions.clone());
            let answer = answer.clone();
            async move {
                let asked = async {
                    let _under_way = writes.announcement().await;
                    super::apply_conditions(&client, &allocation, &conditions).await
                };
                let said = timeout(LATE, asked).await;
                let said = said.unwrap_or_else(|_| Err(kube::Error::Service(Late.into())));
                // Whoever writes `spec` beside us may write the NIC, too: first that is looked into.
                let is_ours = said.as_ref().is_ok_and(|said| {
                    let is_same = said.metadata.generation == allocation.metadata.generation;
                    is_same && said.metadata.deletion_timestamp == allocation.metadata.deletion_timestamp
                });
                *lock(&answer) = Some(said);
                is_ours
            }
        })
    }

    /// Goes on from what the API server has said, if it was asked.
    ///
    /// # Errors
    /// Its own: then nothing was sent to Azure.
    pub fn take_in(
        self,
        ctx: &Context,
        progress: &mut Progress,
        node: &Node,
        memory: &mut Memory,
    ) -> Result<(), Error> {
        let Some(answer) = lock(&self.answer).take() else { return Ok(()) };
        let answer = answer.map_err(Error::Report)?;
        memory.nic.writing = true;
        super::applied(ctx, progress, node, memory, (self.conditions, answer));
        Ok(())
    }
}
