//! Why an image could not be pulled or pushed.

use std::time::Duration;

use assay_image::oci::ParseManifestError;
use assay_tee::Sha256Digest;
use http::StatusCode;
use oci_spec::distribution::ParseError;

use crate::CacheError;

/// Why an image could not be pulled or pushed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The HTTP client could not be set up.
    #[error("cannot set up the registry client")]
    Client(#[source] reqwest::Error),
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
        source: RequestError,
    },
    /// The manifest could not be fetched.
    #[error("cannot fetch the manifest of {reference}")]
    FetchManifest {
        /// Image.
        reference: String,
        /// Why.
        #[source]
        source: RequestError,
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
        source: RequestError,
    },
    /// A blob's transfer broke off.
    #[error("cannot transfer blob {digest}")]
    TransferBlob {
        /// Blob.
        digest: Sha256Digest,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A blob finds no room.
    #[error("cannot store blob {digest}")]
    StoreBlob {
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
        source: RequestError,
    },
    /// What names an image as its subject could not be listed.
    #[error("cannot list what refers to {reference}")]
    ListReferrers {
        /// Image.
        reference: String,
        /// Why.
        #[source]
        source: RequestError,
    },
    /// The manifest could not be pushed.
    #[error("cannot push the manifest of {reference}")]
    PushManifest {
        /// Image.
        reference: String,
        /// Why.
        #[source]
        source: RequestError,
    },
}

/// A request of a registry failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// There was no answer, or it broke off.
    #[error("no answer to a request of {url}")]
    Send {
        /// What was asked for.
        url: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The registry wants to know who asks, or knows and says no.
    #[error("not authorized by {host}, which {}", credentials(*.given))]
    Unauthorized {
        /// `host` or `host:port`.
        host: String,
        /// Whether there were credentials for it.
        given: bool,
    },
    /// The registry answered with an error.
    #[error("{url} answered {status}{}", said(.message))]
    Status {
        /// What was asked for.
        url: Box<str>,
        /// Status.
        status: StatusCode,
        /// What it said.
        message: Box<str>,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// The registry sends its clients elsewhere with their credentials, in the clear.
    #[error("{host} asks for credentials at {realm:?}, which is no https URL")]
    Realm {
        /// `host` or `host:port`.
        host: String,
        /// Where it sends its clients.
        realm: String,
    },
    /// An answer that the distribution specification does not have.
    #[error("{url} answered with {what}")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        what: &'static str,
    },
}

fn credentials(given: bool) -> &'static str {
    if given {
        "refuses the credentials that were given"
    } else {
        "was given no credentials"
    }
}

fn said(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

impl RegistryError {
    /// What failed of a single request, where it was one.
    pub fn request(&self) -> Option<&RequestError> {
        match self {
            Self::Authenticate { source, .. }
            | Self::FetchManifest { source, .. }
            | Self::FetchBlob { source, .. }
            | Self::PushBlob { source, .. }
            | Self::ListReferrers { source, .. }
            | Self::PushManifest { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Whether the same request may succeed in a moment.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::TransferBlob { .. })
            || self.request().is_some_and(RequestError::is_transient)
    }

    /// How long the registry asks to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        self.request()?.retry_after()
    }

    /// Whether other credentials may help. Registries answer that what is private
    /// does not exist.
    pub fn is_refusal(&self) -> bool {
        match self.request() {
            Some(RequestError::Unauthorized { .. }) => true,
            Some(RequestError::Status { status, .. }) => {
                matches!(*status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND)
            }
            _ => false,
        }
    }
}

impl RequestError {
    /// Whether the same request may succeed in a moment.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Send { source, .. } => {
                source.is_connect()
                    || source.is_timeout()
                    || source.is_request()
                    || source.is_body()
                    || source.is_decode()
            }
            // Request Timeout, Too Many Requests, and what gateways say.
            Self::Status { status, .. } => {
                matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
            }
            _ => false,
        }
    }

    /// How long the registry asks to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
