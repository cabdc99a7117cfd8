//! Images in a directory (image-spec 1.1, `image-layout.md`).
//!
//! Only the blobs are read: an image is asked for by its digest, and then the
//! layout's index has nothing to say.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use assay_image::oci::{ManifestOrIndex, ParseManifestError, parse_manifest};
use assay_tee::Sha256Digest;
use bytes::Bytes;

use crate::{Pulled, Scratch};

/// Why an image could not be read from a directory.
#[derive(Debug, thiserror::Error)]
pub enum ReadLayoutError {
    /// A blob is missing or unreadable.
    #[error("cannot read {path}")]
    Read {
        /// The blob's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A blob is not what its name says.
    #[error("{path} has digest {actual}")]
    DigestMismatch {
        /// The blob's file.
        path: PathBuf,
        /// Digest of its content.
        actual: Sha256Digest,
    },
    /// A manifest is not one.
    #[error("cannot read the manifest {digest}")]
    ReadManifest {
        /// Its digest.
        digest: Sha256Digest,
        /// Why.
        #[source]
        source: ParseManifestError,
    },
    /// The index has nothing for linux/amd64.
    #[error("{digest} has no image for linux/amd64")]
    NoPlatform {
        /// Digest of the index.
        digest: Sha256Digest,
    },
}

/// Reads the image `digest` (of a manifest or an index) from an OCI layout,
/// verifying every blob. Blobs are kept in `scratch`, or in memory without it.
///
/// # Errors
/// When a blob is missing, is not what its name says, or finds no room, and when
/// the layout has no image for linux/amd64.
pub fn read_layout(
    directory: &Path,
    digest: Sha256Digest,
    scratch: Option<&Scratch>,
) -> Result<Pulled, ReadLayoutError> {
    let blob = |digest| blob(directory, digest, scratch);
    let no_platform = || ReadLayoutError::NoPlatform { digest };
    let (manifest_digest, manifest) = match manifest_or_index(digest, blob)? {
        ManifestOrIndex::Manifest(manifest) => (digest, manifest),
        ManifestOrIndex::Index(index) => {
            let child = index.linux_amd64().ok_or_else(no_platform)?.digest;
            match manifest_or_index(child, blob)? {
                ManifestOrIndex::Manifest(manifest) => (child, manifest),
                ManifestOrIndex::Index(_) => return Err(no_platform()),
            }
        }
    };
    let config = blob(manifest.config.digest)?;
    let layers = manifest
        .layers
        .iter()
        .map(|layer| blob(layer.digest))
        .collect::<Result<_, _>>()?;
    Ok(Pulled {
        digest,
        manifest_digest,
        manifest,
        config,
        layers,
    })
}

fn manifest_or_index(
    digest: Sha256Digest,
    blob: impl Fn(Sha256Digest) -> Result<Bytes, ReadLayoutError>,
) -> Result<ManifestOrIndex, ReadLayoutError> {
    parse_manifest(&blob(digest)?)
        .map_err(|source| ReadLayoutError::ReadManifest { digest, source })
}

fn blob(
    directory: &Path,
    digest: Sha256Digest,
    scratch: Option<&Scratch>,
) -> Result<Bytes, ReadLayoutError> {
    let path = directory.join("blobs/sha256").join(digest.to_hex());
    let content = match scratch {
        // A copy: whoever changes the layout later does not change what was verified.
        Some(scratch) => File::open(&path).and_then(|mut file| scratch.keep(&mut file)),
        None => std::fs::read(&path).map(Bytes::from),
    };
    let content = match content {
        Ok(content) => content,
        Err(source) => return Err(ReadLayoutError::Read { path, source }),
    };
    let actual = Sha256Digest::of(&content);
    if actual != digest {
        return Err(ReadLayoutError::DigestMismatch { path, actual });
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use assay_image::oci::{Blob, ImageOptions, Layer, OciImage};
    use assay_image::tarball::{Owner, TarBuilder};

    use super::*;

    #[test]
    fn every_blob_is_verified() {
        let mut tar = TarBuilder::new();
        tar.file("x", 0o644, Owner::ROOT, b"x".to_vec());
        let image = OciImage::assemble(ImageOptions::default(), &[Layer::tar(tar.finish())]);
        let image = image.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let blobs = directory.path().join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let put = |blob: &Blob| {
            std::fs::write(
                blobs.join(blob.digest().to_hex()),
                blob.content().to_bytes(),
            )
            .unwrap();
        };
        let manifest = Blob::new(image.manifest.clone());
        put(&manifest);
        put(&image.config);
        let missing = read_layout(directory.path(), image.manifest_digest, None).unwrap_err();
        assert!(matches!(missing, ReadLayoutError::Read { .. }), "{missing}");

        put(&image.layers[0]);
        let read = read_layout(directory.path(), image.manifest_digest, None).unwrap();
        assert_eq!(read.layers, [image.layers[0].content().to_bytes()]);
        assert_eq!(read.stored_layers().unwrap().len(), 1);

        std::fs::write(blobs.join(image.layers[0].digest().to_hex()), b"other").unwrap();
        let changed = read_layout(directory.path(), image.manifest_digest, None).unwrap_err();
        assert!(
            matches!(changed, ReadLayoutError::DigestMismatch { .. }),
            "{changed}"
        );
    }
}
