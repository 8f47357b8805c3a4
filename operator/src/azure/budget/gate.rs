//! The gate that every call to ARM goes through: it waits there until the budget grants it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::{Account, Budget, Lane, Lesson, Priority, Ticket};
use crate::lock::lock;

/// Shared by all calls of one operator.
#[derive(Clone)]
pub(in crate::azure) struct Gate(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Something changed that may let a call go earlier than the dispatcher expects.
    changed: Notify,
}

struct State {
    budget: Budget,
    waiting: HashMap<Ticket, oneshot::Sender<Instant>>,
    /// Whether the dispatcher runs, the task that lets waiting calls go. It runs only while calls wait.
    is_dispatching: bool,
}

/// A call's turn, paid for.
#[derive(Debug)]
pub(in crate::azure) struct Turn {
    /// How long the call waited for it.
    pub waited: Duration,
    taken: Instant,
}

impl Gate {
    /// `percent` of Azure's limits are ours.
    pub(in crate::azure) fn new(percent: u8) -> Gate {
        let state = State { budget: Budget::new(percent), waiting: HashMap::new(), is_dispatching: false };
        Gate(Arc::new(Inner { state: Mutex::new(state), changed: Notify::new() }))
    }

    /// Waits until a call of this lane may be made and counts it. `None` if `outgrown` came first: then the
    /// call isn't counted and must not be made.
    pub(in crate::azure) async fn wait_for_turn(
        &self,
        lane: &Lane,
        priority: Priority,
        outgrown: impl Future<Output = ()>,
    ) -> Option<Turn> {
        let since = now();
        let (place, mut granted) = self.queue(lane, priority);
        let taken = tokio::select! {
            biased;
            taken = &mut granted => taken,
            // A call that has just been granted goes.
            () = outgrown => {
                if place.leave() {
                    return None;
                }
                granted.await
            }
        };
        // The sender lives in `waiting` until it is used, so an error means that the process ends.
        let taken = taken.unwrap_or_else(|_| now());
        Some(Turn { waited: now().duration_since(since), taken })
    }

    /// The call isn't made: others may have its turn.
    pub(in crate::azure) fn give_back(&self, lane: &Lane, turn: &Turn) {
        self.0.lock().budget.give_back(lane, turn.taken, now());
        self.0.changed.notify_one();
    }

