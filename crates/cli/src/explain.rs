//! `assay explain`: names what a guest must have been launched with to have a
//! digest that was not expected.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use assay_image::manifest::{MANIFEST_PATH, Manifest};
use assay_measure::explain::{Known, Launch, Question};
use assay_measure::{Explanation, FirmwareInputs, MeasurementInputs, explain};
use assay_tee::LaunchDigest;
use assay_tee::report::AttestationReport;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use serde_json::Value;

use crate::measure::{self, SingleLaunch, parse_launch_digest};
use crate::stdout;

/// Exit status where nothing explains the digest.
const UNEXPLAINED: u8 = 3;
/// Exit status for options that make no sense together, as clap has it.
const USAGE: u8 = 2;

/// What a person may type.
#[derive(Debug, clap::Args)]
// Flattened options have a group of the same name.
#[group(id = "explain")]
#[command(
    after_help = "For SEV-SNP guests that start from OVMF, with or without --kernel, or from the IGVM \
                  file that `assay igvm build` makes of firmware and UKI (--boot IGVM): no digest of \
                  another IGVM file, an SVSM, SEV or SEV-ES is among those that are tried.\n\n\
                  Exit status: 0 explained, 1 error, 2 usage, 3 not explained",
    mut_arg("json", |arg| arg.help("Print sentence, changes and launch as JSON")),
    mut_arg("mode", |arg| arg.hide(true)),
    mut_arg("igvm", |arg| arg.hide(true)),
    mut_arg("igvm_loader", |arg| arg.hide(true)),
    mut_arg("write_inputs", |arg| arg.hide(true)),
    mut_arg("dump_vmsa", |arg| arg.hide(true)),
    mut_arg("output_format", |arg| arg.hide(true)),
    mut_arg("verbose", |arg| arg.hide(true))
)]
pub(crate) struct Args {
    /// Launch digest that the guest reported, in hexadecimal or base64
    #[arg(
        long,
        value_name = "DIGEST",
        value_parser = parse_observed,
        required_unless_present = "observed_report"
    )]
    observed: Option<LaunchDigest>,
    /// The guest's attestation report, instead of --observed; it is not
    /// verified
    #[arg(long, value_name = "FILE", conflicts_with = "observed")]
    observed_report: Option<PathBuf>,
    /// What else may have been launched: what `assay measure` prints with --json
    /// or records with --write-inputs, an artifact's manifest or directory, a
    /// firmware file, or a directory of recorded inputs
    #[arg(long, value_name = "PATH", num_args = 1..)]
    known: Vec<PathBuf>,
    /// The guest was to start with kernel-hashes=off, the kernel unmeasured
    #[arg(long)]
    no_kernel_hashes: bool,
    /// Further words that the command line may have
    #[arg(long, value_name = "WORD", num_args = 1..)]
    token: Vec<String>,
    /// What was expected
    #[command(flatten)]
    expected: measure::Args,
}

/// Explains the digest and prints the sentence first.
pub(crate) fn run(args: &Args) -> ExitCode {
    let fail = |error: &anyhow::Error, status| {
        eprintln!("error: {error:#}");
        ExitCode::from(status)
    };
    let expected = match SingleLaunch::from_args(&args.expected) {
        Ok(expected) => expected,
        Err(error) => return fail(&error, USAGE),
    };
    let (observed, explanation) = match answer(args, &expected) {
        Ok(answer) => answer,
        Err(error) => return fail(&error, 1),
    };
    if let Err(error) = print(args, observed, &explanation) {
        return fail(&error, 1);
    }
    match explanation {
        Explanation::Expected | Explanation::Found { .. } => ExitCode::SUCCESS,
        Explanation::Unexplained(_) => ExitCode::from(UNEXPLAINED),
    }
}

fn print(args: &Args, observed: LaunchDigest, explanation: &Explanation) -> Result<()> {
    if args.expected.is_json() {
        stdout::write_line(to_json(observed, explanation)?)?;
    } else {
        stdout::write(to_text(explanation))?;
    }
    Ok(())
}

fn answer(args: &Args, expected: &SingleLaunch) -> Result<(LaunchDigest, Explanation)> {
    let observed = observed(args)?;
    let mut expected = expected.read()?;
    let mut known = Vec::new();
    if args.no_kernel_hashes {
        let without = MeasurementInputs {
            kernel_hashes: None,
            cmdline: None,
            igvm_digest: None,
            ..expected.inputs.clone()
        };
        let inputs = std::mem::replace(&mut expected.inputs, without);
        ensure!(
            inputs.kernel_hashes.is_some(),
            "--no-kernel-hashes is about a kernel; give one with --kernel or --inputs, or leave \
             the option out"
        );
        known.push(Known {
            name: "the given options".to_owned(),
            inputs,
        });
    }
    expected.measure().context("measure what was expected")?;
    for path in &args.known {
        known.extend(read_known(path)?);
    }
    let explanation = explain(&Question {
        observed,
        expected: &expected,
        known: &known,
        tokens: &args.token,
    });
    Ok((observed, explanation))
}

fn observed(args: &Args) -> Result<LaunchDigest> {
    match (args.observed, &args.observed_report) {
        (Some(digest), _) => Ok(digest),
        (None, Some(path)) => {
            let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
            let report = AttestationReport::parse(&bytes)
                .with_context(|| format!("read the attestation report {}", path.display()))?;
            Ok(report.launch_digest())
        }
        (None, None) => bail!("neither --observed nor --observed-report"),
    }
}

