//! The whole operator against a real API server and simulated Azure, without a node: its conduct when Azure
//! is slow, busy, full, silent or unwilling, or when others change things under it.
//!
//! ```text
//!   stage     one test's world: Azure, machines with their Nodes and pods, the operator, and eyes on all of it
//!   operator  the operator as a process would run it, and its two ends
//!   agent     the nodes' side of the protocol: takes up addresses and gives them up as the real agents do
//!   machine   one for the real agent and the real plugin, where a test is about these
//!   gateway   stands before the API server and answers as one in trouble does; `proxy`, as a bad network does
//! ```
//! A test is `async fn(&ControlPlane) -> Result<()>`; it begins with [`stage::Stage::set`]. As many run at
//! once as there are threads (`--test-threads`; without it two for each core), each with an API server of
//! its own, which they hand on. `CONDUCT=short` leaves the lists `LONG` out, and has three for each core.

mod absent;
mod agent;
mod attachments;
mod between;
mod budget;
mod churn;
mod concurrency;
mod cost;
mod disturbed;
mod dry_run;
mod edits;
mod finding;
mod garbage;
mod gateway;
mod groups;
mod habits;
mod hostile;
mod identity;
mod inspected;
mod left_alone;
mod lost;
mod machine;
mod machines;
mod metadata;
mod metrics;
mod migrations;
mod modes;
mod networks;
mod nics;
mod operations;
mod operator;
mod outlived;
mod overdue;
mod paused;
mod proxy;
mod pruned;
mod public_addresses;
mod quiet;
mod refused;
mod regained;
mod replayed;
mod reported;
mod restored;
mod rollout;
mod routes;
mod scarce;
mod secluded;
mod shortage;
mod silent;
mod stage;
mod standby;
mod subnets;
mod unreadable;
mod unsupplied;
mod wiped;

use anyhow::Result;
use futures::future::BoxFuture;
use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vnetpool_process::lock::lock;
use vnetpool_tests::control_plane::ControlPlane;
use vnetpool_tests::wait::patience;

/// A test by its name.
pub struct Test {
    name: &'static str,
    run: for<'a> fn(&'a ControlPlane) -> BoxFuture<'a, Result<()>>,
}

impl Test {
    fn trial(&self, planes: &Arc<Planes>, longest: Duration) -> Trial {
        // The binary's own name shows nothing.
        let name = self.name.split_once("::").map_or(self.name, |(_, name)| name);
        trial(name.to_owned(), planes, longest, self.run)
    }
}

fn trial(
    name: String,
    planes: &Arc<Planes>,
    longest: Duration,
    run: impl for<'a> Fn(&'a ControlPlane) -> BoxFuture<'a, Result<()>> + Send + 'static,
) -> Trial {
    let planes = Arc::clone(planes);
    Trial::test(name.clone(), move || {
        let begun = Instant::now();
        let outcome = planes.run(longest, run).map_err(|error| format!("{error:#}").into());
        lock(&planes.took).push((begun.elapsed(), name));
        outcome
    })
}

/// The tests of a module: `tests![a_sentence, another]` as the value of its `pub const TESTS: &[Test]`, or of
/// `LONG` for those that take more than 40 s.
macro_rules! tests {
    ($($test:ident),* $(,)?) => {
        &[$($crate::Test { name: concat!(module_path!(), "::", stringify!($test)), run: |plane| Box::pin($test(plane)) }),*]
    };
}
pub(crate) use tests;

