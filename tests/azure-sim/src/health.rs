//! The health of load balancers' members. Pure: a probe's observation is an argument.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The request of a health probe: a TCP connection, or a page that has to answer 200.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Probe {
    pub(crate) address: Ipv4Addr,
    pub(crate) port: u16,
    pub(crate) page: Option<String>,
    /// The lower-case id of the application gateway that probes. `None`: the platform probes.
    pub(crate) gateway: Option<String>,
}

/// The state of each probe. A member that was never seen healthy gets nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Health(BTreeMap<Probe, State>);

#[derive(Clone, Debug, Default)]
struct State {
    up: bool,
    /// How many answers in a row contradicted the state.
    against: u32,
}

impl Health {
    pub(crate) fn is_up(&self, probe: &Probe) -> bool {
        self.0.get(probe).is_some_and(|state| state.up)
    }

    /// Takes in one round of answers, each with the number of answers alike that its probe's state takes to
    /// change; what isn't asked any more is forgotten. Gives whether a state has changed.
    pub(crate) fn learn(&mut self, answers: &[(Probe, u32, bool)]) -> bool {
        let mut changed = false;
        self.0.retain(|probe, _| answers.iter().any(|(asked, ..)| asked == probe));
        for (probe, threshold, up) in answers {
            let state = self.0.entry(probe.clone()).or_default();
            state.against = if *up == state.up { 0 } else { state.against + 1 };
            if state.against >= *threshold {
                *state = State { up: *up, against: 0 };
                changed = true;
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_changes_its_state_after_as_many_answers_as_the_threshold() {
        let probe = Probe { address: [10, 0, 0, 4].into(), port: 80, page: None, gateway: None };
        let mut health = Health::default();
        let mut learn = |up| (health.learn(&[(probe.clone(), 2, up)]), health.is_up(&probe));
        assert_eq!(learn(true), (false, false));
        assert_eq!(learn(true), (true, true));
        assert_eq!(learn(false), (false, true));
        assert_eq!(learn(true), (false, true));
        assert_eq!(learn(false), (false, true));
        assert_eq!(learn(false), (true, false));
    }
}
