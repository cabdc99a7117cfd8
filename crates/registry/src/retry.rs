//! Trying again what fails for a while: registries restart, and ask for patience.

use std::future::Future;
use std::time::Duration;

use crate::error::RequestError;

/// Times that a request is made.
pub(crate) const ATTEMPTS: u32 = 5;
/// Pause after the first failure. It doubles: four pauses take 7.5 s.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause that a registry gets where it asks for one (`Retry-After`). Who asks
/// for more is asked again by whoever wanted the image, not from here.
const MAX_PAUSE: Duration = Duration::from_mins(1);

/// Makes a request until it succeeds, is refused, or has failed [`ATTEMPTS`] times.
pub(crate) async fn retried<T, F>(mut request: impl FnMut() -> F) -> Result<T, RequestError>
where
    F: Future<Output = Result<T, RequestError>>,
{
    let mut attempt = 1;
    loop {
        let error = match request().await {
            Err(error) if attempt < ATTEMPTS && error.is_transient() => error,
            result => return result,
        };
        match pause(attempt, error.retry_after()) {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return Err(error),
        }
        attempt += 1;
    }
}

/// How long to wait after so many failures. `None` where the registry asks for more
/// time than it gets.
pub(crate) fn pause(failures: u32, retry_after: Option<Duration>) -> Option<Duration> {
    let factor = 2_u32.saturating_pow(failures.saturating_sub(1));
    let own = FIRST_PAUSE.saturating_mul(factor);
    match retry_after {
        None => Some(own),
        Some(asked) => (asked <= MAX_PAUSE).then_some(asked.max(own)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_gets_the_pause_it_asks_for_within_bounds() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(pause(1, None), Some(FIRST_PAUSE));
        assert_eq!(pause(4, None), seconds(4));
        assert_eq!(pause(1, seconds(7)), seconds(7));
        assert_eq!(pause(4, seconds(0)), seconds(4));
        assert_eq!(pause(1, seconds(60)), seconds(60));
        assert_eq!(pause(1, seconds(61)), None);
    }
}
