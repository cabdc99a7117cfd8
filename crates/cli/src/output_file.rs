//! Results in files.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use assay_image::rope::Rope;

/// Writes a file under another name first, so that no name ever stands for half
/// a file.
pub(crate) fn write(path: &Path, content: &Rope) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let write = || -> io::Result<()> {
        let mut file = File::create(&partial)?;
        for chunk in content.chunks() {
            file.write_all(chunk)?;
        }
        fs::rename(&partial, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
