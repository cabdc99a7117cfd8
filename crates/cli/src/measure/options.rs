//! What a person may type after `assay measure`: options and their syntax.
//! Whether they make sense together is decided in [`super::request`].

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use assay_tee::vmsa::{SvsmFpu, Vmm};
use assay_tee::{BootMethod, GuestFeatures, LaunchDigest, Sha256Digest, VcpuCount};
use clap::ValueEnum;
use serde::Serialize;

/// Options of `assay measure`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to compute
    #[arg(long, value_enum, default_value = "snp")]
    pub(super) mode: Mode,
    /// Numbers of virtual CPUs, 1 to 512: 4, 1-64 or 1,2,4-8
    #[arg(long, value_name = "N", value_parser = parse_vcpus)]
    pub(super) vcpus: Option<VcpuCounts>,
    /// CPU model by QEMU's name, such as EPYC-v4; may be given more than once,
    /// or with commas
    #[arg(long, value_name = "CPUTYPE", value_delimiter = ',')]
    pub(super) vcpu_type: Vec<String>,
    /// CPUID signature (Fn0000_0001 EAX), for `-cpu host`
    #[arg(long, value_name = "VALUE", value_parser = parse_u32)]
    pub(super) vcpu_sig: Option<u32>,
    /// CPU family, instead of a model's name
    #[arg(long, value_name = "FAMILY", value_parser = parse_u32)]
    pub(super) vcpu_family: Option<u32>,
    /// CPU model number
    #[arg(long, value_name = "MODEL", value_parser = parse_u32)]
    pub(super) vcpu_model: Option<u32>,
    /// CPU stepping
    #[arg(long, value_name = "STEPPING", value_parser = parse_u32)]
    pub(super) vcpu_stepping: Option<u32>,
    /// VMM that starts the guest [default: QEMU]
    #[arg(long, value_enum, value_name = "VMMTYPE", ignore_case = true)]
    pub(super) vmm_type: Option<VmmType>,
    /// OVMF firmware; may be given more than once
    #[arg(long, value_name = "PATH")]
    pub(super) ovmf: Vec<PathBuf>,
    /// IGVM file (modes snp, seves and sev), instead of firmware and kernel; may
    /// be given more than once
    #[arg(long, value_name = "PATH")]
    pub(super) igvm: Vec<PathBuf>,
    /// Whose rules the IGVM file is loaded by (mode snp) [default: qemu]
    #[arg(long, value_enum, value_name = "LOADER")]
    pub(super) igvm_loader: Option<IgvmLoaderName>,
    /// How the kernel reaches the guest (mode snp): IGVM measures the self-contained
    /// file of firmware and UKI, as `assay igvm build` makes it [default: DirectKernel]
    #[arg(long, value_enum, value_name = "METHOD", conflicts_with = "igvm")]
    pub(super) boot: Option<BootArg>,
    /// Kernel or UKI given to QEMU as -kernel
    #[arg(long, value_name = "PATH")]
    pub(super) kernel: Option<PathBuf>,
    /// SHA-256 of the kernel file, instead of --kernel
    #[arg(long, value_name = "SHA256", value_parser = parse_sha256)]
    pub(super) kernel_hash: Option<Sha256Digest>,
    /// Initrd given to QEMU as -initrd
    #[arg(long, value_name = "PATH")]
    pub(super) initrd: Option<PathBuf>,
    /// SHA-256 of the initrd file, instead of --initrd
    #[arg(long, value_name = "SHA256", value_parser = parse_sha256)]
    pub(super) initrd_hash: Option<Sha256Digest>,
    /// Command line given to QEMU as -append, taken literally
    #[arg(long, value_name = "CMDLINE", allow_hyphen_values = true)]
    pub(super) append: Option<String>,
    /// SHA-256 of the command line and its terminating NUL, instead of --append
    #[arg(long, value_name = "SHA256", value_parser = parse_sha256)]
    pub(super) cmdline_hash: Option<Sha256Digest>,
    /// SEV_FEATURES of the guest (mode snp): a number, or names such as
    /// SNPActive,DebugSwap [default: 0x1]
    #[arg(long, value_name = "VALUE")]
    pub(super) guest_features: Option<GuestFeatures>,
    /// Running digest after the firmware's pages (mode snp), as printed by
    /// mode snp:ovmf-hash; the OVMF file is then read for its metadata only
    #[arg(long, value_name = "HASH", value_parser = parse_launch_digest)]
    pub(super) snp_ovmf_hash: Option<LaunchDigest>,
    /// Recorded inputs (modes snp and snp:svsm) or an artifact's manifest.json
    /// (mode snp), instead of the files that they stand for
    #[arg(long, value_name = "FILE")]
    pub(super) inputs: Option<PathBuf>,
    /// Record what stands for the files (modes snp and snp:svsm), for --inputs
    #[arg(long, value_name = "FILE")]
    pub(super) write_inputs: Option<PathBuf>,
    /// Coconut SVSM binary (mode snp:svsm)
    #[arg(long, value_name = "PATH")]
    pub(super) svsm: Option<PathBuf>,
    /// Size of the OVMF_VARS file in bytes (mode snp:svsm)
    #[arg(long, value_name = "SIZE", value_parser = parse_u64)]
    pub(super) vars_size: Option<u64>,
    /// OVMF_VARS file, for its size (mode snp:svsm)
    #[arg(long, value_name = "PATH")]
    pub(super) vars_file: Option<PathBuf>,
    /// FPU state of the virtual CPUs (mode snp:svsm) [default: before-init2]
    #[arg(long, value_enum, value_name = "STATE")]
    pub(super) svsm_fpu: Option<SvsmFpuName>,
    /// Write the measured save areas to vmsa0.bin, vmsa1.bin, … in a directory
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = ".")]
    pub(super) dump_vmsa: Option<PathBuf>,
    /// Form of the digest [default: hex]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(super) output_format: Option<OutputFormat>,
    /// Print digest, inputs and every measured region as JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Print every measured region to standard error
    #[arg(short, long)]
    pub(super) verbose: bool,
}

