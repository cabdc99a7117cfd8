//! Whether the options make sense together: a digest that silently leaves
//! something out misleads, so an option that would change nothing is refused.

mod igvm;

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use assay_measure::VcpuProfile;
use assay_measure::svsm::SvsmProfile;
use assay_tee::cpu::{CpuModel, CpuSignature};
use assay_tee::vmsa::Vmm;
use assay_tee::{BootMethod, LaunchDigest, Sha256Digest, VcpuCount};

use super::options::{Args, Mode, VmmType};
pub(super) use igvm::{IgvmKind, IgvmRequest, IgvmVcpus};

/// A launch to be measured, or a matrix of launches.
#[derive(Debug)]
pub(super) enum Request {
    Sev {
        ovmf: Vec<PathBuf>,
        kernel: Option<DirectBoot>,
    },
    SevEs {
        ovmf: Vec<PathBuf>,
        kernel: Option<DirectBoot>,
        profiles: Vec<Named<VcpuProfile>>,
        vcpus: BTreeSet<VcpuCount>,
    },
    Snp {
        source: SnpSource,
        boot: BootMethod,
        kernel: Option<DirectBoot>,
        profiles: Vec<Named<VcpuProfile>>,
        vcpus: BTreeSet<VcpuCount>,
    },
    SnpOvmfHash {
        ovmf: Vec<PathBuf>,
    },
    SnpSvsm {
        source: SvsmSource,
        profiles: Vec<Named<SvsmProfile>>,
        vcpus: BTreeSet<VcpuCount>,
    },
    Igvm(IgvmRequest),
}

/// Where the inputs of an SEV-SNP launch come from.
#[derive(Debug)]
pub(super) enum SnpSource {
    Ovmf {
        files: Vec<PathBuf>,
        /// Replaces the digest of the only file.
        digest: Option<LaunchDigest>,
    },
    Inputs(PathBuf),
}

/// Where the inputs of a launch with an SVSM come from.
#[derive(Debug)]
pub(super) enum SvsmSource {
    Files {
        ovmf: Vec<PathBuf>,
        vars: Vars,
        svsm: PathBuf,
    },
    Inputs(PathBuf),
}

/// The size of a variable store.
#[derive(Debug)]
pub(super) enum Vars {
    Size(u64),
    Of(PathBuf),
}

/// What the hashes table holds.
#[derive(Debug)]
pub(super) struct DirectBoot {
    pub(super) kernel: Blob,
    pub(super) initrd: Option<Blob>,
    pub(super) cmdline: Cmdline,
}

impl DirectBoot {
    /// The command line, where its text is known and there is one.
    pub(super) fn cmdline_text(&self) -> Option<String> {
        match &self.cmdline {
            Cmdline::Text(text) if !text.is_empty() => Some(text.clone()),
            _ => None,
        }
    }
}

/// A file, or what is known of it.
#[derive(Debug)]
pub(super) enum Blob {
    File(PathBuf),
    Digest(Sha256Digest),
}

/// A command line, or what is known of it.
#[derive(Debug)]
pub(super) enum Cmdline {
    Text(String),
    Digest(Sha256Digest),
}

/// A value and the name by which it was asked for.
#[derive(Debug, Clone)]
pub(super) struct Named<T> {
    pub(super) name: String,
    pub(super) value: T,
}

