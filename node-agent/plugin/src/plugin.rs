//! The verbs: ADD, DEL, CHECK, STATUS, GC and VERSION. A verb holds its sandbox's lock from beginning to end.
//! It holds the ledger's lock only for each transaction, never while it talks to the kernel.
//!
//! A verb's duty for a sandbox beside the ledger depends on the name under which the program was invoked: see
//! the trait `Duty`.

mod error;
mod lease;
pub mod log;
mod wait;
mod wire;

use std::{
    collections::HashSet,
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    cni::{self, PrevResult, Program, Request, Task, Verb, Version, Versions, code},
    ledger::{
        Claim, Proof, Tenant,
        file::{self, LOCK_WAIT, SandboxLock, Store, WakeUp},
    },
    sandbox::{Pod, Sandbox},
    wiring::{self, Identity, Netns},
};

use error::Error;
use log::Line;

/// How long an ADD waits for an address: the kubelet takes a runtime for dead that is silent for 30 s.
const ADDRESS_WAIT: Duration = Duration::from_secs(20);
/// How often a DEL checks whether the verb it waits for is an ADD that it can cancel.
const CANCEL_EVERY: Duration = Duration::from_millis(10);

/// The process's standard output, and its exit code.
#[derive(Debug)]
pub struct Answer {
    pub stdout: Vec<u8>,
    pub exit_code: i32,
}

/// A sandbox's service beside its address in the ledger, and how to see that the sandbox lives.
trait Duty {
    /// How the agent sees later that the sandbox lives.
    fn proof(&self, sandbox: &Sandbox, pod: &Pod, netns: &Path) -> Proof;

    /// Whether the sandbox can be served at all, before it has an address.
    fn admit(&self, store: &Store, sandbox: &Sandbox) -> Result<(), Error>;

    /// Whether a sandbox that lives by this proof was served by this duty.
    fn has_served(&self, proof: &Proof) -> bool;

    /// Makes the address work for the sandbox, under the sandbox's lock; gives the result of ADD.
    fn connect(&self, add: Add<'_>, line: &mut Line) -> Result<Answer, Error>;

    /// The differences from the state that [`Duty::connect`] left, in sentences. Repairs nothing.
    fn faults(&self, identity: &Identity, netns: &Path) -> Result<Vec<String>, Error>;

    /// Undoes what [`Duty::connect`] did, then frees the address: in this order, so that no other sandbox
    /// gets an address that still works for this one. Under the sandbox's lock. Without a ledger there is
    /// nothing to free: the agent will find nothing in use.
    fn free(&self, store: &Store, sandbox: &Sandbox, pod: &Pod) -> Result<Undone, Error>;

    /// Undoes what [`Duty::free`] can't know of: the unfinished work of an ADD that was killed, or what only
    /// the result of ADD still names. Without a namespace, or a result, there is nothing to find.
    fn tidy(&self, sandbox: &Sandbox, netns: Option<&Path>, had: &[Ipv4Addr]) -> Result<(), Error>;
}

/// The remains of an ADD that were undone.
struct Undone {
    /// The address that is free now, or cooling.
    address: Option<Ipv4Addr>,
    /// Whether the work of [`Duty::connect`] was found. If it wasn't, there may be traces of it.
    is_found: bool,
}

/// An ADD whose sandbox has its address.
struct Add<'a> {
    version: Version,
    /// The result of the plugins before us in the chain.
    before: PrevResult,
    identity: &'a Identity,
    path: &'a Path,
    netns: &'a Netns,
    lock: &'a SandboxLock,
    store: &'a Store,
}

