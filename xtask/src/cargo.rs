//! Cargo, run by its own commands.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Runs cargo in the checkout, or in a directory of it.
pub(crate) fn cargo(directory: &Path, args: &[&str], variables: &[(&str, String)]) -> Result<()> {
    let status = Command::new("cargo")
        .current_dir(directory)
        .args(args)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .status()
        .context("run cargo")?;
    ensure!(
        status.success(),
        "cargo {} failed ({status})",
        args.join(" ")
    );
    Ok(())
}