/// No other test takes longer than this on a machine that does nothing else.
const LONGEST: Duration = Duration::from_secs(180);
/// So many run at once for each core: almost all that they do is to wait, for Azure's writes and the
/// operator's pauses.
const PER_CORE: usize = 2;
/// So many if none of them takes long: with `CONDUCT=short`, as a check before a review has it.
const SHORT_PER_CORE: usize = 4;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let is_short = std::env::var_os("CONDUCT").is_some_and(|which| which == "short");
    let per_core = if is_short { SHORT_PER_CORE } else { PER_CORE };
    arguments.test_threads = arguments.test_threads.or(Some(per_core * cores));
    if std::env::var_os("RUST_LOG").is_some() {
        vnetpool_process::log::init(vnetpool_process::log::LogFormat::Text);
    }
    let planes = Arc::new(Planes::default());
    let further = match hostile::further_seeds() {
        Ok(seeds) => seeds,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let of_seed = |seed: u64| {
        let of_scene = |scene: hostile::Scene| {
            let name = format!("hostile::seed_{seed}{}", scene.suffix());
            trial(name, &planes, hostile::LONGEST, move |plane| {
                Box::pin(hostile::survive(plane, seed, scene))
            })
        };
        let garbage = trial(format!("garbage::seed_{seed}"), &planes, garbage::LONGEST, move |plane| {
            Box::pin(garbage::survive(plane, seed))
        });
        let replayed = trial(format!("replayed::seed_{seed}"), &planes, LONGEST, move |plane| {
            Box::pin(replayed::replay(plane, seed))
        });
        hostile::Scene::ALL.map(of_scene).into_iter().chain([garbage, replayed])
    };
    // Those that take minutes.
    let nightly = std::env::var_os("NIGHTLY").map(|_| [silent::TESTS, pruned::NIGHTLY]).unwrap_or_default();
    let nightly = nightly.into_iter().flatten().map(|test| test.trial(&planes, silent::LONGEST));
    let long = |lists: &[&'static [Test]]| -> Vec<&'static Test> {
        lists.iter().filter(|_| !is_short).copied().flatten().collect()
    };
    let beginning = [
        budget::LONG,
        habits::LONG,
        outlived::LONG,
        pruned::LONG,
        quiet::LONG,
        scarce::LONG,
        shortage::LONG,
        subnets::LONG,
    ];
    let usual = [
        attachments::TESTS,
        public_addresses::TESTS,
        between::TESTS,
        budget::TESTS,
        churn::TESTS,
        concurrency::TESTS,
        cost::TESTS,
        dry_run::TESTS,
        edits::TESTS,
        finding::TESTS,
        groups::TESTS,
        habits::TESTS,
        identity::TESTS,
        inspected::TESTS,
        lost::TESTS,
        machines::TESTS,
        wiped::TESTS,
        absent::TESTS,
        migrations::TESTS,
        modes::TESTS,
        left_alone::TESTS,
        networks::TESTS,
        nics::TESTS,
        operations::TESTS,
        metadata::TESTS,
        overdue::TESTS,
        paused::TESTS,
        quiet::TESTS,
        refused::TESTS,
        regained::TESTS,
        replayed::TESTS,
        reported::TESTS,
        restored::TESTS,
        rollout::TESTS,
        routes::TESTS,
        shortage::TESTS,
        standby::TESTS,
        subnets::TESTS,
        unreadable::TESTS,
        unsupplied::TESTS,
        // At the end the operators have most processor time, and these measure how soon they are back.
        disturbed::TESTS,
    ];
    let trials = long(&beginning).into_iter().chain(usual.into_iter().flatten());
    let trials = trials.chain(long(&[disturbed::LONG, secluded::LONG]));
    let trials = trials.map(|test| test.trial(&planes, LONGEST));
    // The longest begin first, so that nothing waits for them at the end.
    let longest = [(hostile::LONG, hostile::LONGEST), (garbage::LONG, garbage::LONGEST)];
    let longest = longest.into_iter().filter(|_| !is_short);
    let longest = longest.flat_map(|(tests, limit)| tests.iter().map(move |test| (test, limit)));
    let longest = longest.map(|(test, limit)| test.trial(&planes, limit));
    let further = further.into_iter().flat_map(of_seed).chain(nightly);
    let trials = longest.chain(further).chain(trials).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    planes.report();
    // Taken down here, not when the process ends.
    drop(planes);
    conclusion.exit_code()
}

/// API servers that no test is using; one comes up when there is none.
#[derive(Default)]
struct Planes {
    idle: Mutex<Vec<ControlPlane>>,
    made: AtomicUsize,
    /// How long each test that has ended took.
    took: Mutex<Vec<(Duration, String)>>,
}

impl Planes {
    /// Runs a test on a server. All its tasks have ended when this returns.
    fn run(
        &self,
        longest: Duration,
        run: impl for<'a> Fn(&'a ControlPlane) -> BoxFuture<'a, Result<()>>,
    ) -> Result<()> {
        let idle = || lock(&self.idle);
        let waiting = idle().pop();
        let plane = match waiting {
            Some(plane) => plane,
            None => ControlPlane::up(&format!("conduct-{}", self.made.fetch_add(1, Ordering::Relaxed)))?,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let outcome = runtime.block_on(async { tokio::time::timeout(patience(longest), run(&plane)).await });
        drop(runtime);
        idle().push(plane);
        outcome?
    }

    /// Prints where the time went.
    fn report(&self) {
        let mut took = std::mem::take(&mut *lock(&self.took));
        took.sort_unstable_by(|one, other| other.cmp(one));
        let sum: Duration = took.iter().map(|(took, _)| took).sum();
        println!("{} tests took {} s in sum, the longest of them:", took.len(), sum.as_secs());
        for (took, name) in took.iter().take(20) {
            println!("{:5.1} s  {name}", took.as_secs_f64());
        }
    }
}
