//! Pulls and pushes OCI images by digest.
//!
//! A registry is not trusted: every byte that is taken from it is checked
//! against the digest that named it, and a reference with a digest never yields
//! anything else. A reference by tag is a question ("what is it now?"), whose
//! answer names the digest.

mod cache;
mod docker_config;
mod layout;
mod referrers;
mod retry;
mod scratch;

use std::time::Duration;

use assay_image::flatten::StoredLayer;
use assay_image::oci::{
    Blob, Descriptor, ImageManifest, LayerCompression, ManifestOrIndex, OciImage,
    ParseManifestError, media_type, parse_manifest,
};
use assay_tee::Sha256Digest;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::HeaderValue;
use oci_client::client::{
    BlobResponse, Certificate, CertificateEncoding, ClientConfig, ClientProtocol,
};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, ParseError, Reference, RegistryOperation};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::OnceCell;

use crate::cache::PartialBlob;
use crate::retry::{is_wrong_content, pause, retried};

pub use cache::{BlobCache, CacheError, TransferProgress};
pub use docker_config::{DockerConfig, LoadDockerConfigError, ParseDockerConfigError};
pub use layout::{
    LayoutWriter, ReadLayoutError, WriteLayoutError, is_layout, list_layout, read_layout,
};
pub use referrers::{Referrer, Subject};
pub use scratch::{Scratch, ScratchError};

/// Largest manifest or index that is read: registries refuse larger ones.
const MAX_MANIFEST_LEN: usize = 4 << 20;
/// Largest image configuration that is read.
const MAX_CONFIG_LEN: u64 = 8 << 20;
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
    client: Client,
    docker_config: DockerConfig,
    scratch: Option<Scratch>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

