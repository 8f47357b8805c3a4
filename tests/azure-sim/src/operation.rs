//! Long-running operations: their `Azure-AsyncOperation` headers, and the answers to polls.

use crate::fault::Ending;
use crate::reply::Reply;
use crate::resource::Kind;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// An operation's effect on the world when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    FinishNic,
    RemoveNic,
    FinishVnet,
    RemoveVnet,
    FinishSubnet,
    RemoveSubnet,
    FinishVm,
    RemoveVm,
    FinishResource(Kind),
    /// A child of the resource was removed.
    FinishChildRemoval(Kind),
    RemoveResource(Kind),
    FinishScaleSet,
    RemoveScaleSet,
    FinishInstance,
    RemoveInstance,
}

impl Effect {
    /// Azure's name for the operation, as it appears in messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::FinishNic => "PutNicOperation",
            Self::RemoveNic => "DeleteNicOperation",
            Self::FinishVnet => "PutVirtualNetworkOperation",
            Self::RemoveVnet => "DeleteVirtualNetworkOperation",
            Self::FinishSubnet => "PutSubnetOperation",
            Self::RemoveSubnet => "DeleteSubnetOperation",
            Self::FinishVm => "PutVirtualMachineOperation",
            Self::RemoveVm => "DeleteVirtualMachineOperation",
            Self::FinishResource(kind) | Self::FinishChildRemoval(kind) => kind.operation_names().0,
            Self::RemoveResource(kind) => kind.operation_names().1,
            Self::FinishScaleSet => "PutVirtualMachineScaleSetOperation",
            Self::RemoveScaleSet => "DeleteVirtualMachineScaleSetOperation",
            Self::FinishInstance => "PutVirtualMachineScaleSetVMOperation",
            Self::RemoveInstance => "DeleteVirtualMachineScaleSetVMOperation",
        }
    }

    fn is_of_compute(self) -> bool {
        matches!(
            self,
            Self::FinishVm
                | Self::RemoveVm
                | Self::FinishScaleSet
                | Self::RemoveScaleSet
                | Self::FinishInstance
                | Self::RemoveInstance
        )
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Status {
    InProgress,
    Succeeded,
    /// A newer operation on the same resource took over.
    Superseded {
        by: String,
    },
    /// As set by a fault.
    Ended {
        status: Ending,
        error: Value,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) id: String,
    /// The resource's id in lower case.
    pub(crate) resource: String,
    pub(crate) effect: Effect,
    pub(crate) ends: Instant,
    status: Status,
    /// How it ends, if it doesn't succeed.
    fate: Option<(Ending, Value)>,
    started_at: jiff::Timestamp,
    ended_at: Option<jiff::Timestamp>,
    location: String,
}

impl Operation {
    pub(crate) fn start(effect: Effect, resource: &str, location: &str, ends: Instant) -> Self {
        Self {
            id: uuid::Uuid::new_v4().to_string(),
            resource: resource.to_lowercase(),
            effect,
            ends,
            status: Status::InProgress,
            fate: None,
            started_at: jiff::Timestamp::now(),
            ended_at: None,
            location: location.to_owned(),
        }
    }

    pub(crate) fn end(&mut self, status: Status) {
        self.status = status;
        self.ended_at = Some(jiff::Timestamp::now());
    }

    /// Sets how it ends.
    pub(crate) fn doom(&mut self, status: Ending, error: Value) {
        self.fate = Some((status, error));
    }

    /// Ends it as set. Returns whether it succeeded.
    pub(crate) fn run_out(&mut self) -> bool {
        let (status, is_good) = match self.fate.take() {
            Some((status, error)) => (Status::Ended { status, error }, false),
            None => (Status::Succeeded, true),
        };
        self.end(status);
        is_good
    }

    pub(crate) fn is_in_progress(&self) -> bool {
        self.status == Status::InProgress
    }

    /// Adds the headers that name the URL to poll. `base` is `http://host`.
    pub(crate) fn announce(&self, reply: Reply, base: &str, subscription: &str, version: &str) -> Reply {
        let url = |kind: &str, extra: &str| self.url((base, subscription, version), kind, extra);
        let reply = reply
            .header("azure-asyncnotification", "Enabled")
            .header("azure-asyncoperation", url("operations", ""));
        match self.effect {
            Effect::RemoveVm | Effect::RemoveScaleSet | Effect::RemoveInstance => {
                reply.header("location", url("operations", "&monitor=true"))
            }
            Effect::RemoveNic
            | Effect::RemoveVnet
            | Effect::RemoveSubnet
            | Effect::FinishChildRemoval(_)
            | Effect::RemoveResource(_) => reply.header("location", url("operationResults", "")),
            _ => reply,
        }
    }

    /// Adds the one header by which a client can learn of the end and not of how it was.
    pub(crate) fn locate(&self, reply: Reply, base: &str, subscription: &str, version: &str) -> Reply {
        reply.header("location", self.url((base, subscription, version), "operationResults", ""))
    }

    fn url(&self, (base, subscription, version): (&str, &str, &str), kind: &str, extra: &str) -> String {
        let provider = if self.effect.is_of_compute() { "Microsoft.Compute" } else { "Microsoft.Network" };
        format!(
            "{base}/subscriptions/{subscription}/providers/{provider}/locations/{}/{kind}/{}?api-version={version}{extra}{}",
            self.location,
            self.id,
            self.signature(),
        )
    }

    /// The end of its URL. ARM signs these URLs. The certificate in them makes them kilobytes long, and they
    /// mix escaped and plain characters.
    pub(crate) fn signature(&self) -> String {
        let certificate = "MIIHpTCCBo2gAwIBAgITfw%2FSimulated%2BAzure".repeat(120);
        let (id, hash) = (self.id.replace('-', ""), "h0".repeat(21));
        format!("&t=639000000000000000&c={certificate}%3D%3D&s=sim-_~{id}&h={hash}")
    }

    /// The body of a poll.
    pub(crate) fn poll(&self) -> Value {
        let mut body = match &self.status {
            Status::InProgress => json!({ "status": "InProgress" }),
            Status::Succeeded => json!({ "status": "Succeeded" }),
            // azure-rest-api-specs#22434.
            Status::Superseded { .. } if self.effect.is_of_compute() => {
                json!({ "status": "Failed", "error": {
                "code": "OperationPreempted",
                "message": "Operation execution has been preempted by a more recent operation.",
            } })
            }
            Status::Ended { status, error } => json!({ "status": status, "error": error }),
            Status::Superseded { by } => {
                let name = self.effect.name();
                let message = format!(
                    "Operation {name} ({}) was canceled and superseded by operation {name} ({by}).",
                    self.id
                );
                json!({ "status": "Canceled", "error": {
                    "code": "Canceled",
                    "message": "Operation was canceled.",
                    "details": [{ "code": "CanceledAndSupersededDueToAnotherOperation", "message": message }],
                } })
            }
        };
        if self.effect.is_of_compute() {
            body["name"] = json!(self.id);
            body["startTime"] = json!(self.started_at.to_string());
            if let Some(ended) = self.ended_at {
                body["endTime"] = json!(ended.to_string());
            }
        }
        body
    }
}

/// The wait that ARM asks of a poller: 10 s, but never longer than a write takes if a test has shortened it.
pub(crate) fn retry_after(write: Duration) -> String {
    (write.as_secs_f64().ceil().min(10.0) as u64).to_string()
}
