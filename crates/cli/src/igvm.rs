//! `assay igvm build`: one file that holds everything a guest starts from, for a
//! QEMU with IGVM or any other loader of such files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use assay_image::igvm::{IgvmKernel, IgvmSpec, encode_igvm};
use assay_measure::igvm::{IgvmLaunch, measure_igvm_snp};
use assay_tee::cpu::{CpuModel, CpuSignature};
use assay_tee::hashes_table::KernelHashes;
use assay_tee::igvm::parse_igvm;
use assay_tee::{GuestFeatures, LaunchDigest, VcpuCount};
use bytes::Bytes;
use clap::ValueEnum;
use serde_json::json;

use crate::guest_policy::PolicyArg;
use crate::measure::parse_u32;
use crate::{output_file, stdout};

/// What a person may type.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make an IGVM file, and print the launch digest of its guests
    Build(BuildArgs),
}

#[derive(Debug, clap::Args)]
struct BuildArgs {
    /// Where the kernel is
    #[arg(long, value_enum, default_value = "embedded")]
    form: Form,
    /// OVMF firmware of the AmdSev build: the generic one takes a command line
    /// that the host hands over beside the file
    #[arg(long, value_name = "FILE")]
    ovmf: PathBuf,
    /// Unified kernel image; with --form verified any kernel
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initrd that the host hands over (form verified)
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Command line that the host hands over (form verified)
    #[arg(long, value_name = "CMDLINE")]
    append: Option<String>,
    /// Number of virtual CPUs, 1 to 512; the file is for this number alone
    #[arg(long, value_name = "N", value_parser = parse_vcpus)]
    vcpus: VcpuCount,
    /// CPU model by QEMU's name, such as EPYC-v4
    #[arg(long, value_name = "CPUTYPE", required_unless_present = "vcpu_sig")]
    vcpu_type: Option<String>,
    /// CPUID signature (Fn0000_0001 EAX), for `-cpu host`
    #[arg(long, value_name = "VALUE", conflicts_with = "vcpu_type",
          value_parser = parse_u32)]
    vcpu_sig: Option<u32>,
    /// SEV_FEATURES of the guest: a number, or names such as SNPActive
    #[arg(long, value_name = "VALUE", default_value = "0x1")]
    guest_features: GuestFeatures,
    /// Guest policy, decimal or 0x and hexadecimal
    #[arg(long, value_name = "NUMBER", default_value = "0x30000")]
    policy: PolicyArg,
    /// File to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Where the kernel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// In the file: nothing else is handed to the guest
    Embedded,
    /// With the host (QEMU's -kernel); the file holds its hashes, and firmware
    /// of the AmdSev build verifies them
    Verified,
}

/// Runs the subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    let Command::Build(args) = &args.command;
    build(args)
}

fn build(args: &BuildArgs) -> Result<()> {
    let firmware = read("--ovmf", &args.ovmf)?;
    let uki = read("--kernel", &args.kernel)?;
    let kernel = kernel(args, &uki)?;
    let min_memory = kernel.min_memory();
    let spec = IgvmSpec {
        firmware: &firmware,
        kernel,
        vcpus: args.vcpus,
        cpu_signature: cpu_signature(args)?,
        guest_features: args.guest_features,
        policy: args.policy.checked()?,
    };
    let file = encode_igvm(&spec).context("there is no IGVM file of these")?;
    let digest = digest(&file.to_bytes(), args.vcpus)?;
    output_file::write(&args.output, &file).context("--output")?;
    let output = args.output.display();
    if args.json {
        let document = json!({
            "file": output.to_string(),
            "size": file.len(),
            "digest": file.sha256(),
            "launchDigest": digest,
            "minMemoryBytes": min_memory,
        });
        stdout::write_line(serde_json::to_string_pretty(&document)?)?;
        return Ok(());
    }
    stdout::write_line(digest.to_hex())?;
    eprintln!("{output}: {} bytes, {}", file.len(), file.sha256());
    if min_memory > 0 {
        eprintln!(
            "note: guests need at least {} MiB of memory",
            min_memory.div_ceil(1 << 20)
        );
    }
    Ok(())
}

fn kernel<'a>(args: &BuildArgs, uki: &'a Bytes) -> Result<IgvmKernel<'a>> {
    if args.form == Form::Verified {
        let initrd = match &args.initrd {
            Some(path) => Some(read("--initrd", path)?),
            None => None,
        };
        let cmdline = args.append.as_deref().unwrap_or_default();
        let hashes = KernelHashes::from_bytes(uki, initrd.as_deref(), cmdline);
        return Ok(IgvmKernel::Verified(hashes));
    }
    for (option, given) in [
        ("--initrd", args.initrd.is_some()),
        ("--append", args.append.is_some()),
    ] {
        ensure!(
            !given,
            "{option} does not go with --form embedded: firmware takes the kernel alone from the \
             file; put it into the unified kernel image"
        );
    }
    ensure!(
        uki.starts_with(b"MZ"),
        "--kernel {}: not an EFI executable, which --form embedded needs; give a unified kernel \
         image",
        args.kernel.display()
    );
    Ok(IgvmKernel::Embedded(uki))
}

fn cpu_signature(args: &BuildArgs) -> Result<CpuSignature> {
    match (&args.vcpu_type, args.vcpu_sig) {
        (Some(name), _) => Ok(CpuModel::by_name(name).context("--vcpu-type")?.signature()),
        (None, Some(signature)) => Ok(CpuSignature(signature)),
        (None, None) => unreachable!("clap requires one of the two"),
    }
}

/// Of the file's bytes, not of what went into them.
fn digest(file: &[u8], vcpus: VcpuCount) -> Result<LaunchDigest> {
    let parsed = parse_igvm(file).context("read the file back")?;
    let launch = IgvmLaunch::Qemu { vcpus, reset: None };
    let measurement = measure_igvm_snp(&parsed, &launch).context("measure the file")?;
    Ok(measurement.digest)
}

fn parse_vcpus(text: &str) -> Result<VcpuCount> {
    Ok(VcpuCount::try_from(text.parse::<u32>()?)?)
}

fn read(option: &str, path: &Path) -> Result<Bytes> {
    let bytes =
        fs::read(path).with_context(|| format!("{option}: cannot read {}", path.display()))?;
    Ok(bytes.into())
}
