//! Files without a name that hold what is too large for memory.
//!
//! A layer of gigabytes is written to a file and mapped. What is mapped counts as
//! the kernel's cache, which gives it back when memory is short, so an image of any
//! size is handled within a fixed limit.

mod maps;

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use assay_image::flatten::{FlattenError, StoredLayer};
use assay_image::oci::LayerCompression;
use assay_image::rope::Keep;
use bytes::Bytes;

use maps::Maps;

/// A directory for files that nobody else sees: they have no name, and are gone
/// with their last user, however the program ends.
#[derive(Debug, Clone)]
pub struct Scratch {
    directory: PathBuf,
    maps: Arc<Maps>,
}

/// Why something could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// A file could not be made, written or mapped: there may be no room.
    #[error("cannot keep {what} in {directory}")]
    File {
        /// What was to be kept.
        what: String,
        /// The directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A layer cannot be uncompressed.
    #[error(transparent)]
    Uncompress(FlattenError),
}

impl Scratch {
    /// Files in `directory`, which must exist and lie on a disk: a tmpfs is memory.
    ///
    /// # Errors
    /// When no file can be made there.
    pub fn new(directory: impl Into<PathBuf>) -> Result<Self, ScratchError> {
        let scratch = Self {
            directory: directory.into(),
            maps: Arc::default(),
        };
        let probe = scratch.file();
        probe.map_err(|source| scratch.error("a file", source))?;
        Ok(scratch)
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// An empty file without a name.
    pub(crate) fn file(&self) -> io::Result<File> {
        tempfile::tempfile_in(&self.directory)
    }

    /// The content of a file of [`Scratch::file`], all of which is written.
    pub(crate) fn map(&self, file: &File) -> io::Result<Bytes> {
        self.maps.map(file)
    }

    /// What `content` gives to its end.
    pub(crate) fn keep(&self, content: &mut impl io::Read) -> io::Result<Bytes> {
        let mut file = self.file()?;
        io::copy(content, &mut file)?;
        self.map(&file)
    }

    /// Layers uncompressed, so that flattening them takes no memory. Those that are
    /// not compressed stay as they are.
    ///
    /// # Errors
    /// When a layer cannot be uncompressed, claims to be endless, or finds no room.
    pub fn uncompress(&self, layers: Vec<StoredLayer>) -> Result<Vec<StoredLayer>, ScratchError> {
        let uncompress = |(index, layer): (usize, StoredLayer)| {
            if layer.compression == LayerCompression::None {
                return Ok(layer);
            }
            let what = format!("layer {index}, uncompressed,");
            let file_error = |source| self.error(&what, source);
            let mut file = BufWriter::new(self.file().map_err(file_error)?);
            layer
                .uncompress_to(index, &mut file)
                .map_err(|error| match error {
                    FlattenError::Write { source, .. } => self.error(&what, source),
                    other => ScratchError::Uncompress(other),
                })?;
            let file = file
                .into_inner()
                .map_err(|error| file_error(error.into_error()))?;
            Ok(StoredLayer {
                bytes: self.map(&file).map_err(file_error)?,
                compression: LayerCompression::None,
            })
        };
        layers.into_iter().enumerate().map(uncompress).collect()
    }

    fn error(&self, what: &str, source: io::Error) -> ScratchError {
        ScratchError::File {
            what: what.to_owned(),
            directory: self.directory.clone(),
            source,
        }
    }
}

impl Keep for Scratch {
    fn keep(&self, bytes: Vec<u8>) -> io::Result<Bytes> {
        Self::keep(self, &mut bytes.as_slice())
    }
}

#[cfg(test)]
mod tests;