/// Why an image could not be pulled or pushed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The HTTP client could not be set up.
    #[error("cannot set up the registry client")]
    Client(#[source] OciDistributionError),
    /// Not an image reference.
    #[error("{reference:?} is not an image reference")]
    ParseReference {
        /// As given.
        reference: String,
        /// Why.
        #[source]
        source: ParseError,
    },
    /// The reference's digest is not SHA-256.
    #[error("{reference:?} is not by a sha256 digest")]
    ForeignDigest {
        /// As given.
        reference: String,
    },
    /// A reference to push to has a digest.
    #[error("cannot push to {reference:?}: name a repository, with or without a tag")]
    PushToDigest {
        /// As given.
        reference: String,
    },
    /// The registry did not accept the credentials, or has none to give.
    #[error("cannot authenticate to {registry}")]
    Authenticate {
        /// Host.
        registry: String,
        /// Why.
        #[source]
        source: OciDistributionError,
    },
    /// The manifest could not be fetched.
    #[error("cannot fetch the manifest of {reference}")]
    FetchManifest {
        /// Image.
        reference: String,
        /// Why.
        #[source]
        source: OciDistributionError,
    },
    /// The manifest is not one.
    #[error("cannot read the manifest of {reference}")]
    ReadManifest {
        /// Image.
        reference: String,
        /// Why.
        #[source]
        source: ParseManifestError,
    },
    /// The manifest or configuration is absurdly large.
    #[error("{what} of {reference} is larger than {max} bytes")]
    TooLarge {
        /// Image.
        reference: String,
        /// What is too large.
        what: &'static str,
        /// Limit in bytes.
        max: u64,
    },
    /// The index has nothing for linux/amd64.
    #[error("{reference} has no image for linux/amd64: it has {found}")]
    NoPlatform {
        /// Image.
        reference: String,
        /// What it has.
        found: String,
    },
    /// A blob could not be fetched.
    #[error("cannot fetch blob {digest}")]
    FetchBlob {
        /// Blob.
        digest: Sha256Digest,
        /// Why.
        #[source]
        source: OciDistributionError,
    },
    /// A blob's transfer broke off, or it could not be stored.
    #[error("cannot transfer blob {digest}")]
    TransferBlob {
        /// Blob.
        digest: Sha256Digest,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Content is not what its digest says.
    #[error("registry sent content with digest {actual} for {expected}")]
    DigestMismatch {
        /// What was asked for.
        expected: Sha256Digest,
        /// What came.
        actual: Sha256Digest,
    },
    /// A blob's length is not what the manifest says.
    #[error("registry sent {actual} bytes or more for blob {digest} of {expected} bytes")]
    SizeMismatch {
        /// Blob.
        digest: Sha256Digest,
        /// The manifest's claim.
        expected: u64,
        /// Bytes received when it was noticed.
        actual: u64,
    },
    /// What was pulled cannot be kept.
    #[error("cannot keep what was pulled")]
    Cache(#[from] CacheError),
    /// A blob could not be pushed.
    #[error("cannot push blob {digest} to {reference}")]
    PushBlob {
        /// Image.
        reference: String,
        /// Blob.
        digest: Sha256Digest,
        /// Why.
        #[source]
        source: OciDistributionError,
    },
    /// What names an image as its subject could not be listed.
    #[error("cannot list what refers to {reference}")]
    ListReferrers {
        /// Image.
        reference: String,
        /// Why.
        #[source]
        source: OciDistributionError,
    },
    /// The manifest could not be pushed.
    #[error("cannot push the manifest of {reference}")]
    PushManifest {
        /// Image.
        reference: String,
        /// Why.
        #[source]
        source: OciDistributionError,
    },
}

/// A manifest that was resolved for linux/amd64 and verified.
#[derive(Debug, Clone)]
pub struct PulledManifest {
    /// What the reference named: the index's digest where there is an index,
    /// else the manifest's. `repository@digest` is the reference to keep.
    pub digest: Sha256Digest,
    /// Digest of the manifest itself.
    pub manifest_digest: Sha256Digest,
    /// The manifest.
    pub manifest: ImageManifest,
    /// The manifest's bytes.
    pub manifest_bytes: Bytes,
}

impl PulledManifest {
    /// The image, with the blobs of [`blobs_of`].
    fn with_blobs(self, mut blobs: Vec<Bytes>) -> Pulled {
        let layers = blobs.split_off(1);
        Pulled {
            digest: self.digest,
            manifest_digest: self.manifest_digest,
            manifest: self.manifest,
            manifest_bytes: self.manifest_bytes,
            config: blobs.pop().unwrap_or_default(),
            layers,
        }
    }
}

/// What an image has besides its manifest: the configuration, then the layers.
fn blobs_of(manifest: &ImageManifest) -> impl Iterator<Item = &Descriptor> {
    std::iter::once(&manifest.config).chain(&manifest.layers)
}

/// An image that was pulled and verified.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// What the reference named: see [`PulledManifest::digest`].
    pub digest: Sha256Digest,
    /// Digest of the manifest itself.
    pub manifest_digest: Sha256Digest,
    /// The manifest.
    pub manifest: ImageManifest,
    /// The manifest's bytes.
    pub manifest_bytes: Bytes,
    /// The image configuration as it is stored.
    pub config: Bytes,
    /// The layers as they are stored, lowest first, in the order of
    /// `manifest.layers`.
    pub layers: Vec<Bytes>,
}

/// A layer is of a kind that nothing here reads, such as an encrypted one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "layer {index} has media type {media_type:?}, which is not read: push the image again with \
     all of its layers, plain, or compressed with gzip or zstd"
)]
pub struct LayerMediaTypeError {
    /// Position, from 0.
    pub index: usize,
    /// As the manifest says.
    pub media_type: String,
}

impl Pulled {
    /// The image as it can be pushed again.
    pub fn to_image(&self) -> OciImage {
        OciImage {
            manifest: self.manifest_bytes.clone(),
            manifest_digest: self.manifest_digest,
            config: Blob::new(self.config.clone()),
            layers: self.layers.iter().cloned().map(Blob::new).collect(),
        }
    }

    /// The layers with their compression, to be flattened.
    pub fn stored_layers(&self) -> Result<Vec<StoredLayer>, LayerMediaTypeError> {
        let layer = |(index, (descriptor, bytes)): (usize, (&Descriptor, &Bytes))| {
            let media_type = &descriptor.media_type;
            let compression = LayerCompression::from_media_type(media_type).ok_or_else(|| {
                LayerMediaTypeError {
                    index,
                    media_type: media_type.clone(),
                }
            })?;
            Ok(StoredLayer {
                bytes: bytes.clone(),
                compression,
            })
        };
        self.manifest
            .layers
            .iter()
            .zip(&self.layers)
            .enumerate()
            .map(layer)
            .collect()
    }
}

