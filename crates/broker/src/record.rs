//! What an appraisal makes of the pod's AttestationRecord.

use std::collections::BTreeMap;

use assay_crds::conditions::{ConditionState, merge};
use assay_crds::names::{DEPLOYMENT_LABEL, IMAGE_LABEL};
use assay_crds::v1alpha1::attestation_record::{
    AttestationRecordStatus, HistoryEntry, ReleaseOutcome, SecretRelease, UsedNonce, Verdict,
};
use assay_crds::v1alpha1::confidential_deployment::SecretMount;
use assay_crds::v1alpha1::{AttestationRecord, AttestationRecordSpec};
use assay_protocol::broker::IssuedNonce;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};

use crate::appraisal::{Appraisal, issued_at, supersedes};

/// Earlier verdicts that a record keeps.
const MAX_HISTORY: usize = 10;
/// Used nonces that a record keeps: the newest. One that is older than all of
/// them counts as used, so that forgetting lets none through; a guest would
/// have to attest this often within a second to be held up by it.
const MAX_USED_NONCES: usize = 16;

/// Time for which a record is kept on account of the challenges in it, which live
/// for five minutes.
const NONCE_MEMORY: SignedDuration = SignedDuration::from_mins(10);

/// Why an appraisal is not recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotRecorded {
    /// The nonce was answered already, at whichever replica.
    #[error("the nonce was used already")]
    Replayed,
    /// A newer appraisal of the pod is recorded.
    #[error("a newer appraisal of the pod is recorded")]
    Older,
    /// Nobody says that the pod exists, and nothing shows that the evidence came
    /// from a guest at all: noise must not fill the disk.
    #[error("evidence that is not authentic, of a pod that nobody knows, is not recorded")]
    Unwitnessed,
    /// The pod has an acceptance in force, and nothing shows that the rejected
    /// evidence came from its guest. Anyone who can reach the broker could
    /// otherwise take a pod out of its Services by sending noise in its name.
    #[error("rejected evidence that is not authentic does not displace an acceptance")]
    NotAuthentic,
}

/// The record after `appraisal`, given the one before.
///
/// # Errors
/// When the record must stay as it is.
pub fn plan_record(
    namespace: &str,
    appraisal: &Appraisal,
    existing: Option<&AttestationRecord>,
) -> Result<AttestationRecord, NotRecorded> {
    if !appraisal.witnessed && !appraisal.authentic {
        return Err(NotRecorded::Unwitnessed);
    }
    // A record of an earlier pod of the same name says nothing about this one.
    let predecessor = existing
        .filter(|record| record.spec.pod_ref.uid == appraisal.spec.pod_ref.uid)
        .and_then(|record| record.status.as_ref());
    if let Some(status) = predecessor {
        check_displaces(appraisal, status)?;
    }
    let mut record = AttestationRecord::new(&appraisal.spec.pod_ref.name, appraisal.spec.clone());
    record.metadata.namespace = Some(namespace.to_owned());
    record.metadata.labels = Some(BTreeMap::from([
        (
            DEPLOYMENT_LABEL.to_owned(),
            appraisal.spec.deployment_ref.name.clone(),
        ),
        (
            IMAGE_LABEL.to_owned(),
            appraisal.spec.image_ref.name.clone(),
        ),
    ]));
    record.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Pod".to_owned(),
        name: appraisal.spec.pod_ref.name.clone(),
        uid: appraisal.spec.pod_ref.uid.clone(),
        controller: Some(false),
        block_owner_deletion: Some(false),
    }]);
    let mut status = appraisal.status.clone();
    status.history = predecessor.map(history).unwrap_or_default();
    let used = predecessor.map_or(&[][..], |status| &status.used_nonces);
    status.used_nonces = used_nonces(appraisal, used);
    status.secrets = predecessor.map_or_else(Vec::new, |status| status.secrets.clone());
    let ready = ConditionState {
        type_: "Ready",
        status: appraisal.is_accepted().into(),
        reason: if appraisal.is_accepted() {
            "Accepted"
        } else {
            "Rejected"
        },
        message: match &status.diagnosis {
            Some(diagnosis) => format!("{}: {}", status.reason, diagnosis.message),
            None => status.reason.clone(),
        },
    };
    let before = predecessor.map_or(&[][..], |status| &status.conditions);
    let generation = generation(&record.spec, existing);
    status.conditions = merge(before, &[ready], generation, status.verified_at.0);
    record.status = Some(status);
    Ok(record)
}

