//! Cargo, run by its own commands.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Runs cargo in the checkout.
pub(crate) fn cargo(checkout: &Path, args: &[&str], variables: &[(&str, String)]) -> Result<()> {
    let status = Command::new("cargo")
        .current_dir(checkout)
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