impl Registry {
    /// A client. It opens no connection yet.
    ///
    /// # Errors
    /// When the TLS client cannot be built.
    pub fn new(options: RegistryOptions) -> Result<Self, RegistryError> {
        // A static binary in an empty container image finds no roots on disk,
        // and then even a client for plain HTTP cannot be built.
        let extra_root_certificates = webpki_root_certs::TLS_SERVER_ROOT_CERTS
            .iter()
            .map(|root| Certificate {
                encoding: CertificateEncoding::Der,
                data: root.to_vec(),
            })
            .collect();
        let client = Client::try_from(ClientConfig {
            protocol: ClientProtocol::HttpsExcept(options.plain_http_hosts),
            extra_root_certificates,
            use_monolithic_push: true,
            connect_timeout: Some(Duration::from_secs(20)),
            read_timeout: Some(Duration::from_mins(1)),
            user_agent: concat!("assay/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        })
        .map_err(RegistryError::Client)?;
        Ok(Self {
            client,
            docker_config: options.docker_config.unwrap_or_default(),
            scratch: options.scratch,
        })
    }

    /// Pushes an image to `reference` (`host/repository`, optionally `:tag`),
    /// skipping blobs that the registry has, and returns `host/repository@sha256:…`.
    pub async fn push(&self, reference: &str, image: &OciImage) -> Result<String, RegistryError> {
        let parsed = parse_reference(reference)?;
        if parsed.digest().is_some() {
            return Err(RegistryError::PushToDigest {
                reference: reference.to_owned(),
            });
        }
        self.authenticate(&parsed, RegistryOperation::Push).await?;
        let blobs = image.layers.iter().chain(std::iter::once(&image.config));
        stream::iter(blobs)
            .map(|blob| self.push_blob(&parsed, blob))
            .buffer_unordered(CONCURRENT_BLOBS)
            .try_collect::<()>()
            .await?;

        let digest = image.manifest_digest.to_string();
        // Without a tag the manifest is stored by its digest, which the
        // distribution API takes at the place of a tag.
        let tag = explicit_tag(reference).unwrap_or(&digest).to_owned();
        let target = Reference::with_tag(
            parsed.registry().to_owned(),
            parsed.repository().to_owned(),
            tag,
        );
        let push = || {
            let content_type = HeaderValue::from_static(media_type::MANIFEST);
            let manifest = image.manifest.clone();
            self.client
                .push_manifest_raw(&target, manifest, content_type)
        };
        retried(push)
            .await
            .map_err(|source| RegistryError::PushManifest {
                reference: reference.to_owned(),
                source,
            })?;
        Ok(format!(
            "{}/{}@{digest}",
            parsed.registry(),
            parsed.repository()
        ))
    }

    async fn push_blob(&self, reference: &Reference, blob: &Blob) -> Result<(), RegistryError> {
        let digest = blob.digest();
        let error = |source| RegistryError::PushBlob {
            reference: reference.to_string(),
            digest,
            source,
        };
        let name = digest.to_string();
        let is_there = || self.client.blob_exists(reference, &name);
        if retried(is_there).await.map_err(error)? {
            return Ok(());
        }
        let push = || {
            let chunks: Vec<_> = blob.content().chunks().iter().cloned().map(Ok).collect();
            let content = stream::iter(chunks);
            self.client
                .push_blob_stream(reference, content, &name, Some(blob.size()))
        };
        retried(push).await.map_err(error)?;
        Ok(())
    }

    /// Pulls an image for linux/amd64 into memory or the scratch directory.
    pub async fn pull(&self, reference: &str) -> Result<Pulled, RegistryError> {
        let parsed = parse_reference(reference)?;
        // This authenticates for the blobs too.
        let pulled = self.pull_manifest(reference).await?;
        check_config(reference, &pulled.manifest)?;
        let blobs = stream::iter(blobs_of(&pulled.manifest))
            .map(|descriptor| self.fetch_and_keep(&parsed, descriptor))
            .buffered(CONCURRENT_BLOBS)
            .try_collect()
            .await?;
        Ok(pulled.with_blobs(blobs))
    }

    /// Pulls an image for linux/amd64 through a cache: what it has is
    /// not transferred, and what broke off goes on. With everything there and a
    /// reference by digest, nobody is asked at all.
    ///
    /// # Errors
    /// When a transfer breaks off for good; what came until then is kept.
    pub async fn pull_cached(
        &self,
        reference: &str,
        cache: &BlobCache,
        progress: &dyn TransferProgress,
    ) -> Result<Pulled, RegistryError> {
        let parsed = parse_reference(reference)?;
        let session = Session {
            registry: self,
            reference: &parsed,
            authenticated: OnceCell::new(),
        };
        let pulled = self.resolve(reference, &session, Some(cache)).await?;
        check_config(reference, &pulled.manifest)?;
        progress.expect(blobs_of(&pulled.manifest).map(|blob| blob.size).sum());
        let blobs = stream::iter(blobs_of(&pulled.manifest))
            .map(|descriptor| session.blob(descriptor, cache, progress))
            .buffered(CONCURRENT_BLOBS)
            .try_collect()
            .await?;
        Ok(pulled.with_blobs(blobs))
    }

    /// Fetches the manifest that `reference` names; from an index the one for
    /// linux/amd64. Every step is verified against the digest that led to it.
    pub async fn pull_manifest(&self, reference: &str) -> Result<PulledManifest, RegistryError> {
        let parsed = parse_reference(reference)?;
        let session = Session {
            registry: self,
            reference: &parsed,
            authenticated: OnceCell::new(),
        };
        self.resolve(reference, &session, None).await
    }

    async fn resolve(
        &self,
        reference: &str,
        session: &Session<'_>,
        cache: Option<&BlobCache>,
    ) -> Result<PulledManifest, RegistryError> {
        let parsed = session.reference;
        let (bytes, digest) = session.manifest(parsed, cache).await?;
        let read_error = |source| RegistryError::ReadManifest {
            reference: reference.to_owned(),
            source,
        };
        let index = match parse_manifest(&bytes).map_err(read_error)? {
            ManifestOrIndex::Manifest(manifest) => {
                return Ok(PulledManifest {
                    digest,
                    manifest_digest: digest,
                    manifest,
                    manifest_bytes: bytes,
                });
            }
            ManifestOrIndex::Index(index) => index,
        };
        let no_platform = |found| RegistryError::NoPlatform {
            reference: reference.to_owned(),
            found,
        };
        let entry = index.linux_amd64();
        let entry = entry.ok_or_else(|| no_platform(index.platforms()))?;
        let child = parsed.clone_with_digest(entry.digest.to_string());
        let (bytes, manifest_digest) = session.manifest(&child, cache).await?;
        match parse_manifest(&bytes).map_err(read_error)? {
            ManifestOrIndex::Manifest(manifest) => Ok(PulledManifest {
                digest,
                manifest_digest,
                manifest,
                manifest_bytes: bytes,
            }),
            ManifestOrIndex::Index(_) => Err(no_platform(layout::NESTED.to_owned())),
        }
    }

    /// Streams a blob of `reference`'s repository to `out`, checking length and
    /// digest. On an error what was written must be thrown away.
    pub async fn pull_blob(
        &self,
        reference: &str,
        descriptor: &Descriptor,
        out: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), RegistryError> {
        let parsed = parse_reference(reference)?;
        self.authenticate(&parsed, RegistryOperation::Pull).await?;
        self.fetch_blob(&parsed, descriptor, out).await
    }

    async fn fetch_and_keep(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<Bytes, RegistryError> {
        let Some(scratch) = &self.scratch else {
            let mut content = Vec::new();
            self.fetch_blob(reference, descriptor, &mut content).await?;
            return Ok(content.into());
        };
        let error = |source| RegistryError::TransferBlob {
            digest: descriptor.digest,
            source,
        };
        let mut file = tokio::fs::File::from_std(scratch.file().map_err(error)?);
        self.fetch_blob(reference, descriptor, &mut file).await?;
        scratch.map(&file.into_std().await).map_err(error)
    }

    async fn fetch_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        out: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), RegistryError> {
        let digest = descriptor.digest;
        let transfer_error = |source| RegistryError::TransferBlob { digest, source };
        let mut hasher = Sha256::new();
        let mut received = 0_u64;
        let mut attempt = 1;
        while let Err(error) = self
            .continue_blob(reference, descriptor, &mut received, &mut hasher, out)
            .await
        {
            // The client may have noticed a wrong digest too; below it is told by name.
            if received >= descriptor.size || is_wrong_content(&error) {
                break;
            }
            if !error.is_transient() || attempt == retry::ATTEMPTS {
                return Err(error);
            }
            pause(attempt).await;
            attempt += 1;
        }
        out.flush().await.map_err(transfer_error)?;
        if received != descriptor.size {
            return Err(RegistryError::SizeMismatch {
                digest,
                expected: descriptor.size,
                actual: received,
            });
        }
        let actual = Sha256Digest::new(hasher.finalize().into());
        if actual == digest {
            Ok(())
        } else {
            Err(RegistryError::DigestMismatch {
                expected: digest,
                actual,
            })
        }
    }

    /// Fetches what is missing of a blob after `received` bytes.
    async fn continue_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        received: &mut u64,
        hasher: &mut Sha256,
        out: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), RegistryError> {
        let digest = descriptor.digest;
        let name = digest.to_string();
        let fetch_error = |source| RegistryError::FetchBlob { digest, source };
        let transfer_error = |source| RegistryError::TransferBlob { digest, source };
        // Bytes that come again, where a registry knows no ranges.
        let (mut blob, mut again) = if *received == 0 {
            let blob = self.client.pull_blob_stream(reference, name.as_str());
            (blob.await.map_err(fetch_error)?, 0)
        } else {
            let rest = self
                .client
                .pull_blob_stream_partial(reference, name.as_str(), *received, None)
                .await
                .map_err(fetch_error)?;
            match rest {
                BlobResponse::Partial(blob) => (blob, 0),
                BlobResponse::Full(blob) => (blob, *received),
            }
        };
        while let Some(chunk) = blob.next().await {
            let mut chunk = chunk.map_err(transfer_error)?;
            let skipped = usize::try_from(again)
                .unwrap_or(usize::MAX)
                .min(chunk.len());
            again -= skipped as u64;
            let chunk = chunk.split_off(skipped);
            *received = received.saturating_add(chunk.len() as u64);
            if *received > descriptor.size {
                break;
            }
            hasher.update(&chunk);
            out.write_all(&chunk).await.map_err(transfer_error)?;
        }
        Ok(())
    }

    async fn fetch_manifest(
        &self,
        reference: &Reference,
    ) -> Result<(Bytes, Sha256Digest), RegistryError> {
        let accepted = [
            media_type::MANIFEST,
            media_type::INDEX,
            media_type::DOCKER_MANIFEST,
            media_type::DOCKER_INDEX,
        ];
        let expected =
            match reference.digest() {
                None => None,
                Some(digest) => Some(digest.parse::<Sha256Digest>().map_err(|_| {
                    RegistryError::ForeignDigest {
                        reference: reference.to_string(),
                    }
                })?),
            };
        let auth = self.auth(reference);
        let pull = || self.client.pull_manifest_raw(reference, &auth, &accepted);
        let (bytes, _) = retried(pull)
            .await
            .map_err(|source| RegistryError::FetchManifest {
                reference: reference.to_string(),
                source,
            })?;
        if bytes.len() > MAX_MANIFEST_LEN {
            return Err(RegistryError::TooLarge {
                reference: reference.to_string(),
                what: "manifest",
                max: MAX_MANIFEST_LEN as u64,
            });
        }
        let actual = Sha256Digest::of(&bytes);
        match expected {
            Some(expected) if expected != actual => {
                Err(RegistryError::DigestMismatch { expected, actual })
            }
            _ => Ok((bytes, actual)),
        }
    }

    /// Gets a token where the registry wants one, so that a refusal is reported
    /// as what it is and not as a missing image.
    async fn authenticate(
        &self,
        reference: &Reference,
        operation: RegistryOperation,
    ) -> Result<(), RegistryError> {
        let auth = self.auth(reference);
        retried(|| self.client.auth(reference, &auth, operation))
            .await
            .map_err(|source| RegistryError::Authenticate {
                registry: reference.registry().to_owned(),
                source,
            })?;
        Ok(())
    }

    fn auth(&self, reference: &Reference) -> RegistryAuth {
        match self.docker_config.credentials(reference.registry()) {
            Some((user, password)) => RegistryAuth::Basic(user.to_owned(), password.to_owned()),
            None => RegistryAuth::Anonymous,
        }
    }
}

fn check_config(reference: &str, manifest: &ImageManifest) -> Result<(), RegistryError> {
    if manifest.config.size > MAX_CONFIG_LEN {
        return Err(RegistryError::TooLarge {
            reference: reference.to_owned(),
            what: "configuration",
            max: MAX_CONFIG_LEN,
        });
    }
    Ok(())
}

/// One pull: it authenticates when it first needs the registry.
struct Session<'a> {
    registry: &'a Registry,
    reference: &'a Reference,
    authenticated: OnceCell<()>,
}

impl Session<'_> {
    async fn authenticate(&self) -> Result<(), RegistryError> {
        let (registry, reference) = (self.registry, self.reference);
        let authenticate = || registry.authenticate(reference, RegistryOperation::Pull);
        self.authenticated.get_or_try_init(authenticate).await?;
        Ok(())
    }

