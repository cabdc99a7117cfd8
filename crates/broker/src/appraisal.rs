//! The decision about a submission: the broker's own checks, then those of the
//! evidence, in one list.
//!
//! Pure: the cluster's objects come as values. Every check is made and recorded
//! even after one has failed, where it can be; a rejection that says everything
//! at once is worth more than one that says the first thing.

use std::sync::Arc;

use assay_attest::policy::DenyList;
use assay_attest::{
    Binding, Check, CheckName, Claims, Endorsements, ReasonCode, TrustAnchors, TrustDomain,
    Verdict, VerifiedChains, appraise_with,
};
use assay_crds::v1alpha1::attestation_record::{
    AttestationRecordStatus, CheckResult, CheckStatus, EndorsementsStatus, EvidenceStatus,
    PodReference, ReportBinding, Verdict as RecordVerdict,
};
use assay_crds::v1alpha1::measured_image::LifecycleState;
use assay_crds::v1alpha1::{
    AttestationPolicy, AttestationRecord, AttestationRecordSpec, ConfidentialDeployment,
    LocalReference, MeasuredImage, TeeType,
};
use assay_protocol::broker::{IssuedNonce, Profile};
use assay_tee::canonical::EncodeCanonicalError;
use assay_tee::{AttestationReport, InstanceData, Sha256Digest};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::diagnosis::Mismatch;
use crate::identity::{IdentityError, Witness, check_identity, image_name};
use crate::policy::{appraisal_policy, reference_values};
use crate::submission::Submission;

/// Where an SVSM runs.
const SVSM_VMPL: u32 = 0;
/// Longest text of a check in a record: certificates can hold long names.
const MAX_TEXT: usize = 512;

/// What the inventory says about the instance that a submission names.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Who says that there is such a pod.
    pub witness: Witness,
    /// The ConfidentialDeployment that the instance data names.
    pub deployment: Option<Arc<ConfidentialDeployment>>,
    /// The MeasuredImage that the pod was made to run: see
    /// [`crate::identity::image_name`].
    pub image: Option<Arc<MeasuredImage>>,
    /// Its AttestationPolicy.
    pub policy: Option<Arc<AttestationPolicy>>,
    /// The pod's record, if it has one.
    pub record: Option<AttestationRecord>,
}

/// What the broker itself stands for.
#[derive(Debug, Clone)]
pub struct VerifierIdentity {
    /// PEM of its certificate authority: what instance data must name.
    pub ca: String,
    /// The roots that it believes.
    pub anchors: TrustAnchors,
    /// What it refuses under every policy.
    pub denied: DenyList,
    /// The certificate chains whose signatures it has verified.
    pub chains: Arc<VerifiedChains>,
}

/// The broker's own checks, by name. They precede those of the evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BrokerCheck {
    /// The nonce is newer than the attestation that is in force.
    Freshness,
    /// The instance data names a live pod of the deployment.
    InstanceIdentity,
    /// The instance data names this verifier.
    VerifierBinding,
    /// The instance data names the policy as it is now.
    PolicyBinding,
    /// The image exists and is not revoked.
    ImageLifecycle,
}

impl BrokerCheck {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Freshness => "Freshness",
            Self::InstanceIdentity => "InstanceIdentity",
            Self::VerifierBinding => "VerifierBinding",
            Self::PolicyBinding => "PolicyBinding",
            Self::ImageLifecycle => "ImageLifecycle",
        }
    }

    fn pass(self, observed: impl Into<String>) -> CheckStatus {
        self.status(CheckResult::Pass, None, None, Some(observed.into()))
    }

    fn fail(self, reason: &str, expected: &str, observed: impl Into<String>) -> CheckStatus {
        let expected = Some(expected.to_owned());
        self.status(
            CheckResult::Fail,
            Some(reason.to_owned()),
            expected,
            Some(observed.into()),
        )
    }

    fn status(
        self,
        result: CheckResult,
        reason: Option<String>,
        expected: Option<String>,
        observed: Option<String>,
    ) -> CheckStatus {
        CheckStatus {
            name: self.as_str().to_owned(),
            result,
            reason,
            expected,
            observed,
        }
    }
}

/// What was decided about a submission.
#[derive(Debug)]
pub enum Decision {
    /// The instance data does not name a pod that it could be of: nothing is
    /// written anywhere on its word.
    Unidentified(IdentityError),
    /// The evidence was appraised.
    Appraised(Box<Appraisal>),
}

