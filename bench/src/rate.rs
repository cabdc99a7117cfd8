//! How often something can be done in a second.

use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::time::ClockId;

use crate::table::median;

/// As often as a median needs.
const ROUNDS: usize = 9;

/// Units per second of `work`, which does `units`, by the median. The processor's
/// time counts, as it does in `openssl speed`.
pub(crate) fn rate(units: usize, work: impl Fn()) -> Result<f64> {
    let [rate] = rates_in_turn(units, [&work])?;
    Ok(rate)
}

/// As [`rate`], of several works in turn, so that all meet the same noise.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub(crate) fn rates_in_turn<const WORKS: usize>(
    units: usize,
    works: [&dyn Fn(); WORKS],
) -> Result<[f64; WORKS]> {
    let mut times = [const { Vec::new() }; WORKS];
    for _ in 0..ROUNDS {
        for (work, times) in works.iter().zip(&mut times) {
            let start = processor_time()?;
            work();
            times.push(processor_time()?.saturating_sub(start));
        }
    }
    Ok(times.map(|times| units as f64 / median(times).as_secs_f64()))
}

fn processor_time() -> Result<Duration> {
    let time = ClockId::CLOCK_THREAD_CPUTIME_ID.now();
    Ok(time.context("read the processor's clock")?.into())
}
