//! The verbs: ADD, DEL, CHECK, STATUS, GC and VERSION. A verb holds its sandbox's lock from beginning to end, and the
//! ledger's only for each transaction, never while it talks to the kernel.

mod error;
mod lease;
mod log;
mod wait;

use std::{
    collections::HashSet,
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    cni::{self, Duty, Leased, Program, Request, Verb, Versions, Wired, code},
    ledger::{
        Assignment, Claim, Pod, Proof, Sandbox,
        file::{self, LOCK_WAIT, SandboxLock, Store},
    },
    wiring::{self, Identity, Netns, Wiring, bridge},
};

use error::Error;
use log::Line;

/// How long an ADD waits for an address: the kubelet takes a runtime for dead that is silent for 30 s.
const ADDRESS_WAIT: Duration = Duration::from_secs(20);
/// How often a DEL looks whether the verb it waits for is an ADD that it can cancel.
const CANCEL_EVERY: Duration = Duration::from_millis(10);

/// What the process prints on standard output, and its exit code.
#[derive(Debug)]
pub struct Answer {
    pub stdout: Vec<u8>,
    pub exit_code: i32,
}

/// One call of the plugin. `env` looks an environment variable up, `stdin` is all of standard input.
pub fn run(program: Program, env: impl Fn(&str) -> Option<String>, stdin: &[u8]) -> Answer {
    let request = match Request::parse(program, env, stdin) {
        Ok(request) => request,
        Err(error) => return Answer::failure(&error),
    };
    let Request { version, state_dir, network, duty, verb } = request;
    let mut line = Line::new(verb.name());
    let store = Store::at(state_dir);
    let done = match verb {
        Verb::Add { sandbox, pod, netns, before } => {
            line.about(&sandbox, &pod);
            let proof = match duty {
                Duty::Wire { .. } => Proof::Link(sandbox.host_link(&pod)),
                Duty::Lease { .. } => lease::proof(&netns),
            };
            let claim = Claim { sandbox: &sandbox, pod: &pod, network: &network, proof: &proof };
            match duty {
                Duty::Wire { mtu, wiring } => {
                    add(&store, claim, &netns, (mtu, wiring), &mut line).map(|(address, host_link)| {
                        let host = (host_link.as_str(), wiring::HOST_MAC);
                        let ends = [host, (sandbox.ifname.as_str(), wiring::pod_mac(address))];
                        let gateway = wiring::GATEWAY;
                        Answer::success(&Wired::new(version, before, ends, address, gateway, &netns))
                    })
                }
                Duty::Lease { subnet, bridge } => {
                    lease::add(&store, claim, &netns, subnet, bridge.as_deref(), &mut line)
                        .map(|(address, gateway)| Answer::success(&Leased::new(version, address, gateway)))
                }
            }
        }
        Verb::Del { sandbox, pod } => {
            line.about(&sandbox, &pod);
            match duty {
                Duty::Wire { .. } => del(&store, &sandbox, &pod, &mut line).map(|()| Answer::EMPTY),
                Duty::Lease { bridge, .. } => {
                    lease::del(&store, &sandbox, bridge.as_deref(), &mut line).map(|()| Answer::EMPTY)
                }
            }
        }
        Verb::Check { sandbox, pod, netns, expected } => {
            line.about(&sandbox, &pod);
            match duty {
                Duty::Wire { .. } => check(&store, &sandbox, &pod, &netns, &expected).map(|()| Answer::EMPTY),
                Duty::Lease { bridge, .. } => {
                    lease::check(&store, &sandbox, bridge.as_deref(), &expected).map(|()| Answer::EMPTY)
                }
            }
        }
        Verb::Status => status(&store).map(|()| Answer::EMPTY),
        Verb::Gc { valid: None } => Ok(Answer::EMPTY),
        Verb::Gc { valid: Some(valid) } => {
            let collect = |sandbox: &Sandbox, pod: &Pod| match &duty {
                Duty::Wire { .. } => silence_and_free(&store, sandbox, pod).map(drop),
                Duty::Lease { bridge, .. } => lease::free(&store, sandbox, bridge.as_deref()).map(drop),
            };
            gc(&store, &network, &duty, &valid, collect).map(|()| Answer::EMPTY)
        }
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

/// Gives the sandbox an address and wires it; returns the name of the host's end, too. A second ADD gives the same again.
fn add(
    store: &Store,
    claim: Claim<'_>,
    netns: &Path,
    (mtu, wiring): (Option<u32>, Wiring),
    line: &mut Line,
) -> Result<(Ipv4Addr, String), Error> {
    let Claim { sandbox, pod, .. } = claim;
    let netns = Netns::open(netns)?;
    let lock = store.lock_sandbox(sandbox, LOCK_WAIT)?;
    line.phase("lock");
    let address = wait::address(store, claim, ADDRESS_WAIT)?;
    line.address(address);
    line.phase("ledger");
    let identity = Identity { address, sandbox: sandbox.clone(), pod: pod.clone() };
    let wired = wiring::connect(&netns, &identity, mtu, wiring).map_err(Error::from);
    line.phase("wiring");
    // The agent builds a ledger from what is wired once no verb runs, but it can't see us if our lock has gone.
    let wired =
        wired.and_then(|host_link| if lock.is_current() { Ok(host_link) } else { Err(Error::LockLost) });
    match wired {
        Ok(host_link) => Ok((address, host_link)),
        Err(error) => Err(error.and(silence_and_free(store, sandbox, pod).err())),
    }
}

/// Takes the sandbox's address back. Works without the agent, the ledger and the pod's namespace, and any number of times.
fn del(store: &Store, sandbox: &Sandbox, pod: &Pod, line: &mut Line) -> Result<(), Error> {
    let _lock = lock_and_cancel(store, sandbox)?;
    line.phase("lock");
    let freed = silence_and_free(store, sandbox, &known(store, sandbox, pod))?;
    line.phase("silence and free");
    freed.into_iter().for_each(|address| line.address(address));
    Ok(())
}

/// First nothing can be sent or received any more, then the address is free: in this order, whatever breaks off. Without
/// a ledger there is nothing to free, and the agent will find nothing in use. Under the sandbox's lock.
fn silence_and_free(store: &Store, sandbox: &Sandbox, pod: &Pod) -> Result<Option<Ipv4Addr>, Error> {
    let link = wiring::disconnect(sandbox, pod)?;
    // A port's route goes neither with it nor by itself, since it leads to the bridge: most nodes have none.
    if bridge::is_there()
        && let Some(address) = store.read().ok().and_then(|ledger| ledger.address_of(sandbox))
    {
        bridge::disconnect(address, link)?;
    }
    match store.with(|ledger, now| ledger.free(sandbox, now)) {
        Err(error) if error.needs_rebuild() => Ok(None),
        result => Ok(result?),
    }
}

/// The sandbox's pod: as the runtime says or, since it needn't say it again, as it said it to ADD.
fn known(store: &Store, sandbox: &Sandbox, told: &Pod) -> Pod {
    let recorded = || {
        let ledger = store.read().ok()?;
        let (_, found) = ledger.assignments().find(|(_, assignment)| assignment.sandbox == *sandbox)?;
        Some(found.pod.clone())
    };
    Some(told).filter(|told| !told.name.is_empty()).cloned().or_else(recorded).unwrap_or_default()
}

/// The sandbox's lock, for a DEL: an ADD that holds it while it waits for an address is made to give up.
fn lock_and_cancel(store: &Store, sandbox: &Sandbox) -> Result<SandboxLock, Error> {
    let deadline = Instant::now() + LOCK_WAIT;
    let mut wait = Duration::ZERO;
    loop {
        match store.lock_sandbox(sandbox, wait) {
            Err(file::Error::Busy(..)) if Instant::now() < deadline => {}
            result => return Ok(result?),
        }
        if store.read().is_ok_and(|ledger| ledger.is_waiting(sandbox)) {
            store.with(|ledger, _| ledger.cancel(sandbox))?;
        }
        wait = CANCEL_EVERY;
    }
}

/// Compares what is there with what ADD left; repairs nothing.
fn check(
    store: &Store,
    sandbox: &Sandbox,
    pod: &Pod,
    netns: &Path,
    expected: &[Ipv4Addr],
) -> Result<(), Error> {
    let _lock = store.lock_sandbox(sandbox, LOCK_WAIT)?;
    let address = recorded(store, sandbox, expected)?;
    let identity = Identity { address, sandbox: sandbox.clone(), pod: known(store, sandbox, pod) };
    let faults = wiring::faults(&Netns::open(netns)?, &identity)?;
    if faults.is_empty() { Ok(()) } else { Err(Error::Damaged(faults)) }
}

/// The sandbox's address by the ledger, if the runtime remembers it, too.
fn recorded(store: &Store, sandbox: &Sandbox, expected: &[Ipv4Addr]) -> Result<Ipv4Addr, Error> {
    let found = store.read()?.address_of(sandbox);
    let is_expected = |address: &Ipv4Addr| expected.contains(address);
    found.filter(is_expected).ok_or_else(|| Error::OtherAddress { expected: expected.to_vec(), found })
}

/// Fails only until the node has had its first address: containerd makes the node NotReady of it, and a node that is
/// merely full, or whose ledger is being built anew, must not have its pods evicted.
fn status(store: &Store) -> Result<(), Error> {
    let reason = match store.read() {
        Ok(ledger) if ledger.had_first_address() => return Ok(()),
        Ok(_) => "the operator has published none".to_owned(),
        Err(error) => error.to_string(),
    };
    let is_new = wiring::host_links().is_ok_and(|links| links.is_empty());
    if is_new { Err(Error::NotReady(reason)) } else { Ok(()) }
}

/// Frees the addresses of this network's sandboxes that the runtime no longer knows: each under its own lock, silenced first, and
/// only if it had its address before this GC began. One that a verb is working on is left alone, and so is one whose network
/// nobody remembers: another network's runtime may know it well, and the agent frees it when its proof of life is gone. So are
/// those that were served under our other name, in case their network's configuration has changed since: this one couldn't
/// silence them. Goes on past errors.
fn gc(
    store: &Store,
    network: &str,
    duty: &Duty,
    valid: &HashSet<Sandbox>,
    free: impl Fn(&Sandbox, &Pod) -> Result<(), Error>,
) -> Result<(), Error> {
    let started = file::now();
    let ledger = match store.read() {
        Err(error) if error.needs_rebuild() => return Ok(()),
        result => result?,
    };
    let is_of_this = |assignment: &Assignment| {
        let is_served_alike = matches!(
            (duty, &assignment.proof),
            (Duty::Wire { .. }, Proof::Link(_)) | (Duty::Lease { .. }, Proof::Namespace { .. })
        );
        assignment.network == network && is_served_alike
    };
    let assignments = ledger.assignments().map(|(_, assignment)| assignment);
    let garbage =
        assignments.filter(|assignment| is_of_this(assignment) && !valid.contains(&assignment.sandbox));
    let collect = |Assignment { sandbox, pod, .. }: &Assignment| -> Result<(), Error> {
        let Some(_lock) = store.try_lock_sandbox(sandbox)? else { return Ok(()) };
        let ledger = store.read()?;
        let is_old = |since| since <= started;
        if ledger.assignments().any(|(_, found)| found.sandbox == *sandbox && is_old(found.since)) {
            free(sandbox, pod)?;
        }
        Ok(())
    };
    let mut errors = garbage.filter_map(|assignment| collect(assignment).err());
    match errors.next() {
        Some(first) => Err(first.and(errors)),
        None => Ok(()),
    }
}