impl Args {
    /// Whether JSON is to be printed.
    pub(crate) const fn is_json(&self) -> bool {
        self.json
    }
}

/// What is computed, by sev-snp-measure's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
pub(super) enum Mode {
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
    /// SEV-SNP with a Coconut SVSM that is started without IGVM
    #[value(name = "snp:svsm")]
    #[serde(rename = "snp:svsm")]
    SnpSvsm,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sev => "sev",
            Self::SevEs => "seves",
            Self::Snp => "snp",
            Self::SnpOvmfHash => "snp:ovmf-hash",
            Self::SnpSvsm => "snp:svsm",
        })
    }
}

/// A [`Vmm`] by the name that people type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum VmmType {
    /// QEMU 9.1 and Linux 6.10 or later
    #[default]
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
    /// Google Compute Engine, Milan
    #[value(name = "gce")]
    Gce,
    /// Google Compute Engine, Genoa
    #[value(name = "gce-genoa")]
    GceGenoa,
    /// libkrun
    #[value(name = "krun")]
    Krun,
}

impl From<VmmType> for Vmm {
    fn from(vmm: VmmType) -> Self {
        match vmm {
            VmmType::Qemu => Self::Qemu,
            VmmType::QemuBeforeInit2 => Self::QemuBeforeInit2,
            VmmType::Ec2 => Self::Ec2,
            VmmType::Ec2BeforeRdx => Self::Ec2BeforeRdx,
            VmmType::Gce => Self::Gce,
            VmmType::GceGenoa => Self::GceGenoa,
            VmmType::Krun => Self::Krun,
        }
    }
}

/// A [`SvsmFpu`] by the name that people type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum SvsmFpuName {
    /// All zero: KVM before KVM_SEV_INIT2, as processors have measured it
    #[value(name = "before-init2")]
    BeforeInit2,
    /// MXCSR 0x1f80, x87 control word 0x37f: KVM since KVM_SEV_INIT2
    #[value(name = "init2")]
    Init2,
    /// MXCSR 0x1f80, x87 control word 0: what sev-snp-measure prints
    #[value(name = "sev-snp-measure")]
    SevSnpMeasure,
}

impl From<SvsmFpuName> for SvsmFpu {
    fn from(name: SvsmFpuName) -> Self {
        match name {
            SvsmFpuName::BeforeInit2 => Self::BeforeInit2,
            SvsmFpuName::Init2 => Self::Init2,
            SvsmFpuName::SevSnpMeasure => Self::SevSnpMeasure,
        }
    }
}