/// An appraisal.
#[derive(Debug, Clone)]
pub struct Appraisal {
    /// Whose guest it is.
    pub spec: AttestationRecordSpec,
    /// The verdict with every check.
    pub status: AttestationRecordStatus,
    /// The profile of the session.
    pub profile: Profile,
    /// The nonce that the submission answers.
    pub nonce: IssuedNonce,
    /// Root of trust, where the chain ends in one.
    pub trust_domain: Option<TrustDomain>,
    /// What the report says; to be believed only if it was accepted.
    pub claims: Option<Claims>,
    /// Whether a genuine report binds this session and this instance, and the
    /// session is no replay: true of every acceptance, and of rejections that
    /// really come from the guest.
    pub authentic: bool,
    /// Whether somebody else than the host says that the pod exists.
    pub witnessed: bool,
    /// The launch digest, where it is unknown and may be explained. Has no part
    /// in the verdict.
    pub mismatch: Option<Mismatch>,
}

impl Appraisal {
    /// Whether the evidence is accepted.
    pub fn is_accepted(&self) -> bool {
        self.status.verdict == RecordVerdict::Accepted
    }

    /// Whether the verdict rests on a simulation.
    pub fn is_simulated(&self) -> bool {
        !matches!(self.trust_domain, Some(TrustDomain::Amd))
    }
}

/// Decides about a submission.
///
/// # Assumptions
/// `nonce` was verified to be issued to this session, and the caller consumes
/// it before it acts on the decision.
///
/// # Errors
/// Never for values that came from JSON; the encoder's error is passed on.
pub fn decide_attestation(
    submission: &Submission,
    nonce: &IssuedNonce,
    observed: &Observed,
    endorsements: &Endorsements,
    verifier: &VerifierIdentity,
    now: Timestamp,
) -> Result<Decision, EncodeCanonicalError> {
    let instance = &submission.instance;
    let deployment =
        match check_identity(instance, &observed.witness, observed.deployment.as_deref()) {
            Ok(deployment) => deployment,
            Err(error) => return Ok(Decision::Unidentified(error)),
        };
    let freshness = check_freshness(nonce, observed.record.as_ref(), instance);
    let fresh = freshness.result == CheckResult::Pass;
    let mut checks = vec![
        freshness,
        identity(instance, &observed.witness),
        check_verifier(instance, verifier),
        check_policy(instance, observed.policy.as_deref())?,
        check_image(observed.image.as_deref()),
    ];

    let runtime_data = submission.bound_document()?;
    let binding = Binding {
        report_data: submission.report_data()?,
        host_data: *InstanceData::host_data(submission.instance_document.as_bytes()).as_bytes(),
    };
    let mut evidence = submission.evidence();
    evidence.endorse(endorsements);
    let machine = &deployment.spec.machine;
    let verdict = observed
        .image
        .as_deref()
        .zip(observed.policy.as_deref())
        .map(|(image, policy)| {
            let mut policy = appraisal_policy(&policy.spec, machine);
            policy.denied.extend(&verifier.denied);
            if submission.profile() == Profile::Svsm {
                // What runs above an SVSM has the same launch digest, and is not to
                // have what the SVSM gets.
                policy.vmpls.retain(|vmpl| *vmpl == SVSM_VMPL);
            }
            appraise_with(
                &evidence,
                &verifier.anchors,
                &reference_values(image, machine),
                &policy,
                &binding,
                now,
                &*verifier.chains,
            )
        });
    match &verdict {
        Some(verdict) => checks.extend(verdict.checks.iter().map(check_status)),
        None => checks.extend(CheckName::SNP.iter().map(|name| skipped(*name))),
    }

    let own_checks_pass = checks
        .iter()
        .take_while(|check| check.name != CheckName::ReportLength.as_str())
        .all(|check| matches!(check.result, CheckResult::Pass | CheckResult::NotApplicable));
    let checks_pass = own_checks_pass && verdict.as_ref().is_some_and(Verdict::is_accepted);
    // Without an expiry there is no acceptance.
    let expires_at = observed
        .policy
        .as_ref()
        .filter(|_| checks_pass)
        .and_then(|policy| now.checked_add(policy.spec.freshness.max_age.get()).ok());
    let accepted = expires_at.is_some();
    let reason = if accepted {
        "Accepted".to_owned()
    } else {
        first_reason(&checks)
    };
    let mismatch = verdict
        .as_ref()
        .zip(observed.image.as_ref())
        .and_then(|(verdict, image)| Mismatch::of(verdict, image, machine));
    let trust_domain = verdict.as_ref().and_then(|verdict| verdict.trust_domain);
    let claims = verdict.as_ref().and_then(|verdict| verdict.claims.clone());
    let status = AttestationRecordStatus {
        verdict: if accepted {
            RecordVerdict::Accepted
        } else {
            RecordVerdict::Rejected
        },
        reason,
        tee: trust_domain
            .and_then(TrustDomain::tee)
            .map_or(machine.tee, TeeType::from),
        trust_domain: trust_domain
            .map_or_else(|| "Unknown".to_owned(), |domain| domain.to_string()),
        measurement: claims.as_ref().map(|claims| claims.measurement.to_string()),
        reference_value: verdict
            .as_ref()
            .and_then(|verdict| verdict.reference_value.clone()),
        policy_hash: match observed.policy.as_deref() {
            Some(policy) => policy.spec.hash()?.to_string(),
            None => instance.policy_hash.to_string(),
        },
        verified_at: Time(now),
        expires_at: expires_at.map(Time),
        checks,
        diagnosis: mismatch.as_ref().map(Mismatch::describe),
        evidence: EvidenceStatus {
            report: BASE64_STANDARD.encode(&submission.evidence.report),
            certificates: BASE64_STANDARD.encode(&submission.evidence.certificates),
            instance_data: submission.instance_document.clone(),
            nonce: submission.runtime_data.nonce.clone(),
            runtime_data: String::from_utf8_lossy(&runtime_data).into_owned(),
            bound_by: match submission.profile() {
                Profile::Kbs => None,
                Profile::Svsm => Some(ReportBinding::Svsm),
            },
        },
        endorsements: endorsements_status(endorsements, verdict.as_ref()),
        history: Vec::new(),
        used_nonces: Vec::new(),
        secrets: Vec::new(),
        conditions: Vec::new(),
    };
    let spec = AttestationRecordSpec {
        pod_ref: PodReference {
            name: instance.pod.name.clone(),
            uid: instance.pod.uid.clone(),
        },
        node_name: instance.node.clone(),
        deployment_ref: LocalReference {
            name: instance.deployment.clone(),
        },
        image_ref: LocalReference {
            name: image_name(&observed.witness, deployment).to_owned(),
        },
        policy_ref: deployment.spec.policy_ref.clone(),
    };
    let authentic = fresh && verdict.as_ref().is_some_and(is_authentic);
    Ok(Decision::Appraised(Box::new(Appraisal {
        spec,
        status,
        profile: submission.profile(),
        nonce: *nonce,
        trust_domain,
        claims,
        authentic,
        witnessed: matches!(observed.witness, Witness::ApiServer(_)),
        mismatch,
    })))
}

