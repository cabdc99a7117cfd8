//! The decision to release a resource.
//!
//! A token alone opens nothing: everything that made it may have changed since.
//! The appraisal that it stands for must be the one in force, the image and the
//! launch digest unrevoked and the policy the same, as the API server has them
//! now; and the policy and the deployment must both name the resource.

use std::fmt;

use assay_attest::ReferenceState;
use assay_crds::v1alpha1::attestation_record::{
    AttestationRecordStatus, ReleaseOutcome, SecretRelease,
};
use assay_crds::v1alpha1::confidential_deployment::{Machine, SecretKeyReference};
use assay_crds::v1alpha1::measured_image::LifecycleState;
use assay_crds::v1alpha1::{
    AttestationPolicy, AttestationRecord, ConfidentialDeployment, MeasuredImage,
};
use assay_protocol::audit::{AuditEntry, AuditOutcome};
use assay_tee::LaunchDigest;
use jiff::Timestamp;
use zeroize::Zeroizing;

use crate::policy::reference_values;
use crate::record::is_in_force;
use crate::secrets::{Location, ReleaseClass, StoredSecret};
use crate::submission::is_name;
use crate::token::Claims;

/// Most bytes of a released value.
pub const MAX_VALUE: usize = 64 * 1024;

/// Path of a resource: `{namespace}/{deployment}/{name}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourcePath {
    /// Namespace of the workload.
    pub namespace: String,
    /// Name of the ConfidentialDeployment.
    pub deployment: String,
    /// Name of an entry of its `secrets`.
    pub name: String,
}

impl fmt::Display for ResourcePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.deployment, self.name)
    }
}

/// What the cluster says now, read for this decision.
#[derive(Debug, Clone, Default)]
pub struct ReleaseObserved {
    /// The pod's record.
    pub record: Option<AttestationRecord>,
    /// The ConfidentialDeployment.
    pub deployment: Option<ConfidentialDeployment>,
    /// The MeasuredImage that the token names.
    pub image: Option<MeasuredImage>,
    /// The AttestationPolicy that the deployment names.
    pub policy: Option<AttestationPolicy>,
}

/// Why a resource is not released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseRefusal {
    /// The path has a part that is not a name.
    #[error("the path is not namespace/deployment/name")]
    PathInvalid,
    /// The path is of another workload than the token.
    #[error("the token is of another workload")]
    IdentityMismatch,
    /// The pod has no record.
    #[error("the pod has no attestation record")]
    RecordMissing,
    /// The record is of another pod of the same name.
    #[error("the attestation record is of another pod")]
    RecordOfAnotherPod,
    /// The latest appraisal is a rejection, or has expired.
    #[error("the latest attestation is not in force")]
    RecordNotInForce,
    /// The latest appraisal is another than the token's.
    #[error("the token is not of the latest attestation")]
    TokenSuperseded,
    /// The deployment does not exist.
    #[error("the ConfidentialDeployment does not exist")]
    DeploymentMissing,
    /// The image does not exist.
    #[error("the MeasuredImage does not exist")]
    ImageMissing,
    /// The image is revoked.
    #[error("the image is revoked")]
    ImageRevoked,
    /// The launch digest is revoked, or no reference value any more.
    #[error("the launch digest is not accepted any more")]
    MeasurementRevoked,
    /// The policy does not exist.
    #[error("the AttestationPolicy does not exist")]
    PolicyMissing,
    /// The policy is another than the token's.
    #[error("the policy has changed since the attestation")]
    PolicyChanged,
    /// The policy does not name the TEE.
    #[error("the policy does not accept the TEE")]
    TeeNotAllowed,
    /// The policy does not release the resource.
    #[error("the policy does not release the resource")]
    NotReleased,
    /// The policy does not release the resource to an image in this state.
    #[error("the policy does not release the resource to an image in this state")]
    ImageStateNotReleased,
    /// The deployment has no such resource.
    #[error("the deployment has no such resource")]
    ResourceUnknown,
    /// The secret does not exist.
    #[error("the secret does not exist")]
    SecretMissing,
    /// The secret has no such key.
    #[error("the secret has no such key")]
    SecretKeyMissing,
    /// The secret is for hardware-backed guests only.
    #[error("the secret is not marked for simulated guests")]
    ReleaseClassMismatch,
    /// The value is too large.
    #[error("the value has more than {MAX_VALUE} bytes")]
    ValueTooLarge,
}

