//! Waiting for conditions of a cluster.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::kubectl::Kubectl;

/// Pause between two looks. Short, because latencies are reported.
const INTERVAL: Duration = Duration::from_millis(200);

/// Looks until `look` finds something, and says how long it took.
///
/// # Errors
/// When `look` fails, or when `deadline` passes; then the state of `namespace`
/// is printed first.
pub fn until<T>(
    kubectl: &Kubectl,
    namespace: &str,
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<(T, Duration)> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok((found, start.elapsed()));
        }
        if start.elapsed() > deadline {
            kubectl.print_state(namespace);
            bail!(
                "waited {} s in vain for {what} in namespace {namespace}",
                deadline.as_secs()
            );
        }
        std::thread::sleep(INTERVAL);
    }
}