fn check_displaces(
    appraisal: &Appraisal,
    existing: &AttestationRecordStatus,
) -> Result<(), NotRecorded> {
    let now = appraisal.status.verified_at.0;
    if is_used(&appraisal.nonce, &existing.used_nonces) {
        return Err(NotRecorded::Replayed);
    }
    if existing.verified_at.0 > now {
        return Err(NotRecorded::Older);
    }
    // The acceptance was not there yet when the evidence was appraised.
    if appraisal.authentic && supersedes(existing, &appraisal.nonce) {
        return Err(NotRecorded::Older);
    }
    if !appraisal.is_accepted() && !appraisal.authentic && is_in_force(existing, now) {
        return Err(NotRecorded::NotAuthentic);
    }
    Ok(())
}

/// Whether a record's acceptance holds at `now`.
pub fn is_in_force(status: &AttestationRecordStatus, now: Timestamp) -> bool {
    status.verdict == Verdict::Accepted
        && status
            .expires_at
            .as_ref()
            .is_some_and(|expiry| now < expiry.0)
}

/// From when on a record is of no use to any decision: its verdict is over, and so
/// are the challenges that it remembers.
pub fn spent_at(status: &AttestationRecordStatus) -> Timestamp {
    let over = status.expires_at.as_ref().map(|expiry| expiry.0);
    // Other replicas' clocks may be behind.
    let remembered = status.verified_at.0.checked_add(NONCE_MEMORY);
    let remembered = remembered.unwrap_or(Timestamp::MAX);
    over.map_or(remembered, |over| over.max(remembered))
}

/// The record after a request for one of the deployment's `secrets`; nothing
/// when it says so already, or is of another pod by now.
pub fn plan_release(
    existing: &AttestationRecord,
    pod_uid: &str,
    secrets: &[SecretMount],
    release: &SecretRelease,
    now: Timestamp,
) -> Option<AttestationRecord> {
    if existing.spec.pod_ref.uid != pod_uid {
        return None;
    }
    let before = existing.status.as_ref()?;
    let latest = |secret: &SecretMount| {
        std::iter::once(release)
            .chain(&before.secrets)
            .find(|release| release.name == secret.name)
            .cloned()
    };
    let mut status = before.clone();
    status.secrets = secrets.iter().filter_map(latest).collect();
    let state = secrets_released(&status.secrets, secrets.len());
    let generation = existing.metadata.generation;
    status.conditions = merge(&before.conditions, &[state], generation, now);
    (status != *before).then(|| AttestationRecord {
        status: Some(status),
        ..existing.clone()
    })
}

fn secrets_released(releases: &[SecretRelease], wanted: usize) -> ConditionState {
    let state = |holds: bool, reason, message| ConditionState {
        type_: "SecretsReleased",
        status: holds.into(),
        reason,
        message,
    };
    let released = ReleaseOutcome::Released;
    if let Some(refused) = releases.iter().find(|release| release.outcome != released) {
        let remedy = refused.message.as_deref().unwrap_or_default();
        let message = format!("secrets[{}].secretRef: {remedy}", refused.name);
        return state(false, refused.outcome.as_str(), message);
    }
    let message = format!("{} of {wanted} secrets are released", releases.len());
    if releases.len() < wanted {
        state(false, "AwaitingRelease", message)
    } else {
        state(true, released.as_str(), message)
    }
}

