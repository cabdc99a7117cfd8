//! Steps of a command, on standard error, and for whoever asks.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use assay_crds::v1alpha1::measured_image::{BuildPhase, BuildStatus};
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
    state: Arc<Mutex<BuildStatus>>,
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
            state: Arc::new(Mutex::new(BuildStatus::at(BuildPhase::Running))),
        }
    }

    /// How far it is, now and later.
    pub(crate) fn state(&self) -> Arc<Mutex<BuildStatus>> {
        Arc::clone(&self.state)
    }

    /// Enters a phase of a build.
    pub(crate) fn enter(&self, phase: BuildPhase) {
        self.set(BuildStatus::at(phase));
    }

    fn set(&self, state: BuildStatus) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Begins a step.
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
            phase: None,
            name: name.to_owned(),
            started: Instant::now(),
            expected: AtomicU64::new(0),
            transferred: AtomicU64::new(0),
        }
    }

    /// Begins a step that is a phase of a build.
    pub(crate) fn phase(&self, phase: BuildPhase, name: &str) -> Step<'_> {
        self.enter(phase);
        Step {
            phase: Some(phase),
            ..self.step(name)
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
    phase: Option<BuildPhase>,
    name: String,
    started: Instant,
    expected: AtomicU64,
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

    fn publish(&self) {
        if let Some(phase) = self.phase {
            let transferred = self.transferred.load(Ordering::Relaxed);
            let expected = self.expected.load(Ordering::Relaxed);
            let state = BuildStatus::transfer(phase, transferred, expected);
            self.progress.set(state);
        }
    }
}

impl TransferProgress for Step<'_> {
    fn expect(&self, bytes: u64) {
        self.expected.fetch_add(bytes, Ordering::Relaxed);
        self.publish();
        if let Some(bar) = &self.progress.bar {
            bar.set_length(bytes);
            bar.set_position(0);
            bar.set_style(style(TRANSFER));
        }
    }

    fn advance(&self, bytes: u64) {
        self.transferred.fetch_add(bytes, Ordering::Relaxed);
        self.publish();
        if let Some(bar) = &self.progress.bar {
            bar.inc(bytes);
        }
    }

    fn retreat(&self, bytes: u64) {
        self.transferred.fetch_sub(bytes, Ordering::Relaxed);
        self.publish();
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

    #[test]
    fn a_phase_that_transfers_says_how_much() {
        let progress = Progress::new(ProgressMode::Plain);
        let state = progress.state();
        let now = || *state.lock().unwrap();
        let step = progress.phase(BuildPhase::PullingRootfs, "pull");
        assert_eq!(now(), BuildStatus::at(BuildPhase::PullingRootfs));
        step.expect(200);
        step.advance(100);
        step.retreat(50);
        let transfer = BuildStatus::transfer(BuildPhase::PullingRootfs, 50, 200);
        assert_eq!(now(), transfer);
        assert_eq!(transfer.percent, Some(25));
        // A step that is no phase says nothing.
        progress.step("other").advance(7);
        assert_eq!(now(), transfer);
        progress.enter(BuildPhase::Uki);
        assert_eq!(now(), BuildStatus::at(BuildPhase::Uki));
    }
}
