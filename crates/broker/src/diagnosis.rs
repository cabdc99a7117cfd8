//! Why a guest's launch digest is none of its image's: words for a person, which
//! no decision depends on.
//!
//! What images publish about themselves is read loosely: what cannot be read is
//! not known, and the diagnosis says less.

use std::sync::Arc;

use assay_attest::{CheckName, ReasonCode, Verdict};
use assay_crds::v1alpha1::MeasuredImage;
use assay_crds::v1alpha1::attestation_record::Diagnosis;
use assay_crds::v1alpha1::confidential_deployment::Machine;
use assay_measure::explain::{Cause, Change, Known, Launch, Part, Question};
use assay_measure::{Explanation, MeasurementInputs, VcpuProfile, explain};
use assay_tee::cpu::CpuModel;
use assay_tee::vmsa::Vmm;
use assay_tee::{GuestFeatures, LaunchDigest, VcpuCount};
use kube::ResourceExt as _;

use crate::policy::rows;

/// Longest message: sentences can hold command lines.
const MAX_MESSAGE: usize = 1024;

/// A launch digest that no reference value equals.
#[derive(Debug, Clone)]
pub struct Mismatch {
    observed: LaunchDigest,
    image: Arc<MeasuredImage>,
    machine: Machine,
}

impl Mismatch {
    /// The mismatch that `verdict` found, if that is what it found: a guest of
    /// `machine` that was to run `image`.
    pub fn of(verdict: &Verdict, image: &Arc<MeasuredImage>, machine: &Machine) -> Option<Self> {
        let claims = verdict
            .check(CheckName::Measurement)
            .filter(|check| check.reason == Some(ReasonCode::MeasurementUnknown))
            .and(verdict.claims.as_ref())?;
        Some(Self {
            observed: claims.measurement,
            image: image.clone(),
            machine: machine.clone(),
        })
    }

    /// What can be said at once: whether the image publishes the digest for
    /// another shape.
    pub fn describe(&self) -> Diagnosis {
        let machine = &self.machine;
        let name = self.image.name_any();
        let other = rows(&self.image)
            .iter()
            .find(|row| row.digest.parse() == Ok(self.observed));
        match other {
            Some(row) => diagnosis(
                "OtherShape",
                &format!(
                    "the guest is image {name} with {} vCPUs of {} on {:?}, boot {:?}; the deployment asks for {} vCPUs of {} on {:?}, boot {:?}",
                    row.vcpus,
                    row.cpu_model,
                    row.tee,
                    row.boot,
                    machine.vcpus,
                    machine.cpu_model,
                    machine.tee,
                    machine.boot,
                ),
            ),
            None => diagnosis(
                "Unknown",
                &format!(
                    "firmware, kernel, initrd or command line differ from those of image {name}"
                ),
            ),
        }
    }

    /// What a search among the neighbours of the expected launch and the other
    /// `images` of the namespace finds. `None` where the image does not publish
    /// what that takes. Takes up to a second of a processor.
    pub fn explain(&self, images: &[Arc<MeasuredImage>]) -> Option<Diagnosis> {
        let expected = self.expected()?;
        let mut others: Vec<_> = images
            .iter()
            .filter(|image| image.name_any() != self.image.name_any())
            .collect();
        // Newest first: the search takes a limited number.
        others.sort_by_key(|image| {
            let created = image.creation_timestamp().map(|time| time.0);
            (std::cmp::Reverse(created), image.name_any())
        });
        let known: Vec<Known> = others
            .into_iter()
            .filter_map(|image| {
                Some(Known {
                    name: image.name_any(),
                    inputs: inputs(image)?,
                })
            })
            .collect();
        let explanation = explain(&Question {
            observed: self.observed,
            expected: &expected,
            known: &known,
            tokens: &[],
        });
        Some(match &explanation {
            Explanation::Expected => diagnosis(
                "NotPublished",
                &format!(
                    "equals what was expected, but image {} does not list it for {:?}",
                    self.image.name_any(),
                    self.machine.tee
                ),
            ),
            Explanation::Found { causes } => {
                let kind = causes.first().map_or("Unknown", kind);
                diagnosis(kind, &explanation.to_string())
            }
            Explanation::Unexplained(_) => diagnosis("Unknown", &explanation.to_string()),
        })
    }

    /// What the search starts from.
    fn expected(&self) -> Option<Launch> {
        Some(Launch {
            inputs: inputs(&self.image)?,
            boot: self.machine.boot.into(),
            profile: VcpuProfile {
                vmm: Vmm::Qemu,
                cpu_signature: CpuModel::by_name(&self.machine.cpu_model).ok()?.signature(),
                guest_features: GuestFeatures::default(),
            },
            vcpus: VcpuCount::try_from(self.machine.vcpus).ok()?,
        })
    }
}

/// What an image publishes for measuring.
fn inputs(image: &MeasuredImage) -> Option<MeasurementInputs> {
    let published = image.status.as_ref()?.measurement_inputs.as_ref()?;
    let document = serde_json::to_value(published).ok()?;
    serde_json::from_value(document).ok()
}

/// The kind of a cause, by what is measured before the shape.
fn kind(cause: &Cause) -> &'static str {
    match cause.changes.first() {
        Some(Change::Image { .. }) => "OtherImage",
        Some(Change::Part { part, .. }) => match part {
            Part::Firmware => "OtherFirmware",
            Part::Boot | Part::Kernel => "OtherKernel",
            Part::Initrd => "OtherInitrd",
            Part::Cmdline => "OtherCommandLine",
        },
        Some(Change::Boot { .. }) => "OtherBoot",
        Some(Change::KernelHashesOff) => "KernelHashesOff",
        Some(Change::KernelHashesOn { .. }) => "KernelHashesOn",
        Some(Change::InitrdLeftOut) => "OtherInitrd",
        Some(Change::Cmdline(_)) => "OtherCommandLine",
        Some(
            Change::Vcpus { .. }
            | Change::CpuModel { .. }
            | Change::GuestFeatures { .. }
            | Change::Vmm { .. },
        ) => "OtherShape",
        None => "Unknown",
    }
}

fn diagnosis(type_: &str, message: &str) -> Diagnosis {
    Diagnosis {
        type_: type_.to_owned(),
        message: message.chars().take(MAX_MESSAGE).collect(),
    }
}

#[cfg(test)]
mod tests;
