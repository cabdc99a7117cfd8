//! Builds what is compared, fetches the peers and starts the benchmarks.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use assay_cluster::progress::say;
use assay_cluster::{Cache, packages};

use crate::cargo::cargo;
use crate::images;
use crate::layers;

/// Runs the benchmarks named, or all.
pub(crate) fn run(checkout: &Path, benchmarks: &[String]) -> Result<()> {
    packages::ensure(packages::PEERS)?;
    let cache = Cache::open()?;
    let firmware = layers::firmware(&cache)?;
    let boot_kit = layers::archive(&cache, &layers::BOOT_KIT)?;
    let image_programs = layers::image_oracles(&cache)?;
    let sev_snp_measure = cache.sev_snp_measure()?;
    let go_sev_guest_check = cache.go_sev_guest_check()?;
    say("building assay and the benchmarks for release");
    let build = [
        "build",
        "--release",
        "--locked",
        "--quiet",
        "--package",
        "assay-cli",
        "--package",
        "assay-agent",
        "--package",
        "assay-bench",
    ];
    cargo(checkout, &build, &[])?;
    let release = images::release_directory();
    let status = Command::new(release.join("assay-bench"))
        .args(benchmarks)
        .env("ASSAY_BENCH_CLI", release.join("assay"))
        .env("ASSAY_BENCH_FIRMWARE", firmware)
        .env("ASSAY_BOOT_KIT", boot_kit)
        .env("ASSAY_AGENT", release.join("assay-agent"))
        .env("ASSAY_IMAGE_ORACLES", image_programs)
        .env("ASSAY_SEV_SNP_MEASURE", sev_snp_measure)
        .env("ASSAY_GO_SEV_GUEST_CHECK", go_sev_guest_check)
        .status()
        .context("run the benchmarks")?;
    ensure!(status.success(), "the benchmarks failed ({status})");
    Ok(())
}