impl Request {
    /// Checks the options against each other.
    pub(super) fn from_args(args: &Args) -> Result<Self> {
        if let Some(refusal) = strict_rules(args)
            .iter()
            .find_map(|rule| rule.broken(args.mode))
        {
            bail!(refusal);
        }
        ensure!(
            !(args.json && args.output_format.is_some()),
            "--output-format and --json exclude each other: JSON holds digests in hexadecimal; \
             leave one out"
        );
        ensure!(
            args.igvm_loader.is_none() || !args.igvm.is_empty(),
            "--igvm-loader is about an IGVM file; give one with --igvm, or leave it out"
        );
        let request = match args.mode {
            _ if !args.igvm.is_empty() => Self::Igvm(IgvmRequest::from_args(args)?),
            Mode::Sev => Self::Sev {
                ovmf: ovmf(args)?,
                kernel: kernel(args)?,
            },
            Mode::SnpOvmfHash => Self::SnpOvmfHash { ovmf: ovmf(args)? },
            Mode::SevEs => Self::SevEs {
                ovmf: ovmf(args)?,
                kernel: kernel(args)?,
                profiles: profiles(args)?,
                vcpus: vcpus(args)?,
            },
            Mode::Snp => Self::Snp {
                source: snp_source(args)?,
                boot: args.boot.unwrap_or_default().method(),
                kernel: kernel(args)?,
                profiles: profiles(args)?,
                vcpus: vcpus(args)?,
            },
            Mode::SnpSvsm => Self::SnpSvsm {
                source: svsm_source(args)?,
                profiles: svsm_profiles(args)?,
                vcpus: vcpus(args)?,
            },
        };
        for (option, given) in [
            ("--dump-vmsa", args.dump_vmsa.is_some()),
            ("--verbose", args.verbose),
        ] {
            ensure!(
                !given || request.shapes() == 1,
                "{option} is about one launch, and {} are asked for; give one --ovmf or --igvm, one \
                 --vcpu-type and one --vcpus",
                request.shapes()
            );
        }
        ensure!(
            args.write_inputs.is_none() || args.ovmf.len() < 2,
            "--write-inputs records one firmware, and {} are given; give one --ovmf",
            args.ovmf.len()
        );
        Ok(request)
    }

    /// How many digests are asked for.
    pub(super) fn shapes(&self) -> usize {
        match self {
            Self::Sev { ovmf, .. } | Self::SnpOvmfHash { ovmf } => ovmf.len(),
            Self::SevEs {
                ovmf,
                profiles,
                vcpus,
                ..
            } => ovmf.len() * profiles.len() * vcpus.len(),
            Self::Snp {
                source,
                profiles,
                vcpus,
                ..
            } => {
                let firmwares = match source {
                    SnpSource::Ovmf { files, .. } => files.len(),
                    SnpSource::Inputs(_) => 1,
                };
                firmwares * profiles.len() * vcpus.len()
            }
            Self::SnpSvsm {
                source,
                profiles,
                vcpus,
            } => {
                let firmwares = match source {
                    SvsmSource::Files { ovmf, .. } => ovmf.len(),
                    SvsmSource::Inputs(_) => 1,
                };
                firmwares * profiles.len() * vcpus.len()
            }
            Self::Igvm(request) => request.shapes(),
        }
    }
}

const VCPUS: &[Mode] = &[Mode::SevEs, Mode::Snp, Mode::SnpSvsm];
const KERNEL: &[Mode] = &[Mode::Sev, Mode::SevEs, Mode::Snp];
const RECORDED: &[Mode] = &[Mode::Snp, Mode::SnpSvsm];
const SVSM: &[Mode] = &[Mode::SnpSvsm];

/// An option and the modes that it is about.
struct Rule {
    option: &'static str,
    given: bool,
    modes: &'static [Mode],
    because: &'static str,
}

impl Rule {
    /// The sentence about an option that the mode would ignore.
    fn broken(&self, mode: Mode) -> Option<String> {
        (self.given && !self.modes.contains(&mode)).then(|| {
            let Self {
                option,
                modes,
                because,
                ..
            } = self;
            let modes: Vec<_> = modes.iter().map(Mode::to_string).collect();
            format!(
                "{option} does not apply to --mode {mode}: {because}; leave it out, or use --mode \
                 {}",
                modes.join(" or ")
            )
        })
    }
}

