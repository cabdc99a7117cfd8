//! `assay pcrs`: what the boot of a UKI leaves in a TPM.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use assay_image::pcr::{BootPath, PcrPrediction, predict_pcrs};
use assay_tee::Sha256Digest;
use serde::Serialize;

use crate::stdout;

/// Options of `assay pcrs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The unified kernel image
    uki: PathBuf,
    /// How firmware comes by the UKI
    #[arg(long, value_enum, default_value_t = Boot::Kernel)]
    boot: Boot,
    /// Words that systemd-pcrphase measures in the guest, with colons between
    #[arg(long, value_name = "WORD:WORD", value_delimiter = ':')]
    phase: Vec<String>,
    /// Print every event and the values as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Boot {
    /// From QEMU's -kernel
    Kernel,
    /// From a disk's EFI system partition
    Disk,
}

#[derive(Serialize)]
struct Output<'a> {
    values: &'a BTreeMap<u8, Sha256Digest>,
    #[serde(flatten)]
    prediction: &'a PcrPrediction,
}

/// Reads, predicts, prints.
pub(crate) fn run(args: &Args) -> Result<()> {
    let path = args.uki.display();
    let uki = fs::read(&args.uki).with_context(|| format!("read {path}"))?;
    let boot = match args.boot {
        Boot::Kernel => BootPath::DirectKernel,
        Boot::Disk => BootPath::Disk,
    };
    let phases: Vec<_> = args
        .phase
        .iter()
        .filter(|word| !word.is_empty())
        .cloned()
        .collect();
    let prediction = predict_pcrs(&uki.into(), boot, &phases).with_context(|| path.to_string())?;
    let values: BTreeMap<_, _> = PcrPrediction::PCRS
        .into_iter()
        .filter_map(|pcr| Some((pcr, prediction.value(pcr)?)))
        .collect();
    if args.json {
        let output = Output {
            values: &values,
            prediction: &prediction,
        };
        stdout::write_line(format_args!(
            "{}",
            serde_json::to_string_pretty(&output).context("encode the prediction")?
        ))?;
        return Ok(());
    }
    for (pcr, value) in &values {
        stdout::write_line(format_args!("{pcr}:sha256={}", value.to_hex()))?;
    }
    for it in &prediction.unpredictable {
        eprintln!("PCR {} cannot be predicted: {}", it.pcr, it.reason);
    }
    Ok(())
}
