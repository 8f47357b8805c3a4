//! Tests that come one after the other on one world, which the first of them makes.

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;

/// All of a program's tests; [`chapters`](crate::chapters!) makes them from a list.
pub struct Chapters<W> {
    runtime: Arc<Runtime>,
    /// Made once, also when that fails: the other chapters would fail in the same way, only later.
    world: Arc<OnceCell<Result<W, String>>>,
    trials: Vec<Trial>,
}

impl<W: Send + Sync + 'static> Chapters<W> {
    /// # Errors
    /// When no runtime can be had.
    pub fn new() -> Result<Self> {
        Ok(Self { runtime: Arc::new(Runtime::new()?), world: Arc::default(), trials: vec![] })
    }

    /// `path` is how the chapter is named in the source.
    pub fn add(
        &mut self,
        path: &str,
        make: impl AsyncFn() -> Result<W> + Send + 'static,
        chapter: impl AsyncFn(&W) -> Result<()> + Send + 'static,
    ) {
        let (runtime, world) = (Arc::clone(&self.runtime), Arc::clone(&self.world));
        self.trials.push(Trial::test(path.replace(' ', ""), move || {
            let begun = Instant::now();
            let outcome = runtime.block_on(async {
                let made = world.get_or_init(|| async { make().await.map_err(|error| format!("{error:#}")) });
                chapter(made.await.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?).await
            });
            println!("{:.1} s", begun.elapsed().as_secs_f64());
            outcome.map_err(|error| {
                // Now, not when all is over: what comes after may take long.
                eprintln!("{error:#}");
                Failed::from(format!("{error:#}"))
            })
        }));
    }

    /// Runs those that the program's arguments ask for.
    pub fn run(self) -> ExitCode {
        let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
        let conclusion = libtest_mimic::run(&arguments, self.trials);
        // Taken down here, not when the process ends: nothing drops what a thread of the runtime may still hold.
        drop(self.world);
        conclusion.exit_code()
    }
}

/// Runs these tests, each an `async fn(&World) -> Result<()>`, on what `async fn() -> Result<World>` makes. Gives the exit code.
#[macro_export]
macro_rules! chapters {
    ($make:path; $($chapter:path),* $(,)?) => {{
        let mut chapters = $crate::chapters::Chapters::new()?;
        $(chapters.add(stringify!($chapter), $make, $chapter);)*
        Ok(chapters.run())
    }};
}