    async fn manifest(
        &self,
        reference: &Reference,
        cache: Option<&BlobCache>,
    ) -> Result<(Bytes, Sha256Digest), RegistryError> {
        // A digest that is none is told by the fetch.
        let digest = reference.digest().and_then(|digest| digest.parse().ok());
        if let (Some(cache), Some(digest)) = (cache, digest)
            && let Some(bytes) = cache.read(digest, None)?
        {
            return Ok((bytes, digest));
        }
        self.authenticate().await?;
        let (bytes, digest) = self.registry.fetch_manifest(reference).await?;
        if let Some(cache) = cache {
            cache.keep(digest, &bytes)?;
        }
        Ok((bytes, digest))
    }

    async fn blob(
        &self,
        descriptor: &Descriptor,
        cache: &BlobCache,
        progress: &dyn TransferProgress,
    ) -> Result<Bytes, RegistryError> {
        let digest = descriptor.digest;
        let scratch = self.registry.scratch.as_ref();
        if let Some(content) = cache.read(digest, scratch)? {
            progress.advance(content.len() as u64);
            return Ok(content);
        }
        let mut partial = {
            let cache = cache.clone();
            let lock = tokio::task::spawn_blocking(move || cache.lock(digest)).await;
            lock.map_err(|error| RegistryError::TransferBlob {
                digest,
                source: std::io::Error::other(error),
            })??
        };
        // Another process may have been at it.
        if let Some(content) = cache.read(digest, scratch)? {
            progress.advance(content.len() as u64);
            return Ok(content);
        }
        self.authenticate().await?;
        progress.advance(partial.len());
        let mut attempt = 0;
        loop {
            attempt += 1;
            let from = partial.len();
            let error = match self.go_on(descriptor, &mut partial, progress).await {
                Ok(content) => {
                    partial.finish(cache)?;
                    return Ok(content);
                }
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
                progress.retreat(partial.len());
                partial.clear()?;
            }
            let again = error.is_transient() || (doubtful && from > 0);
            if !again || attempt == retry::ATTEMPTS {
                return Err(error);
            }
            if !doubtful && partial.len() == from {
                pause(attempt).await;
            }
        }
    }

