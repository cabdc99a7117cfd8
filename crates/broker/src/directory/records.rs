//! AttestationRecords as files: one for each guest that attested, named by the
//! UID that its instance data gives its pod.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use assay_crds::v1alpha1::AttestationRecord;
use jiff::Timestamp;
use tokio::time::Instant;

use crate::identity::is_uid;
use crate::inventory::InventoryError;
use crate::publication::queue::{PublicationQueue, RecordKey};
use crate::record::spent_at;
use crate::service::Clock;
use crate::state::{make_private_directory, write_private};
use crate::submission::is_name;

/// Most records that are kept. Only a guest whose report is genuine gets one, but
/// nobody says how many pods there may be.
pub const MAX_RECORDS: usize = 10_000;

/// Why a record cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The directory or a file cannot be read or written.
    #[error("cannot use {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is no record.
    #[error("{} is not an AttestationRecord; remove it and the guest attests anew", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The names of a record cannot be parts of a path.
    #[error("namespace {namespace:?} and UID {uid:?} are no names")]
    Name {
        /// The namespace.
        namespace: String,
        /// The UID.
        uid: String,
    },
    /// Every record that is kept is in force.
    #[error("{MAX_RECORDS} records are in force; there is room when one expires")]
    Full,
}

impl From<RecordError> for InventoryError {
    fn from(source: RecordError) -> Self {
        Self::Failed {
            action: "read or keep the AttestationRecord",
            source: Box::new(source),
        }
    }
}

/// The records.
///
/// # Guarantees
/// A file holds a whole record at any time, also after a crash: a new one takes
/// its place at once. A record that is in force, or whose challenges may still be
/// answered, is never dropped.
///
/// # Assumptions
/// Nobody else writes to the directory.
pub struct RecordDirectory {
    directory: PathBuf,
    capacity: usize,
    clock: Clock,
    /// When each record, by file, is of no more use.
    index: Mutex<HashMap<PathBuf, Timestamp>>,
    publications: Option<Arc<PublicationQueue>>,
}

impl RecordDirectory {
    /// Reads what there is in `directory`, which is made if it does not exist.
    ///
    /// # Errors
    /// When the directory or a record in it cannot be read.
    pub fn open(directory: &Path, capacity: usize, clock: Clock) -> Result<Self, RecordError> {
        make_private_directory(directory).map_err(|source| failed(directory, source))?;
        let mut index = HashMap::new();
        for namespace in entries(directory)? {
            for path in entries(&namespace)? {
                if path.extension().is_none_or(|extension| extension != "json") {
                    // A record that was being written when the broker ended.
                    fs::remove_file(&path).map_err(|source| failed(&path, source))?;
                } else if let Some(record) = read(&path)? {
                    index.insert(path, spent(&record));
                }
            }
        }
        Ok(Self {
            directory: directory.to_owned(),
            capacity,
            clock,
            index: Mutex::new(index),
            publications: None,
        })
    }

    /// Has records that change noted in `queue`, and those that are of use already.
    #[must_use]
    pub fn published_by(mut self, queue: Arc<PublicationQueue>) -> Self {
        let now = (self.clock)();
        let index = self.index.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (path, _) in index.iter().filter(|(_, spent)| **spent >= now) {
            put(&queue, path);
        }
        self.publications = Some(queue);
        self
    }

    /// Records that are yet to be published.
    pub fn unpublished(&self) -> usize {
        self.publications.as_ref().map_or(0, |queue| queue.len())
    }

