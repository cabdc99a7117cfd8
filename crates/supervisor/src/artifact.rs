//! Reads the artifact and compares it with the specification, so that a wrong
//! mount fails with a name and not as a guest that never attests.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use assay_launcher::spec::{ArtifactFiles, FileRef};
use assay_tee::Sha256Digest;
use bytes::Bytes;

/// The artifact's files that a launch digest depends on.
#[derive(Debug)]
pub(crate) struct Artifact {
    /// The UKI.
    pub(crate) uki: Bytes,
    /// The firmware.
    pub(crate) firmware: Bytes,
}

/// The artifact is not what the specification names.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// A file cannot be read.
    #[error("cannot read the artifact's {part} at {path:?}")]
    Read {
        /// Which.
        part: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file has other content than the specification says.
    #[error(
        "the artifact's {part} at {path:?} is {got}, the launch specification names {expected}: \
         the wrong image is mounted, or it was changed"
    )]
    Digest {
        /// Which.
        part: &'static str,
        /// Where.
        path: PathBuf,
        /// Its digest.
        got: Sha256Digest,
        /// What the specification names.
        expected: Sha256Digest,
    },
}

impl Artifact {
    /// Reads UKI and firmware and verifies their digests.
    pub(crate) fn read_verified(dir: &Path, files: &ArtifactFiles) -> Result<Self, ArtifactError> {
        Ok(Self {
            uki: read_verified(dir, "UKI", &files.uki)?,
            firmware: read_verified(dir, "firmware", &files.firmware)?,
        })
    }
}

fn read_verified(dir: &Path, part: &'static str, file: &FileRef) -> Result<Bytes, ArtifactError> {
    let path = dir.join(&file.path);
    let content = match fs::read(&path) {
        Ok(content) => content,
        Err(source) => return Err(ArtifactError::Read { part, path, source }),
    };
    let got = Sha256Digest::of(&content);
    if got != file.sha256 {
        return Err(ArtifactError::Digest {
            part,
            path,
            got,
            expected: file.sha256,
        });
    }
    Ok(content.into())
}
