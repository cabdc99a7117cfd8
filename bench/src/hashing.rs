//! Digests in memory: how near they come to what the machine can hash.

use std::hint::black_box;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use assay_measure::context::LaunchContext;
use assay_measure::{FirmwareInputs, RegionKind};
use assay_tee::hashes_table::KernelHashes;
use assay_tee::page_info::PAGE_SIZE;

use crate::peers::Peers;
use crate::rate::rate;
use crate::table::{compare, heading, skipped};

/// 16 MiB.
const PAGES: u32 = 4096;

/// Runs the benchmark.
pub(crate) fn run(peers: &Peers) -> Result<()> {
    heading("Hashing: our digests against `openssl speed` on one core");
    let firmware = std::fs::read(&peers.firmware)
        .with_context(|| format!("read {}", peers.firmware.display()))?;
    let initrd = vec![0x5a; 64 << 20];
    // Pages are hashed one by one, files whole. Runs of equal pages are hashed
    // once, so no page of the first repeats.
    let pages = distinct_pages(PAGES);
    let distinct = rate(pages.len(), || {
        let mut context = LaunchContext::new();
        let _ = black_box(context.update_normal(RegionKind::Firmware, 0, black_box(&pages)));
    })?;
    against_openssl("SHA-384 of distinct pages", distinct, "sha384", 4096);
    let whole = rate(firmware.len(), || {
        let _ = black_box(FirmwareInputs::from_bytes(black_box(&firmware)));
    })?;
    against_openssl("SHA-384 of Debian's OVMF", whole, "sha384", 4096);
    let file = rate(initrd.len(), || {
        black_box(KernelHashes::from_bytes(&[], Some(black_box(&initrd)), ""));
    })?;
    against_openssl("SHA-256 of a 64 MiB initrd", file, "sha256", 16384);
    Ok(())
}

/// Pages of which no two are equal.
fn distinct_pages(count: u32) -> Vec<u8> {
    let mut pages = vec![0x5a; count as usize * PAGE_SIZE];
    for (number, page) in (0_u32..).zip(pages.chunks_mut(PAGE_SIZE)) {
        page[..4].copy_from_slice(&number.to_le_bytes());
    }
    pages
}

/// Prints a rate beside that of `openssl speed` on one core, with such blocks.
pub(crate) fn against_openssl(what: &str, ours: f64, algorithm: &str, block: usize) {
    match openssl(algorithm, block) {
        Ok(peer) => compare(what, &gigabytes(ours), &gigabytes(peer), ours / peer),
        Err(error) => skipped(what, &format!("{error:#}")),
    }
}

/// Bytes per second that OpenSSL hashes in blocks of `block` bytes.
fn openssl(algorithm: &str, block: usize) -> Result<f64> {
    let output = Command::new("openssl")
        .args(["speed", "-mr", "-seconds", "2", "-bytes"])
        .arg(block.to_string())
        .args(["-evp", algorithm])
        .output()
        .context("run openssl")?;
    ensure!(output.status.success(), "openssl failed");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text
        .lines()
        .find(|line| line.starts_with("+F:"))
        .context("openssl printed no result")?;
    let figure = line.rsplit(':').next().unwrap_or_default();
    figure
        .parse()
        .with_context(|| format!("openssl printed {figure:?}"))
}

fn gigabytes(rate: f64) -> String {
    format!("{:.2} GB/s", rate / 1e9)
}
