//! Steps of a command, on standard error.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use assay_registry::TransferProgress;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};

const SPINNER: &str = "{spinner} {msg}";
const TRANSFER: &str =
    "{spinner} {msg} {bar:24} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";

/// How to show progress.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum ProgressMode {
    /// A bar on a terminal, lines elsewhere
    #[default]
    Auto,
    /// A line per step
    Plain,
    /// A bar that shows the current step
    Bar,
}

pub(crate) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn new(mode: ProgressMode) -> Self {
        let bar = match mode {
            ProgressMode::Auto => std::io::stderr().is_terminal(),
            ProgressMode::Plain => false,
            ProgressMode::Bar => true,
        };
        Self {
            bar: bar.then(ProgressBar::new_spinner),
        }
    }

    pub(crate) fn step(&self, name: &str) -> Step<'_> {
        match &self.bar {
            Some(bar) => {
                bar.set_style(style(SPINNER));
                bar.set_message(name.to_owned());
                bar.enable_steady_tick(Duration::from_millis(100));
            }
            None => eprintln!("{name}"),
        }
        Step {
            progress: self,
            name: name.to_owned(),
            started: Instant::now(),
            transferred: AtomicU64::new(0),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    // A template that is none would be a spinner, which a test would notice.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// A step under way.
pub(crate) struct Step<'a> {
    progress: &'a Progress,
    name: String,
    started: Instant,
    transferred: AtomicU64,
}

impl Step<'_> {
    pub(crate) fn done(self) {
        let seconds = self.started.elapsed().as_secs_f64();
        let size = match self.transferred.into_inner() {
            0 => String::new(),
            bytes => format!("{}, ", indicatif::BinaryBytes(bytes)),
        };
        match &self.progress.bar {
            Some(bar) => bar.println(format!("{} ({size}{seconds:.1} s)", self.name)),
            None => eprintln!("  done: {size}{seconds:.1} s"),
        }
    }
}

impl TransferProgress for Step<'_> {
    fn expect(&self, bytes: u64) {
        if let Some(bar) = &self.progress.bar {
            bar.set_length(bytes);
            bar.set_position(0);
            bar.set_style(style(TRANSFER));
        }
    }

    fn advance(&self, bytes: u64) {
        self.transferred.fetch_add(bytes, Ordering::Relaxed);
        if let Some(bar) = &self.progress.bar {
            bar.inc(bytes);
        }
    }

    fn retreat(&self, bytes: u64) {
        self.transferred.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(bar) = &self.progress.bar {
            bar.dec(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_templates() {
        for template in [SPINNER, TRANSFER] {
            ProgressStyle::with_template(template).unwrap();
        }
    }
}