impl ReleaseRefusal {
    /// The reason code.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::PathInvalid => "PathInvalid",
            Self::IdentityMismatch => "IdentityMismatch",
            Self::RecordMissing => "RecordMissing",
            Self::RecordOfAnotherPod => "RecordOfAnotherPod",
            Self::RecordNotInForce => "RecordNotInForce",
            Self::TokenSuperseded => "TokenSuperseded",
            Self::DeploymentMissing => "DeploymentMissing",
            Self::ImageMissing => "ImageMissing",
            Self::ImageRevoked => "ImageRevoked",
            Self::MeasurementRevoked => "MeasurementRevoked",
            Self::PolicyMissing => "PolicyMissing",
            Self::PolicyChanged => "PolicyChanged",
            Self::TeeNotAllowed => "TeeNotAllowed",
            Self::NotReleased => "NotReleased",
            Self::ImageStateNotReleased => "ImageStateNotReleased",
            Self::ResourceUnknown => "ResourceUnknown",
            Self::SecretMissing => "SecretMissing",
            Self::SecretKeyMissing => "SecretKeyMissing",
            Self::ReleaseClassMismatch => "ReleaseClassMismatch",
            Self::ValueTooLarge => "ValueTooLarge",
        }
    }
}

/// Checks that `path` belongs to the workload of the token, before anything is
/// read for it.
///
/// # Errors
/// When it does not.
pub fn check_path(claims: &Claims, path: &ResourcePath) -> Result<(), ReleaseRefusal> {
    if ![&path.namespace, &path.deployment, &path.name]
        .into_iter()
        .all(|name| is_name(name))
    {
        return Err(ReleaseRefusal::PathInvalid);
    }
    let instance = claims.instance();
    if path.namespace != instance.namespace || path.deployment != instance.deployment {
        return Err(ReleaseRefusal::IdentityMismatch);
    }
    Ok(())
}

/// Decides whether the resource may be read for the holder of `claims`, and
/// says where its value is.
///
/// # Assumptions
/// As [`decide_entitlement`].
///
/// # Errors
/// The first reason not to.
pub fn decide_release(
    claims: &Claims,
    path: &ResourcePath,
    observed: &ReleaseObserved,
    now: Timestamp,
) -> Result<SecretKeyReference, ReleaseRefusal> {
    let Entitlement { deployment, .. } = decide_entitlement(claims, path, observed, now)?;
    deployment
        .spec
        .secrets
        .iter()
        .find(|secret| secret.name == path.name)
        .map(|secret| secret.secret_ref.clone())
        .ok_or(ReleaseRefusal::ResourceUnknown)
}

/// A guest that the policy releases a resource to.
#[derive(Debug, Clone, Copy)]
pub struct Entitlement<'a> {
    /// Its deployment.
    pub deployment: &'a ConfidentialDeployment,
    /// When its attestation ends.
    pub until: Timestamp,
}

/// Decides whether the policy releases a resource of this name to the holder of
/// `claims`, wherever its value is.
///
/// # Assumptions
/// `claims` are of a verified, unexpired token.
///
/// # Errors
/// The first reason not to.
pub fn decide_entitlement<'a>(
    claims: &Claims,
    path: &ResourcePath,
    observed: &'a ReleaseObserved,
    now: Timestamp,
) -> Result<Entitlement<'a>, ReleaseRefusal> {
    check_path(claims, path)?;
    let instance = claims.instance();
    let record = observed
        .record
        .as_ref()
        .ok_or(ReleaseRefusal::RecordMissing)?;
    if record.spec.pod_ref.uid != instance.pod_uid {
        return Err(ReleaseRefusal::RecordOfAnotherPod);
    }
    let status = record
        .status
        .as_ref()
        .ok_or(ReleaseRefusal::RecordMissing)?;
    let until = status
        .expires_at
        .as_ref()
        .filter(|_| is_in_force(status, now))
        .ok_or(ReleaseRefusal::RecordNotInForce)?
        .0;
    if status.evidence.nonce != claims.nonce() {
        return Err(ReleaseRefusal::TokenSuperseded);
    }
    let deployment = observed
        .deployment
        .as_ref()
        .ok_or(ReleaseRefusal::DeploymentMissing)?;
    let image = observed
        .image
        .as_ref()
        .ok_or(ReleaseRefusal::ImageMissing)?;
    let state = image.spec.lifecycle.state;
    if state == LifecycleState::Revoked {
        return Err(ReleaseRefusal::ImageRevoked);
    }
    if !is_measurement_accepted(status, image, &deployment.spec.machine) {
        return Err(ReleaseRefusal::MeasurementRevoked);
    }
    let policy = observed
        .policy
        .as_ref()
        .ok_or(ReleaseRefusal::PolicyMissing)?;
    let hash = policy
        .spec
        .hash()
        .map_err(|_| ReleaseRefusal::PolicyChanged)?;
    if hash.to_string() != claims.submods.cpu0.policy {
        return Err(ReleaseRefusal::PolicyChanged);
    }
    let tee = deployment.spec.machine.tee;
    let hardware = assay_tee::Tee::from(tee).is_hardware();
    if !policy.spec.tees.contains(&tee) || hardware == instance.simulated {
        return Err(ReleaseRefusal::TeeNotAllowed);
    }
    let rule = policy
        .spec
        .release
        .iter()
        .find(|rule| rule.resource == path.name)
        .ok_or(ReleaseRefusal::NotReleased)?;
    if !rule.image_states.contains(&state) {
        return Err(ReleaseRefusal::ImageStateNotReleased);
    }
    Ok(Entitlement { deployment, until })
}

