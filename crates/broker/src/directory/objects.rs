//! The objects of a directory, as far as its files could be read.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use assay_crds::v1alpha1::{AttestationPolicy, ConfidentialDeployment, MeasuredImage};
use assay_tee::Sha256Digest;

use crate::manifests::{Kind, ManifestError, Object, ObjectKey, Rules, parse_manifest};
use crate::service::Chain;

/// Most bytes of one file. A MeasuredImage of 64 rows has a tenth of that.
pub(super) const MAX_FILE: u64 = 1024 * 1024;
/// Most files.
const MAX_FILES: usize = 4096;
/// How deep directories may be nested: links may lead in a circle.
pub(super) const MAX_DEPTH: usize = 8;

/// Why a file, or the directory, is not in force as it is now.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A directory or a file cannot be read.
    #[error("cannot read it")]
    Read(#[source] io::Error),
    /// A file is too large.
    #[error("it has more than {MAX_FILE} bytes; split it")]
    TooLarge,
    /// There are too many files.
    #[error("it has more than {MAX_FILES} files; remove what is not of the inventory")]
    TooManyFiles,
    /// The files are nested too deeply.
    #[error("directories are nested more than {MAX_DEPTH} deep; flatten them")]
    TooDeep,
    /// A file is no text.
    #[error("it is not UTF-8")]
    Text,
    /// A file's objects cannot be used.
    #[error("cannot use it")]
    Manifest(#[source] ManifestError),
    /// An object is in two files.
    #[error("{object} is in {} as well; remove one", other.display())]
    Duplicate {
        /// The object.
        object: ObjectKey,
        /// The other file.
        other: PathBuf,
    },
}

/// What reading the directory came to.
#[derive(Debug, Default)]
pub struct Reading {
    /// Objects in force.
    pub objects: usize,
    /// What is wrong, by file.
    pub errors: BTreeMap<PathBuf, ReadError>,
    /// What is allowed and accepts nothing, in words.
    pub notes: Vec<String>,
}

/// The objects in force, all of one moment.
#[derive(Debug, Default, Clone)]
pub(super) struct Snapshot(pub(super) HashMap<ObjectKey, Entry>);

#[derive(Debug, Clone)]
pub(super) enum Entry {
    Deployment(Arc<ConfidentialDeployment>),
    Image(Arc<MeasuredImage>),
    Policy(Arc<AttestationPolicy>),
}

impl Entry {
    fn of(object: &Object) -> Self {
        match object {
            Object::Deployment(object) => Self::Deployment(Arc::new(object.as_ref().clone())),
            Object::Image(object) => Self::Image(Arc::new(object.as_ref().clone())),
            Object::Policy(object) => Self::Policy(Arc::new(object.as_ref().clone())),
        }
    }
}

macro_rules! lookup {
    ($name:ident, $kind:ident, $type:ty) => {
        pub(super) fn $name(&self, namespace: &str, name: &str) -> Option<Arc<$type>> {
            let key = ObjectKey {
                kind: Kind::$kind,
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            };
            match self.0.get(&key) {
                Some(Entry::$kind(object)) => Some(object.clone()),
                _ => None,
            }
        }
    };
}

impl Snapshot {
    lookup!(deployment, Deployment, ConfidentialDeployment);
    lookup!(image, Image, MeasuredImage);
    lookup!(policy, Policy, AttestationPolicy);

    /// What deployments name and is not there.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for (key, entry) in &self.0 {
            let Entry::Deployment(deployment) = entry else {
                continue;
            };
            let (namespace, spec) = (&key.namespace, &deployment.spec);
            if self.image(namespace, &spec.image_ref.name).is_none() {
                let name = &spec.image_ref.name;
                notes.push(format!(
                    "{key}: spec.imageRef: there is no MeasuredImage {namespace}/{name}"
                ));
            }
            if self.policy(namespace, &spec.policy_ref.name).is_none() {
                let name = &spec.policy_ref.name;
                notes.push(format!(
                    "{key}: spec.policyRef: there is no AttestationPolicy {namespace}/{name}"
                ));
            }
        }
        notes.sort();
        notes
    }
}

/// One file, as it was read last.
#[derive(Default)]
struct KnownFile {
    digest: Option<Sha256Digest>,
    /// What it said when it could be used.
    objects: Vec<Object>,
    /// Why it cannot be used now.
    error: Option<String>,
}

/// The objects.
pub struct Objects {
    directory: PathBuf,
    rules: Rules,
    files: Mutex<BTreeMap<PathBuf, KnownFile>>,
    current: RwLock<Arc<Snapshot>>,
    invalid: AtomicUsize,
    failures: AtomicUsize,
}

impl Objects {
    /// Of `directory`, which is not read yet.
    pub fn new(directory: &Path, rules: Rules) -> Self {
        Self {
            directory: directory.to_owned(),
            rules,
            files: Mutex::default(),
            current: RwLock::default(),
            invalid: AtomicUsize::new(0),
            failures: AtomicUsize::new(0),
        }
    }

