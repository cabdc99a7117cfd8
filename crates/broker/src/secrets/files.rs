//! A directory of values: `{namespace}/{deployment}/{name}`, the path by which
//! guests ask for them. Beside a value, `{name}.class` says who may have it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use assay_crds::names::RELEASE_CLASS_SIMULATED;
use assay_crds::v1alpha1::confidential_deployment::SecretKeyReference;
use futures::future::{BoxFuture, FutureExt as _};
use zeroize::Zeroizing;

use super::{Location, ReleaseClass, SecretStore, SecretStoreError, StoredSecret};
use crate::release::{MAX_VALUE, ResourcePath};

/// Most bytes that are read: what is longer cannot be released. A sealed value is
/// longer than what is in it.
const MAX_FILE: usize = 2 * MAX_VALUE;
/// Most bytes of a class.
const MAX_CLASS: usize = 64;
const STORE: &str = "Files";

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileStoreError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is a directory, or another thing that has no content.
    #[error("{} is no file", path.display())]
    NoFile {
        /// What is there.
        path: PathBuf,
    },
    /// Others than its owner may do more with it than they should.
    #[error("{} has mode {mode:03o}: chmod it to {wanted:03o} or less", path.display())]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The widest mode that is accepted.
        wanted: u32,
    },
    /// A class is too long to be one.
    #[error("{} is not a class: write {RELEASE_CLASS_SIMULATED}, or remove it", path.display())]
    Class {
        /// The file.
        path: PathBuf,
    },
    /// The reading thread ended.
    #[error("the reading thread ended")]
    Join(#[source] tokio::task::JoinError),
}

/// The directory.
pub struct FileSecrets {
    directory: PathBuf,
}

impl FileSecrets {
    /// Values below `directory`.
    ///
    /// # Errors
    /// When it is not a directory, or others than its owner may write to it.
    pub fn open(directory: &Path) -> Result<Self, FileStoreError> {
        let metadata = std::fs::metadata(directory).map_err(|source| FileStoreError::Read {
            path: directory.to_owned(),
            source,
        })?;
        if !metadata.is_dir() {
            return Err(FileStoreError::Read {
                path: directory.to_owned(),
                source: io::ErrorKind::NotADirectory.into(),
            });
        }
        check_mode(directory, metadata.permissions().mode(), 0o755)?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    fn path(&self, path: &ResourcePath) -> PathBuf {
        let ResourcePath {
            namespace,
            deployment,
            name,
        } = path;
        self.directory.join(namespace).join(deployment).join(name)
    }
}

impl SecretStore for FileSecrets {
    fn read<'a>(
        &'a self,
        path: &'a ResourcePath,
        _: &'a SecretKeyReference,
    ) -> BoxFuture<'a, Result<Option<StoredSecret>, SecretStoreError>> {
        // A name of a deployment's secrets has no dot; one that has could be that of
        // a class.
        if path.name.contains('.') {
            return futures::future::ready(Ok(None)).boxed();
        }
        let file = self.path(path);
        async {
            let read = tokio::task::spawn_blocking(move || stored(&file)).await;
            let read = read.map_err(FileStoreError::Join).flatten();
            read.map_err(|source| SecretStoreError {
                store: STORE,
                source: source.into(),
            })
        }
        .boxed()
    }

    fn locate(&self, path: &ResourcePath, _: &SecretKeyReference) -> Location {
        let file = self.path(path);
        Location {
            secret: format!("file {path}"),
            place: "in the broker's store".to_owned(),
            value: "content".to_owned(),
            mark: format!(
                "a file {}.class that says {RELEASE_CLASS_SIMULATED}",
                file.file_name().unwrap_or_default().display()
            ),
        }
    }
}

fn stored(path: &Path) -> Result<Option<StoredSecret>, FileStoreError> {
    // Namespace and deployment: whoever can write to them chooses the values.
    for directory in path.ancestors().skip(1).take(2) {
        match std::fs::metadata(directory) {
            Ok(metadata) => check_mode(directory, metadata.permissions().mode(), 0o755)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                let path = directory.to_owned();
                return Err(FileStoreError::Read { path, source });
            }
        }
    }
    let Some(value) = read(path, 0o700, MAX_FILE)? else {
        return Ok(None);
    };
    let class = path.with_extension("class");
    let mark = read(&class, 0o755, MAX_CLASS)?;
    let mark = match mark.as_deref().map(|bytes| str::from_utf8(bytes)) {
        None => None,
        Some(Ok(mark)) if mark.len() <= MAX_CLASS => Some(mark.trim_end()),
        Some(_) => return Err(FileStoreError::Class { path: class }),
    };
    Ok(Some(StoredSecret {
        class: ReleaseClass::of_mark(mark),
        value: Some(value),
    }))
}