/// Whether evidence may be of a guest of the deployment, before anybody is asked
/// about it: its pod exists or, where nobody knows of pods, the report names a chip
/// that the policy names.
pub fn is_worth_endorsing(submission: &Submission, observed: &Observed) -> bool {
    let Observed {
        witness,
        deployment,
        policy,
        ..
    } = observed;
    if check_identity(&submission.instance, witness, deployment.as_deref()).is_err() {
        return false;
    }
    let policy = match (witness, policy) {
        (Witness::ApiServer(_), _) => return true,
        (Witness::Nobody, None) => return false,
        (Witness::Nobody, Some(policy)) => policy,
    };
    policy.spec.snp.allowed_chips.as_ref().is_none_or(|chips| {
        AttestationReport::read_layout(&submission.evidence.report)
            .is_ok_and(|report| chips.contains(&Sha256Digest::of(&report.chip_id)))
    })
}

/// What the vendor published and the appraisal used; nothing, where the evidence
/// brought everything along.
fn endorsements_status(
    endorsements: &Endorsements,
    verdict: Option<&Verdict>,
) -> Option<EndorsementsStatus> {
    let Endorsements {
        certificates,
        revocation_list,
    } = endorsements;
    let list = revocation_list.as_ref();
    (list.is_some() || !certificates.is_empty()).then(|| EndorsementsStatus {
        certificates: certificates
            .iter()
            .map(|der| BASE64_STANDARD.encode(der))
            .collect(),
        revocation_list: list.map(|der| BASE64_STANDARD.encode(der)),
        revocation_list_number: verdict
            .and_then(|verdict| verdict.revocation_list_number)
            .and_then(|number| i64::try_from(number).ok()),
    })
}

/// When `nonce` was issued. What no clock shows is older than everything.
pub fn issued_at(nonce: &IssuedNonce) -> Timestamp {
    i64::try_from(nonce.issued_at)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .unwrap_or(Timestamp::MIN)
}

/// Whether `status` is an acceptance that was made after `nonce` was issued.
pub fn supersedes(status: &AttestationRecordStatus, nonce: &IssuedNonce) -> bool {
    status.verdict == RecordVerdict::Accepted && status.verified_at.0 > issued_at(nonce)
}

/// A nonce must be newer than the acceptance that is in force: a session that
/// was overtaken is over. That no nonce is answered twice is checked where the
/// record is written.
fn check_freshness(
    nonce: &IssuedNonce,
    record: Option<&AttestationRecord>,
    instance: &InstanceData,
) -> CheckStatus {
    let newer = record
        .filter(|record| record.spec.pod_ref.uid == instance.pod.uid)
        .and_then(|record| record.status.as_ref())
        .filter(|status| supersedes(status, nonce));
    match newer {
        Some(status) => BrokerCheck::Freshness.fail(
            "NonceSuperseded",
            &format!("a nonce issued after {}", status.verified_at.0),
            format!("issued at {}", issued_at(nonce)),
        ),
        None => BrokerCheck::Freshness.pass("a nonce of this session, used once"),
    }
}