/// What a mode without virtual CPUs, or without features, cannot take for
/// something else. Scripts for sev-snp-measure give such options in every mode.
fn harmless_rules(args: &Args) -> [Rule; 8] {
    let vcpus = |option, given| Rule {
        option,
        given,
        modes: VCPUS,
        because: "no virtual CPU is measured there",
    };
    [
        vcpus("--vcpus", args.vcpus.is_some()),
        vcpus("--vcpu-type", !args.vcpu_type.is_empty()),
        vcpus("--vcpu-sig", args.vcpu_sig.is_some()),
        vcpus("--vcpu-family", args.vcpu_family.is_some()),
        vcpus("--vcpu-model", args.vcpu_model.is_some()),
        vcpus("--vcpu-stepping", args.vcpu_stepping.is_some()),
        vcpus("--vmm-type", args.vmm_type.is_some()),
        Rule {
            option: "--guest-features",
            given: args.guest_features.is_some(),
            modes: &[Mode::Snp],
            because: "SEV and SEV-ES have none, and an SVSM starts with SNPActive alone",
        },
    ]
}

/// What a digest without it would mislead about.
fn strict_rules(args: &Args) -> [Rule; 15] {
    let rule = |option, given, modes, because| Rule {
        option,
        given,
        modes,
        because,
    };
    let kernel = |option, given| rule(option, given, KERNEL, "no kernel is measured there");
    let recorded = |option, given| {
        let because = "only SEV-SNP digests continue from recorded inputs";
        rule(option, given, RECORDED, because)
    };
    let svsm = |option, given| rule(option, given, SVSM, "there is no SVSM");
    [
        rule(
            "--dump-vmsa",
            args.dump_vmsa.is_some(),
            VCPUS,
            "no virtual CPU is measured there",
        ),
        kernel("--kernel", args.kernel.is_some()),
        kernel("--kernel-hash", args.kernel_hash.is_some()),
        kernel("--initrd", args.initrd.is_some()),
        kernel("--initrd-hash", args.initrd_hash.is_some()),
        kernel("--append", args.append.is_some()),
        kernel("--cmdline-hash", args.cmdline_hash.is_some()),
        rule(
            "--snp-ovmf-hash",
            args.snp_ovmf_hash.is_some(),
            &[Mode::Snp],
            "it stands for the firmware's pages of an SEV-SNP launch",
        ),
        rule(
            "--boot",
            args.boot.is_some(),
            &[Mode::Snp],
            "only SEV-SNP guests boot from a file of ours",
        ),
        recorded("--inputs", args.inputs.is_some()),
        recorded("--write-inputs", args.write_inputs.is_some()),
        svsm("--svsm", args.svsm.is_some()),
        svsm("--vars-size", args.vars_size.is_some()),
        svsm("--vars-file", args.vars_file.is_some()),
        svsm("--svsm-fpu", args.svsm_fpu.is_some()),
    ]
}

/// A sentence about each option that changes nothing.
pub(super) fn options_without_effect(args: &Args) -> Vec<String> {
    let mut notes: Vec<String> = harmless_rules(args)
        .iter()
        .filter_map(|rule| rule.broken(args.mode))
        .collect();
    let vmm = Vmm::from(args.vmm_type.unwrap_or_default());
    let names_cpu =
        !args.vcpu_type.is_empty() || args.vcpu_sig.is_some() || args.vcpu_family.is_some();
    if matches!(args.mode, Mode::SevEs | Mode::Snp) && names_cpu && !vmm.measures_cpu_signature() {
        notes.push(
            "--vcpu-type, --vcpu-sig and --vcpu-family change nothing with this --vmm-type, which \
             gives every CPU the same state"
                .to_owned(),
        );
    }
    notes
}

/// At most one of two options that say the same thing.
fn exclusive<T>(one: (&str, Option<T>), other: (&str, Option<T>)) -> Result<Option<T>> {
    match (one.1, other.1) {
        (Some(_), Some(_)) => bail!(
            "{} and {} exclude each other; leave one out",
            one.0,
            other.0
        ),
        (value, None) | (None, value) => Ok(value),
    }
}

