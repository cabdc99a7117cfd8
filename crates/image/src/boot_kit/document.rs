//! `kit.json`: what a kit was packed from.

use assay_tee::Sha256Digest;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::packages::{Distribution, Package};

/// What a kit was packed from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KitDocument {
    /// Version of this document: [`KitDocument::VERSION`].
    pub version: u32,
    /// Release of the kernel.
    pub release: String,
    /// The kernel.
    pub kernel: KitFile,
    /// What the kernel was built with.
    pub config: KitFile,
    /// systemd-stub.
    pub stub: KitFile,
    /// The firmware.
    pub firmware: KitFile,
    /// The modules, by path.
    pub modules: Vec<KitModule>,
    /// The packages that these files came from, as their database says.
    pub packages: Vec<Package>,
    /// The distribution that they are of, where the system says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distribution: Option<Distribution>,
}

/// A file of a kit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KitFile {
    /// Where it is in the kit.
    pub path: String,
    /// Where it was.
    pub from: String,
    /// SHA-256 of the content.
    pub sha256: Sha256Digest,
    /// Number of bytes.
    pub size: u64,
}

impl KitFile {
    pub(super) fn new(path: &str, from: &str, content: &Bytes) -> Self {
        Self {
            path: path.to_owned(),
            from: from.to_owned(),
            sha256: Sha256Digest::of(content),
            size: content.len() as u64,
        }
    }
}

/// A module of a kit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KitModule {
    /// Path below the kernel's directory.
    pub path: String,
    /// SHA-256 of the file.
    pub sha256: Sha256Digest,
    /// Whether a signature follows it.
    pub signed: bool,
}

/// Bytes are no document of a kit.
#[derive(Debug, thiserror::Error)]
pub enum ParseKitDocumentError {
    /// Not JSON of the expected form.
    #[error("not JSON of the expected form")]
    Json(#[source] serde_json::Error),
    /// A version of another builder.
    #[error("version {0} is not supported, expected {expected}", expected = KitDocument::VERSION)]
    Version(u32),
}

impl KitDocument {
    /// The version that this crate reads and writes.
    pub const VERSION: u32 = 1;

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ParseKitDocumentError> {
        let document: Self = serde_json::from_slice(bytes).map_err(ParseKitDocumentError::Json)?;
        if document.version == Self::VERSION {
            Ok(document)
        } else {
            Err(ParseKitDocumentError::Version(document.version))
        }
    }
}
