//! The end of a build that is asked to end: SIGTERM, as a Job's pod gets it when it is
//! deleted. The first process of a container has no such end by itself.
//!
//! # Guarantees
//! Nothing is published after SIGTERM, or everything. A registry collects blobs that
//! no manifest names; temporary files have no name.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread;

use anyhow::{Context as _, Result};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

/// Exit status of what SIGTERM ended, as a shell tells it.
const EXIT_TERMINATED: i32 = 128 + 15;

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// By itself.
    Done,
    /// Because it was asked to.
    Terminated,
}

/// Ends the process when it is asked to.
pub(super) struct Ending(Arc<OnceLock<End>>);

impl Ending {
    /// Ends this process from now on when it is asked to, and tells `result_file`.
    ///
    /// # Errors
    /// When signals cannot be handled.
    pub(super) fn watch(result_file: Option<PathBuf>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the async runtime")?;
        let mut terminate = {
            let _here = runtime.enter();
            signal(SignalKind::terminate()).context("cannot handle SIGTERM")?
        };
        let end = Arc::new(OnceLock::new());
        let decided = Arc::clone(&end);
        thread::spawn(move || {
            let asked = runtime.block_on(terminate.recv()).is_some();
            // What is being published takes milliseconds, and then the process ends.
            if !asked || *decided.get_or_init(|| End::Terminated) == End::Done {
                return;
            }
            let words = "the build was asked to end (SIGTERM), and nothing is published";
            eprintln!("error: {words}");
            if let Some(path) = result_file {
                let _nobody_reads_it = fs::write(path, json!({ "error": words }).to_string());
            }
            std::process::exit(EXIT_TERMINATED);
        });
        Ok(Self(end))
    }

    /// From here on the process ends by itself. Does not return where it is being
    /// ended.
    pub(super) fn too_late(&self) {
        while *self.0.get_or_init(|| End::Done) == End::Terminated {
            thread::park();
        }
    }
}
