//! An image that was pulled and verified.

use assay_image::flatten::StoredLayer;
use assay_image::oci::{Blob, Descriptor, ImageManifest, LayerCompression, OciImage};
use assay_tee::Sha256Digest;
use bytes::Bytes;

/// An image that was pulled and verified.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// What the reference named: the index's digest where there is an index,
    /// else the manifest's. `repository@digest` is the reference to keep.
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
