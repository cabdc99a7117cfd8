//! The state directory of a broker without Kubernetes: its keys, made when it
//! starts for the first time, its records and its audit log. One broker has it at
//! a time.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::keys::{BrokerKeys, CA_CERTIFICATE, KeysError, PRIVATE_ENTRIES};

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file or directory cannot be read or made.
    #[error("cannot use {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another broker has the directory.
    #[error("{} is another broker's: give each one of its own", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// Others than the broker's user can read a key.
    #[error("{} can be read by others (mode {mode:03o}): make new keys, or chmod 600 if nobody did", path.display())]
    Permissions {
        /// The key.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The keys cannot be used.
    #[error("cannot use the keys in {}", path.display())]
    Keys {
        /// The directory of the keys.
        path: PathBuf,
        /// Why.
        #[source]
        source: KeysError,
    },
}

/// The directory, locked.
pub struct StateDirectory {
    path: PathBuf,
    _lock: File,
}

impl StateDirectory {
    /// Opens the directory, made if it does not exist.
    ///
    /// # Errors
    /// When it cannot be made, or another broker has it.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        make_private_directory(path).map_err(|source| failed(path, source))?;
        let lock = path.join("lock");
        let failed = |source| failed(&lock, source);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock)
            .map_err(failed)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StateError::Locked {
                path: path.to_owned(),
            },
            TryLockError::Error(source) => failed(source),
        })?;
        Ok(Self {
            path: path.to_owned(),
            _lock: file,
        })
    }

    /// Where records are.
    pub fn records(&self) -> PathBuf {
        self.path.join("records")
    }

    /// Where the keys of volumes are.
    pub fn volumes(&self) -> PathBuf {
        self.path.join("volumes")
    }

    /// Where the audit log is, unless the configuration says otherwise.
    pub fn audit_log(&self) -> PathBuf {
        self.path.join("audit.jsonl")
    }

    /// Reads the broker's keys; makes them, if there are none.
    ///
    /// # Errors
    /// When they are incomplete, or others can read them: they are never repaired,
    /// because running guests trust what they were.
    pub fn get_or_create_keys(&self, now: Timestamp) -> Result<BrokerKeys, StateError> {
        let directory = self.path.join("keys");
        let unusable = |source| StateError::Keys {
            path: directory.clone(),
            source,
        };
        if !directory.try_exists().map_err(|s| failed(&directory, s))? {
            let keys = BrokerKeys::generate(now).map_err(unusable)?;
            write_keys(&directory, &keys)?;
            tracing::info!(directory = %directory.display(), "new keys are made");
            return Ok(keys);
        }
        let mut entries = BTreeMap::new();
        for name in BrokerKeys::ENTRIES {
            let path = directory.join(name);
            match fs::read(&path) {
                Ok(bytes) => {
                    if PRIVATE_ENTRIES.contains(&name) {
                        check_private(&path)?;
                    }
                    entries.insert(name.to_owned(), bytes);
                }
                // Named by the parser.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(failed(&path, source)),
            }
        }
        BrokerKeys::parse(&entries).map_err(unusable)
    }
}

/// The certificate authority of the broker that has the directory at `path`.
///
/// # Errors
/// When it cannot be read.
pub fn read_ca(path: &Path) -> Result<String, StateError> {
    let file = path.join("keys").join(CA_CERTIFICATE);
    fs::read_to_string(&file).map_err(|source| failed(&file, source))
}

/// Checks that nobody but its owner can read or write `path`.
///
/// # Errors
/// When others can.
pub fn check_private(path: &Path) -> Result<(), StateError> {
    let metadata = fs::metadata(path).map_err(|source| failed(path, source))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(StateError::Permissions {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

/// All keys, or none: they are in force once they are all on the disk.
fn write_keys(directory: &Path, keys: &BrokerKeys) -> Result<(), StateError> {
    let temporary = directory.with_extension("new");
    match fs::remove_dir_all(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed(&temporary, error));
        }
        _ => make_private_directory(&temporary).map_err(|source| failed(&temporary, source))?,
    }
    for (name, value) in keys.encode() {
        let path = temporary.join(name);
        write_private(&path, &value).map_err(|source| failed(&path, source))?;
    }
    let publish = || {
        File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, directory)?;
        File::open(directory.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    publish().map_err(|source| failed(directory, source))
}

/// Makes a directory, and those above it, that nobody but the broker can enter.
///
/// # Errors
/// When one cannot be made.
pub(crate) fn make_private_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Writes a file that nobody but the broker can read, and waits until its content
/// is on the disk. It takes the place of what a broker that ended left half done.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn failed(path: &Path, source: io::Error) -> StateError {
    StateError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once_and_for_their_owner() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let state = StateDirectory::open(&path).unwrap();
        let now = Timestamp::now();
        let made = state.get_or_create_keys(now).unwrap();
        let read = state.get_or_create_keys(now).unwrap();
        assert_eq!(made.encode(), read.encode());
        for name in PRIVATE_ENTRIES {
            check_private(&path.join("keys").join(name)).unwrap();
        }
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn keys_that_others_can_read_or_that_are_incomplete_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let now = Timestamp::now();
        state.get_or_create_keys(now).unwrap();
        for name in PRIVATE_ENTRIES {
            let path = directory.path().join("keys").join(name);
            for mode in [0o640, 0o604, 0o660] {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                let error = state.get_or_create_keys(now).err().unwrap();
                assert!(matches!(error, StateError::Permissions { .. }), "{error:?}");
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        assert!(state.get_or_create_keys(now).is_ok());
        fs::remove_file(directory.path().join("keys/token.key")).unwrap();
        let error = state.get_or_create_keys(now).err().unwrap();
        assert!(matches!(
            error,
            StateError::Keys {
                source: KeysError::Missing("token.key"),
                ..
            }
        ));
    }

    #[test]
    fn a_directory_is_one_broker_s() {
        let directory = tempfile::tempdir().unwrap();
        let first = StateDirectory::open(directory.path()).unwrap();
        let second = StateDirectory::open(directory.path());
        assert!(matches!(second, Err(StateError::Locked { .. })));
        drop(first);
        assert!(StateDirectory::open(directory.path()).is_ok());
    }
}
