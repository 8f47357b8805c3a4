//! Tests that come one after the other, each on a world that the first of them makes. They need no order, and
//! any of them can run alone: each makes the objects that it needs, unless they are there, and leaves the
//! world so that another can begin. With `CHAPTERS=backwards` in the environment the last comes first. A
//! world in which a chapter has failed is made anew for the next one: the remains of the failure would only
//! fail others.

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Failed, Trial};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

/// All of a program's tests; [`chapters`](crate::chapters!) makes them from a list.
pub struct Chapters<W> {
    runtime: Arc<Runtime>,
    /// There is one world at a time.
    world: Arc<Mutex<Option<Made<W>>>>,
    trials: Vec<Trial>,
}

/// The error by which a chapter reports that its world lacks something that can't be brought back: it is run
/// again in a new one, once.
#[derive(Debug)]
pub struct Anew(pub String);

impl std::fmt::Display for Anew {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "the world has to be made anew: {}", self.0)
    }
}

impl std::error::Error for Anew {}

/// A world of this name. Made once, also when that fails: the other chapters would fail in the same way, only
/// later.
struct Made<W> {
    name: Option<&'static str>,
    outcome: Result<W, String>,
}

impl<W: Send + 'static> Chapters<W> {
    /// # Errors
    /// When no runtime can be had.
    pub fn new() -> Result<Self> {
        Ok(Self { runtime: Arc::new(Runtime::new()?), world: Arc::default(), trials: vec![] })
    }

    /// `world` is the name of the chapter's world where there are several: one that is there under another
    /// name is taken down before this one is made. `path` is how the chapter is named in the source.
    pub fn add(
        &mut self,
        world: Option<&'static str>,
        path: &str,
        make: impl AsyncFn() -> Result<W> + Send + 'static,
        chapter: impl AsyncFn(&W) -> Result<()> + Send + 'static,
    ) {
        let (runtime, there) = (Arc::clone(&self.runtime), Arc::clone(&self.world));
        let name = Vec::from_iter(world.into_iter().chain([path])).join("::");
        self.trials.push(Trial::test(name.replace(' ', ""), move || {
            let begun = Instant::now();
            let outcome = runtime.block_on(async {
                let mut there = there.lock().await;
                for attempt in 0.. {
                    if there.as_ref().is_none_or(|made| made.name != world) {
                        *there = None;
                        let outcome = make().await.map_err(|error| format!("{error:#}"));
                        *there = Some(Made { name: world, outcome });
                    }
                    let made = there.as_ref().context("no world")?;
                    let made = made.outcome.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
                    let outcome = chapter(made).await;
                    if outcome.is_err() {
                        *there = None;
                    }
                    if attempt > 0 || outcome.as_ref().map_or_else(|error| !error.is::<Anew>(), |()| true) {
                        return outcome;
                    }
                }
                Ok(())
            });
            println!("{:.1} s", begun.elapsed().as_secs_f64());
            outcome.map_err(|error| {
                // Now, not when all is over: the next chapters may take long.
                eprintln!("{error:#}");
                Failed::from(format!("{error:#}"))
            })
        }));
    }

    /// Runs those that the program's arguments name.
    pub fn run(mut self) -> ExitCode {
        if backwards() {
            self.trials.reverse();
        }
        let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
        let conclusion = libtest_mimic::run(&arguments, self.trials);
        // Taken down here, not when the process ends: nothing drops what a thread of the runtime may still
        // hold.
        drop(self.world);
        conclusion.exit_code()
    }
}

/// Whether chapters are asked for that keep the machine busy for minutes: `make nightly` sets `NIGHTLY`.
pub fn is_nightly() -> bool {
    std::env::var_os("NIGHTLY").is_some()
}

/// Whether the last chapter is to come first: so it shows which of them needs another one before.
pub fn backwards() -> bool {
    std::env::var_os("CHAPTERS").is_some_and(|order| order == "backwards")
}

/// Runs these tests, each an `async fn(&World) -> Result<()>`, on the result of `async fn() ->
/// Result<World>`. Returns the exit code. With [`Chapters`], or these and the name of one of several worlds,
/// before that it only adds them.
#[macro_export]
macro_rules! chapters {
    ($make:path; $($chapter:path),* $(,)?) => {{
        let mut chapters = $crate::chapters::Chapters::new()?;
        $crate::chapters![chapters, $make; $($chapter),*];
        Ok(chapters.run())
    }};
    ($chapters:ident, $make:path; $($chapter:path),* $(,)?) => {
        $($chapters.add(None, stringify!($chapter), $make, $chapter);)*
    };
    ($chapters:ident, $world:expr, $make:expr; $($chapter:path),* $(,)?) => {
        $($chapters.add(Some($world), stringify!($chapter), $make, $chapter);)*
    };
}
