//! `assay measure`: the launch digest of a guest from its files, or from what
//! was recorded of them, with the option names of sev-snp-measure, so that
//! scripts can move over.

mod files;
mod igvm;
mod options;
mod output;
mod request;
mod single;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use assay_measure::inputs::MeasurementInputs;
use assay_measure::matrix::measure_matrix;
use assay_measure::sev::{measure_sev, measure_sev_es, measure_sev_es_counts};
use assay_measure::snp::{VcpuProfile, measure_snp_boot};
use assay_measure::svsm::{SvsmInputs, SvsmProfile, measure_svsm, measure_svsm_counts};
use assay_measure::vcpus::SaveAreas;
use assay_tee::ovmf::parse_ovmf;
use assay_tee::{BootMethod, LaunchDigest, VcpuCount};
use zerocopy::IntoBytes as _;

use crate::stdout;

use options::Mode;
pub(crate) use options::{Args, BootArg, parse_launch_digest, parse_u32, parse_u64};
use output::{MeasuredAreas, Profile, Recorded, Report, Row, Trace};
use request::{DirectBoot, Named, Request, SnpSource, SvsmSource, Vars};
pub(crate) use single::SingleLaunch;

/// Computes the digests that `args` ask for and prints them.
pub(crate) fn run(args: &Args) -> Result<()> {
    let request = Request::from_args(args)?;
    let report = measure(args.mode, &request)?;
    if let (Some(directory), Some(areas)) = (&args.dump_vmsa, &report.save_areas) {
        dump_save_areas(directory, areas, &report.rows)?;
    }
    if let (Some(path), [inputs]) = (&args.write_inputs, report.inputs.as_slice()) {
        let json = serde_json::to_vec_pretty(inputs).context("encode the inputs")?;
        fs::write(path, json).with_context(|| format!("write {}", path.display()))?;
    }
    if args.verbose {
        eprintln!("{}", report.trace.to_text());
    }
    if args.mode == Mode::SnpSvsm && args.svsm_fpu.is_none() {
        eprintln!(
            "note: the FPU state is before-init2, as processors have measured it; sev-snp-measure \
             prints the digest of --svsm-fpu sev-snp-measure"
        );
    }
    for note in request::options_without_effect(args)
        .iter()
        .chain(&report.notes)
    {
        eprintln!("note: {note}");
    }
    if args.json {
        stdout::write_line(report.to_json()?)?;
    } else {
        stdout::write_line(report.to_text(args.output_format.unwrap_or_default()))?;
    }
    Ok(())
}

fn measure(mode: Mode, request: &Request) -> Result<Report> {
    let report = Report {
        mode,
        rows: Vec::with_capacity(request.shapes()),
        inputs: Vec::new(),
        kernel_hashes: None,
        trace: Trace::default(),
        save_areas: None,
        notes: Vec::new(),
    };
    match request {
        Request::Sev { ovmf, kernel } => sev(report, ovmf, kernel.as_ref()),
        Request::SevEs {
            ovmf,
            kernel,
            profiles,
            vcpus,
        } => sev_es(report, ovmf, kernel.as_ref(), profiles, vcpus),
        Request::Snp {
            source,
            boot,
            kernel,
            profiles,
            vcpus,
        } => {
            let (paths, inputs) = snp_inputs(source, *boot, kernel.as_ref())?;
            snp(report, paths, inputs, *boot, profiles, vcpus)
        }
        Request::SnpOvmfHash { ovmf } => snp_ovmf_hash(report, ovmf),
        Request::SnpSvsm {
            source,
            profiles,
            vcpus,
        } => snp_svsm(report, source, profiles, vcpus),
        Request::Igvm(request) => igvm::igvm(report, request),
    }
}

fn sev(mut report: Report, ovmf: &[PathBuf], kernel: Option<&DirectBoot>) -> Result<Report> {
    report.kernel_hashes = kernel.map(files::hash_kernel).transpose()?;
    for path in ovmf {
        let measurement = measure_sev(&files::read(path)?, report.kernel_hashes.as_ref())
            .with_context(|| measuring(path))?;
        report.rows.push(Row {
            firmware: path.display().to_string(),
            cpu: None,
            profile: None,
            vcpus: None,
            digest: measurement.digest.as_bytes().to_vec(),
        });
        report.trace = Trace::Stream(measurement.trace);
    }
    Ok(report)
}

