//! Pulling: every step is verified against the digest that led to it.

use std::io;

use assay_image::oci::{Descriptor, ImageManifest, ManifestOrIndex, parse_manifest};
use assay_tee::Sha256Digest;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::{StatusCode, header};
use oci_spec::distribution::Reference;

use crate::auth::Operation;
use crate::cache::BlobCache;
use crate::layout::NESTED;
use crate::partial::PartialBlob;
use crate::progress::TransferProgress;
use crate::retry::{self, pause, retried};
use crate::transport::{failed, manifest_types};
use crate::{CONCURRENT_BLOBS, CacheError, Pulled, Registry, RegistryError, RequestError};

/// Largest manifest or index that is read: registries refuse larger ones.
const MAX_MANIFEST_LEN: usize = 4 << 20;
/// Largest image configuration that is read.
const MAX_CONFIG_LEN: u64 = 8 << 20;

/// One pull.
pub(crate) struct Session<'a> {
    pub(crate) registry: &'a Registry,
    /// As it was given.
    pub(crate) name: &'a str,
    pub(crate) reference: &'a Reference,
    pub(crate) cache: Option<&'a BlobCache>,
    pub(crate) progress: &'a dyn TransferProgress,
}

/// A manifest that was resolved for linux/amd64 and verified.
struct Resolved {
    /// What the reference named.
    digest: Sha256Digest,
    manifest_digest: Sha256Digest,
    manifest: ImageManifest,
    bytes: Bytes,
}

/// What an image has besides its manifest: the configuration, then the layers.
fn blobs_of(manifest: &ImageManifest) -> impl Iterator<Item = &Descriptor> {
    std::iter::once(&manifest.config).chain(&manifest.layers)
}

