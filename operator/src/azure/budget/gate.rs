//! The door every call to ARM goes through: waits until the budget lets it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::{Account, Budget, Lane, Lesson, Priority, Ticket};

/// Shared by all calls of one operator.
#[derive(Clone)]
pub(in crate::azure) struct Gate(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Something changed that may let somebody go earlier than the porter thinks.
    changed: Notify,
}

struct State {
    budget: Budget,
    waiting: HashMap<Ticket, oneshot::Sender<()>>,
    /// A task is under way that calls those who wait; there is one only while somebody does.
    porter: bool,
}

impl Gate {
    /// `percent` of Azure's limits are ours.
    pub(in crate::azure) fn new(percent: u8) -> Gate {
        let state = State { budget: Budget::new(percent), waiting: HashMap::new(), porter: false };
        Gate(Arc::new(Inner { state: Mutex::new(state), changed: Notify::new() }))
    }

    /// Waits until a call of this lane may be made and counts it. Gives the time waited.
    pub(in crate::azure) async fn pass(&self, lane: &Lane, priority: Priority) -> Duration {
        let since = now();
        let (call, called) = oneshot::channel();
        {
            let mut state = self.0.lock();
            let ticket = state.budget.ask(lane, priority);
            state.waiting.insert(ticket, call);
            if state.porter {
                // The porter looks once for all that ask in the meantime, not once for each.
                self.0.changed.notify_one();
            } else if state.call().is_some() {
                state.porter = true;
                tokio::spawn(self.clone().keep());
            }
        }
        // The sender lives in `waiting` until it is used, so an error can't happen but at the process's end.
        let _ = called.await;
        now().duration_since(since)
    }

    /// Takes in what an answer said about the limits.
    pub(in crate::azure) fn learn(&self, lane: &Lane, lesson: &Lesson) {
        self.0.lock().budget.learn(lane, lesson, now());
    }

    /// How the limits stand, and how many calls of each priority wait.
    pub(in crate::azure) fn accounts(&self) -> (Vec<Account>, [(Priority, usize); Priority::ALL.len()]) {
        let mut state = self.0.lock();
        (state.budget.accounts(now()), state.budget.waiting())
    }

    /// Calls who may go until nobody waits.
    async fn keep(self) {
        loop {
            let again = {
                let mut state = self.0.lock();
                let Some(again) = state.call() else {
                    state.porter = false;
                    return;
                };
                again
            };
            tokio::select! {
                () = tokio::time::sleep_until(again.into()) => {}
                () = self.0.changed.notified() => {}
            }
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Lets go who may, and gives when the next may. A caller that gave up waiting costs the budget one call,
    /// which is on the safe side.
    fn call(&mut self) -> Option<Instant> {
        let (granted, again) = self.budget.grant(now());
        for ticket in granted {
            if let Some(call) = self.waiting.remove(&ticket) {
                let _ = call.send(());
            }
        }
        again
    }
}

/// Tokio's clock, so that tests can stop it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write() -> Lane {
        Lane {
            subscription: "sub".into(),
            provider: super::super::Provider::Other,
            region: None,
            kind: super::super::Kind::Write,
            resource: String::new(),
        }
    }

    /// Uses up the bucket of writes.
    async fn drain(gate: &Gate) {
        let lane = write();
        for _ in 0..160 {
            gate.pass(&lane, Priority::WaitingPods).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn calls_wait_for_their_turn_and_no_longer() {
        let (gate, lane) = (Gate::new(80), write());
        let started = tokio::time::Instant::now();
        drain(&gate).await;
        assert_eq!(started.elapsed(), Duration::ZERO);
        let calls = (0..80).map(|_| gate.pass(&lane, Priority::WaitingPods));
        futures::future::join_all(calls).await;
        let took = started.elapsed().as_secs_f64();
        assert!((9.9..10.1).contains(&took), "80 calls at 8 a second took {took} s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_matters_more_overtakes() {
        let (gate, lane) = (Gate::new(80), write());
        drain(&gate).await;
        let (refill, pods) =
            tokio::join!(gate.pass(&lane, Priority::WarmRefill), gate.pass(&lane, Priority::WaitingPods));
        assert!(pods < refill, "{pods:?} is not less than {refill:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_gate_opens_by_itself() {
        let (gate, lane) = (Gate::new(80), write());
        gate.learn(&lane, &Lesson::closed_by_arm(Duration::from_secs(42)));
        let waited = gate.pass(&lane, Priority::WaitingPods).await;
        assert_eq!(waited.as_secs(), 42);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_gave_up_waiting_does_not_stop_the_others() {
        let (gate, lane) = (Gate::new(80), write());
        drain(&gate).await;
        let impatient = gate.pass(&lane, Priority::WaitingPods);
        tokio::time::timeout(Duration::from_millis(1), impatient).await.unwrap_err();
        gate.pass(&lane, Priority::WaitingPods).await;
        assert_eq!(gate.0.lock().waiting.len(), 0);
    }
}
