//! Artifacts that were pulled, hashed and prepared for measuring.
//!
//! An artifact is named by digest, so what was once read of it stays true. What
//! is kept is small: its hashes, and the few hundred bytes that a launch digest
//! depends on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use assay_crds::v1alpha1::measured_image::MeasuredImageReason as Reason;
use assay_image::read::read_artifact;
use assay_registry::{LayerMediaTypeError, Pulled, Registry, RegistryError, Scratch, ScratchError};
use assay_workload::artifact::MeasuredArtifact;
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::causes::chain;

/// Artifacts that are read at the same time: each is kept on the scratch disk
/// meanwhile, and several together would need several times the room for no more
/// speed.
const CONCURRENT_READS: usize = 1;
/// Most artifacts that are remembered. Each takes about 2 KiB.
const MAX_REMEMBERED: usize = 4096;
/// Delay after the first failure to read; it doubles up to [`LAST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_secs(2);
/// Longest delay after a failure.
const LAST_RETRY: Duration = Duration::from_mins(5);

/// How far the reading of an artifact is.
#[derive(Debug, Clone)]
pub enum ArtifactState {
    /// It is being read.
    Pulling,
    /// It was read.
    Measured(Arc<MeasuredArtifact>),
    /// It could not be read.
    Failed {
        /// The cause.
        reason: Reason,
        /// The same, for a person.
        message: String,
        /// When it is tried again.
        retry_at: Timestamp,
    },
}

enum Entry {
    Pulling {
        waiting: Vec<Box<dyn FnOnce() + Send>>,
        failures: u32,
    },
    Measured(Arc<MeasuredArtifact>),
    Failed {
        reason: Reason,
        message: String,
        retry_at: Timestamp,
        failures: u32,
    },
}

/// Reads artifacts, each once.
#[derive(Clone)]
pub struct Artifacts {
    registry: Registry,
    scratch: Scratch,
    slots: Arc<Semaphore>,
    entries: Arc<Mutex<HashMap<String, Entry>>>,
}

/// An artifact could not be read.
#[derive(Debug, thiserror::Error)]
enum ReadArtifactError {
    #[error("cannot pull the artifact")]
    Pull(#[source] RegistryError),
    #[error("the artifact is not what it says")]
    MediaType(#[source] LayerMediaTypeError),
    #[error("cannot unpack the artifact")]
    Scratch(#[source] ScratchError),
    #[error("the artifact is not what it says")]
    Read(#[source] assay_image::read::ReadArtifactError),
}

impl ReadArtifactError {
    fn reason(&self) -> Reason {
        match self {
            Self::Pull(_) | Self::Scratch(ScratchError::File { .. }) => Reason::PullFailed,
            Self::MediaType(_) | Self::Scratch(ScratchError::Uncompress(_)) | Self::Read(_) => {
                Reason::ArtifactInvalid
            }
        }
    }
}

impl Artifacts {
    /// A reader that pulls from `registry`, and keeps in `scratch` what it reads.
    pub fn new(registry: Registry, scratch: Scratch) -> Self {
        Self {
            registry,
            scratch,
            slots: Arc::new(Semaphore::new(CONCURRENT_READS)),
            entries: Arc::default(),
        }
    }

    /// How far the artifact is. When it is not read yet, that begins, and
    /// `when_read` is called at its end, well or not.
    pub fn state(
        &self,
        reference: &str,
        now: Timestamp,
        when_read: impl FnOnce() + Send + 'static,
    ) -> ArtifactState {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = match entries.get_mut(reference) {
            Some(Entry::Measured(artifact)) => return ArtifactState::Measured(artifact.clone()),
            Some(Entry::Pulling { waiting, .. }) => {
                waiting.push(Box::new(when_read));
                return ArtifactState::Pulling;
            }
            Some(Entry::Failed {
                reason,
                message,
                retry_at,
                ..
            }) if *retry_at > now => {
                return ArtifactState::Failed {
                    reason: *reason,
                    message: message.clone(),
                    retry_at: *retry_at,
                };
            }
            Some(Entry::Failed { failures, .. }) => *failures,
            None => 0,
        };
        if entries.len() >= MAX_REMEMBERED {
            entries.retain(|_, entry| matches!(entry, Entry::Pulling { .. }));
        }
        let waiting: Vec<Box<dyn FnOnce() + Send>> = vec![Box::new(when_read)];
        entries.insert(reference.to_owned(), Entry::Pulling { waiting, failures });
        drop(entries);
        let reader = self.clone();
        let reference = reference.to_owned();
        let runtime = Handle::current();
        // On a thread of its own: hashing a disk takes as long as pulling it.
        tokio::task::spawn_blocking(move || {
            let result = runtime.block_on(reader.read(&reference));
            reader.finish(&reference, result, Timestamp::now());
        });
        ArtifactState::Pulling
    }

    async fn read(&self, reference: &str) -> Result<MeasuredArtifact, ReadArtifactError> {
        // The semaphore is never closed.
        let _slot = self.slots.acquire().await;
        tracing::info!(reference, "reading an artifact");
        let pulled = self
            .registry
            .pull(reference)
            .await
            .map_err(ReadArtifactError::Pull)?;
        prepare(reference, &pulled, &self.scratch)
    }

    fn finish(
        &self,
        reference: &str,
        result: Result<MeasuredArtifact, ReadArtifactError>,
        now: Timestamp,
    ) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let (waiting, failures) = match entries.remove(reference) {
            Some(Entry::Pulling { waiting, failures }) => (waiting, failures),
            _ => (Vec::new(), 0),
        };
        let entry = match result {
            Ok(artifact) => Entry::Measured(Arc::new(artifact)),
            Err(error) => {
                let delay = FIRST_RETRY
                    .saturating_mul(2_u32.saturating_pow(failures))
                    .min(LAST_RETRY);
                let message = chain(&error);
                tracing::warn!(reference, error = message, "cannot read an artifact");
                Entry::Failed {
                    reason: error.reason(),
                    message,
                    retry_at: now.saturating_add(delay).unwrap_or(Timestamp::MAX),
                    failures: failures.saturating_add(1),
                }
            }
        };
        entries.insert(reference.to_owned(), entry);
        drop(entries);
        for wake in waiting {
            wake();
        }
    }
}

/// Recomputes every hash of an artifact and keeps what measuring needs.
fn prepare(
    reference: &str,
    pulled: &Pulled,
    scratch: &Scratch,
) -> Result<MeasuredArtifact, ReadArtifactError> {
    let layers = pulled
        .stored_layers()
        .map_err(ReadArtifactError::MediaType)?;
    let layers = scratch
        .uncompress(layers)
        .map_err(ReadArtifactError::Scratch)?;
    let artifact = read_artifact(&pulled.config, &layers).map_err(ReadArtifactError::Read)?;
    Ok(MeasuredArtifact::of(reference, &artifact))
}