fn sev_es(
    mut report: Report,
    ovmf: &[PathBuf],
    kernel: Option<&DirectBoot>,
    profiles: &[Named<VcpuProfile>],
    vcpus: &BTreeSet<VcpuCount>,
) -> Result<Report> {
    report.kernel_hashes = kernel.map(files::hash_kernel).transpose()?;
    let hashes = report.kernel_hashes.as_ref();
    for path in ovmf {
        let firmware = files::read(path)?;
        for profile in profiles {
            let digests = match single(vcpus) {
                Some(count) => {
                    let measurement = measure_sev_es(&firmware, hashes, &profile.value, count)
                        .with_context(|| measuring(path))?;
                    report.trace = Trace::Stream(measurement.trace);
                    vec![(count, measurement.digest)]
                }
                None => measure_sev_es_counts(&firmware, hashes, &profile.value, vcpus)
                    .with_context(|| measuring(path))?,
            };
            report
                .rows
                .extend(digests.into_iter().map(|(vcpus, digest)| Row {
                    firmware: path.display().to_string(),
                    cpu: Some(profile.name.clone()),
                    profile: Some(Profile::Ovmf(profile.value)),
                    vcpus: Some(vcpus),
                    digest: digest.as_bytes().to_vec(),
                }));
            let reset_eip = parse_ovmf(&firmware)
                .with_context(|| measuring(path))?
                .reset_eip;
            report.save_areas = Some(MeasuredAreas::Built(Box::new(SaveAreas::sev_es(
                &profile.value,
                reset_eip,
            ))));
        }
    }
    Ok(report)
}

fn snp_ovmf_hash(mut report: Report, ovmf: &[PathBuf]) -> Result<Report> {
    for path in ovmf {
        let inputs = files::measure_firmware(path).with_context(|| measuring(path))?;
        report.rows.push(Row {
            firmware: path.display().to_string(),
            cpu: None,
            profile: None,
            vcpus: None,
            digest: inputs.digest.as_bytes().to_vec(),
        });
        report.trace = Trace::Pages(vec![inputs.region()]);
        report.inputs.push(Recorded::Ovmf(MeasurementInputs {
            firmware: inputs,
            kernel_hashes: None,
            cmdline: None,
            igvm_digest: None,
        }));
    }
    Ok(report)
}

fn snp(
    mut report: Report,
    paths: &[PathBuf],
    inputs: Vec<MeasurementInputs>,
    boot: BootMethod,
    profiles: &[Named<VcpuProfile>],
    vcpus: &BTreeSet<VcpuCount>,
) -> Result<Report> {
    if let ([inputs], [profile], Some(count)) = (inputs.as_slice(), profiles, single(vcpus)) {
        let measurement = measure_snp_boot(inputs, boot, &profile.value, count)
            .with_context(|| measuring(&paths[0]))?;
        report
            .rows
            .push(snp_row(&paths[0], profile, count, measurement.digest));
        report.trace = Trace::Pages(measurement.trace);
        report.save_areas = Some(MeasuredAreas::Built(Box::new(SaveAreas::snp(
            &profile.value,
            inputs.firmware.reset_eip,
        ))));
    } else {
        let values: Vec<_> = profiles.iter().map(|profile| profile.value).collect();
        let rows = measure_matrix(&inputs, boot, &values, vcpus).map_err(|error| {
            anyhow::Error::new(error.source).context(measuring(&paths[error.inputs]))
        })?;
        report.rows.extend(rows.into_iter().map(|row| {
            let profile = &profiles[row.profile];
            snp_row(&paths[row.inputs], profile, row.vcpus, row.digest)
        }));
    }
    report.inputs = inputs.into_iter().map(Recorded::Ovmf).collect();
    Ok(report)
}

/// The only count, if there is only one.
fn single(vcpus: &BTreeSet<VcpuCount>) -> Option<VcpuCount> {
    vcpus.first().copied().filter(|_| vcpus.len() == 1)
}

fn snp_row(
    path: &Path,
    profile: &Named<VcpuProfile>,
    vcpus: VcpuCount,
    digest: LaunchDigest,
) -> Row {
    Row {
        firmware: path.display().to_string(),
        cpu: Some(profile.name.clone()),
        profile: Some(Profile::Ovmf(profile.value)),
        vcpus: Some(vcpus),
        digest: digest.as_bytes().to_vec(),
    }
}