/// The generation of the record once it is written: the API server counts
/// specifications.
fn generation(spec: &AttestationRecordSpec, existing: Option<&AttestationRecord>) -> Option<i64> {
    match existing {
        None => Some(1),
        Some(existing) if existing.spec == *spec => existing.metadata.generation,
        Some(existing) => existing.metadata.generation.map(|before| before + 1),
    }
}

/// The nonces that are used once `appraisal` is recorded, newest first. Only
/// authentic evidence uses one: noise must not make a record forget.
fn used_nonces(appraisal: &Appraisal, before: &[UsedNonce]) -> Vec<UsedNonce> {
    let nonce = appraisal.authentic.then(|| UsedNonce {
        id: BASE64_STANDARD.encode(appraisal.nonce.id),
        issued_at: Time(issued_at(&appraisal.nonce)),
    });
    let mut used: Vec<UsedNonce> = nonce.into_iter().chain(before.iter().cloned()).collect();
    used.sort_by_key(|nonce| std::cmp::Reverse(nonce.issued_at.0));
    used.truncate(MAX_USED_NONCES);
    used
}

/// Whether `nonce` is among `used`, or may have been and is forgotten.
fn is_used(nonce: &IssuedNonce, used: &[UsedNonce]) -> bool {
    let id = BASE64_STANDARD.encode(nonce.id);
    let forgotten = |oldest: &UsedNonce| issued_at(nonce) <= oldest.issued_at.0;
    used.iter().any(|used| used.id == id) || used.get(MAX_USED_NONCES - 1).is_some_and(forgotten)
}