/// An [`IgvmLoader`](assay_measure::igvm::IgvmLoader) by the name that people
/// type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum IgvmLoaderName {
    /// QEMU and KVM: right for guests without an SVSM
    Qemu,
    /// Coconut's QEMU and KVM with an SVSM: the boot processor alone is measured
    QemuSvsm,
    /// The order of the file, as the igvm crate measures: right for Hyper-V
    FileOrder,
    /// As file-order, pages without content are zero pages: right for Vanadium
    NativeZero,
    /// As Coconut's igvmmeasure prints, with its errors
    Igvmmeasure,
}

/// A [`BootMethod`] by the name that objects have for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum BootArg {
    /// QEMU loads firmware and kernel
    #[default]
    #[value(name = "DirectKernel")]
    DirectKernel,
    /// QEMU loads one IGVM file of both
    #[value(name = "IGVM")]
    Igvm,
}

impl BootArg {
    pub(crate) const fn method(self) -> BootMethod {
        match self {
            Self::DirectKernel => BootMethod::DirectKernel,
            Self::Igvm => BootMethod::Igvm,
        }
    }
}

/// How a digest is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum OutputFormat {
    /// Lower-case hexadecimal
    #[default]
    Hex,
    /// Base64 of the digest's bytes
    Base64,
}

/// The vCPU counts of a matrix, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VcpuCounts(pub(super) BTreeSet<VcpuCount>);

/// Reads `4`, `1-64` or `1,2,4-8`.
fn parse_vcpus(text: &str) -> Result<VcpuCounts, String> {
    let count = |text: &str| -> Result<VcpuCount, String> {
        let number: u32 = text
            .parse()
            .map_err(|_| format!("{text:?} is no number; write 4, 1-64 or 1,2,4-8"))?;
        VcpuCount::try_from(number).map_err(|error| error.to_string())
    };
    let mut counts = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (count(first)?, count(last)?);
        if first > last {
            return Err(format!(
                "range {part} runs backwards; write {}-{}",
                last.get(),
                first.get()
            ));
        }
        counts.extend((first.get()..=last.get()).filter_map(|n| VcpuCount::try_from(n).ok()));
    }
    Ok(VcpuCounts(counts))
}

/// A number in decimal, or in hexadecimal after `0x`.
pub(crate) fn parse_u64(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| format!("not a decimal or 0x-prefixed number of 64 bits: {error}"))
}

/// As [`parse_u64`], for 32 bits.
pub(crate) fn parse_u32(text: &str) -> Result<u32, String> {
    u32::try_from(parse_u64(text)?).map_err(|_| "does not fit into 32 bits".to_owned())
}

/// A digest with or without its algorithm's name.
fn parse_sha256(text: &str) -> Result<Sha256Digest, String> {
    with_algorithm("sha256", text)
        .parse()
        .map_err(|_| "expected 64 hex digits, with or without sha256: before them".to_owned())
}

/// As [`parse_sha256`].
pub(crate) fn parse_launch_digest(text: &str) -> Result<LaunchDigest, String> {
    with_algorithm("sha384", text)
        .parse()
        .map_err(|_| "expected 96 hex digits, with or without sha384: before them".to_owned())
}

fn with_algorithm(algorithm: &str, text: &str) -> String {
    let text = text.to_ascii_lowercase();
    if text.contains(':') {
        text
    } else {
        format!("{algorithm}:{text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_numbers_ranges_and_lists() {
        let numbers = |text: &str| -> Vec<u32> {
            let counts = parse_vcpus(text).unwrap();
            counts.0.iter().map(|count| count.get()).collect()
        };
        assert_eq!(numbers("4"), [4]);
        assert_eq!(numbers("2-4"), [2, 3, 4]);
        assert_eq!(numbers("4-6,1,2,5-7"), [1, 2, 4, 5, 6, 7]);
        assert_eq!(numbers("1-512").len(), 512);
        for text in [
            "", "0", "513", "1-513", "4-2", "1,,2", "1-", "-1", "x", "1-2-3",
        ] {
            assert!(parse_vcpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn digests_may_name_their_algorithm() {
        let hex = "ab".repeat(32);
        let digest = Sha256Digest::new([0xab; 32]);
        for text in [hex.clone(), hex.to_uppercase(), format!("sha256:{hex}")] {
            assert_eq!(parse_sha256(&text), Ok(digest), "{text}");
        }
        for text in [String::new(), format!("sha384:{hex}"), hex + "0"] {
            assert!(parse_sha256(&text).is_err(), "{text}");
        }
    }
}