fn is_measurement_accepted(
    status: &AttestationRecordStatus,
    image: &MeasuredImage,
    machine: &Machine,
) -> bool {
    let measurement: Option<LaunchDigest> = status
        .measurement
        .as_ref()
        .and_then(|measurement| measurement.parse().ok());
    measurement
        .and_then(|digest| reference_values(image, machine).find(digest).cloned())
        .is_some_and(|value| value.state == ReferenceState::Accepted)
}

/// Takes the value out of what the store has, if its class allows.
///
/// # Errors
/// When the secret, its key or the right to have it is missing.
pub fn decide_secret(
    claims: &Claims,
    stored: Option<StoredSecret>,
) -> Result<Zeroizing<Vec<u8>>, ReleaseRefusal> {
    let stored = stored.ok_or(ReleaseRefusal::SecretMissing)?;
    if claims.instance().simulated && stored.class != ReleaseClass::Simulated {
        return Err(ReleaseRefusal::ReleaseClassMismatch);
    }
    stored.value.ok_or(ReleaseRefusal::SecretKeyMissing)
}

/// Checks that a value, opened, is one that can be released.
///
/// # Errors
/// When it is too large.
pub fn check_size(value: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>, ReleaseRefusal> {
    if value.len() > MAX_VALUE {
        return Err(ReleaseRefusal::ValueTooLarge);
    }
    Ok(value)
}

/// What the pod's record says about a request that got as far as the secret:
/// names, and never a value.
pub fn describe_release(
    path: &ResourcePath,
    location: &Location,
    refusal: Option<ReleaseRefusal>,
) -> Option<SecretRelease> {
    let Location {
        secret,
        place,
        value,
        mark,
    } = location;
    let (outcome, message) = match refusal {
        None => (ReleaseOutcome::Released, None),
        Some(ReleaseRefusal::SecretMissing) => (
            ReleaseOutcome::SecretMissing,
            Some(format!("{secret} does not exist {place}; create it")),
        ),
        Some(ReleaseRefusal::SecretKeyMissing) => (
            ReleaseOutcome::SecretKeyMissing,
            Some(format!("{secret} {place} has no {value}; add it")),
        ),
        Some(ReleaseRefusal::ReleaseClassMismatch) => (
            ReleaseOutcome::ReleaseClassMismatch,
            Some(format!(
                "{secret} {place} lacks {mark}; add it if simulated guests, which nothing \
                 protects, may have it"
            )),
        ),
        Some(ReleaseRefusal::ValueTooLarge) => (
            ReleaseOutcome::ValueTooLarge,
            Some(format!(
                "{value} of {secret} {place} has more than {MAX_VALUE} bytes; shorten it"
            )),
        ),
        Some(_) => return None,
    };
    Some(SecretRelease {
        name: path.name.clone(),
        outcome,
        message,
    })
}

/// What the audit log says about a request, whatever became of it.
pub fn audit_entry(
    claims: &Claims,
    path: &ResourcePath,
    refusal: Option<ReleaseRefusal>,
    now: Timestamp,
) -> AuditEntry {
    let instance = claims.instance();
    AuditEntry {
        time: now.to_string(),
        resource: path.to_string(),
        outcome: match refusal {
            None => AuditOutcome::Released,
            Some(_) => AuditOutcome::Refused,
        },
        reason: refusal.map(|refusal| refusal.reason().to_owned()),
        namespace: instance.namespace.clone(),
        deployment: instance.deployment.clone(),
        pod: instance.pod.clone(),
        pod_uid: instance.pod_uid.clone(),
        image: instance.image.clone(),
        trust_domain: instance.trust_domain.clone(),
        policy: claims.submods.cpu0.policy.clone(),
        nonce: claims.nonce().to_owned(),
        volume: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use assay_crds::names::RELEASE_CLASS_LABEL;
    use assay_crds::v1alpha1::TeeType;
    use assay_crds::v1alpha1::attestation_record::Verdict;
    use assay_crds::v1alpha1::measured_image::{DigestState, LaunchDigestRow};
    use jiff::ToSpan as _;
    use k8s_openapi::ByteString;
    use k8s_openapi::api::core::v1::Secret;

    use crate::secrets::kubernetes::{locate, stored};

    struct Case {
        claims: Claims,
        path: ResourcePath,
        observed: ReleaseObserved,
        now: Timestamp,
    }

    fn good() -> Case {
        Case {
            claims: fixtures::claims(),
            path: fixtures::resource_path(),
            observed: fixtures::release_observed(),
            now: fixtures::now(),
        }
    }

    fn decide(case: &Case) -> Result<SecretKeyReference, ReleaseRefusal> {
        decide_release(&case.claims, &case.path, &case.observed, case.now)
    }

    #[test]
    fn an_attested_guest_is_told_where_its_secret_is() {
        let reference = decide(&good()).unwrap();
        assert_eq!(reference, fixtures::deployment().spec.secrets[0].secret_ref);
    }

    #[test]
    fn every_change_since_refuses() {
        use ReleaseRefusal as R;
        type Change = fn(&mut Case);
        fn record(case: &mut Case) -> &mut AttestationRecord {
            case.observed.record.as_mut().unwrap()
        }
        fn policy(case: &mut Case) -> &mut AttestationPolicy {
            case.observed.policy.as_mut().unwrap()
        }
        fn rows(case: &mut Case) -> &mut Vec<LaunchDigestRow> {
            let image = case.observed.image.as_mut().unwrap();
            &mut image.status.as_mut().unwrap().launch_digests
        }
        /// Changes the policy together with the token that names it.
        fn rehash(case: &mut Case) {
            let hash = policy(case).spec.hash().unwrap().to_string();
            case.claims.submods.cpu0.policy = hash;
        }
        let rows: Vec<(Change, R)> = vec![
            (
                |c| c.path.namespace = "other".to_owned(),
                R::IdentityMismatch,
            ),
            (
                |c| c.path.deployment = "other".to_owned(),
                R::IdentityMismatch,
            ),
            (|c| c.path.name = "../x".to_owned(), R::PathInvalid),
            (|c| c.observed.record = None, R::RecordMissing),
            (|c| record(c).status = None, R::RecordMissing),
            (
                |c| record(c).spec.pod_ref.uid = "other".to_owned(),
                R::RecordOfAnotherPod,
            ),
            (
                |c| record(c).status.as_mut().unwrap().verdict = Verdict::Rejected,
                R::RecordNotInForce,
            ),
            (|c| c.now += 3600.seconds(), R::RecordNotInForce),
            (
                |c| record(c).status.as_mut().unwrap().evidence.nonce = "newer".to_owned(),
                R::TokenSuperseded,
            ),
            (|c| c.observed.deployment = None, R::DeploymentMissing),
            (|c| c.observed.image = None, R::ImageMissing),
            (
                |c| {
                    let image = c.observed.image.as_mut().unwrap();
                    image.spec.lifecycle.state = LifecycleState::Revoked;
                },
                R::ImageRevoked,
            ),
            (
                |c| rows(c)[0].state = DigestState::Revoked,
                R::MeasurementRevoked,
            ),
            (
                |c| {
                    let mut revoked = rows(c)[0].clone();
                    revoked.state = DigestState::Revoked;
                    rows(c).push(revoked);
                },
                R::MeasurementRevoked,
            ),
            (|c| rows(c).clear(), R::MeasurementRevoked),
            (
                |c| record(c).status.as_mut().unwrap().measurement = None,
                R::MeasurementRevoked,
            ),
            (|c| c.observed.policy = None, R::PolicyMissing),
            (|c| policy(c).spec.snp.vmpls = vec![1], R::PolicyChanged),
            (
                |c| {
                    policy(c).spec.tees = vec![TeeType::Snp];
                    rehash(c);
                },
                R::TeeNotAllowed,
            ),
            (
                |c| c.claims.submods.cpu0.instance.simulated = false,
                R::TeeNotAllowed,
            ),
            (
                |c| {
                    policy(c).spec.release.clear();
                    rehash(c);
                },
                R::NotReleased,
            ),
            (
                |c| {
                    policy(c).spec.release[0].image_states = vec![LifecycleState::Deprecated];
                    rehash(c);
                },
                R::ImageStateNotReleased,
            ),
            (
                |c| c.observed.deployment.as_mut().unwrap().spec.secrets.clear(),
                R::ResourceUnknown,
            ),
        ];
        for (index, (change, refusal)) in rows.into_iter().enumerate() {
            let mut case = good();
            change(&mut case);
            assert_eq!(decide(&case), Err(refusal), "row {index}");
        }
    }

    #[test]
    fn the_value_of_a_simulated_class_secret_is_taken() {
        let reference = decide(&good()).unwrap();
        let stored = stored(fixtures::secret(), &reference.key);
        let value = decide_secret(&fixtures::claims(), Some(stored));
        assert_eq!(value.unwrap().as_slice(), fixtures::SECRET_VALUE);
    }

    #[test]
    fn class_key_and_size_are_checked() {
        let reference = decide(&good()).unwrap();
        let claims = fixtures::claims();
        let mut hardware = claims.clone();
        hardware.submods.cpu0.instance.simulated = false;

        let mut unlabelled = fixtures::secret();
        unlabelled.metadata.labels = None;
        let mut other_class = fixtures::secret();
        other_class.metadata.labels =
            Some([(RELEASE_CLASS_LABEL.to_owned(), "production".to_owned())].into());
        let mut other_key = fixtures::secret();
        other_key.data = Some([("other".to_owned(), ByteString(vec![1]))].into());
        let mut large = fixtures::secret();
        large.data = Some([(reference.key.clone(), ByteString(vec![0; MAX_VALUE + 1]))].into());

        let refused = |secret: Option<Secret>| {
            decide_secret(&claims, secret.map(|secret| stored(secret, &reference.key)))
                .and_then(check_size)
                .map(|_| ())
                .unwrap_err()
        };
        assert_eq!(refused(None), ReleaseRefusal::SecretMissing);
        assert_eq!(
            refused(Some(unlabelled.clone())),
            ReleaseRefusal::ReleaseClassMismatch
        );
        assert_eq!(
            refused(Some(other_class)),
            ReleaseRefusal::ReleaseClassMismatch
        );
        assert_eq!(refused(Some(other_key)), ReleaseRefusal::SecretKeyMissing);
        assert_eq!(refused(Some(large)), ReleaseRefusal::ValueTooLarge);
        let unlabelled = stored(unlabelled, &reference.key);
        assert!(decide_secret(&hardware, Some(unlabelled)).is_ok());
    }

    #[test]
    fn what_is_wrong_with_a_secret_is_told_with_its_remedy() {
        use ReleaseRefusal as R;
        let reference = decide(&good()).unwrap();
        let path = fixtures::resource_path();
        let location = locate(&path, &reference);
        for (refusal, outcome, words) in [
            (
                R::SecretMissing,
                ReleaseOutcome::SecretMissing,
                "Secret \"web-secrets\" does not exist in namespace shop; create it",
            ),
            (
                R::SecretKeyMissing,
                ReleaseOutcome::SecretKeyMissing,
                "Secret \"web-secrets\" in namespace shop has no key \"greeting\"; add it",
            ),
            (
                R::ReleaseClassMismatch,
                ReleaseOutcome::ReleaseClassMismatch,
                "in namespace shop lacks label assay.dev/release-class=simulated; add it",
            ),
            (
                R::ValueTooLarge,
                ReleaseOutcome::ValueTooLarge,
                "65536 bytes; shorten it",
            ),
        ] {
            let release = describe_release(&path, &location, Some(refusal)).unwrap();
            assert_eq!(release.name, "greeting");
            assert_eq!(release.outcome, outcome);
            assert_eq!(outcome.as_str(), refusal.reason());
            let message = release.message.unwrap();
            assert!(message.contains(words), "{message}");
        }
        let released = describe_release(&path, &location, None).unwrap();
        assert_eq!(released.outcome, ReleaseOutcome::Released);
        // What is wrong with the guest is not wrong with the Secret.
        assert_eq!(
            describe_release(&path, &location, Some(R::TokenSuperseded)),
            None
        );
    }
}