    fn queue<'a>(&'a self, lane: &'a Lane, priority: Priority) -> (Waiter<'a>, oneshot::Receiver<Instant>) {
        let (grant, granted) = oneshot::channel();
        let mut state = self.0.lock();
        let ticket = state.budget.ask(lane, priority);
        state.waiting.insert(ticket, grant);
        if state.is_dispatching {
            // The dispatcher checks once for all calls that come in the meantime, not once for each.
            self.0.changed.notify_one();
        } else if state.grant().is_some() {
            state.is_dispatching = true;
            tokio::spawn(self.clone().dispatch());
        }
        (Waiter { gate: self, lane, priority, ticket }, granted)
    }

    /// Learns what an answer shows of the limits.
    pub(in crate::azure) fn learn(&self, lane: &Lane, lesson: &Lesson) {
        self.0.lock().budget.learn(lane, lesson, now());
    }

    /// How the limits stand.
    pub(in crate::azure) fn accounts(&self) -> Vec<Account> {
        self.0.lock().budget.accounts(now())
    }

    /// How many calls of each priority wait.
    pub(in crate::azure) fn waiting(&self) -> [(Priority, usize); Priority::ALL.len()] {
        self.0.lock().budget.waiting()
    }

    /// The dispatcher: lets calls go as the budget grants them, until none waits.
    async fn dispatch(self) {
        loop {
            let again = {
                let mut state = self.0.lock();
                let Some(again) = state.grant() else {
                    state.is_dispatching = false;
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

/// A call that waits. Leaves its place when dropped.
struct Waiter<'a> {
    gate: &'a Gate,
    lane: &'a Lane,
    priority: Priority,
    ticket: Ticket,
}

impl Waiter<'_> {
    /// False if the call has been granted before.
    fn leave(&self) -> bool {
        let mut state = self.gate.0.lock();
        state.waiting.remove(&self.ticket);
        state.budget.withdraw(self.lane, self.priority, self.ticket)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    /// Lets all calls go that may go now. Gives when the next may go, or `None` if none waits.
    fn grant(&mut self) -> Option<Instant> {
        let now = now();
        let (granted, again) = self.budget.grant(now);
        for ticket in granted {
            if let Some(grant) = self.waiting.remove(&ticket) {
                let _ = grant.send(now);
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
    use std::future::{pending, ready};

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
            gate.wait_for_turn(&lane, Priority::WaitingPods, pending()).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn calls_wait_for_their_turn_and_no_longer() {
        let (gate, lane) = (Gate::new(80), write());
        let started = tokio::time::Instant::now();
        drain(&gate).await;
        assert_eq!(started.elapsed(), Duration::ZERO);
        let calls = (0..80).map(|_| gate.wait_for_turn(&lane, Priority::WaitingPods, pending()));
        futures::future::join_all(calls).await;
        let took = started.elapsed().as_secs_f64();
        assert!((9.9..10.1).contains(&took), "80 calls at 8 a second took {took} s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_matters_more_overtakes() {
        let (gate, lane) = (Gate::new(80), write());
        drain(&gate).await;
        let (refill, pods) = tokio::join!(
            gate.wait_for_turn(&lane, Priority::WarmRefill, pending()),
            gate.wait_for_turn(&lane, Priority::WaitingPods, pending())
        );
        let (pods, refill) = (pods.unwrap().waited, refill.unwrap().waited);
        assert!(pods < refill, "{pods:?} is not less than {refill:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_gate_opens_by_itself() {
        let (gate, lane) = (Gate::new(80), write());
        gate.learn(&lane, &Lesson::closed_by_arm(Duration::from_secs(42)));
        let waited = gate.wait_for_turn(&lane, Priority::WaitingPods, pending()).await.unwrap();
        assert_eq!(waited.waited.as_secs(), 42);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_outgrown_leaves_its_place_and_costs_nothing() {
        let (gate, lane) = (Gate::new(80), write());
        drain(&gate).await;
        let spent = || gate.accounts()[0].spent;
        let before = spent();
        let refill =
            gate.wait_for_turn(&lane, Priority::WarmRefill, tokio::time::sleep(Duration::from_millis(1)));
        let (refill, other) =
            tokio::join!(refill, gate.wait_for_turn(&lane, Priority::WarmRefill, pending()));
        assert!(refill.is_none());
        // 41 have to be there, at 8 a second: no other call's wait has changed.
        let took = other.unwrap().waited.as_secs_f64();
        assert!((5.1..5.2).contains(&took), "{took}");
        assert_eq!((spent() - before, gate.0.lock().waiting.len()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_has_been_granted_goes_though_it_is_outgrown_by_then() {
        let (gate, lane) = (Gate::new(80), write());
        assert!(gate.wait_for_turn(&lane, Priority::WarmRefill, ready(())).await.is_some());
        drain(&gate).await;
        let (waiter, granted) = gate.queue(&lane, Priority::WaitingPods);
        granted.await.unwrap();
        assert!(!waiter.leave());
        assert_eq!(gate.accounts()[0].spent, 162);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_is_given_back_goes_to_another_call() {
        let (gate, lane) = (Gate::new(80), write());
        for _ in 0..159 {
            gate.wait_for_turn(&lane, Priority::WaitingPods, pending()).await;
        }
        let turn = gate.wait_for_turn(&lane, Priority::WaitingPods, pending()).await.unwrap();
        let spent = gate.accounts()[0].spent;
        gate.give_back(&lane, &turn);
        assert_eq!(gate.accounts()[0].spent, spent, "a counter never goes down");
        let next = gate.wait_for_turn(&lane, Priority::WaitingPods, pending()).await.unwrap();
        assert_eq!((next.waited, gate.accounts()[0].spent), (Duration::ZERO, 160));
        let later = gate.wait_for_turn(&lane, Priority::WaitingPods, pending()).await.unwrap();
        assert!(later.waited > Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_gave_up_waiting_does_not_stop_the_others() {
        let (gate, lane) = (Gate::new(80), write());
        drain(&gate).await;
        let impatient = gate.wait_for_turn(&lane, Priority::WaitingPods, pending());
        tokio::time::timeout(Duration::from_millis(1), impatient).await.unwrap_err();
        gate.wait_for_turn(&lane, Priority::WaitingPods, pending()).await;
        assert_eq!(gate.0.lock().waiting.len(), 0);
        assert_eq!(gate.accounts()[0].spent, 161);
    }
}
