//! A connection between two pods that goes on whatever is done to the programs.

use anyhow::{Result, ensure};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use vnetpool_tests::place::Flow;
use vnetpool_tests::wait::patience;

/// No answer of the connection takes longer: TCP sends what was lost again after 0.2, 0.6 and 1.4 s. [`Flow`]
/// waits longer before it gives a connection up, so that a slow answer isn't taken for the end.
const STILL: Duration = Duration::from_secs(3);

/// A connection that is watched until it is dropped.
pub struct Watched {
    seen: watch::Receiver<Seen>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Seen {
    answers: usize,
    longest: Duration,
    is_slow: bool,
    end: Option<String>,
}

impl Watched {
    pub fn new(mut flow: Flow) -> Self {
        let (note, seen) = watch::channel(Seen::default());
        let task = tokio::spawn(async move {
            loop {
                let asked = Instant::now();
                let answer = flow.goes_on().await;
                let (took, has_ended) = (asked.elapsed(), answer.is_err());
                note.send_modify(|seen| {
                    seen.longest = seen.longest.max(took);
                    seen.is_slow |= took > patience(STILL);
                    match answer {
                        Ok(()) => seen.answers += 1,
                        Err(error) => seen.end = Some(format!("{error:#}")),
                    }
                });
                if has_ended {
                    return;
                }
            }
        });
        Self { seen, task }
    }

    /// All that came back so far.
    pub fn sum(&self) -> String {
        let Seen { answers, longest, .. } = &*self.seen.borrow();
        format!("the connection had {answers} answers, one of them after {:.2} s", longest.as_secs_f64())
    }

    /// # Errors
    /// When it has ended, or stood still for too long.
    pub fn goes_on(&self) -> Result<()> {
        let Seen { answers, longest, is_slow, end } = &*self.seen.borrow();
        ensure!(end.is_none(), "the connection has ended after {answers} answers: {end:?}");
        ensure!(!is_slow, "an answer of the connection took {longest:?}");
        Ok(())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}
