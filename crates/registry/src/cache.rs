//! Blobs that were pulled, on a disk of whoever pulled them: what is there needs no
//! network again, and a transfer that broke off goes on where it did.
//!
//! The directory is no more trusted than a registry: every blob is checked against
//! its digest whenever it is read. Processes may share it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use assay_tee::Sha256Digest;
use bytes::Bytes;

use crate::Scratch;
use crate::partial::{PartialBlob, copy_of};

/// A directory cannot be used as a cache.
#[derive(Debug, thiserror::Error)]
#[error("cannot use {path}")]
pub struct CacheError {
    /// The file or directory.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// A directory of blobs.
#[derive(Debug, Clone)]
pub struct BlobCache {
    blobs: PathBuf,
    partial: PathBuf,
}

impl BlobCache {
    /// The cache in `directory`, which is made if it does not exist.
    ///
    /// # Errors
    /// When it cannot be made, or takes no files.
    pub fn open(directory: &Path) -> Result<Self, CacheError> {
        let cache = Self {
            blobs: directory.join("blobs/sha256"),
            partial: directory.join("partial"),
        };
        for path in [&cache.blobs, &cache.partial] {
            fs::create_dir_all(path).map_err(failed(path))?;
            // Told now, and not after the first gigabyte.
            tempfile::tempfile_in(path).map_err(failed(path))?;
        }
        Ok(cache)
    }

    /// Removes what was not used for the longest time, until no more than `limit`
    /// bytes are left; also what is left of transfers.
    ///
    /// # Errors
    /// When the directory cannot be read, or a file not removed.
    pub fn trim(&self, limit: u64) -> Result<(), CacheError> {
        let mut files = Vec::new();
        for directory in [&self.blobs, &self.partial] {
            for entry in fs::read_dir(directory).map_err(failed(directory))? {
                let path = entry.map_err(failed(directory))?.path();
                // Whoever else trims may have been faster.
                let Some(metadata) = found(fs::symlink_metadata(&path)).map_err(failed(&path))?
                else {
                    continue;
                };
                let used = metadata.modified().map_err(failed(&path))?;
                files.push((used, metadata.len(), path));
            }
        }
        files.sort();
        let mut total: u64 = files.iter().map(|(_, length, _)| length).sum();
        for (_, length, path) in files {
            if total <= limit {
                break;
            }
            // A reader keeps the file that it has open, and a transfer that lost its
            // file notices and begins another.
            found(fs::remove_file(&path)).map_err(failed(&path))?;
            total = total.saturating_sub(length);
        }
        Ok(())
    }

    /// A blob, if it is here and whole. One that was damaged is removed.
    pub(crate) fn read(
        &self,
        digest: Sha256Digest,
        scratch: Option<&Scratch>,
    ) -> Result<Option<Bytes>, CacheError> {
        let path = self.blobs.join(digest.to_hex());
        let Some(metadata) = found(fs::symlink_metadata(&path)).map_err(failed(&path))? else {
            return Ok(None);
        };
        // Opening something else may never return.
        if metadata.is_file() {
            let Some(mut file) = found(File::open(&path)).map_err(failed(&path))? else {
                return Ok(None);
            };
            let content = copy_of(&mut file, scratch).map_err(failed(&path))?;
            if Sha256Digest::of(&content) == digest {
                // For `trim`. Of a cache that is only read nothing is ever removed.
                let _unwritable = file.set_modified(SystemTime::now());
                return Ok(Some(content));
            }
        }
        found(fs::remove_file(&path)).map_err(failed(&path))?;
        Ok(None)
    }

    /// Keeps a blob that was verified.
    pub(crate) fn keep(&self, digest: Sha256Digest, content: &[u8]) -> Result<(), CacheError> {
        let mut partial = self.lock(digest, None)?;
        let path = self.partial.join(digest.to_hex());
        let mut write = || {
            partial.clear()?;
            partial.append(content)
        };
        write().map_err(failed(&path))?;
        self.take(digest, &partial)
    }

    /// The file that a blob is transferred to. Waits for another process that
    /// transfers it.
    pub(crate) fn lock(
        &self,
        digest: Sha256Digest,
        scratch: Option<&Scratch>,
    ) -> Result<PartialBlob, CacheError> {
        let path = self.partial.join(digest.to_hex());
        loop {
            let metadata = found(fs::symlink_metadata(&path)).map_err(failed(&path))?;
            if metadata.is_some_and(|metadata| !metadata.is_file()) {
                fs::remove_file(&path).map_err(failed(&path))?;
            }
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false);
            let file = file.open(&path).map_err(failed(&path))?;
            file.lock().map_err(failed(&path))?;
            // Whoever had it may have moved it away.
            if is_same_file(&file, &path).map_err(failed(&path))? {
                return PartialBlob::named(file, path.clone(), scratch).map_err(failed(&path));
            }
        }
    }

    /// Gives a whole and verified blob its place.
    pub(crate) fn take(&self, digest: Sha256Digest, blob: &PartialBlob) -> Result<(), CacheError> {
        let place = self.blobs.join(digest.to_hex());
        let from = blob.path().unwrap_or(&self.partial);
        // Where `trim` took the name away, the blob comes again another time.
        found(fs::rename(from, &place)).map_err(failed(&place))?;
        Ok(())
    }
}

fn is_same_file(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let Some(there) = found(fs::metadata(path))? else {
        return Ok(false);
    };
    let here = file.metadata()?;
    Ok((here.dev(), here.ino()) == (there.dev(), there.ino()))
}

/// What is not there is no error.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> CacheError {
    let path = path.to_owned();
    move |source| CacheError { path, source }
}
