//! Pulls and pushes OCI images by digest.
//!
//! A registry is not trusted: every byte that is taken from it is checked
//! against the digest that named it, and a reference with a digest never yields
//! anything else. A reference by tag is a question ("what is it now?"), whose
//! answer names the digest.

mod auth;
mod cache;
mod docker_config;
mod error;
mod image;
mod layout;
mod partial;
mod progress;
mod pull;
mod push;
mod referrers;
mod retry;
mod scratch;
mod transport;

use oci_spec::distribution::Reference;

use crate::pull::Session;
use crate::transport::Transport;

pub use cache::{BlobCache, CacheError};
pub use docker_config::{DockerConfig, LoadDockerConfigError, ParseDockerConfigError};
pub use error::{RegistryError, RequestError};
pub use image::{LayerMediaTypeError, Pulled};
pub use layout::{
    LayoutWriter, ReadLayoutError, WriteLayoutError, is_layout, list_layout, read_layout,
};
pub use progress::{NoProgress, TransferProgress};
pub use referrers::{Referrer, Subject};
pub use scratch::{Scratch, ScratchError};

/// Layers that are transferred at the same time.
const CONCURRENT_BLOBS: usize = 4;

/// How to reach registries.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// Hosts (`host` or `host:port`) that speak plain HTTP. All others must
    /// speak HTTPS with a certificate that public or system roots vouch for.
    pub plain_http_hosts: Vec<String>,
    /// Credentials.
    pub docker_config: Option<DockerConfig>,
    /// Where layers are kept that were pulled; in memory, unless there is a place.
    pub scratch: Option<Scratch>,
}

/// A client for all registries.
#[derive(Clone)]
pub struct Registry {
    transport: Transport,
    scratch: Option<Scratch>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

impl Registry {
    /// A client. It opens no connection yet.
    ///
    /// # Errors
    /// When the TLS client cannot be built.
    pub fn new(options: RegistryOptions) -> Result<Self, RegistryError> {
        let docker_config = options.docker_config.unwrap_or_default();
        Ok(Self {
            transport: Transport::new(options.plain_http_hosts, docker_config)
                .map_err(RegistryError::Client)?,
            scratch: options.scratch,
        })
    }

    /// The same client under other credentials. Neither ever uses the other's.
    #[must_use]
    pub fn with_credentials(&self, docker_config: DockerConfig) -> Self {
        Self {
            transport: self.transport.with_credentials(docker_config),
            scratch: self.scratch.clone(),
        }
    }

    /// Pulls an image for linux/amd64 into memory or the scratch directory.
    ///
    /// # Errors
    /// When the registry refuses it, keeps failing, or sends something else.
    pub async fn pull(&self, reference: &str) -> Result<Pulled, RegistryError> {
        self.pull_with(reference, None, &NoProgress).await
    }

    /// Pulls an image for linux/amd64, through a cache where there is one: what it
    /// has is not transferred, and what broke off goes on. With everything there and
    /// a reference by digest, nobody is asked at all.
    ///
    /// # Errors
    /// As [`Registry::pull`]. What came until a transfer broke off for good is kept
    /// in the cache.
    pub async fn pull_with(
        &self,
        reference: &str,
        cache: Option<&BlobCache>,
        progress: &dyn TransferProgress,
    ) -> Result<Pulled, RegistryError> {
        let session = Session {
            registry: self,
            name: reference,
            reference: &parse_reference(reference)?,
            cache,
            progress,
        };
        session.pull().await
    }
}

fn parse_reference(reference: &str) -> Result<Reference, RegistryError> {
    reference
        .parse()
        .map_err(|source| RegistryError::ParseReference {
            reference: reference.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests;