    /// Records that are kept.
    pub fn count(&self) -> usize {
        let index = self.index.lock();
        index.unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Reads the record of the guest with pod UID `uid`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(
        &self,
        namespace: &str,
        uid: &str,
    ) -> Result<Option<AttestationRecord>, InventoryError> {
        // Whoever has no UID has no record either.
        match self.path(namespace, uid) {
            Ok(path) => Ok(read(&path)?),
            Err(_) => Ok(None),
        }
    }

    /// Writes a record that was planned from `existing`.
    ///
    /// # Errors
    /// [`InventoryError::Conflict`] when that is not the one that is there.
    pub fn write(
        &self,
        record: &AttestationRecord,
        existing: Option<&AttestationRecord>,
    ) -> Result<(), InventoryError> {
        let namespace = record.metadata.namespace.clone().unwrap_or_default();
        let path = self.path(&namespace, &record.spec.pod_ref.uid)?;
        // Only one at a time reads, compares and writes.
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let stored = read(&path)?;
        let version = |record: &AttestationRecord| record.metadata.resource_version.clone();
        if stored.as_ref().map(version) != existing.map(version) {
            return Err(InventoryError::Conflict);
        }
        if stored.is_none() && index.len() >= self.capacity {
            let now = (self.clock)();
            let over: Vec<PathBuf> = index
                .iter()
                .filter(|(_, spent)| **spent < now)
                .map(|(path, _)| path.clone())
                .collect();
            for path in over {
                fs::remove_file(&path).map_err(|source| failed(&path, source))?;
                index.remove(&path);
            }
            if index.len() >= self.capacity {
                return Err(RecordError::Full.into());
            }
        }
        let mut record = record.clone();
        let number = stored.as_ref().and_then(version);
        let number = number.and_then(|number| number.parse::<u64>().ok());
        let number = number.unwrap_or_default().saturating_add(1);
        record.metadata.resource_version = Some(number.to_string());
        record.metadata.generation = Some(match &stored {
            None => 1,
            Some(stored) => {
                let generation = stored.metadata.generation.unwrap_or(1);
                generation.saturating_add(i64::from(stored.spec != record.spec))
            }
        });
        let bytes = serde_json::to_vec_pretty(&record).map_err(|source| {
            let path = path.clone();
            RecordError::Malformed { path, source }
        })?;
        replace(&path, &bytes)?;
        if let Some(queue) = &self.publications {
            put(queue, &path);
        }
        index.insert(path, spent(&record));
        Ok(())
    }

    fn path(&self, namespace: &str, uid: &str) -> Result<PathBuf, RecordError> {
        if !is_name(namespace) || !is_uid(uid) {
            return Err(RecordError::Name {
                namespace: namespace.to_owned(),
                uid: uid.to_owned(),
            });
        }
        Ok(self.directory.join(namespace).join(format!("{uid}.json")))
    }
}

/// A record without a status says nothing, and is in nobody's way.
fn spent(record: &AttestationRecord) -> Timestamp {
    record.status.as_ref().map_or(Timestamp::MIN, spent_at)
}

/// Notes the record at `path`, which is `{namespace}/{uid}.json`.
fn put(queue: &PublicationQueue, path: &Path) {
    let text =
        |part: Option<&std::ffi::OsStr>| part.and_then(|part| part.to_str().map(str::to_owned));
    let namespace = text(path.parent().and_then(Path::file_name));
    if let Some((namespace, uid)) = namespace.zip(text(path.file_stem()))
        && !queue.put(&RecordKey { namespace, uid }, Instant::now())
    {
        tracing::warn!(record = %path.display(), "too many records wait to be published");
    }
}

fn failed(path: &Path, source: io::Error) -> RecordError {
    RecordError::Io {
        path: path.to_owned(),
        source,
    }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, RecordError> {
    let failed = |source| failed(directory, source);
    fs::read_dir(directory)
        .map_err(failed)?
        .map(|entry| entry.map(|entry| entry.path()).map_err(failed))
        .collect()
}

fn read(path: &Path) -> Result<Option<AttestationRecord>, RecordError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(path, source)),
    };
    let record = serde_json::from_slice(&bytes);
    record.map(Some).map_err(|source| RecordError::Malformed {
        path: path.to_owned(),
        source,
    })
}

