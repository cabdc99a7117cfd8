//! Where the state of volumes is kept, keys included.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::{BoxFuture, FutureExt as _};
use zeroize::Zeroizing;

use super::Volume;
use crate::release::ResourcePath;
use crate::state::{StateError, check_private, make_private_directory, write_private};

/// Why a state is not read or kept.
#[derive(Debug, thiserror::Error)]
pub enum VolumeStoreError {
    /// Another request was faster.
    #[error("the state of the volume was changed meanwhile")]
    Conflict,
    /// A file cannot be read or written.
    #[error("cannot use {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others can read the file.
    #[error("the keys of a volume are not the broker's alone")]
    Private(#[source] StateError),
    /// The file is no state of a volume. It is never made anew: the keys in it may
    /// be the only ones.
    #[error("{} is not the state of a volume: restore it", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The state has no JSON.
    #[error("cannot encode the state of the volume")]
    Encode(#[source] serde_json::Error),
    /// The thread that reads and writes ended.
    #[error("the thread of the volume store ended")]
    Join(#[source] tokio::task::JoinError),
}

/// Where states are kept.
///
/// # Guarantees
/// [`VolumeStore::replace`] succeeds only while the state is the one that was read,
/// and what it kept is read after a crash. Nothing is read only when nothing was
/// ever kept.
pub trait VolumeStore: Send + Sync {
    /// Reads the state.
    fn read<'a>(
        &'a self,
        path: &'a ResourcePath,
    ) -> BoxFuture<'a, Result<Option<Volume>, VolumeStoreError>>;

    /// Keeps `next` in the place of the state with the revision `existing`; of
    /// nothing, if there was none.
    fn replace<'a>(
        &'a self,
        path: &'a ResourcePath,
        existing: Option<u64>,
        next: Volume,
    ) -> BoxFuture<'a, Result<(), VolumeStoreError>>;
}

/// States as files, `{namespace}/{deployment}/{volume}.json` in one directory.
///
/// # Assumptions
/// Names are checked, and nobody but this process writes to the directory.
pub struct VolumeDirectory(Arc<Directory>);

struct Directory {
    path: PathBuf,
    /// Held from the look at the state to its replacement.
    writing: Mutex<()>,
}

impl VolumeDirectory {
    /// Keeps states in `path`, made with the first one.
    pub fn new(path: &Path) -> Self {
        Self(Arc::new(Directory {
            path: path.to_owned(),
            writing: Mutex::new(()),
        }))
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Directory) -> Result<T, VolumeStoreError> + Send + 'static,
    ) -> Result<T, VolumeStoreError> {
        let directory = self.0.clone();
        tokio::task::spawn_blocking(move || work(&directory))
            .await
            .map_err(VolumeStoreError::Join)?
    }
}

impl VolumeStore for VolumeDirectory {
    fn read<'a>(
        &'a self,
        path: &'a ResourcePath,
    ) -> BoxFuture<'a, Result<Option<Volume>, VolumeStoreError>> {
        let path = path.clone();
        self.run(move |directory| directory.read(&path)).boxed()
    }

    fn replace<'a>(
        &'a self,
        path: &'a ResourcePath,
        existing: Option<u64>,
        next: Volume,
    ) -> BoxFuture<'a, Result<(), VolumeStoreError>> {
        let path = path.clone();
        self.run(move |directory| directory.replace(&path, existing, &next))
            .boxed()
    }
}

impl Directory {
    fn file(&self, path: &ResourcePath) -> PathBuf {
        let directory = self.path.join(&path.namespace).join(&path.deployment);
        directory.join(format!("{}.json", path.name))
    }

    fn read(&self, path: &ResourcePath) -> Result<Option<Volume>, VolumeStoreError> {
        let file = self.file(path);
        let bytes = match fs::read(&file) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed(&file, source)),
        };
        check_private(&file).map_err(VolumeStoreError::Private)?;
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| VolumeStoreError::Parse { path: file, source })
    }

    fn replace(
        &self,
        path: &ResourcePath,
        existing: Option<u64>,
        next: &Volume,
    ) -> Result<(), VolumeStoreError> {
        // It guards no value: a panic leaves nothing half done but a temporary file.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.read(path)?.map(|volume| volume.revision) != existing {
            return Err(VolumeStoreError::Conflict);
        }
        let file = self.file(path);
        let bytes = serde_json::to_vec(next).map_err(VolumeStoreError::Encode)?;
        write(&self.path, &file, &Zeroizing::new(bytes)).map_err(|source| failed(&file, source))
    }
}

/// The whole file, or the one before: also after a crash. Directories that are made
/// below `root` are on the disk before the file is.
fn write(root: &Path, file: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = file.parent().unwrap_or(root);
    make_private_directory(directory)?;
    // No volume has an upper-case name.
    let temporary = directory.join("NEW");
    write_private(&temporary, bytes)?;
    fs::rename(&temporary, file)?;
    // From the file's directory up to the one that holds `root`.
    let top = root.parent().filter(|path| !path.as_os_str().is_empty());
    let top = top.unwrap_or(Path::new("."));
    for directory in directory
        .ancestors()
        .take_while(|path| path.starts_with(root))
    {
        File::open(directory)?.sync_all()?;
    }
    File::open(top)?.sync_all()
}

fn failed(path: &Path, source: io::Error) -> VolumeStoreError {
    VolumeStoreError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
