//! Our own programs as they are shipped: built for release and linked with musl,
//! static. Programs of glibc ask for every feature of the processor before they
//! begin, which in a virtual machine takes longer than to compute a launch digest.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use assay_cluster::packages;
use assay_cluster::progress::say;

use crate::cargo::cargo;

const TARGET: &str = "x86_64-unknown-linux-musl";
const AGENT: &str = "assay-agent";
/// What listens or runs as root somewhere; at addresses that nobody knows.
const SERVICES: &[&str] = &[AGENT, "assay-broker", "assay-operator", "assay-supervisor"];

/// The checkout.
pub(crate) fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Where cargo puts what it builds.
pub(crate) fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace_root().join("target"), PathBuf::from)
}

/// Where cargo puts our programs.
pub(crate) fn directory() -> PathBuf {
    target_directory().join(TARGET).join("release")
}

/// Where cargo puts release builds of what only this checkout uses.
pub(crate) fn tools_directory() -> PathBuf {
    target_directory().join("x86_64-unknown-linux-gnu/release")
}

/// Builds all and returns the directory with them.
pub(crate) fn build() -> Result<PathBuf> {
    build_services(SERVICES)?;
    build_cli()?;
    Ok(directory())
}

/// Builds the guest agent and returns it.
pub(crate) fn build_agent() -> Result<PathBuf> {
    build_services(&[AGENT])?;
    Ok(directory().join(AGENT))
}

fn build_services(names: &[&str]) -> Result<()> {
    let mut args = vec!["build", "--bins"];
    for name in names {
        args.extend(["--package", name]);
    }
    build_for_release(&names.join(", "), &args, &[])
}

/// Builds `assay`, which is called often and ends at once: at a fixed address, as a
/// program that is not has tens of thousands of its own addresses to write first.
pub(crate) fn build_cli() -> Result<PathBuf> {
    build_for_release(
        "assay",
        &["rustc", "--package", "assay-cli", "--bin", "assay"],
        &["--", "-C", "relocation-model=static"],
    )?;
    Ok(directory().join("assay"))
}

fn build_for_release(what: &str, command: &[&str], rustc: &[&str]) -> Result<()> {
    packages::ensure(packages::COMPILING)?;
    say(format!("building {what}"));
    let start = Instant::now();
    let options = ["--release", "--locked", "--quiet", "--target", TARGET];
    cargo(&workspace_root(), &[command, &options, rustc].concat(), &[])?;
    say(format!("built in {:.1} s", start.elapsed().as_secs_f64()));
    Ok(())
}