/// One invocation of the plugin. `env` looks an environment variable up, `stdin` is all of standard input.
pub fn run(program: Program, env: impl Fn(&str) -> Option<String>, stdin: &[u8]) -> Answer {
    let request = match Request::parse(program, env, stdin) {
        Ok(request) => request,
        Err(error) => return Answer::failure(&error),
    };
    let Request { version, state_dir, network, task, verb } = request;
    let duty: &dyn Duty = match &task {
        Task::Wire(wire) => wire,
        Task::Lease(lease) => lease,
    };
    let mut line = Line::new(verb.name());
    let store = Store::at(state_dir);
    let done = match verb {
        Verb::Add { sandbox, pod, netns, before } => {
            line.about(&sandbox, &pod);
            let proof = duty.proof(&sandbox, &pod, &netns);
            let claim = Claim { sandbox: &sandbox, pod: &pod, network: &network, proof };
            add(duty, &store, &claim, &netns, (version, before), &mut line)
        }
        Verb::Del { sandbox, pod, netns, had } => {
            line.about(&sandbox, &pod);
            let left = (netns.as_deref(), had.as_slice());
            del(duty, &store, &sandbox, &pod, left, &mut line).map(|()| Answer::EMPTY)
        }
        Verb::Check { sandbox, pod, netns, expected } => {
            line.about(&sandbox, &pod);
            check(duty, &store, &sandbox, &pod, &netns, &expected).map(|()| Answer::EMPTY)
        }
        Verb::Status => status(&store).map(|()| Answer::EMPTY),
        Verb::Gc { valid: None } => Ok(Answer::EMPTY),
        Verb::Gc { valid: Some(valid) } => gc(duty, &store, &network, &valid).map(|()| Answer::EMPTY),
        Verb::Version => Ok(Answer::success(&Versions::new(version))),
    };
    let done = done.map_err(|error| error.into_cni(version));
    line.write(store.dir(), done.as_ref().err());
    done.unwrap_or_else(|error| Answer::failure(&error))
}

impl Answer {
    const EMPTY: Answer = Answer { stdout: Vec::new(), exit_code: 0 };

    fn success(document: &impl serde::Serialize) -> Answer {
        match serde_json::to_vec(document) {
            Ok(stdout) => Answer { stdout, exit_code: 0 },
            Err(error) => {
                let msg = format!("can't write the answer: {error}");
                Answer::failure(&cni::Error::new(code::IO, msg, "report this as a bug of Vnetpool"))
            }
        }
    }

    fn failure(error: &cni::Error) -> Answer {
        Answer { stdout: serde_json::to_vec(error).unwrap_or_default(), exit_code: 1 }
    }
}

/// Gives the sandbox an address and makes it work. A second ADD gives the same again.
fn add(
    duty: &dyn Duty,
    store: &Store,
    claim: &Claim<'_>,
    path: &Path,
    (version, before): (Version, PrevResult),
    line: &mut Line,
) -> Result<Answer, Error> {
    let Claim { sandbox, pod, .. } = *claim;
    let deadline = Instant::now() + ADDRESS_WAIT;
    let netns = &Netns::open(path)?;
    duty.admit(store, sandbox)?;
    let (lock, address) = wait::address(store, claim, deadline, line)?;
    line.address(address);
    line.phase("ledger");
    let lock = &lock;
    let identity = &Identity { address, sandbox: sandbox.clone(), pod: pod.clone() };
    let connected = duty.connect(Add { version, before, identity, path, netns, lock, store }, line);
    connected.map_err(|error| {
        let freed = duty.free(store, sandbox, pod).map(drop);
        let tidied = duty.tidy(sandbox, Some(path), &[]);
        error.and([freed, tidied].into_iter().filter_map(Result::err))
    })
}

/// Takes the sandbox's address back. Works without the agent, the ledger and the pod's namespace, and any
/// number of times.
fn del(
    duty: &dyn Duty,
    store: &Store,
    sandbox: &Sandbox,
    pod: &Pod,
    (netns, had): (Option<&Path>, &[Ipv4Addr]),
    line: &mut Line,
) -> Result<(), Error> {
    let _lock = lock_and_cancel(store, sandbox)?;
    line.phase("lock");
    let Undone { address, is_found } = duty.free(store, sandbox, &known(store, sandbox, pod))?;
    if !is_found {
        duty.tidy(sandbox, netns, had)?;
    }
    line.phase("free");
    address.into_iter().for_each(|address| line.address(address));
    Ok(())
}

/// Frees the sandbox's address in the ledger, if there is a ledger that can be used. In another the agent of
/// its release finds the sandbox disconnected, and frees its address.
fn free_in_ledger(store: &Store, sandbox: &Sandbox) -> Result<Option<Ipv4Addr>, Error> {
    match store.note(|ledger, now| ledger.free(sandbox, now)) {
        Err(error) if error.is_lasting() => Ok(None),
        result => Ok(result?),
    }
}

/// The sandbox's pod as the runtime names it now or, since only ADD has to name it, as ADD recorded it.
fn known(store: &Store, sandbox: &Sandbox, named: &Pod) -> Pod {
    let recorded = || {
        let ledger = store.peek().ok()?;
        let (_, found) = ledger.assignments().find(|(_, assignment)| assignment.sandbox == *sandbox)?;
        Some(found.pod.clone())
    };
    Some(named).filter(|named| !named.name.is_empty()).cloned().or_else(recorded).unwrap_or_default()
}

