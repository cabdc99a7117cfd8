//! When to try again: exponential backoff and jitter, as pure functions.

use std::time::Duration;

/// First delay after a failure.
const FIRST: Duration = Duration::from_secs(1);
/// Longest delay: a verifier that returns finds every guest within half a minute.
const LONGEST: Duration = Duration::from_secs(30);

/// Delay before try number `failures + 1`, where `random` spreads it over the
/// upper half of the exponential step, so that guests do not come in waves.
pub fn retry_delay(failures: u32, random: u32) -> Duration {
    let step = FIRST
        .saturating_mul(2u32.saturating_pow(failures.saturating_sub(1)))
        .min(LONGEST);
    let half = step / 2;
    half + half.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// Delay before the next regular attestation: the interval ±10 %. An interval
/// of zero counts as one second.
pub fn interval_delay(interval_seconds: u32, random: u32) -> Duration {
    let interval = Duration::from_secs(u64::from(interval_seconds.max(1)));
    interval.mul_f64(0.9 + 0.2 * f64::from(random) / f64::from(u32::MAX))
}

/// Delay after failed re-attestation number `failures`: never later than the
/// next regular one would have been.
pub fn reattest_delay(interval_seconds: u32, failures: u32, random: u32) -> Duration {
    retry_delay(failures, random).min(interval_delay(interval_seconds, random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let most = |failures| retry_delay(failures, u32::MAX).as_secs_f64().round();
        let got: Vec<_> = (1..=7).map(most).collect();
        assert_eq!(got, [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
        assert_eq!(retry_delay(u32::MAX, 0), LONGEST / 2);
    }

    #[test]
    fn jitter_stays_in_its_bounds() {
        for random in [0, 1, u32::MAX / 2, u32::MAX] {
            let delay = interval_delay(60, random).as_secs_f64();
            assert!((54.0..=66.0).contains(&delay), "{delay}");
            assert!(reattest_delay(2, 9, random) <= Duration::from_millis(2200));
        }
        assert!(interval_delay(0, 0) >= Duration::from_millis(900));
    }
}