fn ovmf(args: &Args) -> Result<Vec<PathBuf>> {
    ensure!(
        !args.ovmf.is_empty(),
        "--ovmf is required in --mode {}: give the firmware",
        args.mode
    );
    Ok(args.ovmf.clone())
}

fn vcpus(args: &Args) -> Result<BTreeSet<VcpuCount>> {
    match &args.vcpus {
        Some(counts) => Ok(counts.0.clone()),
        None => bail!(
            "--vcpus is required in --mode {}: give the number of virtual CPUs, or several such \
             as 1-8",
            args.mode
        ),
    }
}

fn kernel(args: &Args) -> Result<Option<DirectBoot>> {
    let blob = |file: &Option<PathBuf>| file.clone().map(Blob::File);
    let hash = |digest: Option<Sha256Digest>| digest.map(Blob::Digest);
    let kernel = exclusive(
        ("--kernel", blob(&args.kernel)),
        ("--kernel-hash", hash(args.kernel_hash)),
    )?;
    let initrd = exclusive(
        ("--initrd", blob(&args.initrd)),
        ("--initrd-hash", hash(args.initrd_hash)),
    )?;
    let cmdline = exclusive(
        (
            "--append",
            args.append
                .clone()
                .filter(|text| !text.is_empty())
                .map(Cmdline::Text),
        ),
        ("--cmdline-hash", args.cmdline_hash.map(Cmdline::Digest)),
    )?;
    let Some(kernel) = kernel else {
        for (options, given) in [
            ("--initrd and --initrd-hash", initrd.is_some()),
            ("--append and --cmdline-hash", cmdline.is_some()),
        ] {
            ensure!(
                !given,
                "{options} need a kernel, which QEMU hashes together with them; give --kernel or \
                 --kernel-hash"
            );
        }
        return Ok(None);
    };
    Ok(Some(DirectBoot {
        kernel,
        initrd,
        cmdline: cmdline.unwrap_or_else(|| Cmdline::Text(String::new())),
    }))
}

/// The CPU models asked for, by name. Empty where none is given.
fn cpus(args: &Args) -> Result<Vec<Named<CpuSignature>>> {
    let by_name = !args.vcpu_type.is_empty();
    let by_signature = args.vcpu_sig.is_some();
    let numbers = [args.vcpu_family, args.vcpu_model, args.vcpu_stepping];
    let by_numbers = numbers.iter().any(Option::is_some);
    let ways = [by_name, by_signature, by_numbers];
    ensure!(
        ways.into_iter().filter(|way| *way).count() < 2,
        "--vcpu-type, --vcpu-sig and --vcpu-family exclude each other: each names the CPU; leave \
         all but one out"
    );
    let named = |signature: CpuSignature| Named {
        name: signature.to_string(),
        value: signature,
    };
    if let Some(signature) = args.vcpu_sig {
        return Ok(vec![named(CpuSignature(signature))]);
    }
    if by_numbers {
        let [Some(family), Some(model), Some(stepping)] = numbers else {
            bail!(
                "--vcpu-family, --vcpu-model and --vcpu-stepping need each other; give all three"
            );
        };
        let signature = CpuSignature::from_family_model_stepping(family, model, stepping)
            .context("--vcpu-family, --vcpu-model, --vcpu-stepping")?;
        return Ok(vec![named(signature)]);
    }
    let model = |name: &String| {
        let model = CpuModel::by_name(name).context("--vcpu-type")?;
        Ok(Named {
            name: name.clone(),
            value: model.signature(),
        })
    };
    args.vcpu_type.iter().map(model).collect()
}

fn cpus_of_qemu(args: &Args) -> Result<Vec<Named<CpuSignature>>> {
    let cpus = cpus(args)?;
    ensure!(
        !cpus.is_empty(),
        "the CPU is part of the digest; give --vcpu-type, --vcpu-sig or --vcpu-family"
    );
    Ok(cpus)
}

