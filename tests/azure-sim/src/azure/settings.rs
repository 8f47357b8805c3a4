//! Settings of simulated Azure that its admin may change while it runs.

use super::{Azure, Error, lock};
use crate::imds;
use serde::Deserialize;
use std::time::Duration;

/// The settings that can be changed while it runs: `PATCH /settings`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub write_seconds: Option<f64>,
    pub synchronous: Option<bool>,
    pub probe_seconds: Option<f64>,
    pub limits: Option<bool>,
    /// Whether the metadata service freezes its listing of NICs when this is set. Azure publishes no figure
    /// for how long a change takes to appear there, so the test decides when it has.
    pub metadata_lags: Option<bool>,
}

impl Azure {
    /// # Errors
    /// When `write_seconds` or `probe_seconds` is not a time.
    pub fn set(&self, settings: &Settings) -> Result<(), Error> {
        let Settings { write_seconds, probe_seconds, synchronous, limits, metadata_lags } = settings;
        for seconds in [write_seconds, probe_seconds].into_iter().flatten() {
            if Duration::try_from_secs_f64(*seconds).is_err() {
                return Err(Error::Conflict(format!("{seconds} is not a number of seconds from 0")));
            }
        }
        let mut world = lock(&self.world);
        world.config.probe_seconds = probe_seconds.unwrap_or(world.config.probe_seconds);
        world.config.write_seconds = write_seconds.unwrap_or(world.config.write_seconds);
        world.config.synchronous = synchronous.unwrap_or(world.config.synchronous);
        world.config.limits = limits.unwrap_or(world.config.limits);
        if let Some(lags) = metadata_lags {
            world.stale = lags.then(|| imds::listed(&world));
        }
        Ok(())
    }
}
