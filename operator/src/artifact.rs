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
use crate::pull_secret::{Credentials, PullSecret, PullSecretError, PullSecrets};

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
/// Longest delay that a registry gets where it asks for one.
const LONGEST_RETRY_AFTER: Duration = Duration::from_hours(1);

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

/// An artifact and what it is pulled with. What somebody has read with a Secret is
/// not shown to who names none, or another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    reference: String,
    secret: Option<PullSecret>,
}

/// Reads artifacts, each once.
#[derive(Clone)]
pub struct Artifacts {
    registry: Registry,
    secrets: PullSecrets,
    scratch: Scratch,
    slots: Arc<Semaphore>,
    entries: Arc<Mutex<HashMap<Key, Entry>>>,
}

/// An artifact could not be read.
#[derive(Debug, thiserror::Error)]
enum ReadArtifactError {
    #[error("cannot pull the artifact")]
    Pull(#[source] RegistryError),
    #[error(
        "cannot pull the artifact without credentials; if it is private, name a Secret in spec.pullSecretRef"
    )]
    Refused(#[source] RegistryError),
    #[error("cannot pull the artifact without credentials, and {remedy}")]
    Withheld {
        remedy: String,
        #[source]
        source: Box<RegistryError>,
    },
    #[error("cannot get the right to pull the artifact")]
    Secret(#[source] PullSecretError),
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
            Self::Pull(_)
            | Self::Refused(_)
            | Self::Secret(PullSecretError::Read { .. })
            | Self::Scratch(ScratchError::File { .. }) => Reason::PullFailed,
            Self::Withheld { .. } | Self::Secret(_) => Reason::PullSecretUnusable,
            Self::MediaType(_) | Self::Scratch(ScratchError::Uncompress(_)) | Self::Read(_) => {
                Reason::ArtifactInvalid
            }
        }
    }

    /// How long the registry asks to be left alone.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Pull(error) => error.retry_after(),
            _ => None,
        }
    }
}

impl Artifacts {
    /// A reader that pulls from `registry`, with the credentials that `secrets` gives,
    /// and keeps in `scratch` what it reads.
    pub fn new(registry: Registry, secrets: PullSecrets, scratch: Scratch) -> Self {
        Self {
            registry,
            secrets,
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
        secret: Option<PullSecret>,
        now: Timestamp,
        when_read: impl FnOnce() + Send + 'static,
    ) -> ArtifactState {
        let key = Key {
            reference: reference.to_owned(),
            secret,
        };
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = match entries.get_mut(&key) {
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
        entries.insert(key.clone(), Entry::Pulling { waiting, failures });
        drop(entries);
        let reader = self.clone();
        let runtime = Handle::current();
        // On a thread of its own: hashing a disk takes as long as pulling it.
        tokio::task::spawn_blocking(move || {
            let result = runtime.block_on(reader.read(&key));
            reader.finish(key, result, Timestamp::now());
        });
        ArtifactState::Pulling
    }

    async fn read(&self, key: &Key) -> Result<MeasuredArtifact, ReadArtifactError> {
        let reference = key.reference.as_str();
        // The semaphore is never closed.
        let _slot = self.slots.acquire().await;
        tracing::info!(reference, "reading an artifact");
        let pulled = self.pull(key).await?;
        prepare(reference, &pulled, &self.scratch)
    }

    async fn pull(&self, key: &Key) -> Result<Pulled, ReadArtifactError> {
        let reference = key.reference.as_str();
        let Some(secret) = &key.secret else {
            let pulled = self.registry.pull(reference).await;
            return pulled.map_err(|error| {
                if error.is_refusal() {
                    ReadArtifactError::Refused(error)
                } else {
                    ReadArtifactError::Pull(error)
                }
            });
        };
        let credentials = self.secrets.read(secret).await;
        match credentials.map_err(ReadArtifactError::Secret)? {
            Credentials::Given(config) => {
                let registry = self.registry.with_credentials(config);
                let pulled = registry.pull(reference).await;
                pulled.map_err(ReadArtifactError::Pull)
            }
            // The artifact may be everybody's, and the Secret for who pushes it.
            Credentials::Withheld => {
                let pulled = self.registry.pull(reference).await;
                pulled.map_err(|error| {
                    if error.is_refusal() {
                        ReadArtifactError::Withheld {
                            remedy: self.secrets.remedy(secret),
                            source: Box::new(error),
                        }
                    } else {
                        ReadArtifactError::Pull(error)
                    }
                })
            }
        }
    }

    fn finish(
        &self,
        key: Key,
        result: Result<MeasuredArtifact, ReadArtifactError>,
        now: Timestamp,
    ) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let (waiting, failures) = match entries.remove(&key) {
            Some(Entry::Pulling { waiting, failures }) => (waiting, failures),
            _ => (Vec::new(), 0),
        };
        let entry = match result {
            Ok(artifact) => Entry::Measured(Arc::new(artifact)),
            Err(error) => {
                let delay = retry_delay(failures, error.retry_after());
                let message = chain(&error);
                tracing::warn!(
                    reference = key.reference,
                    error = message,
                    "cannot read an artifact"
                );
                Entry::Failed {
                    reason: error.reason(),
                    message,
                    retry_at: now.saturating_add(delay).unwrap_or(Timestamp::MAX),
                    failures: failures.saturating_add(1),
                }
            }
        };
        entries.insert(key, entry);
        drop(entries);
        for wake in waiting {
            wake();
        }
    }
}

/// How long to wait after one more than so many failures.
fn retry_delay(failures: u32, asked: Option<Duration>) -> Duration {
    let own = FIRST_RETRY
        .saturating_mul(2_u32.saturating_pow(failures))
        .min(LAST_RETRY);
    own.max(asked.unwrap_or_default().min(LONGEST_RETRY_AFTER))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_that_asks_for_time_gets_it_within_bounds() {
        let seconds = Duration::from_secs;
        for (failures, asked, delay) in [
            (0, None, FIRST_RETRY),
            (1, None, seconds(4)),
            (40, None, LAST_RETRY),
            (0, Some(seconds(90)), seconds(90)),
            (40, Some(seconds(90)), LAST_RETRY),
            (0, Some(seconds(100_000)), LONGEST_RETRY_AFTER),
        ] {
            assert_eq!(retry_delay(failures, asked), delay, "{failures} {asked:?}");
        }
    }
}