/// What stands for each file, with the kernel that all of them boot.
fn snp_inputs<'a>(
    source: &'a SnpSource,
    boot: BootMethod,
    kernel: Option<&DirectBoot>,
) -> Result<(&'a [PathBuf], Vec<MeasurementInputs>)> {
    let kernel_hashes = kernel.map(files::hash_kernel).transpose()?;
    let cmdline = kernel.and_then(DirectBoot::cmdline_text);
    match source {
        SnpSource::Inputs(path) => {
            let mut inputs = files::read_inputs(path)?;
            ensure!(
                inputs.kernel_hashes.is_none() || kernel_hashes.is_none(),
                "{} holds the hashes of a kernel already; leave the options of the kernel out",
                path.display()
            );
            inputs.kernel_hashes = inputs.kernel_hashes.or(kernel_hashes);
            inputs.cmdline = inputs.cmdline.or(cmdline);
            Ok((std::slice::from_ref(path), vec![inputs]))
        }
        SnpSource::Ovmf { files, digest } => {
            let inputs = files.iter().map(|path| {
                let mut firmware =
                    files::measure_firmware(path).with_context(|| measuring(path))?;
                if let Some(digest) = digest {
                    firmware.digest = *digest;
                }
                let igvm_digest = match boot {
                    BootMethod::DirectKernel => None,
                    BootMethod::Igvm => {
                        ensure!(
                            digest.is_none(),
                            "--snp-ovmf-hash stands for firmware that is not there, and --boot \
                             IGVM needs its bytes; leave it out"
                        );
                        Some(files::igvm_digest(path, kernel).context("--boot IGVM")?)
                    }
                };
                Ok(MeasurementInputs {
                    firmware,
                    kernel_hashes,
                    cmdline: cmdline.clone(),
                    igvm_digest,
                })
            });
            Ok((files, inputs.collect::<Result<_>>()?))
        }
    }
}

fn snp_svsm(
    mut report: Report,
    source: &SvsmSource,
    profiles: &[Named<SvsmProfile>],
    vcpus: &BTreeSet<VcpuCount>,
) -> Result<Report> {
    for (path, inputs) in svsm_inputs(source)? {
        for profile in profiles {
            let row = |(vcpus, digest): (VcpuCount, LaunchDigest)| Row {
                firmware: path.display().to_string(),
                cpu: Some(profile.name.clone()),
                profile: Some(Profile::Svsm(profile.value)),
                vcpus: Some(vcpus),
                digest: digest.as_bytes().to_vec(),
            };
            if let Some(count) = single(vcpus) {
                let measurement = measure_svsm(&inputs, &profile.value, count)
                    .with_context(|| measuring(path))?;
                report.rows.push(row((count, measurement.digest)));
                report.trace = Trace::Pages(measurement.trace);
                report.save_areas = Some(MeasuredAreas::Built(Box::new(SaveAreas::svsm(
                    &profile.value,
                    inputs.entry,
                ))));
            } else {
                let digests = measure_svsm_counts(&inputs, &profile.value, vcpus)
                    .with_context(|| measuring(path))?;
                report.rows.extend(digests.into_iter().map(row));
            }
        }
        report.inputs.push(Recorded::Svsm(inputs));
    }
    Ok(report)
}

fn svsm_inputs(source: &SvsmSource) -> Result<Vec<(&Path, SvsmInputs)>> {
    match source {
        SvsmSource::Inputs(path) => Ok(vec![(path, files::read_json(path)?)]),
        SvsmSource::Files { ovmf, vars, svsm } => {
            let vars_size = match vars {
                Vars::Size(size) => *size,
                Vars::Of(path) => fs::metadata(path)
                    .with_context(|| format!("read {}", path.display()))?
                    .len(),
            };
            let svsm = files::read(svsm)?;
            let inputs = ovmf.iter().map(|path| {
                let inputs = SvsmInputs::from_bytes(&files::read(path)?, vars_size, &svsm)
                    .with_context(|| measuring(path))?;
                Ok((path.as_path(), inputs))
            });
            inputs.collect()
        }
    }
}

fn measuring(path: &Path) -> String {
    format!("measure {}", path.display())
}

/// Writes the save area of every virtual CPU of a single launch.
fn dump_save_areas(directory: &Path, areas: &MeasuredAreas, rows: &[Row]) -> Result<()> {
    let vcpus = rows
        .iter()
        .find_map(|row| row.vcpus)
        .map_or(0, VcpuCount::get);
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    for (index, area) in (0..vcpus).map_while(|index| Some((index, areas.get(index)?))) {
        let path = directory.join(format!("vmsa{index}.bin"));
        fs::write(&path, area.as_bytes()).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