    /// Files that cannot be used as they are now.
    pub fn invalid_files(&self) -> usize {
        self.invalid.load(Ordering::Relaxed)
    }

    /// How often a file that had changed could not be used.
    pub fn reload_failures(&self) -> usize {
        self.failures.load(Ordering::Relaxed)
    }

    /// Reads what has changed. Blocks on the disk.
    pub fn reload(&self) -> Reading {
        let mut files = lock(&self.files);
        let mut reading = Reading::default();
        match list(&self.directory) {
            Ok(paths) => {
                files.retain(|path, _| paths.contains(path));
                for path in paths {
                    let known = files.entry(path.clone()).or_default();
                    if let Err(error) = refresh(known, &path, self.rules) {
                        reading.errors.insert(path, error);
                    }
                }
            }
            Err((path, error)) => {
                reading.errors.insert(path, error);
            }
        }
        let snapshot = self.merge(&files, &mut reading.errors);
        reading.objects = snapshot.0.len();
        reading.notes = snapshot.notes();
        self.invalid.store(reading.errors.len(), Ordering::Relaxed);
        for (path, error) in &reading.errors {
            let text = Chain(error).to_string();
            let known = files.entry(path.clone()).or_default();
            // Once for every change of what is wrong.
            if known.error.as_ref() != Some(&text) {
                self.failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!(
                    file = %path.display(), error = text,
                    "the inventory cannot be read; what it said before stays in force"
                );
            }
            known.error = Some(text);
        }
        for (path, known) in files.iter_mut() {
            if !reading.errors.contains_key(path) && known.error.take().is_some() {
                tracing::info!(file = %path.display(), "the file of the inventory is mended");
            }
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
        reading
    }

    pub(super) fn current(&self) -> Arc<Snapshot> {
        let current = self.current.read();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The objects of all files. One that is in two of them stays as it was.
    fn merge(
        &self,
        files: &BTreeMap<PathBuf, KnownFile>,
        errors: &mut BTreeMap<PathBuf, ReadError>,
    ) -> Snapshot {
        let mut merged = HashMap::new();
        let mut owners: HashMap<ObjectKey, &PathBuf> = HashMap::new();
        let mut contested = HashSet::new();
        for (path, known) in files {
            for object in &known.objects {
                let key = object.key();
                if let Some(other) = owners.get(&key) {
                    errors.insert(
                        path.clone(),
                        ReadError::Duplicate {
                            object: key.clone(),
                            other: (*other).clone(),
                        },
                    );
                    contested.insert(key);
                    continue;
                }
                merged.insert(key.clone(), Entry::of(object));
                owners.insert(key, path);
            }
        }
        let before = self.current.read().unwrap_or_else(PoisonError::into_inner);
        for key in contested {
            match before.0.get(&key) {
                Some(entry) => merged.insert(key, entry.clone()),
                None => merged.remove(&key),
            };
        }
        Snapshot(merged)
    }
}

/// Reads a file, if it is another than the one that is known.
fn refresh(known: &mut KnownFile, path: &Path, rules: Rules) -> Result<(), ReadError> {
    let size = fs::metadata(path).map_err(ReadError::Read)?.len();
    if size > MAX_FILE {
        return Err(ReadError::TooLarge);
    }
    let bytes = fs::read(path).map_err(ReadError::Read)?;
    let digest = Sha256Digest::of(&bytes);
    if known.digest == Some(digest) {
        return Ok(());
    }
    let text = str::from_utf8(&bytes).map_err(|_| ReadError::Text)?;
    known.objects = parse_manifest(text, rules).map_err(ReadError::Manifest)?;
    known.digest = Some(digest);
    Ok(())
}

/// The files that may hold objects, in order. Hidden ones are left out.
fn list(directory: &Path) -> Result<Vec<PathBuf>, (PathBuf, ReadError)> {
    fn descend(
        directory: &Path,
        depth: usize,
        found: &mut Vec<PathBuf>,
    ) -> Result<(), (PathBuf, ReadError)> {
        let failed = |error| (directory.to_owned(), error);
        if depth > MAX_DEPTH {
            return Err(failed(ReadError::TooDeep));
        }
        let entries = fs::read_dir(directory).map_err(|source| failed(ReadError::Read(source)))?;
        for entry in entries {
            let entry = entry.map_err(|source| failed(ReadError::Read(source)))?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let path = entry.path();
            // Follows links, as volumes of ConfigMaps have them.
            let metadata = fs::metadata(&path);
            let metadata = metadata.map_err(|source| (path.clone(), ReadError::Read(source)))?;
            let extension = path.extension().and_then(|extension| extension.to_str());
            if metadata.is_dir() {
                descend(&path, depth + 1, found)?;
            } else if matches!(extension, Some("yaml" | "yml" | "json")) {
                found.push(path);
            }
            if found.len() > MAX_FILES {
                return Err(failed(ReadError::TooManyFiles));
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    descend(directory, 0, &mut found)?;
    found.sort();
    Ok(found)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