impl Session<'_> {
    pub(crate) async fn pull(&self) -> Result<Pulled, RegistryError> {
        let resolved = self.resolve().await?;
        let manifest = resolved.manifest;
        if manifest.config.size > MAX_CONFIG_LEN {
            return Err(self.too_large("configuration", MAX_CONFIG_LEN));
        }
        self.progress
            .expect(blobs_of(&manifest).map(|blob| blob.size).sum());
        let mut blobs: Vec<Bytes> = stream::iter(blobs_of(&manifest))
            .map(|descriptor| self.blob(descriptor))
            .buffered(CONCURRENT_BLOBS)
            .try_collect()
            .await?;
        let layers = blobs.split_off(1);
        Ok(Pulled {
            digest: resolved.digest,
            manifest_digest: resolved.manifest_digest,
            manifest,
            manifest_bytes: resolved.bytes,
            config: blobs.pop().unwrap_or_default(),
            layers,
        })
    }

    /// Fetches the manifest that the reference names; from an index the one for
    /// linux/amd64.
    async fn resolve(&self) -> Result<Resolved, RegistryError> {
        let (bytes, digest) = self.manifest(self.reference).await?;
        let index = match self.parse(&bytes)? {
            ManifestOrIndex::Manifest(manifest) => {
                return Ok(Resolved {
                    digest,
                    manifest_digest: digest,
                    manifest,
                    bytes,
                });
            }
            ManifestOrIndex::Index(index) => index,
        };
        let no_platform = |found| RegistryError::NoPlatform {
            reference: self.name.to_owned(),
            found,
        };
        let entry = index.linux_amd64();
        let entry = entry.ok_or_else(|| no_platform(index.platforms()))?;
        let child = self.reference.clone_with_digest(entry.digest.to_string());
        let (bytes, manifest_digest) = self.manifest(&child).await?;
        match self.parse(&bytes)? {
            ManifestOrIndex::Manifest(manifest) => Ok(Resolved {
                digest,
                manifest_digest,
                manifest,
                bytes,
            }),
            ManifestOrIndex::Index(_) => Err(no_platform(NESTED.to_owned())),
        }
    }

    fn parse(&self, bytes: &[u8]) -> Result<ManifestOrIndex, RegistryError> {
        parse_manifest(bytes).map_err(|source| RegistryError::ReadManifest {
            reference: self.name.to_owned(),
            source,
        })
    }

    fn too_large(&self, what: &'static str, max: u64) -> RegistryError {
        RegistryError::TooLarge {
            reference: self.name.to_owned(),
            what,
            max,
        }
    }

    /// A manifest, from the cache where it is there. A tag is always asked for.
    async fn manifest(
        &self,
        reference: &Reference,
    ) -> Result<(Bytes, Sha256Digest), RegistryError> {
        let foreign = |_| RegistryError::ForeignDigest {
            reference: reference.to_string(),
        };
        let expected: Option<Sha256Digest> = reference
            .digest()
            .map(str::parse)
            .transpose()
            .map_err(foreign)?;
        if let (Some(cache), Some(digest)) = (self.cache, expected)
            && let Some(bytes) = cache.read(digest, None)?
        {
            return Ok((bytes, digest));
        }
        // A refusal is told as what it is and not as a missing image.
        self.registry
            .authenticate(reference, Operation::Pull)
            .await?;
        let bytes = self.fetch_manifest(reference).await?;
        let actual = Sha256Digest::of(&bytes);
        if let Some(expected) = expected.filter(|expected| *expected != actual) {
            return Err(RegistryError::DigestMismatch { expected, actual });
        }
        if let Some(cache) = self.cache {
            cache.keep(actual, &bytes)?;
        }
        Ok((bytes, actual))
    }

    async fn fetch_manifest(&self, reference: &Reference) -> Result<Bytes, RegistryError> {
        let transport = &self.registry.transport;
        let name = reference.digest().or(reference.tag()).unwrap_or("latest");
        let url = transport.url(reference, &format!("manifests/{name}"));
        let fetch = || async {
            let get = |client: &reqwest::Client| {
                let accept = (header::ACCEPT, manifest_types());
                client.get(&url).header(accept.0, accept.1)
            };
            let mut response = transport
                .send(reference, Operation::Pull, &url, get)
                .await?;
            let mut bytes = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(failed(&url))? {
                bytes.extend_from_slice(&chunk);
                if bytes.len() > MAX_MANIFEST_LEN {
                    break;
                }
            }
            Ok(bytes)
        };
        let bytes: Vec<u8> =
            retried(fetch)
                .await
                .map_err(|source| RegistryError::FetchManifest {
                    reference: reference.to_string(),
                    source,
                })?;
        if bytes.len() > MAX_MANIFEST_LEN {
            return Err(self.too_large("manifest", MAX_MANIFEST_LEN as u64));
        }
        Ok(bytes.into())
    }

    /// A blob, from the cache where it is there.
    async fn blob(&self, descriptor: &Descriptor) -> Result<Bytes, RegistryError> {
        let digest = descriptor.digest;
        let scratch = self.registry.scratch.as_ref();
        let Some(cache) = self.cache else {
            let partial = PartialBlob::nameless(scratch);
            let mut partial = partial.map_err(storing(descriptor, None))?;
            return self.fetch(descriptor, &mut partial).await;
        };
        if let Some(content) = cache.read(digest, scratch)? {
            self.progress.advance(content.len() as u64);
            return Ok(content);
        }
        let mut partial = {
            let (cache, scratch) = (cache.clone(), scratch.cloned());
            let lock = move || cache.lock(digest, scratch.as_ref());
            let lock = tokio::task::spawn_blocking(lock).await;
            lock.map_err(|error| RegistryError::TransferBlob {
                digest,
                source: io::Error::other(error),
            })??
        };
        // Another process may have been at it.
        if let Some(content) = cache.read(digest, scratch)? {
            self.progress.advance(content.len() as u64);
            return Ok(content);
        }
        let content = self.fetch(descriptor, &mut partial).await?;
        cache.take(digest, &partial)?;
        Ok(content)
    }

    /// Transfers what is missing of a blob until all of it is here, and returns it.
    async fn fetch(
        &self,
        descriptor: &Descriptor,
        partial: &mut PartialBlob,
    ) -> Result<Bytes, RegistryError> {
        self.registry
            .authenticate(self.reference, Operation::Pull)
            .await?;
        self.progress.advance(partial.len());
        let mut attempt = 0;
        loop {
            attempt += 1;
            let from = partial.len();
            let error = match self.go_on(descriptor, partial).await {
                Ok(content) => return Ok(content),
                Err(error) => error,
            };
            // What is here may be what the registry cannot go on from, or not a
            // beginning of the blob at all.
            let doubtful = match &error {
                RegistryError::FetchBlob { .. } => !error.is_transient(),
                RegistryError::DigestMismatch { .. } | RegistryError::SizeMismatch { .. } => true,
                _ => false,
            };
            if doubtful {
                self.progress.retreat(partial.len());
                let path = partial.path().map(ToOwned::to_owned);
                partial.clear().map_err(storing(descriptor, path))?;
            }
            let again = error.is_transient() || (doubtful && from > 0);
            if !again || attempt == retry::ATTEMPTS {
                return Err(error);
            }
            if !doubtful && partial.len() == from {
                match pause(attempt, error.retry_after()) {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => return Err(error),
                }
            }
        }
    }

    /// Transfers what is missing of a blob, and returns the whole of it.
    async fn go_on(
        &self,
        descriptor: &Descriptor,
        partial: &mut PartialBlob,
    ) -> Result<Bytes, RegistryError> {
        let Descriptor { digest, size, .. } = *descriptor;
        if partial.len() < size {
            self.transfer(descriptor, partial).await?;
        }
        if partial.len() > size {
            return Err(size_mismatch(descriptor, partial.len()));
        }
        let path = partial.path().map(ToOwned::to_owned);
        let (content, actual) = partial.content().map_err(storing(descriptor, path))?;
        if actual != digest {
            return Err(RegistryError::DigestMismatch {
                expected: digest,
                actual,
            });
        }
        Ok(content)
    }

    async fn transfer(
        &self,
        descriptor: &Descriptor,
        partial: &mut PartialBlob,
    ) -> Result<(), RegistryError> {
        let Descriptor { digest, size, .. } = *descriptor;
        let transport = &self.registry.transport;
        let url = transport.url(self.reference, &format!("blobs/{digest}"));
        let from = partial.len();
        let get = |client: &reqwest::Client| match from {
            0 => client.get(&url),
            from => client
                .get(&url)
                .header(header::RANGE, format!("bytes={from}-")),
        };
        let mut response = transport
            .send(self.reference, Operation::Pull, &url, get)
            .await
            .map_err(|source| RegistryError::FetchBlob { digest, source })?;
        let path = partial.path().map(ToOwned::to_owned);
        if from > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
            // The registry sends it from the start, whatever it was asked for.
            self.progress.retreat(from);
            partial.clear().map_err(storing(descriptor, path.clone()))?;
        }
        let announced = response.content_length().unwrap_or_default();
        let announced = partial.len().saturating_add(announced);
        if announced > size {
            return Err(size_mismatch(descriptor, announced));
        }
        while partial.len() < size {
            let chunk = response.chunk().await.map_err(io::Error::other);
            let chunk = chunk.and_then(|chunk| {
                chunk.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
            });
            let chunk = chunk.map_err(|source| RegistryError::TransferBlob { digest, source })?;
            partial
                .append(&chunk)
                .map_err(storing(descriptor, path.clone()))?;
            self.progress.advance(chunk.len() as u64);
        }
        Ok(())
    }
}

fn size_mismatch(descriptor: &Descriptor, actual: u64) -> RegistryError {
    RegistryError::SizeMismatch {
        digest: descriptor.digest,
        expected: descriptor.size,
        actual,
    }
}

/// What comes cannot be stored: in a cache's file, or in scratch space.
fn storing(
    descriptor: &Descriptor,
    path: Option<std::path::PathBuf>,
) -> impl FnOnce(io::Error) -> RegistryError {
    let digest = descriptor.digest;
    move |source| match path {
        Some(path) => RegistryError::Cache(CacheError { path, source }),
        None => RegistryError::StoreBlob { digest, source },
    }
}

impl Registry {
    /// Finds out whether the registry wants to know who asks, and tells it.
    pub(crate) async fn authenticate(
        &self,
        reference: &Reference,
        operation: Operation,
    ) -> Result<(), RegistryError> {
        let authorize = || async {
            let grant = self.transport.authorize(reference, operation).await;
            grant.map(drop)
        };
        retried(authorize)
            .await
            .map_err(|source: RequestError| RegistryError::Authenticate {
                registry: reference.registry().to_owned(),
                source,
            })
    }
}
