//! `assay measure`: the launch digest of a guest from its files, with the option
//! names of sev-snp-measure, so that scripts can move over.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use assay_measure::inputs::{FirmwareInputs, MeasurementInputs};
use assay_measure::sev::{measure_sev, measure_sev_es};
use assay_measure::snp::{VcpuProfile, measure_snp_launch};
use assay_measure::trace::MeasuredRegion;
use assay_tee::cpu::{CpuModel, CpuSignature};
use assay_tee::hashes_table::KernelHashes;
use assay_tee::vmsa::Vmm;
use assay_tee::{GuestFeatures, LaunchDigest, VcpuCount};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::ValueEnum;
use serde::Serialize;

/// Options of `assay measure`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to compute
    #[arg(long, value_enum, default_value = "snp")]
    mode: Mode,
    /// Number of virtual CPUs, 1 to 512
    #[arg(long, value_name = "N")]
    vcpus: Option<u32>,
    /// CPU model by QEMU's name, such as EPYC-v4
    #[arg(long, value_name = "CPUTYPE", conflicts_with_all = ["vcpu_sig", "vcpu_family"])]
    vcpu_type: Option<String>,
    /// CPUID signature (Fn0000_0001 EAX), for `-cpu host`
    #[arg(long, value_name = "VALUE", value_parser = parse_u32, conflicts_with = "vcpu_family")]
    vcpu_sig: Option<u32>,
    /// CPU family, instead of a model's name
    #[arg(long, value_name = "FAMILY", value_parser = parse_u32,
          requires = "vcpu_model", requires = "vcpu_stepping")]
    vcpu_family: Option<u32>,
    /// CPU model number
    #[arg(long, value_name = "MODEL", value_parser = parse_u32, requires = "vcpu_family")]
    vcpu_model: Option<u32>,
    /// CPU stepping
    #[arg(long, value_name = "STEPPING", value_parser = parse_u32, requires = "vcpu_family")]
    vcpu_stepping: Option<u32>,
    /// VMM that starts the guest
    #[arg(long, value_enum, value_name = "VMMTYPE", default_value = "QEMU")]
    vmm_type: VmmType,
    /// OVMF firmware
    #[arg(long, value_name = "PATH")]
    ovmf: PathBuf,
    /// Kernel or UKI given to QEMU as -kernel
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
    /// Initrd given to QEMU as -initrd
    #[arg(long, value_name = "PATH", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Command line given to QEMU as -append, taken literally
    #[arg(long, value_name = "CMDLINE", requires = "kernel")]
    append: Option<String>,
    /// SEV_FEATURES of the guest (mode snp): 0x1, or 0x21 for Linux 6.6 and 6.7
    #[arg(long, value_name = "VALUE", value_parser = parse_u64, default_value = "0x1")]
    guest_features: u64,
    /// Running digest after the firmware's pages (mode snp), as printed by
    /// mode snp:ovmf-hash; the OVMF file is then read for its metadata only
    #[arg(long, value_name = "HASH")]
    snp_ovmf_hash: Option<String>,
    /// Form of the digest
    #[arg(long, value_enum, default_value = "hex", conflicts_with = "json")]
    output_format: OutputFormat,
    /// Print digest, inputs and every measured region as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
