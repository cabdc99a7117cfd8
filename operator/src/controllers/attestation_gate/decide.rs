//! Whether a pod counts as attested: a pure function of what is known, and of
//! the time.

use assay_crds::v1alpha1::attestation_record::{CheckResult, Verdict};
use assay_crds::v1alpha1::measured_image::{DigestState, LifecycleState};
use assay_crds::v1alpha1::{AttestationPolicy, AttestationRecord, MeasuredImage, TeeType};
use assay_tee::Sha256Digest;
use jiff::Timestamp;
use serde::Serialize;

/// A pod that runs a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// The ConfidentialDeployment that the pod's label names.
    pub deployment: Option<String>,
}

/// What is known of a pod's attestation.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The pod.
    pub pod: &'a PodFacts,
    /// The record of the pod's name.
    pub record: Option<&'a AttestationRecord>,
    /// The image that the record names.
    pub image: Option<&'a MeasuredImage>,
    /// The policy that the record names.
    pub policy: Option<&'a AttestationPolicy>,
    /// Hash of that policy as it is now.
    pub policy_hash: Option<Sha256Digest>,
    /// Whether this installation allows simulated guests.
    pub simulation: bool,
}

/// Whether a pod counts as attested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether it does.
    pub attested: bool,
    /// Why.
    pub reason: GateReason,
    /// The same, for a person.
    pub message: String,
    /// When the decision changes by itself.
    pub recheck_at: Option<Timestamp>,
}