fn history(status: &AttestationRecordStatus) -> Vec<HistoryEntry> {
    let latest = HistoryEntry {
        verified_at: status.verified_at.clone(),
        verdict: status.verdict,
        reason: status.reason.clone(),
    };
    std::iter::once(latest)
        .chain(status.history.iter().cloned())
        .take(MAX_HISTORY)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use jiff::ToSpan as _;

    fn appraisal() -> Appraisal {
        fixtures::accepted()
    }

    fn rejected(authentic: bool) -> Appraisal {
        let mut appraisal = appraisal();
        appraisal.status.verdict = Verdict::Rejected;
        appraisal.status.reason = "MeasurementUnknown".to_owned();
        appraisal.status.expires_at = None;
        appraisal.authentic = authentic;
        appraisal
    }

    /// An appraisal of the answer to another nonce.
    fn later(mut appraisal: Appraisal, seconds: u8) -> Appraisal {
        appraisal.status.verified_at.0 += i64::from(seconds).seconds();
        appraisal.nonce.id[0] += seconds;
        appraisal.nonce.issued_at += u64::from(seconds);
        appraisal
    }

    #[test]
    fn a_first_record_is_owned_by_the_pod() {
        let record = plan_record(fixtures::NAMESPACE, &appraisal(), None).unwrap();
        let owner = &record.metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!(owner.uid, fixtures::POD_UID);
        assert_eq!(owner.controller, Some(false));
        assert_eq!(owner.block_owner_deletion, Some(false));
        let status = record.status.unwrap();
        assert_eq!(status.history, []);
        assert_eq!(status.conditions[0].status, "True");
        assert_eq!(status.conditions[0].observed_generation, Some(1));
    }

    #[test]
    fn conditions_are_of_the_generation_that_is_written() {
        let mut record = plan_record(fixtures::NAMESPACE, &appraisal(), None).unwrap();
        record.metadata.generation = Some(4);
        let observed = |appraisal: &Appraisal| {
            let record = plan_record(fixtures::NAMESPACE, appraisal, Some(&record)).unwrap();
            record.status.unwrap().conditions[0].observed_generation
        };
        let mut next = later(appraisal(), 1);
        assert_eq!(observed(&next), Some(4));
        next.spec.image_ref.name = "web-2".to_owned();
        assert_eq!(observed(&next), Some(5));
    }

    /// Whatever came of it the first time, and whatever would come of it now.
    #[test]
    fn a_nonce_is_answered_once() {
        for first in [appraisal(), rejected(true)] {
            let record = plan_record(fixtures::NAMESPACE, &first, None).unwrap();
            for again in [appraisal(), rejected(true), rejected(false)] {
                for seconds in [0, 400] {
                    let mut again = again.clone();
                    again.status.verified_at.0 += seconds.seconds();
                    let plan = plan_record(fixtures::NAMESPACE, &again, Some(&record));
                    assert_eq!(plan, Err(NotRecorded::Replayed));
                }
            }
            let other = later(appraisal(), 1);
            assert!(plan_record(fixtures::NAMESPACE, &other, Some(&record)).is_ok());
        }
    }

    #[test]
    fn a_nonce_that_was_forgotten_is_answered_no_more() {
        let mut record = plan_record(fixtures::NAMESPACE, &rejected(true), None).unwrap();
        for round in 1..=40 {
            let next = later(rejected(true), round);
            record = plan_record(fixtures::NAMESPACE, &next, Some(&record)).unwrap();
            for earlier in 0..=round {
                let mut replay = later(rejected(true), earlier);
                replay.status.verified_at = next.status.verified_at.clone();
                let plan = plan_record(fixtures::NAMESPACE, &replay, Some(&record));
                assert_eq!(plan, Err(NotRecorded::Replayed), "{earlier} of {round}");
            }
        }
        assert_eq!(record.status.unwrap().used_nonces.len(), MAX_USED_NONCES);
    }

    /// Or else noise would free the nonces of the guest that it is in the way of.
    #[test]
    fn noise_uses_no_nonce() {
        let mut record = plan_record(fixtures::NAMESPACE, &rejected(true), None).unwrap();
        for round in 1..=40 {
            let noise = later(rejected(false), round);
            record = plan_record(fixtures::NAMESPACE, &noise, Some(&record)).unwrap();
        }
        let mut replay = later(rejected(true), 0);
        replay.status.verified_at.0 += 41.seconds();
        let plan = plan_record(fixtures::NAMESPACE, &replay, Some(&record));
        assert_eq!(plan, Err(NotRecorded::Replayed));
    }

    /// Two appraisals in one second: the acceptance that was written meanwhile
    /// answers a nonce that is newer.
    #[test]
    fn an_overtaken_session_is_over() {
        let accepted = plan_record(fixtures::NAMESPACE, &later(appraisal(), 2), None).unwrap();
        let mut overtaken = later(appraisal(), 1);
        overtaken.status.verified_at.0 += 1.seconds();
        let plan = plan_record(fixtures::NAMESPACE, &overtaken, Some(&accepted));
        assert_eq!(plan, Err(NotRecorded::Older));
    }

    fn release(name: &str, outcome: ReleaseOutcome) -> SecretRelease {
        let message = (outcome != ReleaseOutcome::Released).then(|| "create it".to_owned());
        SecretRelease {
            name: name.to_owned(),
            outcome,
            message,
        }
    }

    #[test]
    fn releases_are_kept_until_the_next_request() {
        use ReleaseOutcome::{Released, SecretMissing};
        let mut secrets = fixtures::deployment().spec.secrets;
        secrets.push(SecretMount {
            name: "token".to_owned(),
            ..secrets[0].clone()
        });
        let mut record = plan_record(fixtures::NAMESPACE, &appraisal(), None).unwrap();
        let mut round = 0;
        let mut check = |name, outcome, status, reason, message| {
            round += 1;
            let release = release(name, outcome);
            let plan = |record: &AttestationRecord| {
                let now = fixtures::now();
                plan_release(record, fixtures::POD_UID, &secrets, &release, now)
            };
            record = plan(&record).unwrap();
            assert_eq!(plan(&record), None, "no news");
            // Attesting again says nothing about secrets.
            let next = later(appraisal(), round);
            record = plan_record(fixtures::NAMESPACE, &next, Some(&record)).unwrap();
            let conditions = &record.status.as_ref().unwrap().conditions;
            let [ready, released] = &conditions[..] else {
                panic!("{conditions:?}")
            };
            assert_eq!(ready.type_, "Ready");
            assert_eq!(released.type_, "SecretsReleased");
            assert_eq!(released.status, status);
            assert_eq!(released.reason, reason);
            assert_eq!(released.message, message);
        };
        let missing = "secrets[token].secretRef: create it";
        let (one, two) = ("1 of 2 secrets are released", "2 of 2 secrets are released");
        check("greeting", Released, "False", "AwaitingRelease", one);
        check("token", SecretMissing, "False", "SecretMissing", missing);
        check("token", Released, "True", "Released", two);

        let status = record.status.clone().unwrap();
        assert_eq!(status.secrets.len(), 2);
        let other = release("greeting", SecretMissing);
        let plan = plan_release(&record, "other", &secrets, &other, fixtures::now());
        assert_eq!(plan, None, "a request of an earlier pod");
        // What the deployment no longer names is forgotten.
        let one = &secrets[..1];
        let record = plan_release(&record, fixtures::POD_UID, one, &other, fixtures::now());
        assert_eq!(record.unwrap().status.unwrap().secrets, [other]);
    }

    #[test]
    fn noise_about_a_pod_that_nobody_knows_is_not_recorded() {
        for (witnessed, authentic, recorded) in [
            (true, false, true),
            (false, true, true),
            (false, false, false),
        ] {
            let mut appraisal = rejected(authentic);
            appraisal.witnessed = witnessed;
            let plan = plan_record(fixtures::NAMESPACE, &appraisal, None);
            assert_eq!(plan.is_ok(), recorded, "{witnessed} {authentic}");
        }
    }

    #[test]
    fn history_is_newest_first_and_bounded() {
        let mut record = plan_record(fixtures::NAMESPACE, &appraisal(), None).unwrap();
        for round in 1..=15 {
            let next = later(rejected(true), round);
            record = plan_record(fixtures::NAMESPACE, &next, Some(&record)).unwrap();
        }
        let history = record.status.unwrap().history;
        assert_eq!(history.len(), MAX_HISTORY);
        assert!(
            history
                .windows(2)
                .all(|pair| pair[0].verified_at > pair[1].verified_at)
        );
    }

    #[test]
    fn an_older_appraisal_does_not_overwrite() {
        let newer = plan_record(fixtures::NAMESPACE, &later(appraisal(), 1), None).unwrap();
        let plan = plan_record(fixtures::NAMESPACE, &appraisal(), Some(&newer));
        assert_eq!(plan, Err(NotRecorded::Older));
    }

    #[test]
    fn noise_does_not_displace_an_acceptance() {
        let accepted = plan_record(fixtures::NAMESPACE, &appraisal(), None).unwrap();
        let noise = later(rejected(false), 1);
        assert_eq!(
            plan_record(fixtures::NAMESPACE, &noise, Some(&accepted)),
            Err(NotRecorded::NotAuthentic)
        );
        let genuine = later(rejected(true), 1);
        let record = plan_record(fixtures::NAMESPACE, &genuine, Some(&accepted)).unwrap();
        assert_eq!(record.status.unwrap().verdict, Verdict::Rejected);
        // Once the acceptance is over, the rejection explains what is wrong.
        let mut late = later(rejected(false), 1);
        late.status.verified_at.0 += 1_000_000.seconds();
        assert!(plan_record(fixtures::NAMESPACE, &late, Some(&accepted)).is_ok());
    }

    #[test]
    fn a_record_of_another_pod_is_replaced_without_its_history() {
        let mut other = later(appraisal(), 100);
        other.spec.pod_ref.uid = "earlier".to_owned();
        let existing = plan_record(fixtures::NAMESPACE, &other, None).unwrap();
        let record = plan_record(fixtures::NAMESPACE, &rejected(false), Some(&existing)).unwrap();
        assert_eq!(record.status.unwrap().history, []);
    }
}
