//! Blobs that were pulled, on a disk of the person who pulled them: what is there
//! needs no network again, and a transfer that broke off goes on where it did.
//!
//! The directory is no more trusted than a registry: every blob is checked against
//! its digest whenever it is read. Processes may share it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

use assay_tee::Sha256Digest;
use bytes::Bytes;

use crate::Scratch;

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

/// Who is told how a pull goes on.
pub trait TransferProgress: Sync {
    /// The pull is about so many more bytes.
    fn expect(&self, bytes: u64);
    /// So many more of them are here.
    fn advance(&self, bytes: u64);
    /// So many of them are of no use and come again.
    fn retreat(&self, bytes: u64);
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
    /// When it cannot be made.
    pub fn open(directory: &Path) -> Result<Self, CacheError> {
        let cache = Self {
            blobs: directory.join("blobs/sha256"),
            partial: directory.join("partial"),
        };
        for path in [&cache.blobs, &cache.partial] {
            fs::create_dir_all(path).map_err(failed(path))?;
        }
        Ok(cache)
    }

    /// A blob, if it is here and whole. One that was damaged is removed.
    pub(crate) fn read(
        &self,
        digest: Sha256Digest,
        scratch: Option<&Scratch>,
    ) -> Result<Option<Bytes>, CacheError> {
        let path = self.blobs.join(digest.to_hex());
        let content = match File::open(&path).and_then(|mut file| read_all(&mut file, scratch)) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CacheError { path, source }),
        };
        if Sha256Digest::of(&content) == digest {
            return Ok(Some(content));
        }
        fs::remove_file(&path).map_err(failed(&path))?;
        Ok(None)
    }

    /// Keeps a blob that was verified.
    pub(crate) fn keep(&self, digest: Sha256Digest, content: &[u8]) -> Result<(), CacheError> {
        let mut partial = self.lock(digest)?;
        partial.clear()?;
        partial.append(content)?;
        partial.finish(self)
    }

    /// The file that a blob is transferred to. Waits for another process that
    /// transfers it.
    pub(crate) fn lock(&self, digest: Sha256Digest) -> Result<PartialBlob, CacheError> {
        let path = self.partial.join(digest.to_hex());
        loop {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false);
            let file = file.open(&path).map_err(failed(&path))?;
            file.lock().map_err(failed(&path))?;
            // Whoever had it may have moved it away.
            let length = file.metadata().map_err(failed(&path))?.len();
            if is_same_file(&file, &path).map_err(failed(&path))? {
                return Ok(PartialBlob {
                    digest,
                    path,
                    file,
                    length,
                });
            }
        }
    }
}

/// A copy of a file, which stays as it is whoever changes the file: on the scratch
/// disk, or in memory without one.
fn read_all(file: &mut File, scratch: Option<&Scratch>) -> io::Result<Bytes> {
    if let Some(scratch) = scratch {
        return scratch.keep(file);
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    Ok(content.into())
}

fn is_same_file(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let there = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let here = file.metadata()?;
    Ok((here.dev(), here.ino()) == (there.dev(), there.ino()))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> CacheError {
    let path = path.to_owned();
    move |source| CacheError { path, source }
}

/// A blob as far as it is here. Nobody else has the file.
#[derive(Debug)]
pub(crate) struct PartialBlob {
    digest: Sha256Digest,
    path: PathBuf,
    file: File,
    length: u64,
}

impl PartialBlob {
    /// Bytes that are here.
    pub(crate) fn len(&self) -> u64 {
        self.length
    }

    /// Throws away what is here.
    pub(crate) fn clear(&mut self) -> Result<(), CacheError> {
        self.file.set_len(0).map_err(failed(&self.path))?;
        self.length = 0;
        Ok(())
    }

    /// Appends what came next.
    pub(crate) fn append(&mut self, chunk: &[u8]) -> Result<(), CacheError> {
        let mut write = || {
            self.file.seek(io::SeekFrom::Start(self.length))?;
            self.file.write_all(chunk)
        };
        write().map_err(failed(&self.path))?;
        self.length = self.length.saturating_add(chunk.len() as u64);
        Ok(())
    }

    /// Everything that is here.
    pub(crate) fn content(&mut self, scratch: Option<&Scratch>) -> Result<Bytes, CacheError> {
        let content = self.file.rewind();
        let content = content.and_then(|()| read_all(&mut self.file, scratch));
        content.map_err(failed(&self.path))
    }

    /// Gives the whole and verified blob its place in the cache.
    pub(crate) fn finish(self, cache: &BlobCache) -> Result<(), CacheError> {
        let place = cache.blobs.join(self.digest.to_hex());
        fs::rename(&self.path, &place).map_err(failed(&place))
    }
}