macro_rules! gate_reasons {
    ($($(#[$doc:meta])+ $variant:ident,)+) => {
        /// Why a pod counts as attested or not: the condition's reason.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
        pub enum GateReason {
            $($(#[$doc])+ $variant,)+
        }

        impl GateReason {
            /// As the condition spells it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($variant),)+
                }
            }
        }
    };
}

gate_reasons! {
    /// The attestation is accepted, fresh and unrevoked.
    Attested,
    /// There is no record yet.
    AwaitingAttestation,
    /// The record is of an earlier pod of this name, or of another deployment.
    RecordMismatch,
    /// The verifier rejected the evidence.
    AttestationRejected,
    /// The record says Accepted and lacks what an acceptance has.
    RecordInvalid,
    /// The attestation is too old.
    AttestationExpired,
    /// The policy that the guest was accepted under does not exist, or cannot be
    /// read.
    PolicyMissing,
    /// The policy has changed since: the guest must attest under the new one.
    PolicyChanged,
    /// The policy does not accept the evidence's TEE.
    TeeNotAllowed,
    /// The evidence is simulated, which this installation refuses.
    SimulationDisabled,
    /// The image that the guest was accepted as does not exist, or cannot be read.
    ImageMissing,
    /// The image is revoked.
    ImageRevoked,
    /// The image has no such launch digest (any more).
    ReferenceValueMissing,
    /// The launch digest is revoked.
    ReferenceValueRevoked,
}

/// Decides about a pod. Whatever is missing counts against it.
pub fn decide(facts: &Facts<'_>, now: Timestamp) -> Decision {
    match refusal(facts, now) {
        Err((reason, message)) => Decision {
            attested: false,
            reason,
            message,
            recheck_at: None,
        },
        Ok(accepted) => Decision {
            attested: true,
            reason: GateReason::Attested,
            // Without the expiry: a renewal is no news to write.
            message: format!("accepted as {}", accepted.reference_value),
            recheck_at: Some(accepted.expires_at),
        },
    }
}

struct Acceptance<'a> {
    reference_value: &'a str,
    expires_at: Timestamp,
}

fn refusal<'a>(facts: &Facts<'a>, now: Timestamp) -> Result<Acceptance<'a>, (GateReason, String)> {
    use GateReason as Reason;
    let refuse = |reason, message: &str| Err((reason, message.to_owned()));

    let Some((record, status)) = facts
        .record
        .and_then(|record| Some((record, record.status.as_ref()?)))
    else {
        return refuse(
            Reason::AwaitingAttestation,
            "the guest has not attested yet",
        );
    };
    if record.spec.pod_ref.uid != facts.pod.uid || record.spec.pod_ref.name != facts.pod.name {
        return refuse(
            Reason::RecordMismatch,
            "the record is of an earlier pod of this name",
        );
    }
    if facts.pod.deployment.as_deref() != Some(record.spec.deployment_ref.name.as_str()) {
        return refuse(
            Reason::RecordMismatch,
            "the record is of another ConfidentialDeployment",
        );
    }
    if status.verdict != Verdict::Accepted {
        return Err((Reason::AttestationRejected, rejection(record)));
    }
    let (Some(expires_at), Some(measurement), Some(reference_value)) = (
        status.expires_at.as_ref().map(|time| time.0),
        status.measurement.as_deref(),
        status.reference_value.as_deref(),
    ) else {
        return refuse(
            Reason::RecordInvalid,
            "the record accepts without expiresAt, measurement and referenceValue",
        );
    };
    if expires_at <= now {
        return Err((
            Reason::AttestationExpired,
            format!("the attestation expired at {expires_at:.0}"),
        ));
    }
    let (Some(policy), Some(policy_hash)) = (facts.policy, facts.policy_hash) else {
        return Err((
            Reason::PolicyMissing,
            format!(
                "AttestationPolicy {} does not exist or cannot be read",
                record.spec.policy_ref.name
            ),
        ));
    };
    if policy_hash.to_string() != status.policy_hash {
        return Err((
            Reason::PolicyChanged,
            format!(
                "AttestationPolicy {} has changed since",
                record.spec.policy_ref.name
            ),
        ));
    }
    if !policy.spec.tees.contains(&status.tee) {
        return Err((
            Reason::TeeNotAllowed,
            format!(
                "AttestationPolicy {} does not name the TEE",
                record.spec.policy_ref.name
            ),
        ));
    }
    if status.tee == TeeType::SimulatedSnp && !facts.simulation {
        return refuse(
            Reason::SimulationDisabled,
            "this installation refuses simulated guests",
        );
    }
    let Some(image) = facts.image else {
        return Err((
            Reason::ImageMissing,
            format!(
                "MeasuredImage {} does not exist or cannot be read",
                record.spec.image_ref.name
            ),
        ));
    };
    if image.spec.lifecycle.state == LifecycleState::Revoked {
        let why = image
            .spec
            .lifecycle
            .reason
            .as_deref()
            .unwrap_or("no reason given");
        return Err((
            Reason::ImageRevoked,
            format!(
                "MeasuredImage {} is revoked: {why}",
                record.spec.image_ref.name
            ),
        ));
    }
    let rows = image
        .status
        .as_ref()
        .map(|status| status.launch_digests.as_slice());
    let row = rows
        .unwrap_or_default()
        .iter()
        .find(|row| row.id == reference_value);
    match row {
        Some(row) if row.digest == measurement && row.tee == status.tee => match row.state {
            DigestState::Accepted => Ok(Acceptance {
                reference_value,
                expires_at,
            }),
            DigestState::Revoked => Err((
                Reason::ReferenceValueRevoked,
                format!("launch digest {reference_value} is revoked"),
            )),
        },
        _ => Err((
            Reason::ReferenceValueMissing,
            format!(
                "MeasuredImage {} has no launch digest {reference_value} of this value",
                record.spec.image_ref.name
            ),
        )),
    }
}

/// Why the verifier rejected, in one line: the first check that failed.
fn rejection(record: &AttestationRecord) -> String {
    let Some(status) = record.status.as_ref() else {
        return String::new();
    };
    let mut text = status.reason.clone();
    if let Some(check) = status
        .checks
        .iter()
        .find(|check| check.result == CheckResult::Fail)
    {
        text = format!(
            "{}: {}",
            check.name,
            check.reason.as_deref().unwrap_or(&status.reason)
        );
        if let (Some(expected), Some(observed)) = (&check.expected, &check.observed) {
            text = format!(
                "{text}, expected {}, observed {}",
                short(expected),
                short(observed)
            );
        }
    }
    if let Some(diagnosis) = &status.diagnosis {
        text = format!("{text} ({})", short(&diagnosis.message));
    }
    text
}

/// At most 96 characters of a value: the record has it whole.
fn short(value: &str) -> String {
    const MAX: usize = 96;
    if value.chars().count() <= MAX {
        return value.to_owned();
    }
    let head: String = value.chars().take(MAX - 1).collect();
    format!("{head}…")
}

#[cfg(test)]
mod tests;
