//! Results in files.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use assay_image::rope::Rope;

/// Writes a file under another name first, so that no name ever stands for half
/// a file. What is no file, such as a pipe, is written to as it is.
pub(crate) fn write(path: &Path, content: &Rope) -> Result<()> {
    let attempt = || format!("cannot write {}", path.display());
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return write_to(path, content).with_context(attempt);
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let written = write_to(&partial, content).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        // Why it could not be written is the better thing to say.
        let _ = fs::remove_file(&partial);
    }
    written.with_context(attempt)
}

fn write_to(path: &Path, content: &Rope) -> io::Result<()> {
    let mut file = File::create(path)?;
    content
        .chunks()
        .iter()
        .try_for_each(|chunk| file.write_all(chunk))
}
