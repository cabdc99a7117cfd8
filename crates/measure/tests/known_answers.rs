//! Digests that other tools or processors have computed, from `vectors/*.toml`.
//!
//! Cases over firmware that lies outside the repository are skipped, saying so,
//! where `../shared/vectors` next to the checkout (or `ASSAY_VECTORS`) has no
//! such file.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed assumption fails the test"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use assay_measure::sev::{measure_sev, measure_sev_es};
use assay_measure::{FirmwareInputs, MeasurementInputs, VcpuProfile, measure_snp_launch};
use assay_tee::cpu::{CpuModel, CpuSignature};
use assay_tee::hashes_table::KernelHashes;
use assay_tee::vmsa::Vmm;
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
    case: Vec<Case>,
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

    fn profile(&self) -> VcpuProfile {
        let signature = |name: &String| CpuModel::by_name(name).unwrap().signature();
        VcpuProfile {
            vmm: self.vmm.unwrap_or_default(),
            cpu_signature: self.cpu_model.as_ref().map_or(CpuSignature(0), signature),
            guest_features: self.guest_features.unwrap_or_default(),
        }
    }

    /// The digest in hexadecimal, or the message of the error.
    fn measure(&self, firmware: &[u8]) -> Result<String, String> {
        let firmware_inputs = || {
            self.firmware_inputs
                .clone()
                .unwrap_or_else(|| FirmwareInputs::from_bytes(firmware).unwrap())
        };
        let hashes = self.kernel_hashes();
        let vcpus = || self.vcpus.unwrap();
        match self.mode.as_str() {
            "snp:ovmf-hash" => Ok(firmware_inputs().digest.to_hex()),
            "snp" => {
                let inputs = MeasurementInputs {
                    firmware: firmware_inputs(),
                    kernel_hashes: hashes,
                };
                measure_snp_launch(&inputs, &self.profile(), vcpus())
                    .map(|measurement| measurement.digest.to_hex())
                    .map_err(|error| error.to_string())
            }
            "seves" => measure_sev_es(firmware, hashes.as_ref(), &self.profile(), vcpus())
                .map(|digest| digest.to_hex())
                .map_err(|error| error.to_string()),
            "sev" => measure_sev(firmware, hashes.as_ref())
                .map(|digest| digest.to_hex())
                .map_err(|error| error.to_string()),
            other => panic!("unknown mode {other}"),
        }
    }

    fn check(&self, firmware: &[u8]) {
        match (self.measure(firmware), &self.digest, &self.error) {
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
}

fn vectors(name: &str) -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("vectors")
        .join(name);
    let vectors: Vectors = toml::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert!(!vectors.case.is_empty());
    vectors.case
}

fn shared_vectors() -> PathBuf {
    std::env::var_os("ASSAY_VECTORS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"),
        PathBuf::from,
    )
}

#[test]
fn hardware() {
    for case in vectors("hardware.toml") {
        case.check(&[]);
    }
}

#[test]
fn synthetic() {
    for case in vectors("synthetic.toml") {
        case.check(&[]);
    }
}

#[test]
fn firmware_suffix() {
    let directory = shared_vectors().join("ovmf");
    let mut skipped: BTreeMap<String, usize> = BTreeMap::new();
    for case in vectors("firmware-suffix.toml") {
        let path = directory.join(case.firmware.as_ref().unwrap());
        match fs::read(&path) {
            Ok(firmware) => case.check(&firmware),
            Err(error) => {
                *skipped
                    .entry(format!("{}: {error}", path.display()))
                    .or_default() += 1;
            }
        }
    }
    for (why, cases) in skipped {
        // Straight to the descriptor: the test harness hides what passing tests
        // print.
        let _ = writeln!(std::io::stderr(), "SKIPPED {cases} known answers: {why}");
    }
}
