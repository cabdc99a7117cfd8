//! Digests that other tools or processors have computed, from `vectors/*.toml`.
//!
//! Cases over firmware that lies outside the repository are measured from what
//! was recorded of it. Those that need the file itself are skipped, saying so,
//! where `../shared/vectors` next to the checkout (or `ASSAY_VECTORS`) has no
//! such file, or `ASSAY_ORACLE_FIRMWARE` names none of that hash.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed assumption fails the test"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use assay_measure::context::LaunchContext;
use assay_measure::sev::{measure_sev, measure_sev_es};
use assay_measure::svsm::{SvsmInputs, SvsmProfile, measure_svsm};
use assay_measure::{
    FirmwareInputs, MeasurementInputs, RegionKind, VcpuProfile, measure_snp_launch,
};
use assay_tee::cpu::{CpuModel, CpuSignature};
use assay_tee::hashes_table::KernelHashes;
use assay_tee::vmsa::{SvsmFpu, Vmm};
use assay_tee::{GuestFeatures, Sha256Digest, VcpuCount};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vectors {
    #[expect(
        dead_code,
        reason = "for readers of the file; required so that it is written"
    )]
    provenance: String,
    #[serde(default)]
    image: Vec<Image>,
    /// What stands for firmware files, by the name or hash that cases give.
    #[serde(default)]
    recorded: BTreeMap<String, FirmwareInputs>,
    /// What every case with an SVSM starts from.
    svsm_inputs: Option<SvsmInputs>,
    case: Vec<Case>,
}

/// Firmware of zeros, but for pieces.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    name: String,
    size: usize,
    pieces: Vec<Piece>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Piece {
    at: usize,
    hex: String,
}

impl Image {
    fn build(&self) -> Vec<u8> {
        let mut image = vec![0; self.size];
        for Piece { at, hex } in &self.pieces {
            hex::decode_to_slice(hex, &mut image[*at..at + hex.len() / 2]).unwrap();
        }
        image
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[expect(
        dead_code,
        reason = "for readers of the file, where it differs from the file's"
    )]
    provenance: Option<String>,
    mode: String,
    /// Name of a firmware file; its directory is not part of the repository.
    firmware: Option<String>,
    /// Name of a firmware image in the same file.
    image: Option<String>,
    /// SHA-256 of a firmware file; where it lies depends on the machine.
    firmware_sha256: Option<String>,
    /// Stands for a firmware file that nobody has.
    firmware_inputs: Option<FirmwareInputs>,
    /// Content of the kernel file.
    kernel: Option<String>,
    kernel_sha256: Option<String>,
    /// Content of the initrd file.
    initrd: Option<String>,
    initrd_sha256: Option<String>,
    cmdline: Option<String>,
    vcpus: Option<VcpuCount>,
    cpu_model: Option<String>,
    guest_features: Option<GuestFeatures>,
    vmm: Option<Vmm>,
    svsm_fpu: Option<SvsmFpu>,
    /// Lower-case hexadecimal.
    digest: Option<String>,
    /// Part of the message that refuses the launch.
    error: Option<String>,
}

impl Case {
    fn kernel_hashes(&self) -> Option<KernelHashes> {
        let digest = |content: &Option<String>, sha256: &Option<String>| -> Option<Sha256Digest> {
            let known = sha256
                .as_ref()
                .map(|hex| format!("sha256:{hex}").parse().unwrap());
            known.or(content
                .as_ref()
                .map(|content| Sha256Digest::of(content.as_bytes())))
        };
        let kernel = digest(&self.kernel, &self.kernel_sha256)?;
        let initrd = digest(&self.initrd, &self.initrd_sha256);
        let cmdline = self.cmdline.as_deref().unwrap_or_default();
        Some(KernelHashes::from_digests(kernel, initrd, cmdline))
    }

    fn signature(&self) -> CpuSignature {
        let signature = |name: &String| CpuModel::by_name(name).unwrap().signature();
        self.cpu_model.as_ref().map_or(CpuSignature(0), signature)
    }

    fn profile(&self) -> VcpuProfile {
        VcpuProfile {
            vmm: self.vmm.unwrap_or_default(),
            cpu_signature: self.signature(),
            guest_features: self.guest_features.unwrap_or_default(),
        }
    }

    /// The digest in hexadecimal, or the messages of the error and its sources.
    fn measure(&self, firmware: &[u8]) -> Result<String, String> {
        let firmware_inputs = || match &self.firmware_inputs {
            Some(inputs) => Ok(inputs.clone()),
            None => FirmwareInputs::from_bytes(firmware).map_err(chain),
        };
        let hashes = self.kernel_hashes();
        let vcpus = || self.vcpus.unwrap();
        match self.mode.as_str() {
            "pages" => {
                let base_gpa = (1 << 32) - u64::try_from(firmware.len()).unwrap();
                let mut context = LaunchContext::new();
                context
                    .update_normal(RegionKind::Firmware, base_gpa, firmware)
                    .map_err(chain)?;
                Ok(context.finish().digest().to_hex())
            }
            "snp:ovmf-hash" => Ok(firmware_inputs()?.digest.to_hex()),
            "snp" => self.measure_snp(firmware_inputs()?),
            "seves" => measure_sev_es(firmware, hashes.as_ref(), &self.profile(), vcpus())
                .map(|measurement| measurement.digest.to_hex())
                .map_err(chain),
            "sev" => measure_sev(firmware, hashes.as_ref())
                .map(|measurement| measurement.digest.to_hex())
                .map_err(chain),
            other => panic!("unknown mode {other}"),
        }
    }