    /// Transfers what is missing of a blob, and returns the whole of it.
    async fn go_on(
        &self,
        descriptor: &Descriptor,
        partial: &mut PartialBlob,
        progress: &dyn TransferProgress,
    ) -> Result<Bytes, RegistryError> {
        let Descriptor { digest, size, .. } = *descriptor;
        if partial.len() < size {
            self.transfer(descriptor, partial, progress).await?;
        }
        if partial.len() > size {
            return Err(RegistryError::SizeMismatch {
                digest,
                expected: size,
                actual: partial.len(),
            });
        }
        let content = partial.content(self.registry.scratch.as_ref())?;
        let actual = Sha256Digest::of(&content);
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
        progress: &dyn TransferProgress,
    ) -> Result<(), RegistryError> {
        let Descriptor { digest, size, .. } = *descriptor;
        let name = digest.to_string();
        let client = &self.registry.client;
        let response =
            client.pull_blob_stream_partial(self.reference, name.as_str(), partial.len(), None);
        let response = response
            .await
            .map_err(|source| RegistryError::FetchBlob { digest, source })?;
        let mut blob = match response {
            BlobResponse::Partial(blob) => blob,
            // The registry sends it from the start, whatever it was asked for.
            BlobResponse::Full(blob) => {
                progress.retreat(partial.len());
                partial.clear()?;
                blob
            }
        };
        while partial.len() < size {
            let transfer_error = |source| RegistryError::TransferBlob { digest, source };
            let Some(chunk) = blob.next().await.transpose().map_err(transfer_error)? else {
                return Err(transfer_error(std::io::ErrorKind::UnexpectedEof.into()));
            };
            partial.append(&chunk)?;
            progress.advance(chunk.len() as u64);
        }
        Ok(())
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

/// The tag that is written in a reference without a digest; the parser invents
/// `latest` where there is none.
fn explicit_tag(reference: &str) -> Option<&str> {
    let last = reference.rsplit('/').next()?;
    last.split_once(':').map(|(_, tag)| tag)
}

#[cfg(test)]
mod tests;