/// A digest as reports and tools print it.
fn parse_observed(text: &str) -> Result<LaunchDigest, String> {
    let decoded = BASE64_STANDARD.decode(text).ok();
    match decoded.and_then(|bytes| bytes.try_into().ok()) {
        Some(bytes) => Ok(LaunchDigest::new(bytes)),
        None => parse_launch_digest(text)
            .map_err(|expected| format!("{expected}, or base64 of 48 bytes")),
    }
}

/// What a path stands for.
fn read_known(path: &Path) -> Result<Vec<Known>> {
    if !path.is_dir() {
        return read_known_file(path);
    }
    let manifest = path.join(MANIFEST_PATH);
    if manifest.is_file() {
        let mut known = read_known_file(&manifest)?;
        for known in &mut known {
            known.name = path.display().to_string();
        }
        return Ok(known);
    }
    let listing = || format!("list {}", path.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(path).with_context(listing)? {
        let file = entry.with_context(listing)?.path();
        if file
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            files.push(file);
        }
    }
    files.sort();
    ensure!(
        !files.is_empty(),
        "{} holds neither {MANIFEST_PATH} nor recorded inputs (*.json)",
        path.display()
    );
    let known = files.iter().map(|file| read_known_file(file));
    Ok(known.collect::<Result<Vec<_>>>()?.concat())
}

/// Recorded inputs, a manifest, or firmware.
fn read_known_file(path: &Path) -> Result<Vec<Known>> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let is_json = bytes.trim_ascii_start().starts_with(b"{");
    let inputs = if !is_json {
        let firmware = FirmwareInputs::from_bytes(&bytes)
            .with_context(|| format!("read the firmware {}", path.display()))?;
        vec![MeasurementInputs {
            firmware,
            kernel_hashes: None,
            cmdline: None,
            igvm_digest: None,
        }]
    } else if let Ok(manifest) = serde_json::from_slice::<Manifest>(&bytes) {
        vec![manifest.measurement]
    } else {
        parse_recorded(&bytes).with_context(|| {
            format!(
                "{} is neither a manifest, nor recorded inputs or --json of `assay measure` in \
                 mode snp",
                path.display()
            )
        })?
    };
    let is_single = inputs.len() == 1;
    let known = inputs.into_iter().enumerate().map(|(index, inputs)| Known {
        name: if is_single {
            path.display().to_string()
        } else {
            format!("{}[{index}]", path.display())
        },
        inputs,
    });
    Ok(known.collect())
}

/// Recorded inputs by themselves, or those of each firmware in a document of
/// `assay measure --json`.
fn parse_recorded(bytes: &[u8]) -> serde_json::Result<Vec<MeasurementInputs>> {
    let mut document: Value = serde_json::from_slice(bytes)?;
    let inputs = match document.get_mut("inputs") {
        Some(inputs) => inputs.take(),
        None => document,
    };
    match inputs {
        Value::Array(_) => serde_json::from_value(inputs),
        one => Ok(vec![serde_json::from_value(one)?]),
    }
}

/// `--json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    observed: LaunchDigest,
    sentence: String,
    explanation: &'a Explanation,
}

fn to_json(observed: LaunchDigest, explanation: &Explanation) -> Result<String> {
    let document = Document {
        observed,
        sentence: explanation.to_string(),
        explanation,
    };
    serde_json::to_string_pretty(&document).context("encode the explanation")
}

/// The sentence, then what it rests on.
fn to_text(explanation: &Explanation) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    match explanation {
        Explanation::Expected => {
            let _ = writeln!(text, "{explanation}");
        }
        Explanation::Found { causes } => {
            let _ = writeln!(text, "{explanation}");
            for cause in causes {
                let _ = write!(text, "\n{cause}:\n{}", launch_to_text(&cause.launch));
            }
        }
        Explanation::Unexplained(ruled_out) => {
            text.push_str("equals nothing that is known\n");
            for area in &ruled_out.areas {
                let _ = writeln!(text, "ruled out: {area}");
            }
            for gap in &ruled_out.gaps {
                let _ = writeln!(text, "not tried: {gap}");
            }
        }
    }
    text
}

fn launch_to_text(launch: &Launch) -> String {
    let profile = &launch.profile;
    let firmware = launch.inputs.firmware.digest.to_string();
    let mut rows = vec![
        ("boot", launch.boot.to_string()),
        ("vCPUs", launch.vcpus.get().to_string()),
        ("CPU signature", profile.cpu_signature.to_string()),
        ("VMM", format!("{:?}", profile.vmm)),
        ("guest features", format!("{:#x}", profile.guest_features.0)),
        ("firmware", firmware),
    ];
    match &launch.inputs.kernel_hashes {
        None => rows.push(("kernel", "not hashed".to_owned())),
        Some(hashes) => {
            rows.push(("kernel", hashes.kernel.to_string()));
            rows.push(("initrd", hashes.initrd.to_string()));
            rows.push(("command line", hashes.cmdline.to_string()));
        }
    }
    if let Some(cmdline) = launch.inputs.known_cmdline() {
        rows.push(("", format!("{cmdline:?}")));
    }
    let lines = rows
        .iter()
        .map(|(name, value)| format!("  {name:<15} {value}\n"));
    lines.collect()
}
