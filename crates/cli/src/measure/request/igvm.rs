//! The same question for guests that start from an IGVM file, which holds what
//! most of the other options are about.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use assay_measure::igvm::{IgvmLaunch, ResetState};
use assay_tee::VcpuCount;

use super::{Named, cpus, vcpus};
use crate::measure::options::{Args, IgvmLoaderName, Mode};

/// Launches from IGVM files.
#[derive(Debug)]
pub(in crate::measure) struct IgvmRequest {
    pub(in crate::measure) files: Vec<PathBuf>,
    pub(in crate::measure) kind: IgvmKind,
}

/// What is measured besides the file.
#[derive(Debug)]
pub(in crate::measure) enum IgvmKind {
    /// SEV: nothing.
    Sev,
    /// SEV-ES as QEMU starts it.
    SevEs(IgvmVcpus),
    /// SEV-SNP as QEMU starts it.
    Snp(IgvmVcpus),
    /// SEV-SNP by the rules of a loader that takes virtual CPUs from the file.
    SnpAsInFile(IgvmLaunch),
}

/// Virtual CPUs, some of which the file may have no state for.
#[derive(Debug)]
pub(in crate::measure) struct IgvmVcpus {
    /// The reset states asked for. Empty where the file is to have all states.
    pub(in crate::measure) resets: Vec<Named<ResetState>>,
    pub(in crate::measure) counts: BTreeSet<VcpuCount>,
}

impl IgvmVcpus {
    fn from_args(args: &Args) -> Result<Self> {
        let resets: Vec<_> = cpus(args)?
            .into_iter()
            .map(|cpu| Named {
                name: cpu.name,
                value: ResetState {
                    cpu_signature: cpu.value,
                    guest_features: args.guest_features,
                },
            })
            .collect();
        ensure!(
            args.guest_features.is_none() || !resets.is_empty(),
            "--guest-features and --igvm go together only with --vcpu-type: they are part of a \
             virtual CPU's state, and those of the file have them; leave --guest-features out"
        );
        Ok(Self {
            resets,
            counts: vcpus(args)?,
        })
    }

    /// The reset states to measure with, or none once.
    pub(in crate::measure) fn choices(&self) -> Vec<Option<&Named<ResetState>>> {
        if self.resets.is_empty() {
            return vec![None];
        }
        self.resets.iter().map(Some).collect()
    }

    fn shapes(&self) -> usize {
        self.resets.len().max(1) * self.counts.len()
    }
}

impl IgvmRequest {
    /// Checks the options that go with `--igvm`.
    pub(super) fn from_args(args: &Args) -> Result<Self> {
        refuse_other_sources(args)?;
        ensure!(
            args.mode == Mode::Snp || args.igvm_loader.is_none(),
            "--igvm-loader does not apply to --mode {}, whose guests QEMU alone starts; leave it \
             out",
            args.mode
        );
        let kind = match args.mode {
            Mode::Sev => IgvmKind::Sev,
            Mode::SevEs => IgvmKind::SevEs(IgvmVcpus::from_args(args)?),
            Mode::Snp => match args.igvm_loader.and_then(as_in_file) {
                None => IgvmKind::Snp(IgvmVcpus::from_args(args)?),
                Some(launch) => {
                    refuse_vcpus(args)?;
                    IgvmKind::SnpAsInFile(launch)
                }
            },
            Mode::SnpOvmfHash | Mode::SnpSvsm => anyhow::bail!(
                "--igvm does not apply to --mode {}: an IGVM file is measured as a whole; leave it \
                 out, or use --mode snp, --mode seves or --mode sev",
                args.mode
            ),
        };
        Ok(Self {
            files: args.igvm.clone(),
            kind,
        })
    }

    /// How many digests are asked for.
    pub(super) fn shapes(&self) -> usize {
        let of_a_file = match &self.kind {
            IgvmKind::Sev | IgvmKind::SnpAsInFile(_) => 1,
            IgvmKind::SevEs(vcpus) | IgvmKind::Snp(vcpus) => vcpus.shapes(),
        };
        self.files.len() * of_a_file
    }
}

/// The launch of a loader that takes virtual CPUs from the file.
const fn as_in_file(loader: IgvmLoaderName) -> Option<IgvmLaunch> {
    Some(match loader {
        IgvmLoaderName::Qemu => return None,
        IgvmLoaderName::QemuSvsm => IgvmLaunch::QemuSvsm,
        IgvmLoaderName::FileOrder => IgvmLaunch::FileOrder,
        IgvmLoaderName::NativeZero => IgvmLaunch::NativeZero,
        IgvmLoaderName::Igvmmeasure => IgvmLaunch::Igvmmeasure,
    })
}

/// Refuses options for what an IGVM file holds already.
fn refuse_other_sources(args: &Args) -> Result<()> {
    let holds_all = "the IGVM file holds everything that the guest starts from; leave one out";
    let no_kernel = "with an IGVM file QEMU measures no kernel; build the kernel, or the page of \
                     its hashes, into the file";
    let not_recorded = "an IGVM file is its own record; leave one out";
    for (option, given, because) in [
        ("--ovmf", !args.ovmf.is_empty(), holds_all),
        ("--snp-ovmf-hash", args.snp_ovmf_hash.is_some(), holds_all),
        ("--svsm", args.svsm.is_some(), holds_all),
        ("--kernel", args.kernel.is_some(), no_kernel),
        ("--kernel-hash", args.kernel_hash.is_some(), no_kernel),
        ("--initrd", args.initrd.is_some(), no_kernel),
        ("--initrd-hash", args.initrd_hash.is_some(), no_kernel),
        ("--append", args.append.is_some(), no_kernel),
        ("--cmdline-hash", args.cmdline_hash.is_some(), no_kernel),
        ("--inputs", args.inputs.is_some(), not_recorded),
        ("--write-inputs", args.write_inputs.is_some(), not_recorded),
        (
            "--vmm-type",
            args.vmm_type.is_some(),
            "the loader of the file decides; name it with --igvm-loader",
        ),
    ] {
        ensure!(!given, "{option} and --igvm exclude each other: {because}");
    }
    Ok(())
}

/// Refuses options about virtual CPUs that the file alone decides about.
fn refuse_vcpus(args: &Args) -> Result<()> {
    for (option, given) in [
        ("--vcpus", args.vcpus.is_some()),
        ("--vcpu-type", !args.vcpu_type.is_empty()),
        ("--vcpu-sig", args.vcpu_sig.is_some()),
        ("--vcpu-family", args.vcpu_family.is_some()),
        ("--vcpu-model", args.vcpu_model.is_some()),
        ("--vcpu-stepping", args.vcpu_stepping.is_some()),
        ("--guest-features", args.guest_features.is_some()),
        ("--dump-vmsa", args.dump_vmsa.is_some()),
    ] {
        ensure!(
            !given,
            "{option} does not apply to this --igvm-loader, which measures the virtual CPUs of the \
             file whatever their number; leave it out, or use --igvm-loader qemu"
        );
    }
    Ok(())
}