    fn measure_snp(&self, firmware: FirmwareInputs) -> Result<String, String> {
        let inputs = MeasurementInputs {
            firmware,
            kernel_hashes: self.kernel_hashes(),
            cmdline: None,
            igvm_digest: None,
        };
        measure_snp_launch(&inputs, &self.profile(), self.vcpus.unwrap())
            .map(|measurement| measurement.digest.to_hex())
            .map_err(chain)
    }

    fn measure_svsm(&self, inputs: &SvsmInputs) -> Result<String, String> {
        assert_eq!(self.mode, "snp:svsm");
        let profile = SvsmProfile {
            cpu_signature: self.signature(),
            fpu: self.svsm_fpu.unwrap(),
        };
        measure_svsm(inputs, &profile, self.vcpus.unwrap())
            .map(|measurement| measurement.digest.to_hex())
            .map_err(chain)
    }

    fn check(&self, outcome: Result<String, String>) {
        match (outcome, &self.digest, &self.error) {
            (Ok(digest), Some(expected), None) => {
                assert_eq!(digest, *expected, "{}", self.name);
            }
            (Err(message), None, Some(expected)) => {
                assert!(message.contains(expected), "{}: {message}", self.name);
            }
            (outcome, digest, error) => {
                panic!(
                    "{}: got {outcome:?}, expected {digest:?} {error:?}",
                    self.name
                )
            }
        }
    }

    /// Checks the case over files of a directory.
    fn check_files(&self, directory: &Path) -> Result<(), String> {
        let read = |name: &String| {
            let path = directory.join(name);
            fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let firmware = read(self.firmware.as_ref().unwrap())?;
        self.check(self.measure(&firmware));
        Ok(())
    }
}

/// The messages of an error and its sources.
fn chain(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn vectors(name: &str) -> Vectors {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("vectors")
        .join(name);
    let vectors: Vectors = toml::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert!(!vectors.case.is_empty());
    vectors
}

fn shared_vectors() -> PathBuf {
    std::env::var_os("ASSAY_VECTORS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"),
        PathBuf::from,
    )
}

/// Why cases were skipped, and how many.
#[derive(Default)]
struct Skipped(BTreeMap<String, usize>);

impl Skipped {
    fn add(&mut self, why: String) {
        *self.0.entry(why).or_default() += 1;
    }
}

impl Drop for Skipped {
    fn drop(&mut self) {
        for (why, cases) in &self.0 {
            // Straight to the descriptor: the test harness hides what passing
            // tests print.
            let _ = writeln!(std::io::stderr(), "SKIPPED {cases} known answers: {why}");
        }
    }
}

#[test]
fn hardware() {
    for case in vectors("hardware.toml").case {
        case.check(case.measure(&[]));
    }
}

#[test]
fn synthetic() {
    for case in vectors("synthetic.toml").case {
        case.check(case.measure(&[]));
    }
}

#[test]
fn firmware_images() {
    let vectors = vectors("firmware-images.toml");
    for case in vectors.case {
        let mut images = vectors.image.iter();
        let image = images.find(|image| Some(&image.name) == case.image.as_ref());
        case.check(case.measure(&image.unwrap().build()));
    }
}

#[test]
fn files_of_the_shared_vectors() {
    let mut skipped = Skipped::default();
    for case in vectors("firmware-suffix.toml").case {
        if let Err(why) = case.check_files(&shared_vectors().join("ovmf")) {
            skipped.add(why);
        }
    }
}

/// The files need not be there for what was recorded of them.
#[test]
fn recorded_firmware() {
    for file in ["firmware-suffix.toml", "debian.toml"] {
        let Vectors { recorded, case, .. } = vectors(file);
        for case in case.iter().filter(|case| case.mode == "snp") {
            let name = case.firmware.as_ref().or(case.firmware_sha256.as_ref());
            let inputs = recorded[name.unwrap()].clone();
            case.check(case.measure_snp(inputs));
        }
    }
}

#[test]
fn svsm() {
    let vectors = vectors("svsm.toml");
    let inputs = vectors.svsm_inputs.unwrap();
    for case in vectors.case {
        case.check(case.measure_svsm(&inputs));
    }
}

#[test]
fn files_found_by_hash() {
    let paths = std::env::var_os("ASSAY_ORACLE_FIRMWARE").unwrap_or_default();
    let files: BTreeMap<String, Vec<u8>> = std::env::split_paths(&paths)
        .filter(|path| !path.as_os_str().is_empty())
        .map(|path| {
            let bytes = fs::read(path).unwrap();
            (Sha256Digest::of(&bytes).to_hex(), bytes)
        })
        .collect();
    let mut skipped = Skipped::default();
    for case in vectors("debian.toml").case {
        let sha256 = case.firmware_sha256.as_ref().unwrap();
        match files.get(sha256) {
            Some(firmware) => case.check(case.measure(firmware)),
            None => skipped.add(format!(
                "ASSAY_ORACLE_FIRMWARE names no file with SHA-256 {sha256}"
            )),
        }
    }
}
