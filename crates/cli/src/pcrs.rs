//! `assay pcrs`: what the boot of a UKI leaves in a TPM.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use assay_image::pcr::{BootPath, PcrPrediction, predict_pcrs};
use assay_image::pcr_signature::policy_digest;
use assay_tee::Sha256Digest;
use serde::Serialize;

use crate::{output_file, stdout};

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
    /// Write the 32 bytes that a signature for `assay build --pcr-signature` is of: the
    /// digest of the TPM policy that PCR 11 has its value in this phase
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    policy_digest: Option<PathBuf>,
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
    let uki = uki.into();
    if let Some(output) = &args.policy_digest {
        let policy = policy_digest(&uki, &phases.join(":")).with_context(|| path.to_string())?;
        output_file::write(output, &policy.as_bytes().to_vec().into())
            .context("--policy-digest")?;
        stdout::write_line(format_args!("{}  {}", output.display(), policy.to_hex()))?;
        eprintln!(
            "note: sign these bytes with RSA (PKCS #1 v1.5) and SHA-256, then run `assay build` \
             again with --pcr-signature"
        );
        return Ok(());
    }
    let prediction = predict_pcrs(&uki, boot, &phases).with_context(|| path.to_string())?;
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