/// Puts `bytes` in the place of whatever is at `path`, at once and durably.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), RecordError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let temporary = path.with_extension("new");
    let write = || {
        make_private_directory(directory)?;
        write_private(&temporary, bytes)?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|source| failed(path, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use crate::record::plan_record;
    use jiff::ToSpan as _;
    use std::sync::Arc;

    fn record(uid: &str) -> AttestationRecord {
        let mut appraisal = fixtures::accepted();
        appraisal.spec.pod_ref.uid = uid.to_owned();
        plan_record(fixtures::NAMESPACE, &appraisal, None).unwrap()
    }

    fn uid(number: usize) -> String {
        format!("7e2c6bcb-3c53-4f8c-9b5e-{number:012}")
    }

    #[test]
    fn a_record_is_written_once_and_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let open = || RecordDirectory::open(directory.path(), 4, Arc::new(fixtures::now)).unwrap();
        let records = open();
        let read = |records: &RecordDirectory| {
            records
                .read(fixtures::NAMESPACE, fixtures::POD_UID)
                .unwrap()
        };
        assert_eq!(read(&records), None);
        let first = fixtures::record();
        records.write(&first, None).unwrap();
        let stored = read(&records).unwrap();
        assert_eq!(stored.status, first.status);
        assert_eq!(stored.metadata.generation, Some(1));
        let conflict = records.write(&first, None);
        assert!(matches!(conflict, Err(InventoryError::Conflict)));

        let again = fixtures::accepted_again();
        let second = plan_record(fixtures::NAMESPACE, &again, Some(&stored)).unwrap();
        records.write(&second, Some(&stored)).unwrap();
        let conflict = records.write(&second, Some(&stored));
        assert!(matches!(conflict, Err(InventoryError::Conflict)));

        // Another broker finds it, and nothing that was half written.
        let half = directory.path().join("shop/half.new");
        fs::write(&half, b"{").unwrap();
        let records = open();
        assert_eq!(read(&records).unwrap().status, second.status);
        assert!(!half.exists());
        assert_eq!(records.count(), 1);
    }

    #[test]
    fn what_is_no_uid_is_no_path() {
        let directory = tempfile::tempdir().unwrap();
        let records = RecordDirectory::open(directory.path(), 4, Arc::new(fixtures::now)).unwrap();
        assert!(records.write(&record("../../etc"), None).is_err());
        assert_eq!(records.read("shop", "../../etc").unwrap(), None);
        assert_eq!(records.read("..", fixtures::POD_UID).unwrap(), None);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_full_directory_forgets_what_is_over_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(Mutex::new(fixtures::now()));
        let reading = clock.clone();
        let records = RecordDirectory::open(
            directory.path(),
            2,
            Arc::new(move || *reading.lock().unwrap()),
        )
        .unwrap();
        records.write(&record(&uid(1)), None).unwrap();
        records.write(&record(&uid(2)), None).unwrap();
        let full = records.write(&record(&uid(3)), None).unwrap_err();
        assert!(matches!(full, InventoryError::Failed { .. }), "{full:?}");
        let stored = records.read("shop", &uid(1)).unwrap().unwrap();
        let spent = spent(&stored);
        *clock.lock().unwrap() = spent;
        assert!(records.write(&record(&uid(3)), None).is_err());
        *clock.lock().unwrap() = spent + 1.seconds();
        records.write(&record(&uid(3)), None).unwrap();
        assert_eq!(records.count(), 1);
        assert_eq!(records.read("shop", &uid(1)).unwrap(), None);
    }

    #[test]
    fn a_record_that_cannot_be_read_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let records = RecordDirectory::open(directory.path(), 4, Arc::new(fixtures::now)).unwrap();
        records.write(&fixtures::record(), None).unwrap();
        let path = records.path("shop", fixtures::POD_UID).unwrap();
        fs::write(&path, b"{}").unwrap();
        assert!(records.read("shop", fixtures::POD_UID).is_err());
        assert!(records.write(&fixtures::record(), None).is_err());
        let again = RecordDirectory::open(directory.path(), 4, Arc::new(fixtures::now));
        assert!(matches!(again, Err(RecordError::Malformed { .. })));
    }
}
