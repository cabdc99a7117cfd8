//! The audit log on disk. A request for a resource is in it, and on the disk,
//! before it is answered; one that cannot be written is not answered.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use assay_protocol::audit::{AuditChain, AuditEntry, AuditError, verify_log};
use assay_tee::canonical::EncodeCanonicalError;

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuditLogError {
    /// The file cannot be opened.
    #[error("cannot open the audit log {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another process writes to it.
    #[error("the audit log {} is another broker's: give each one of its own", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// Its chain is broken: somebody changed it.
    #[error("the audit log {} is not as it was written: keep it for whoever investigates, and start with another", path.display())]
    Verify {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: AuditError,
    },
    /// An entry has no canonical form.
    #[error("cannot encode the audit entry")]
    Encode(#[source] EncodeCanonicalError),
    /// An entry could not be brought to the disk.
    #[error("cannot write the audit log")]
    Write(#[source] io::Error),
    /// The writing thread ended.
    #[error("the audit log's writer ended")]
    Join(#[source] tokio::task::JoinError),
}

/// The log.
///
/// # Guarantees
/// An entry whose [`AuditLog::record`] succeeded is on the disk and chained to
/// those before it. After a failure the next entry follows the last one that
/// succeeded.
///
/// # Assumptions
/// Nobody but this process writes to the file; a lock keeps other brokers away.
#[derive(Clone)]
pub struct AuditLog(Arc<Mutex<Writer>>);

struct Writer {
    file: File,
    chain: AuditChain,
}

impl AuditLog {
    /// Opens a log, made if it does not exist, and verifies what is in it. A
    /// line that was being written when the broker was interrupted is removed:
    /// nothing was answered on its account.
    ///
    /// # Errors
    /// When it is not a whole log, in use, or cannot be read or made.
    pub fn open(path: &Path) -> Result<Self, AuditLogError> {
        let failed = |source| AuditLogError::Open {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(path)
            .map_err(failed)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => AuditLogError::Locked {
                path: path.to_owned(),
            },
            TryLockError::Error(source) => failed(source),
        })?;
        let chain = match verify_log(BufReader::new(&file)) {
            Ok(chain) => chain,
            Err(AuditError::Incomplete { number, before }) => {
                tracing::warn!(number, "an interrupted line is removed from the audit log");
                file.set_len(before.length).map_err(failed)?;
                before
            }
            Err(source) => {
                return Err(AuditLogError::Verify {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        file.sync_all().map_err(failed)?;
        // The file's name must outlive a crash, too.
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let directory = File::open(parent.unwrap_or(Path::new("."))).map_err(failed)?;
        directory.sync_all().map_err(failed)?;
        Ok(Self(Arc::new(Mutex::new(Writer { file, chain }))))
    }

    /// Adds an entry and waits until it is on the disk.
    ///
    /// # Errors
    /// When it is not: then whatever it is about must not be answered.
    pub async fn record(&self, entry: AuditEntry) -> Result<(), AuditLogError> {
        let writer = self.0.clone();
        let write = move || {
            // A panic leaves the chain as it was before the entry.
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            writer.append(entry)
        };
        tokio::task::spawn_blocking(write)
            .await
            .map_err(AuditLogError::Join)?
    }
}

impl Writer {
    fn append(&mut self, entry: AuditEntry) -> Result<(), AuditLogError> {
        let line = self.chain.encode(entry).map_err(AuditLogError::Encode)?;
        // Whatever an earlier failure left behind the last whole line goes.
        self.file
            .set_len(self.chain.length)
            .and_then(|()| self.file.write_all(&line))
            .and_then(|()| self.file.sync_data())
            .map_err(AuditLogError::Write)?;
        self.chain = self.chain.after(&line);
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use assay_protocol::audit::AuditOutcome;

    use super::*;

    /// A log on a disk that takes nothing more.
    pub(crate) fn full(path: &Path) -> AuditLog {
        fs::write(path, b"").unwrap();
        AuditLog(Arc::new(Mutex::new(Writer {
            file: File::open(path).unwrap(),
            chain: AuditChain::default(),
        })))
    }

    fn entry(resource: &str) -> AuditEntry {
        AuditEntry {
            time: "2027-01-15T08:00:00Z".to_owned(),
            resource: resource.to_owned(),
            outcome: AuditOutcome::Released,
            reason: None,
            namespace: "shop".to_owned(),
            deployment: "web".to_owned(),
            pod: "web-abc".to_owned(),
            pod_uid: "uid".to_owned(),
            image: "web-1".to_owned(),
            trust_domain: "AMD".to_owned(),
            policy: "sha256:00".to_owned(),
            nonce: "bm9uY2U=".to_owned(),
            volume: None,
        }
    }

    #[tokio::test]
    async fn a_log_goes_on_where_it_ended() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        for lines in 1..=3 {
            let log = AuditLog::open(&path).unwrap();
            log.record(entry("shop/web/a")).await.unwrap();
            let written = fs::read(&path).unwrap();
            assert_eq!(verify_log(&written[..]).unwrap().lines, lines);
        }
    }

    #[tokio::test]
    async fn an_interrupted_line_is_removed_and_a_changed_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        let log = AuditLog::open(&path).unwrap();
        for resource in ["shop/web/a", "shop/web/b"] {
            log.record(entry(resource)).await.unwrap();
        }
        drop(log);
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{whole}{{\"entry\"")).unwrap();
        drop(AuditLog::open(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), whole);

        fs::write(&path, whole.replace("shop/web/a", "shop/web/c")).unwrap();
        assert!(matches!(
            AuditLog::open(&path),
            Err(AuditLogError::Verify {
                source: AuditError::Broken { number: 2, .. },
                ..
            })
        ));
    }

    #[tokio::test]
    async fn a_failed_write_leaves_no_trace() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        let log = AuditLog::open(&path).unwrap();
        log.record(entry("shop/web/a")).await.unwrap();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"half").unwrap();
        log.record(entry("shop/web/b")).await.unwrap();
        assert_eq!(verify_log(&fs::read(&path).unwrap()[..]).unwrap().lines, 2);
        assert!(full(&path).record(entry("shop/web/c")).await.is_err());
    }

    #[test]
    fn a_log_has_one_writer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        let first = AuditLog::open(&path).unwrap();
        assert!(matches!(
            AuditLog::open(&path),
            Err(AuditLogError::Locked { .. })
        ));
        drop(first);
        assert!(AuditLog::open(&path).is_ok());
    }
}
