//! Builds what is compared, fetches the peers and starts the benchmarks.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use assay_cluster::progress::say;
use assay_cluster::{Cache, packages};

use crate::cargo::cargo;
use crate::layers;
use crate::programs;

/// Runs the benchmarks named, or all.
pub(crate) fn run(checkout: &Path, benchmarks: &[String]) -> Result<()> {
    packages::ensure(packages::PEERS)?;
    let cache = Cache::open()?;
    let firmware = layers::firmware(&cache)?;
    let boot_kit = layers::archive(&cache, &layers::BOOT_KIT)?;
    let image_programs = layers::image_oracles(&cache)?;
    let sev_snp_measure = cache.sev_snp_measure()?;
    let go_sev_guest_check = cache.go_sev_guest_check()?;
    let cli = programs::build_cli()?;
    let agent = programs::build_agent()?;
    say("building the benchmarks");
    let build = ["build", "--release", "--locked", "--quiet", "--package"];
    cargo(
        checkout,
        &[build.as_slice(), &["assay-bench"]].concat(),
        &[],
    )?;
    let status = Command::new(programs::tools_directory().join("assay-bench"))
        .args(benchmarks)
        .env("ASSAY_BENCH_CLI", cli)
        .env("ASSAY_BENCH_FIRMWARE", firmware)
        .env("ASSAY_BOOT_KIT", boot_kit)
        .env("ASSAY_AGENT", agent)
        .env("ASSAY_IMAGE_ORACLES", image_programs)
        .env("ASSAY_SEV_SNP_MEASURE", sev_snp_measure)
        .env("ASSAY_GO_SEV_GUEST_CHECK", go_sev_guest_check)
        .status()
        .context("run the benchmarks")?;
    ensure!(status.success(), "the benchmarks failed ({status})");
    Ok(())
}
