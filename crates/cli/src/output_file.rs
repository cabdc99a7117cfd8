//! Results in files.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use assay_image::rope::Rope;

/// Writes a file under another name first, so that no name ever stands for half
/// a file; who writes the same file meanwhile waits. What is no file, such as a
/// pipe, is written to as it is.
pub(crate) fn write(path: &Path, content: &Rope) -> Result<()> {
    let attempt = || format!("cannot write {}", path.display());
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        let written = File::create(path).and_then(|file| write_to(file, content));
        return written.with_context(attempt);
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    // Locked until it has its name.
    let file = create_locked(&partial).with_context(attempt)?;
    let written = write_to(&file, content).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        // Why it could not be written is the better thing to say.
        let _ = fs::remove_file(&partial);
    }
    written.with_context(attempt)
}

/// Makes a directory where there is none, and keeps others from writing a set of
/// files to it while the value lives.
pub(crate) fn hold(directory: &Path) -> Result<File> {
    create_directory(directory)?;
    let held = File::open(directory).and_then(|file| file.lock().map(|()| file));
    held.with_context(|| format!("cannot lock {}", directory.display()))
}

/// Makes a directory where there is none.
pub(crate) fn create_directory(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot create the directory {}", directory.display()))
}

fn create_locked(path: &Path) -> io::Result<File> {
    loop {
        let file = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(path)?;
        file.lock()?;
        // Whoever had the lock may have given it its name, or removed it.
        let ours = file.metadata()?;
        let is_there = fs::metadata(path)
            .is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()));
        if is_there {
            file.set_len(0)?;
            return Ok(file);
        }
    }
}

fn write_to(mut file: impl io::Write, content: &Rope) -> io::Result<()> {
    content
        .chunks()
        .iter()
        .try_for_each(|chunk| file.write_all(chunk))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn writers_of_one_file_wait_for_one_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let contents: Vec<Vec<u8>> = (0..8).map(|byte| vec![byte; 1 << 20]).collect();
        thread::scope(|scope| {
            for content in &contents {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..5 {
                        write(path, &content.clone().into()).unwrap();
                    }
                });
            }
        });
        assert!(contents.contains(&fs::read(&path).unwrap()));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("missing/file");
        let error = write(&path, &vec![1].into()).unwrap_err();
        assert!(error.to_string().contains("missing/file"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
