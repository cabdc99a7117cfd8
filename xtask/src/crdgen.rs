//! Writes the definitions of the API's kinds, and checks that they are written.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::cargo::cargo;

/// Where the definitions are, seen from the checkout.
const DIRECTORY: &str = "crds/yaml";

/// Writes `crds/yaml` from the Rust types.
pub(crate) fn write(checkout: &Path) -> Result<()> {
    generate(checkout, &checkout.join(DIRECTORY))
}

/// Fails if `crds/yaml` is not what the Rust types say.
pub(crate) fn check(checkout: &Path) -> Result<()> {
    let fresh = checkout.join("target/crdgen");
    generate(checkout, &fresh)?;
    let (fresh, committed) = (read(&fresh)?, read(&checkout.join(DIRECTORY))?);
    for (name, text) in &fresh {
        ensure!(
            committed.get(name) == Some(text),
            "{DIRECTORY}/{name} is stale: run `cargo xtask crdgen`"
        );
    }
    ensure!(
        fresh.len() == committed.len(),
        "{DIRECTORY} has files that no kind generates"
    );
    Ok(())
}

fn generate(checkout: &Path, directory: &Path) -> Result<()> {
    let directory = directory
        .to_str()
        .context("the checkout's path is not UTF-8")?;
    let args = [
        "run",
        "--quiet",
        "--package",
        "assay-crds",
        "--example",
        "crdgen",
        "--",
        directory,
    ];
    cargo(checkout, &args, &[])
}

fn read(directory: &Path) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))? {
        let entry = entry.context("read a directory entry")?;
        let text = fs::read_to_string(entry.path())
            .with_context(|| format!("read {}", entry.path().display()))?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), text);
    }
    Ok(files)
}
