//! Images in a directory (image-spec 1.1, `image-layout.md`).
//!
//! An image that is asked for by its digest is found by its blobs alone; the
//! layout's index says which images there are.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use assay_image::oci::{
    Blob, IndexEntry, ManifestOrIndex, OciImage, ParseManifestError, Platform, media_type,
    parse_manifest,
};
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
    /// A blob finds no room.
    #[error("cannot keep a copy of {path} where temporary files go (--scratch or TMPDIR)")]
    Keep {
        /// The blob's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image is not there.
    #[error("{directory} has no image {digest}: {found}")]
    NoImage {
        /// The layout.
        directory: PathBuf,
        /// What was asked for.
        digest: Sha256Digest,
        /// What is there, in words.
        found: String,
    },
    /// A blob is not what its name says.
    #[error("{path} has digest {actual}")]
    DigestMismatch {
        /// The blob's file.
        path: PathBuf,
        /// Digest of its content.
        actual: Sha256Digest,
    },
    /// `index.json` is no index.
    #[error("{path} is not an image index")]
    NoIndex {
        /// The file.
        path: PathBuf,
    },
    /// `index.json` cannot be read.
    #[error("cannot read {path}")]
    ReadIndex {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ParseManifestError,
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
    #[error("{digest} has no image for linux/amd64: it has {found}")]
    NoPlatform {
        /// Digest of the index.
        digest: Sha256Digest,
        /// What it has.
        found: String,
    },
}

/// Annotation with the name of an image in a layout.
const NAME_ANNOTATION: &str = "org.opencontainers.image.ref.name";
/// What an index has where another index is.
pub(crate) const NESTED: &str = "another index in the place of an image";
/// The file that makes a directory a layout.
const MARK: &str = "oci-layout";

/// Whether a directory is an OCI layout.
pub fn is_layout(directory: &Path) -> bool {
    directory.join(MARK).is_file()
}

/// The images that a layout's index names, with their names where they have one.
pub fn list_layout(
    directory: &Path,
) -> Result<Vec<(Option<String>, Sha256Digest)>, ReadLayoutError> {
    let path = directory.join("index.json");
    let index = match fs::read(&path) {
        Ok(index) => index,
        Err(source) => return Err(ReadLayoutError::Read { path, source }),
    };
    match parse_manifest(&index) {
        Ok(ManifestOrIndex::Index(index)) => Ok(index
            .manifests
            .into_iter()
            .map(|entry| {
                (
                    entry.annotations.get(NAME_ANNOTATION).cloned(),
                    entry.digest,
                )
            })
            .collect()),
        Ok(ManifestOrIndex::Manifest(_)) => Err(ReadLayoutError::NoIndex { path }),
        Err(source) => Err(ReadLayoutError::ReadIndex { path, source }),
    }
}

/// Writes images to an OCI layout.
#[derive(Debug)]
pub struct LayoutWriter {
    directory: PathBuf,
    manifests: Vec<IndexEntry>,
}

/// A file of a layout cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}")]
pub struct WriteLayoutError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl LayoutWriter {
    /// Makes a directory a layout without images.
    pub fn create(directory: &Path) -> Result<Self, WriteLayoutError> {
        let layout = Self {
            directory: directory.to_owned(),
            manifests: Vec::new(),
        };
        let path = directory.join("blobs/sha256");
        if let Err(source) = fs::create_dir_all(&path) {
            return Err(WriteLayoutError { path, source });
        }
        layout.write(MARK, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        layout.write_index()?;
        Ok(layout)
    }

    /// Adds an image for linux/amd64 under a name.
    pub fn add(&mut self, name: &str, image: &OciImage) -> Result<(), WriteLayoutError> {
        let manifest = Blob::new(image.manifest.clone());
        for blob in image.layers.iter().chain([&image.config, &manifest]) {
            let path = format!("blobs/sha256/{}", blob.digest().to_hex());
            self.write(&path, &blob.content().to_bytes())?;
        }
        self.manifests.push(IndexEntry {
            media_type: media_type::MANIFEST.to_owned(),
            digest: image.manifest_digest,
            size: manifest.size(),
            platform: Some(Platform::linux_amd64()),
            annotations: BTreeMap::from([(NAME_ANNOTATION.to_owned(), name.to_owned())]),
        });
        self.write_index()
    }

    fn write_index(&self) -> Result<(), WriteLayoutError> {
        let index = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": media_type::INDEX,
            "manifests": self.manifests,
        });
        self.write("index.json", index.to_string().as_bytes())
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<(), WriteLayoutError> {
        let path = self.directory.join(path);
        fs::write(&path, bytes).map_err(|source| WriteLayoutError { path, source })
    }
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
    if !blob_path(directory, digest).exists() {
        return Err(ReadLayoutError::NoImage {
            directory: directory.to_owned(),
            digest,
            found: images(directory),
        });
    }
    let no_platform = |found| ReadLayoutError::NoPlatform { digest, found };
    let (manifest_digest, (manifest, manifest_bytes)) = match manifest_or_index(digest, blob)? {
        (ManifestOrIndex::Manifest(manifest), bytes) => (digest, (manifest, bytes)),
        (ManifestOrIndex::Index(index), _) => {
            let child = index.linux_amd64();
            let child = child.ok_or_else(|| no_platform(index.platforms()))?.digest;
            match manifest_or_index(child, blob)? {
                (ManifestOrIndex::Manifest(manifest), bytes) => (child, (manifest, bytes)),
                (ManifestOrIndex::Index(_), _) => return Err(no_platform(NESTED.to_owned())),
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
        manifest_bytes,
        config,
        layers,
    })
}

/// The images of a layout, in words.
fn images(directory: &Path) -> String {
    if !is_layout(directory) {
        return "it is no OCI layout".to_owned();
    }
    match list_layout(directory) {
        Ok(images) if images.is_empty() => "it has none".to_owned(),
        Ok(images) => {
            let digests = images.iter().map(|(_, digest)| digest.to_string());
            format!("it has {}", digests.collect::<Vec<_>>().join(", "))
        }
        Err(error) => error.to_string(),
    }
}

fn manifest_or_index(
    digest: Sha256Digest,
    blob: impl Fn(Sha256Digest) -> Result<Bytes, ReadLayoutError>,
) -> Result<(ManifestOrIndex, Bytes), ReadLayoutError> {
    let bytes = blob(digest)?;
    let parsed = parse_manifest(&bytes)
        .map_err(|source| ReadLayoutError::ReadManifest { digest, source })?;
    Ok((parsed, bytes))
}

fn blob_path(directory: &Path, digest: Sha256Digest) -> PathBuf {
    directory.join("blobs/sha256").join(digest.to_hex())
}

fn blob(
    directory: &Path,
    digest: Sha256Digest,
    scratch: Option<&Scratch>,
) -> Result<Bytes, ReadLayoutError> {
    let path = blob_path(directory, digest);
    let read = |source| ReadLayoutError::Read {
        path: path.clone(),
        source,
    };
    let mut file = File::open(&path).map_err(read)?;
    let content = if let Some(scratch) = scratch {
        // A copy: whoever changes the layout later does not change what was verified.
        let keep = |source| ReadLayoutError::Keep {
            path: path.clone(),
            source,
        };
        scratch.keep(&mut file).map_err(keep)?
    } else {
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(read)?;
        content.into()
    };
    let actual = Sha256Digest::of(&content);
    if actual != digest {
        return Err(ReadLayoutError::DigestMismatch { path, actual });
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use assay_image::oci::{ImageOptions, Layer};
    use assay_image::tarball::{Owner, TarBuilder};

    use super::*;

    #[test]
    fn a_layout_holds_every_image_under_its_name() {
        let image = |content: &[u8]| {
            let mut tar = TarBuilder::new();
            tar.file("x", 0o644, Owner::ROOT, content.to_vec());
            OciImage::assemble(ImageOptions::default(), &[Layer::tar(tar.finish())]).unwrap()
        };
        let directory = tempfile::tempdir().unwrap();
        assert!(!is_layout(directory.path()));
        let images = [("one", image(b"1")), ("two", image(b"2"))];
        let mut layout = LayoutWriter::create(directory.path()).unwrap();
        assert!(is_layout(directory.path()));
        assert_eq!(list_layout(directory.path()).unwrap(), []);
        for (name, image) in &images {
            layout.add(name, image).unwrap();
        }
        let listed = list_layout(directory.path()).unwrap();
        for ((name, image), (listed_name, digest)) in images.iter().zip(listed) {
            assert_eq!(listed_name.as_deref(), Some(*name));
            assert_eq!(digest, image.manifest_digest);
            let read = read_layout(directory.path(), digest, None).unwrap();
            assert_eq!(read.layers, [image.layers[0].content().to_bytes()]);
        }
    }

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

        let other = Sha256Digest::of(b"other");
        let nothing = read_layout(directory.path(), other, None).unwrap_err();
        assert!(
            nothing.to_string().ends_with(": it is no OCI layout"),
            "{nothing}"
        );
        let whole = directory.path().join("whole");
        LayoutWriter::create(&whole)
            .unwrap()
            .add("x", &image)
            .unwrap();
        let nothing = read_layout(&whole, other, None).unwrap_err().to_string();
        let has = format!("has no image {other}: it has {}", image.manifest_digest);
        assert!(nothing.ends_with(&has), "{nothing}");

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
