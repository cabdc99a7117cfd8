//! Measuring guests that start from an IGVM file.

use std::path::Path;

use anyhow::{Context as _, Error, Result};
use assay_measure::igvm::{
    IgvmLaunch, IgvmLoader, IgvmSaveAreas, MeasureIgvmError, ResetState, id_block_digest,
    measure_igvm_sev, measure_igvm_sev_es, measure_igvm_sev_es_counts, measure_igvm_snp,
    measure_igvm_snp_counts, qemu_refuses,
};
use assay_tee::igvm::{IgvmFile, PlatformType, parse_igvm};
use assay_tee::{LaunchDigest, VcpuCount};

use super::output::{IgvmProfile, MeasuredAreas, Profile, Report, Row, Trace};
use super::request::{IgvmKind, IgvmRequest, IgvmVcpus, Named};
use super::{files, measuring, single};

/// Measures every file that is asked for.
pub(super) fn igvm(mut report: Report, request: &IgvmRequest) -> Result<Report> {
    for path in &request.files {
        let bytes = files::read(path)?;
        measure_file(&mut report, path, &bytes, &request.kind).with_context(|| measuring(path))?;
    }
    Ok(report)
}

fn measure_file(report: &mut Report, path: &Path, bytes: &[u8], kind: &IgvmKind) -> Result<()> {
    let file = parse_igvm(bytes)?;
    let first_row = report.rows.len();
    let by_qemu = match kind {
        IgvmKind::Sev => {
            let measurement = measure_igvm_sev(&file).map_err(name_option)?;
            let digest = measurement.digest;
            report
                .rows
                .push(row(path, None, None, None, digest.as_bytes()));
            report.trace = Trace::Stream(measurement.trace);
            true
        }
        IgvmKind::SevEs(vcpus) => {
            for reset in vcpus.choices() {
                sev_es(report, path, &file, vcpus, reset).map_err(name_option)?;
            }
            true
        }
        IgvmKind::Snp(vcpus) => {
            for reset in vcpus.choices() {
                snp(report, path, &file, vcpus, reset).map_err(name_option)?;
            }
            true
        }
        IgvmKind::SnpAsInFile(launch) => {
            let measurement = measure_igvm_snp(&file, launch).map_err(name_option)?;
            let profile = IgvmProfile {
                loader: launch.loader(),
                reset: None,
            };
            let digest = measurement.digest;
            report
                .rows
                .push(row(path, None, Some(profile), None, digest.as_bytes()));
            report.trace = Trace::Pages(measurement.trace);
            launch.loader() == IgvmLoader::QemuSvsm
        }
    };
    if by_qemu {
        note_refused_headers(report, path, &file);
    }
    if matches!(kind, IgvmKind::Snp(_) | IgvmKind::SnpAsInFile(_)) {
        note_id_block(report, path, &file, first_row);
    }
    Ok(())
}

fn snp(
    report: &mut Report,
    path: &Path,
    file: &IgvmFile<'_>,
    vcpus: &IgvmVcpus,
    reset: Option<&Named<ResetState>>,
) -> Result<(), MeasureIgvmError> {
    let state = reset.map(|reset| reset.value);
    let add = |report: &mut Report, vcpus, digest: LaunchDigest| {
        let profile = IgvmProfile {
            loader: IgvmLoader::Qemu,
            reset: state,
        };
        let cpu = reset.map(|reset| reset.name.clone());
        let row = row(path, cpu, Some(profile), Some(vcpus), digest.as_bytes());
        report.rows.push(row);
    };
    if let Some(count) = single(&vcpus.counts) {
        let launch = IgvmLaunch::Qemu {
            vcpus: count,
            reset: state,
        };
        let measurement = measure_igvm_snp(file, &launch)?;
        add(report, count, measurement.digest);
        report.trace = Trace::Pages(measurement.trace);
        let areas = IgvmSaveAreas::new(file, PlatformType::SevSnp, state.as_ref(), count)?;
        report.save_areas = Some(MeasuredAreas::Igvm(Box::new(areas)));
        return Ok(());
    }
    for (count, digest) in measure_igvm_snp_counts(file, state.as_ref(), &vcpus.counts)? {
        add(report, count, digest);
    }
    Ok(())
}

fn sev_es(
    report: &mut Report,
    path: &Path,
    file: &IgvmFile<'_>,
    vcpus: &IgvmVcpus,
    reset: Option<&Named<ResetState>>,
) -> Result<(), MeasureIgvmError> {
    let state = reset.map(|reset| reset.value);
    let digests = match single(&vcpus.counts) {
        Some(count) => {
            let measurement = measure_igvm_sev_es(file, state.as_ref(), count)?;
            report.trace = Trace::Stream(measurement.trace);
            vec![(count, measurement.digest)]
        }
        None => measure_igvm_sev_es_counts(file, state.as_ref(), &vcpus.counts)?,
    };
    for (count, digest) in digests {
        let profile = IgvmProfile {
            loader: IgvmLoader::Qemu,
            reset: state,
        };
        let cpu = reset.map(|reset| reset.name.clone());
        let row = row(path, cpu, Some(profile), Some(count), digest.as_bytes());
        report.rows.push(row);
        let areas = IgvmSaveAreas::new(file, PlatformType::SevEs, state.as_ref(), count)?;
        report.save_areas = Some(MeasuredAreas::Igvm(Box::new(areas)));
    }
    Ok(())
}

fn row(
    path: &Path,
    cpu: Option<String>,
    profile: Option<IgvmProfile>,
    vcpus: Option<VcpuCount>,
    digest: &[u8],
) -> Row {
    Row {
        firmware: path.display().to_string(),
        cpu,
        profile: profile.map(Profile::Igvm),
        vcpus,
        digest: digest.to_vec(),
    }
}

/// Names the option that an error is about.
fn name_option(error: MeasureIgvmError) -> Error {
    let option = match &error {
        MeasureIgvmError::NoState { .. } | MeasureIgvmError::ResetStateUnused => {
            Some("--vcpu-type, --vcpu-sig or --vcpu-family")
        }
        MeasureIgvmError::FeaturesUnused => Some("--guest-features"),
        MeasureIgvmError::NoPlatform { .. } => Some("--mode"),
        MeasureIgvmError::SharedPage { .. } | MeasureIgvmError::NoBootProcessor => {
            Some("--igvm-loader")
        }
        _ => None,
    };
    let error = Error::new(error);
    match option {
        Some(option) => error.context(option),
        None => error,
    }
}

/// Says what QEMU would not load.
fn note_refused_headers(report: &mut Report, path: &Path, file: &IgvmFile<'_>) {
    let refused: Vec<_> = qemu_refuses(file)
        .into_iter()
        .map(|header| header.to_string())
        .collect();
    if !refused.is_empty() {
        report.notes.push(format!(
            "{}: QEMU refuses files with {}; the digest is that of a QEMU that ignores them",
            path.display(),
            refused.join(", ")
        ));
    }
}

/// Says that the processor would not start the guest.
fn note_id_block(report: &mut Report, path: &Path, file: &IgvmFile<'_>, first_row: usize) {
    let Some(demanded) = id_block_digest(file) else {
        return;
    };
    let rows = report.rows.get(first_row..).unwrap_or_default();
    if rows.iter().any(|row| row.digest != demanded.as_bytes()) {
        report.notes.push(format!(
            "{}: the ID block in the file demands the launch digest {}, and the processor starts \
             no guest with another one",
            path.display(),
            demanded.to_hex()
        ));
    }
}
