//! Our own programs as they are shipped, static and built for release, together in
//! one directory.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use assay_cluster::packages;
use assay_cluster::progress::say;

use crate::cargo::cargo;

/// Package and program of what keeps running, in a pod or as a guest's first
/// process.
const SERVICES: &[(&str, &str)] = &[
    (AGENT, AGENT),
    ("assay-broker", "assay-broker"),
    ("assay-operator", "assay-operator"),
    ("assay-supervisor", "assay-launcher"),
];
const AGENT: &str = "assay-agent";
const CLI: &str = "assay";

/// What services are linked for: glibc's allocator has a heap for each thread.
const SERVICES_TARGET: &str = "x86_64-unknown-linux-gnu";
/// What the CLI is linked for: programs of glibc ask the processor about itself
/// before they begin, and each of those questions leaves a virtual machine, all
/// together for longer than it takes to chain a launch digest.
const CLI_TARGET: &str = "x86_64-unknown-linux-musl";

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

/// Where cargo puts release builds of what only this checkout uses.
pub(crate) fn tools_directory() -> PathBuf {
    release_directory(SERVICES_TARGET)
}

fn release_directory(target: &str) -> PathBuf {
    target_directory().join(target).join("release")
}

/// Where our programs are, once they are built.
pub(crate) fn directory() -> PathBuf {
    workspace_root().join("dist/bin")
}

/// Builds all and returns the directory with them.
pub(crate) fn build() -> Result<PathBuf> {
    build_services(SERVICES)?;
    build_cli()?;
    Ok(directory())
}

/// Builds the guest agent and returns it.
pub(crate) fn build_agent() -> Result<PathBuf> {
    build_services(&[(AGENT, AGENT)])?;
    Ok(directory().join(AGENT))
}

fn build_services(services: &[(&str, &str)]) -> Result<()> {
    let mut command = vec!["build", "--bins"];
    for (package, _) in services {
        command.extend(["--package", package]);
    }
    let programs: Vec<&str> = services.iter().map(|(_, program)| *program).collect();
    build_for(SERVICES_TARGET, &programs, &command, &[])
}

/// Builds the CLI and returns it. It is called often and ends at once, so it is
/// linked to a fixed address: a program without one has tens of thousands of
/// addresses to write first.
pub(crate) fn build_cli() -> Result<PathBuf> {
    packages::ensure(packages::COMPILING)?;
    let command = ["rustc", "--package", "assay-cli", "--bin", CLI];
    let fixed = ["--", "-C", "relocation-model=static"];
    build_for(CLI_TARGET, &[CLI], &command, &fixed)?;
    Ok(directory().join(CLI))
}

fn build_for(target: &str, programs: &[&str], command: &[&str], rustc: &[&str]) -> Result<()> {
    say(format!("building {}", programs.join(", ")));
    let start = Instant::now();
    let options = ["--release", "--locked", "--quiet", "--target", target];
    cargo(&workspace_root(), &[command, &options, rustc].concat(), &[])?;
    say(format!("built in {:.1} s", start.elapsed().as_secs_f64()));
    let (from, to) = (release_directory(target), directory());
    fs::create_dir_all(&to).with_context(|| format!("create {}", to.display()))?;
    for program in programs {
        replace(&from.join(program), &to.join(program))?;
    }
    Ok(())
}

/// Copies a program over one that may be running.
fn replace(from: &Path, to: &Path) -> Result<()> {
    let mut partial = OsString::from(to);
    partial.push(".partial");
    fs::copy(from, &partial).with_context(|| format!("copy {}", from.display()))?;
    fs::rename(&partial, to).with_context(|| format!("write {}", to.display()))
}