fn profiles(args: &Args) -> Result<Vec<Named<VcpuProfile>>> {
    let vmm = Vmm::from(args.vmm_type.unwrap_or_default());
    let guest_features = args.guest_features.unwrap_or_default();
    let cpus = if vmm.measures_cpu_signature() {
        cpus_of_qemu(args)?
    } else {
        cpus(args)?;
        vec![Named {
            name: "any".to_owned(),
            value: CpuSignature(0),
        }]
    };
    let profile = |cpu: Named<CpuSignature>| Named {
        name: cpu.name,
        value: VcpuProfile {
            vmm,
            cpu_signature: cpu.value,
            guest_features,
        },
    };
    Ok(cpus.into_iter().map(profile).collect())
}

fn svsm_profiles(args: &Args) -> Result<Vec<Named<SvsmProfile>>> {
    ensure!(
        matches!(args.vmm_type, None | Some(VmmType::Qemu)),
        "--mode snp:svsm is about Coconut's QEMU alone; leave --vmm-type out and name the era of \
         the host with --svsm-fpu"
    );
    let fpu = args.svsm_fpu.map(Into::into).unwrap_or_default();
    let profile = |cpu: Named<CpuSignature>| Named {
        name: cpu.name,
        value: SvsmProfile {
            cpu_signature: cpu.value,
            fpu,
        },
    };
    Ok(cpus_of_qemu(args)?.into_iter().map(profile).collect())
}

/// Refuses what recorded inputs stand for already.
fn check_recorded(args: &Args) -> Result<()> {
    for (option, given) in [
        ("--ovmf", !args.ovmf.is_empty()),
        ("--snp-ovmf-hash", args.snp_ovmf_hash.is_some()),
        ("--svsm", args.svsm.is_some()),
        ("--vars-size", args.vars_size.is_some()),
        ("--vars-file", args.vars_file.is_some()),
        ("--write-inputs", args.write_inputs.is_some()),
    ] {
        ensure!(
            !given,
            "{option} and --inputs exclude each other: the recorded inputs stand for the files; \
             leave one out"
        );
    }
    Ok(())
}

fn snp_source(args: &Args) -> Result<SnpSource> {
    if let Some(inputs) = &args.inputs {
        check_recorded(args)?;
        return Ok(SnpSource::Inputs(inputs.clone()));
    }
    ensure!(
        !args.ovmf.is_empty(),
        "--ovmf is required in --mode snp: give the firmware, what was recorded of it with \
         --inputs, or an IGVM file with --igvm"
    );
    ensure!(
        args.snp_ovmf_hash.is_none() || args.ovmf.len() == 1,
        "--snp-ovmf-hash is of one firmware, and {} are given; give one --ovmf",
        args.ovmf.len()
    );
    Ok(SnpSource::Ovmf {
        files: args.ovmf.clone(),
        digest: args.snp_ovmf_hash,
    })
}

fn svsm_source(args: &Args) -> Result<SvsmSource> {
    if let Some(inputs) = &args.inputs {
        check_recorded(args)?;
        return Ok(SvsmSource::Inputs(inputs.clone()));
    }
    let vars = exclusive(
        ("--vars-size", args.vars_size.map(Vars::Size)),
        ("--vars-file", args.vars_file.clone().map(Vars::Of)),
    )?;
    let (Some(svsm), Some(vars), false) = (&args.svsm, vars, args.ovmf.is_empty()) else {
        bail!(
            "--mode snp:svsm needs --ovmf, --svsm and either --vars-size or --vars-file, or what \
             was recorded of them with --inputs"
        );
    };
    Ok(SvsmSource::Files {
        ovmf: args.ovmf.clone(),
        vars,
        svsm: svsm.clone(),
    })
}