/// What [`check_identity`] found: a pod that exists, or nobody to ask.
fn identity(instance: &InstanceData, witness: &Witness) -> CheckStatus {
    let InstanceData { namespace, pod, .. } = instance;
    let observed = format!("{namespace}/{} ({})", pod.name, pod.uid);
    match witness {
        Witness::ApiServer(_) => BrokerCheck::InstanceIdentity.pass(observed),
        Witness::Nobody => BrokerCheck::InstanceIdentity.status(
            CheckResult::NotApplicable,
            None,
            None,
            Some(format!("{observed}, as the host says")),
        ),
    }
}

fn check_verifier(instance: &InstanceData, verifier: &VerifierIdentity) -> CheckStatus {
    let digest = |pem: &str| Sha256Digest::of(pem.trim().as_bytes());
    let (expected, observed) = (digest(&verifier.ca), digest(&instance.verifier.ca));
    if expected == observed {
        BrokerCheck::VerifierBinding.pass(observed.to_string())
    } else {
        BrokerCheck::VerifierBinding.fail(
            "VerifierMismatch",
            &expected.to_string(),
            observed.to_string(),
        )
    }
}

fn check_policy(
    instance: &InstanceData,
    policy: Option<&AttestationPolicy>,
) -> Result<CheckStatus, EncodeCanonicalError> {
    let Some(policy) = policy else {
        return Ok(BrokerCheck::PolicyBinding.fail(
            "PolicyMissing",
            "the AttestationPolicy that the deployment names",
            "none",
        ));
    };
    let expected = policy.spec.hash()?;
    Ok(if expected == instance.policy_hash {
        BrokerCheck::PolicyBinding.pass(expected.to_string())
    } else {
        BrokerCheck::PolicyBinding.fail(
            "PolicyHashMismatch",
            &expected.to_string(),
            instance.policy_hash.to_string(),
        )
    })
}

fn check_image(image: Option<&MeasuredImage>) -> CheckStatus {
    let expected = "Active or Deprecated";
    match image.map(|image| image.spec.lifecycle.state) {
        None => BrokerCheck::ImageLifecycle.fail("ImageMissing", expected, "none"),
        Some(LifecycleState::Revoked) => {
            BrokerCheck::ImageLifecycle.fail("ImageRevoked", expected, "Revoked")
        }
        Some(state) => BrokerCheck::ImageLifecycle.pass(format!("{state:?}")),
    }
}

fn check_status(check: &Check) -> CheckStatus {
    let text = |text: &Option<String>| {
        text.as_ref()
            .map(|text| text.chars().take(MAX_TEXT).collect::<String>())
    };
    CheckStatus {
        name: check.name.as_str().to_owned(),
        result: match check.result {
            assay_attest::CheckResult::Pass => CheckResult::Pass,
            assay_attest::CheckResult::Fail => CheckResult::Fail,
            assay_attest::CheckResult::Skipped => CheckResult::Skipped,
            assay_attest::CheckResult::NotApplicable => CheckResult::NotApplicable,
        },
        reason: check.reason.map(|reason| reason.as_str().to_owned()),
        expected: text(&check.expected),
        observed: text(&check.observed),
    }
}

fn skipped(name: CheckName) -> CheckStatus {
    CheckStatus {
        name: name.as_str().to_owned(),
        result: CheckResult::Skipped,
        reason: Some(ReasonCode::EarlierCheckFailed.as_str().to_owned()),
        expected: None,
        observed: None,
    }
}

fn first_reason(checks: &[CheckStatus]) -> String {
    let of = |result| checks.iter().find(move |check| check.result == result);
    of(CheckResult::Fail)
        .or_else(|| of(CheckResult::Skipped))
        .and_then(|check| check.reason.clone())
        .unwrap_or_else(|| "Rejected".to_owned())
}

/// Whether a report that chains to a root that may vouch for the guest binds
/// session and instance. The development root vouches for simulated guests
/// alone: whoever holds its key must not reject what hardware protects.
fn is_authentic(verdict: &Verdict) -> bool {
    [
        CheckName::TrustAnchor,
        CheckName::TrustDomain,
        CheckName::CertificateChain,
        CheckName::CertificateDates,
        CheckName::EndorsedTcb,
        CheckName::ReportSignature,
        CheckName::ReportData,
        CheckName::HostData,
    ]
    .into_iter()
    .all(|name| {
        verdict
            .check(name)
            .is_some_and(|check| check.result == assay_attest::CheckResult::Pass)
    })
}

#[cfg(test)]
mod tests;