enum Mode {
    /// SEV: firmware and kernel hashes
    #[value(name = "sev")]
    #[serde(rename = "sev")]
    Sev,
    /// SEV-ES: as sev, and the virtual CPUs
    #[value(name = "seves")]
    #[serde(rename = "seves")]
    SevEs,
    /// SEV-SNP: the measurement of an attestation report
    #[value(name = "snp")]
    #[serde(rename = "snp")]
    Snp,
    /// SEV-SNP after the firmware's pages alone
    #[value(name = "snp:ovmf-hash")]
    #[serde(rename = "snp:ovmf-hash")]
    SnpOvmfHash,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum VmmType {
    /// QEMU 9.1 and Linux 6.10 or later
    #[value(name = "QEMU")]
    Qemu,
    /// QEMU and KVM before KVM_SEV_INIT2
    #[value(name = "QEMU-before-init2")]
    QemuBeforeInit2,
    /// Amazon EC2 since April 2026
    #[value(name = "ec2")]
    Ec2,
    /// Amazon EC2 before April 2026
    #[value(name = "ec2-before-rdx")]
    Ec2BeforeRdx,
    /// Google Compute Engine
    #[value(name = "gce")]
    Gce,
}

impl From<VmmType> for Vmm {
    fn from(vmm: VmmType) -> Self {
        match vmm {
            VmmType::Qemu => Self::Qemu,
            VmmType::QemuBeforeInit2 => Self::QemuBeforeInit2,
            VmmType::Ec2 => Self::Ec2,
            VmmType::Ec2BeforeRdx => Self::Ec2BeforeRdx,
            VmmType::Gce => Self::Gce,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    /// Lower-case hexadecimal
    Hex,
    /// Base64 of the digest's bytes
    Base64,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Output {
    mode: Mode,
    digest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    vcpus: Option<VcpuCount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<VcpuProfile>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_hashes: Option<KernelHashes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    firmware: Option<FirmwareInputs>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    trace: Vec<MeasuredRegion>,
}

impl Output {
    fn new(mode: Mode) -> Self {
        Self {
            mode,
            digest: String::new(),
            vcpus: None,
            profile: None,
            kernel_hashes: None,
            firmware: None,
            trace: Vec::new(),
        }
    }
}

/// Computes the digest that `args` ask for and prints it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let (digest, mut output) = measure(args)?;
    if args.json {
        output.digest = hex::encode(&digest);
        println!("{}", serde_json::to_string_pretty(&output)?);
    } else {
        println!(
            "{}",
            match args.output_format {
                OutputFormat::Hex => hex::encode(&digest),
                OutputFormat::Base64 => BASE64_STANDARD.encode(&digest),
            }
        );
    }
    Ok(())
}

/// The digest's bytes and what led to them.
fn measure(args: &Args) -> anyhow::Result<(Vec<u8>, Output)> {
    check_conflicts(args)?;
    let firmware = read(&args.ovmf)?;
    let measuring = || format!("measure {}", args.ovmf.display());
    let mut output = Output::new(args.mode);
    if args.mode == Mode::SnpOvmfHash {
        let inputs = FirmwareInputs::from_bytes(&firmware).with_context(measuring)?;
        let digest = inputs.digest.as_bytes().to_vec();
        output.firmware = Some(inputs);
        return Ok((digest, output));
    }
    let kernel_hashes = kernel_hashes(args)?;
    output.kernel_hashes = kernel_hashes;
    if args.mode == Mode::Sev {
        let digest = measure_sev(&firmware, kernel_hashes.as_ref()).with_context(measuring)?;
        return Ok((digest.as_bytes().to_vec(), output));
    }
    let vcpus = args.vcpus.context("--vcpus is required in this mode")?;
    let vcpus = VcpuCount::try_from(vcpus).context("--vcpus")?;
    let profile = VcpuProfile {
        vmm: args.vmm_type.into(),
        cpu_signature: cpu_signature(args)?,
        guest_features: GuestFeatures(args.guest_features),
    };
    output.vcpus = Some(vcpus);
    output.profile = Some(profile);
    if args.mode == Mode::SevEs {
        let digest = measure_sev_es(&firmware, kernel_hashes.as_ref(), &profile, vcpus)
            .with_context(measuring)?;
        return Ok((digest.as_bytes().to_vec(), output));
    }
    let mut inputs =
        MeasurementInputs::from_bytes(&firmware, kernel_hashes).with_context(measuring)?;
    if let Some(hash) = &args.snp_ovmf_hash {
        inputs.firmware.digest = parse_ovmf_hash(hash)?;
    }
    let measurement = measure_snp_launch(&inputs, &profile, vcpus).with_context(measuring)?;
    output.firmware = Some(inputs.firmware);
    output.trace = measurement.trace;
    Ok((measurement.digest.as_bytes().to_vec(), output))
}

/// Refuses options that the mode would ignore: a digest that silently leaves
/// something out misleads.
fn check_conflicts(args: &Args) -> anyhow::Result<()> {
    if args.snp_ovmf_hash.is_some() && args.mode != Mode::Snp {
        bail!("--snp-ovmf-hash applies to --mode snp only");
    }
    if args.guest_features != GuestFeatures::default().0 && args.mode != Mode::Snp {
        bail!("--guest-features applies to --mode snp only: SEV and SEV-ES have none");
    }
    if args.kernel.is_some() && args.mode == Mode::SnpOvmfHash {
        bail!("--kernel does not apply to --mode snp:ovmf-hash, which measures the firmware alone");
    }
    Ok(())
}

fn kernel_hashes(args: &Args) -> anyhow::Result<Option<KernelHashes>> {
    let Some(kernel) = &args.kernel else {
        return Ok(None);
    };
    let kernel = read(kernel)?;
    let initrd = args.initrd.as_deref().map(read).transpose()?;
    let cmdline = args.append.as_deref().unwrap_or_default();
    Ok(Some(KernelHashes::from_bytes(
        &kernel,
        initrd.as_deref(),
        cmdline,
    )))
}

fn cpu_signature(args: &Args) -> anyhow::Result<CpuSignature> {
    match (&args.vcpu_type, args.vcpu_sig, args.vcpu_family) {
        (Some(name), _, _) => Ok(CpuModel::by_name(name).context("--vcpu-type")?.signature()),
        (None, Some(signature), _) => Ok(CpuSignature(signature)),
        (None, None, Some(family)) => {
            let (Some(model), Some(stepping)) = (args.vcpu_model, args.vcpu_stepping) else {
                bail!("--vcpu-family needs --vcpu-model and --vcpu-stepping");
            };
            CpuSignature::from_family_model_stepping(family, model, stepping)
                .context("--vcpu-family, --vcpu-model, --vcpu-stepping")
        }
        (None, None, None) if !Vmm::from(args.vmm_type).measures_cpu_signature() => {
            Ok(CpuSignature(0))
        }
        (None, None, None) => {
            bail!("the CPU is part of the digest: give --vcpu-type, --vcpu-sig or --vcpu-family")
        }
    }
}

fn parse_ovmf_hash(text: &str) -> anyhow::Result<LaunchDigest> {
    let mut bytes = [0; LaunchDigest::LEN];
    hex::decode_to_slice(text, &mut bytes)
        .with_context(|| format!("--snp-ovmf-hash must be {} hex digits", 2 * bytes.len()))?;
    Ok(LaunchDigest::new(bytes))
}

fn read(path: impl AsRef<Path>) -> anyhow::Result<Vec<u8>> {
    let path = path.as_ref();
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// A number in decimal, or in hexadecimal after `0x`.
fn parse_u64(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| format!("not a decimal or 0x-prefixed number of 64 bits: {error}"))
}

/// As [`parse_u64`], for 32 bits.
fn parse_u32(text: &str) -> Result<u32, String> {
    u32::try_from(parse_u64(text)?).map_err(|_| "does not fit into 32 bits".to_owned())
}