/// The content of a file whose mode is no wider than `wanted`, or its first bytes
/// if it is longer than `limit`.
fn read(
    path: &Path,
    wanted: u32,
    limit: usize,
) -> Result<Option<Zeroizing<Vec<u8>>>, FileStoreError> {
    let failed = |source| FileStoreError::Read {
        path: path.to_owned(),
        source,
    };
    let mut options = OpenOptions::new();
    // A pipe must not hold the broker up.
    let opened = options.read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file: File = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(FileStoreError::NoFile {
            path: path.to_owned(),
        });
    }
    check_mode(path, metadata.permissions().mode(), wanted)?;
    // Of its final size from the start: growing would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit + 2));
    let mut file = file.take(u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1));
    file.read_to_end(&mut bytes).map_err(failed)?;
    Ok(Some(bytes))
}

fn check_mode(path: &Path, mode: u32, wanted: u32) -> Result<(), FileStoreError> {
    let mode = mode & 0o777;
    if mode & !wanted != 0 {
        return Err(FileStoreError::Permissions {
            path: path.to_owned(),
            mode,
            wanted,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::fixtures;

    struct World {
        directory: tempfile::TempDir,
        store: FileSecrets,
    }

    fn put(path: &Path, bytes: &[u8], mode: u32) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn world() -> World {
        let directory = tempfile::tempdir().unwrap();
        let store = FileSecrets::open(directory.path()).unwrap();
        World { directory, store }
    }

    impl World {
        fn put(&self, name: &str, bytes: &[u8], mode: u32) {
            put(&self.directory.path().join(name), bytes, mode);
        }

        async fn read(&self, name: &str) -> Result<Option<StoredSecret>, String> {
            let path = ResourcePath {
                name: name.to_owned(),
                ..fixtures::resource_path()
            };
            let reference = fixtures::deployment().spec.secrets[0].secret_ref.clone();
            let read = self.store.read(&path, &reference).await;
            read.map_err(|error| crate::service::Chain(&error).to_string())
        }
    }

    #[tokio::test]
    async fn a_value_and_its_class_are_read() {
        let world = world();
        assert!(world.read("greeting").await.unwrap().is_none());
        world.put("shop/web/greeting", b"hello\n", 0o600);
        let stored = world.read("greeting").await.unwrap().unwrap();
        assert_eq!(stored.value.unwrap().as_slice(), b"hello\n");
        assert_eq!(stored.class, ReleaseClass::Hardware);
        for (mark, class) in [
            ("simulated", ReleaseClass::Simulated),
            ("simulated\n", ReleaseClass::Simulated),
            ("simulated!", ReleaseClass::Hardware),
            ("simulated\n\nnot", ReleaseClass::Hardware),
            ("production", ReleaseClass::Hardware),
            ("", ReleaseClass::Hardware),
        ] {
            world.put("shop/web/greeting.class", mark.as_bytes(), 0o644);
            let stored = world.read("greeting").await.unwrap().unwrap();
            assert_eq!(stored.class, class, "{mark:?}");
        }
        // A class is no value.
        assert!(world.read("greeting.class").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_others_can_read_is_refused() {
        let world = world();
        world.put("shop/web/greeting", b"hello", 0o600);
        for mode in [0o640, 0o604, 0o620, 0o602] {
            world.put("shop/web/greeting", b"hello", mode);
            let error = world.read("greeting").await.unwrap_err();
            assert!(error.contains("chmod it to 700 or less"), "{error}");
        }
        for name in ["shop", "shop/web"] {
            let directory = world.directory.path().join(name);
            for (mode, readable) in [(0o775, false), (0o757, false), (0o755, true)] {
                fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).unwrap();
                world.put("shop/web/greeting", b"hello", 0o600);
                assert_eq!(world.read("greeting").await.is_ok(), readable, "{mode:o}");
            }
        }
        world.put("shop/web/greeting", b"hello", 0o400);
        assert!(world.read("greeting").await.unwrap().is_some());
        let long = ["simulated", &" ".repeat(MAX_CLASS)].concat();
        world.put("shop/web/greeting.class", long.as_bytes(), 0o644);
        let error = world.read("greeting").await.unwrap_err();
        assert!(error.contains("is not a class"), "{error}");
        world.put("shop/web/greeting.class", b"simulated", 0o666);
        let error = world.read("greeting").await.unwrap_err();
        assert!(error.contains("greeting.class has mode 666"), "{error}");
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_an_error_and_no_absence() {
        let world = world();
        fs::create_dir_all(world.directory.path().join("shop/web/greeting")).unwrap();
        assert!(world.read("greeting").await.is_err());
        world.put("shop/web/large", &vec![0; MAX_FILE + 2], 0o600);
        let stored = world.read("large").await.unwrap().unwrap();
        assert_eq!(stored.value.unwrap().len(), MAX_FILE + 1);
        assert!(FileSecrets::open(&world.directory.path().join("absent")).is_err());
        let open = world.directory.path();
        fs::set_permissions(open, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(FileSecrets::open(open).is_err());
    }
}