/// The sandbox's lock, for a DEL: an ADD that waits for an address is made to give up, whether it holds the
/// lock, or none because there is no ledger.
fn lock_and_cancel(store: &Store, sandbox: &Sandbox) -> Result<SandboxLock, Error> {
    let deadline = Instant::now() + LOCK_WAIT;
    let mut wait = Duration::ZERO;
    loop {
        match store.lock_sandbox(sandbox, wait) {
            Err(file::Error::Busy(..)) if Instant::now() < deadline => {}
            // It has waited for more than this one attempt.
            Err(file::Error::Busy(path, _)) => return Err(file::Error::Busy(path, LOCK_WAIT).into()),
            result => {
                let lock = result?;
                WakeUp::end(store, sandbox)?;
                return Ok(lock);
            }
        }
        if store.peek().is_ok_and(|ledger| ledger.is_waiting(sandbox)) {
            store.note(|ledger, _| ledger.cancel(sandbox))?;
        }
        wait = CANCEL_EVERY;
    }
}

/// Compares the present state with the one that ADD left; repairs nothing.
fn check(
    duty: &dyn Duty,
    store: &Store,
    sandbox: &Sandbox,
    pod: &Pod,
    netns: &Path,
    expected: &[Ipv4Addr],
) -> Result<(), Error> {
    let _lock = store.lock_sandbox(sandbox, LOCK_WAIT)?;
    let address = recorded(store, sandbox, expected)?;
    let identity = Identity { address, sandbox: sandbox.clone(), pod: known(store, sandbox, pod) };
    let faults = duty.faults(&identity, netns)?;
    if faults.is_empty() { Ok(()) } else { Err(Error::Damaged(faults)) }
}

/// The sandbox's address by the ledger, if the runtime remembers it, too.
fn recorded(store: &Store, sandbox: &Sandbox, expected: &[Ipv4Addr]) -> Result<Ipv4Addr, Error> {
    let found = store.peek()?.address_of(sandbox);
    let is_expected = |address: &Ipv4Addr| expected.contains(address);
    found.filter(is_expected).ok_or_else(|| Error::OtherAddress { expected: expected.to_vec(), found })
}

/// Fails only until the node has had its first address: containerd makes the node NotReady of it, and a node
/// that is merely full, or whose ledger is being built anew, must not have its pods evicted.
fn status(store: &Store) -> Result<(), Error> {
    let reason = match store.peek() {
        Ok(ledger) if ledger.had_first_address() => return Ok(()),
        Ok(ledger) if !ledger.is_ruled() => "its rules are not in place (RulesApplied)".to_owned(),
        Ok(_) => "the operator has published none".to_owned(),
        Err(error) => error.to_string(),
    };
    let is_new = wiring::host_links().is_ok_and(|links| links.is_empty());
    if is_new { Err(Error::NotReady(reason)) } else { Ok(()) }
}

/// Frees the addresses of this network's sandboxes that the runtime no longer knows: each under its own lock,
/// disconnected first, and only if it had its address before this GC began. GC leaves alone:
/// - a sandbox that a verb is working on;
/// - a sandbox whose network isn't recorded: another network's runtime may know it well, and the agent frees
///   it when its proof of life is gone;
/// - a sandbox that was served under our other name, before its network's configuration changed: this duty
///   couldn't disconnect it.
///
/// It goes on past errors.
fn gc(duty: &dyn Duty, store: &Store, network: &str, valid: &HashSet<Sandbox>) -> Result<(), Error> {
    let started = file::now();
    let ledger = match store.peek() {
        Err(error) if error.is_lasting() => return Ok(()),
        result => result?,
    };
    let is_of_this = |tenant: &Tenant| tenant.network == network && duty.has_served(&tenant.proof);
    let assignments = ledger.assignments().map(|(_, assignment)| assignment);
    let garbage =
        assignments.filter(|assignment| is_of_this(assignment) && !valid.contains(&assignment.sandbox));
    let collect = |Tenant { sandbox, pod, .. }: &Tenant| -> Result<(), Error> {
        let Some(_lock) = store.try_lock_sandbox(sandbox)? else { return Ok(()) };
        let ledger = store.peek()?;
        let is_old = |since| since <= started;
        if ledger.assignments().any(|(_, found)| found.sandbox == *sandbox && is_old(found.since)) {
            duty.free(store, sandbox, pod)?;
        }
        Ok(())
    };
    let mut errors = garbage.filter_map(|assignment| collect(assignment).err());
    match errors.next() {
        Some(first) => Err(first.and(errors)),
        None => Ok(()),
    }
}
