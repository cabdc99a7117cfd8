//! Results as people read them.

use std::time::Duration;

/// Prints a benchmark's name.
pub(crate) fn heading(text: &str) {
    println!("\n## {text}\n");
}

/// Prints a line of ours and a peer's, and their ratio: how many times less time
/// (or memory) ours takes.
pub(crate) fn compare(what: &str, ours: &str, peer: &str, ratio: f64) {
    println!("{what:<44} ours {ours:>12}   peer {peer:>12}   {ratio:>7.2} x");
}

/// Prints a line without a peer.
pub(crate) fn figure(what: &str, ours: &str) {
    println!("{what:<44} ours {ours:>12}");
}

/// Says why something is left out.
pub(crate) fn skipped(what: &str, why: &str) {
    println!("{what:<44} skipped: {why}");
}

/// A duration in the unit that suits it.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds >= 1.0 {
        format!("{seconds:.2} s")
    } else if seconds >= 1e-3 {
        format!("{:.2} ms", seconds * 1e3)
    } else {
        format!("{:.1} us", seconds * 1e6)
    }
}

/// Bytes in MiB.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// The middle one of some durations; zero of none.
pub(crate) fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort_unstable();
    durations
        .get(durations.len() / 2)
        .copied()
        .unwrap_or_default()
}

/// The percentile of durations in ascending order; zero of none.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}
