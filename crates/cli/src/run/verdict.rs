//! What the verifier finds and the guest says, for the person who waits.

use std::collections::BTreeMap;
use std::time::Duration;

use assay_broker::directory::DirectoryInventory;
use assay_crds::v1alpha1::attestation_record::{
    AttestationRecordStatus, CheckResult, PodReference, ReleaseOutcome, Verdict,
};
use assay_crds::v1alpha1::{ConfidentialDeployment, TeeType};
use assay_supervisor::{Phase, Progress};
use tokio::sync::watch;

use super::say;

/// Time between looks at the record.
const INTERVAL: Duration = Duration::from_millis(250);

/// Why there is nothing left to wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// The guest is attested, has its secrets, and runs its workload.
    Attested,
    /// It will not come to that; in words.
    Refused(String),
}

/// Follows one guest's record and progress.
pub(super) struct Watcher {
    inventory: DirectoryInventory,
    namespace: String,
    pod: PodReference,
    secrets: Vec<String>,
    progress: watch::Receiver<Progress>,
    told: Told,
}

/// What was said already.
#[derive(Default)]
struct Told {
    phase: Phase,
    failure: Option<String>,
    verdict: Option<(Verdict, String)>,
    secrets: BTreeMap<String, ReleaseOutcome>,
}

impl Watcher {
    pub(super) fn new(
        inventory: DirectoryInventory,
        deployment: &ConfidentialDeployment,
        pod: PodReference,
        progress: watch::Receiver<Progress>,
    ) -> Self {
        let secrets = &deployment.spec.secrets;
        Self {
            inventory,
            namespace: deployment.metadata.namespace.clone().unwrap_or_default(),
            pod,
            secrets: secrets.iter().map(|secret| secret.name.clone()).collect(),
            progress,
            told: Told::default(),
        }
    }

    /// Tells what happens. Ends with the first decision if there is to be one, and
    /// else never.
    pub(super) async fn follow(&mut self, deciding: bool) -> Decision {
        loop {
            if let (Some(decision), true) = (self.look(), deciding) {
                return decision;
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                // Without a sender nothing changes any more, but the record may.
                Ok(()) = self.progress.changed() => {}
            }
        }
    }

    /// Tells what is new.
    pub(super) fn look(&mut self) -> Option<Decision> {
        let progress = self.progress.borrow_and_update().clone();
        self.told.progress(&progress);
        let records = self.inventory.records();
        let record = match records.read(&self.namespace, &self.pod.uid) {
            Ok(record) => record?,
            Err(error) => {
                let error = anyhow::Error::new(error);
                return Some(Decision::Refused(format!("{error:#}")));
            }
        };
        let status = record.status?;
        self.told.record(&status);
        decide(&status, &self.secrets, progress.running)
    }
}

impl Told {
    fn progress(&mut self, progress: &Progress) {
        if progress.phase != self.phase {
            self.phase = progress.phase;
            let text = match progress.phase {
                Phase::Starting | Phase::AttestationFailed => None,
                Phase::Booted => Some("booted; its agent runs"),
                Phase::Attested => Some("its evidence was accepted"),
                Phase::Running => Some("its workload runs"),
                Phase::Exited => Some("has ended"),
                Phase::Failed => Some("its agent gave up"),
            };
            if let Some(text) = text {
                say("guest", text);
            }
        }
        if let Some(failure) = &progress.attestation_failure
            && self.failure.as_ref() != Some(failure)
        {
            // Debug form: a guest's text cannot forge lines of this output.
            say("guest", format_args!("attestation failed: {failure:?}"));
            self.failure = Some(failure.clone());
        }
    }

    fn record(&mut self, status: &AttestationRecordStatus) {
        let verdict = (status.verdict, status.reason.clone());
        if self.verdict.as_ref() != Some(&verdict) {
            for line in verdict_lines(status) {
                say("verdict", line);
            }
            self.verdict = Some(verdict);
        }
        for secret in &status.secrets {
            if self.secrets.insert(secret.name.clone(), secret.outcome) != Some(secret.outcome) {
                let message = secret.message.as_deref();
                let message = message.map_or_else(String::new, |message| format!(": {message}"));
                let outcome = secret.outcome.as_str();
                say("secret", format_args!("{} {outcome}{message}", secret.name));
            }
        }
    }
}

/// The verdict, and of a rejection every check that failed.
fn verdict_lines(status: &AttestationRecordStatus) -> Vec<String> {
    let protects = match status.tee {
        TeeType::SimulatedSnp => "SIMULATED: protects nothing",
        TeeType::Snp => "AMD SEV-SNP",
    };
    if status.verdict == Verdict::Accepted {
        let passed = status.checks.iter();
        let passed = passed.filter(|check| check.result == CheckResult::Pass);
        return vec![
            format!("ACCEPTED ({protects}), checks passed: {}", passed.count()),
            format!(
                "  launch digest {}",
                status.measurement.as_deref().unwrap_or("unknown")
            ),
        ];
    }
    let mut lines = vec![format!("REJECTED: {} ({protects})", status.reason)];
    let failed = status.checks.iter();
    for check in failed.filter(|check| check.result == CheckResult::Fail) {
        let reason = check.reason.as_deref().unwrap_or("no reason given");
        lines.push(format!("  {} failed: {reason}", check.name));
        for (what, value) in [("expected", &check.expected), ("observed", &check.observed)] {
            lines.extend(value.as_ref().map(|value| format!("    {what} {value}")));
        }
    }
    let diagnosis = status.diagnosis.as_ref();
    lines.extend(diagnosis.map(|diagnosis| format!("  diagnosis: {}", diagnosis.message)));
    lines
}

/// What is decided by a record, as far as the guest is.
fn decide(status: &AttestationRecordStatus, wanted: &[String], running: bool) -> Option<Decision> {
    if status.verdict == Verdict::Rejected {
        return Some(Decision::Refused(format!(
            "the guest's evidence was rejected: {}",
            status.reason
        )));
    }
    let outcome = |name: &String| {
        let secret = status.secrets.iter().find(|secret| secret.name == *name);
        secret.map(|secret| secret.outcome)
    };
    for name in wanted {
        match outcome(name) {
            Some(ReleaseOutcome::Released) => {}
            None => return None,
            Some(other) => {
                return Some(Decision::Refused(format!(
                    "the guest was attested, and secret {name} was not released to it: {}",
                    other.as_str()
                )));
            }
        }
    }
    running.then_some(Decision::Attested)
}

#[cfg(test)]
mod tests {
    use assay_crds::v1alpha1::attestation_record::{
        CheckStatus, Diagnosis, EvidenceStatus, SecretRelease,
    };
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn status(verdict: Verdict) -> AttestationRecordStatus {
        let check = |name: &str, result| CheckStatus {
            name: name.to_owned(),
            result,
            reason: None,
            expected: None,
            observed: None,
        };
        AttestationRecordStatus {
            verdict,
            reason: "Accepted".to_owned(),
            tee: TeeType::SimulatedSnp,
            trust_domain: "Simulated".to_owned(),
            measurement: Some("sha384:09".to_owned()),
            reference_value: None,
            policy_hash: String::new(),
            verified_at: Time(Timestamp::UNIX_EPOCH),
            expires_at: None,
            checks: vec![
                check("Nonce", CheckResult::Pass),
                check("Revocation", CheckResult::NotApplicable),
            ],
            diagnosis: None,
            evidence: EvidenceStatus::default(),
            endorsements: None,
            history: Vec::new(),
            used_nonces: Vec::new(),
            secrets: Vec::new(),
            conditions: Vec::new(),
        }
    }

    #[test]
    fn an_acceptance_says_what_it_protects() {
        assert_eq!(
            verdict_lines(&status(Verdict::Accepted)),
            [
                "ACCEPTED (SIMULATED: protects nothing), checks passed: 1",
                "  launch digest sha384:09"
            ]
        );
    }

    #[test]
    fn a_rejection_names_every_check_that_failed() {
        let mut rejected = status(Verdict::Rejected);
        rejected.reason = "LaunchDigestUnknown".to_owned();
        rejected.checks.push(CheckStatus {
            name: "Measurement".to_owned(),
            result: CheckResult::Fail,
            reason: Some("LaunchDigestUnknown".to_owned()),
            expected: Some("sha384:01".to_owned()),
            observed: Some("sha384:09".to_owned()),
        });
        rejected.diagnosis = Some(Diagnosis {
            type_: "Other".to_owned(),
            message: "the kernel differs".to_owned(),
        });
        assert_eq!(
            verdict_lines(&rejected),
            [
                "REJECTED: LaunchDigestUnknown (SIMULATED: protects nothing)",
                "  Measurement failed: LaunchDigestUnknown",
                "    expected sha384:01",
                "    observed sha384:09",
                "  diagnosis: the kernel differs",
            ]
        );
        let decision = decide(&rejected, &[], true);
        let Some(Decision::Refused(why)) = decision else {
            panic!("{decision:?}")
        };
        assert!(why.ends_with("LaunchDigestUnknown"), "{why}");
    }

    #[test]
    fn attested_is_who_has_its_secrets_and_runs() {
        let wanted = ["password".to_owned()];
        let mut accepted = status(Verdict::Accepted);
        assert_eq!(decide(&accepted, &[], false), None);
        assert_eq!(decide(&accepted, &[], true), Some(Decision::Attested));
        assert_eq!(decide(&accepted, &wanted, true), None);
        let mut with = |outcome| {
            accepted.secrets = vec![SecretRelease {
                name: "password".to_owned(),
                outcome,
                message: None,
            }];
            decide(&accepted, &wanted, true)
        };
        assert_eq!(with(ReleaseOutcome::Released), Some(Decision::Attested));
        let refused = with(ReleaseOutcome::ReleaseClassMismatch);
        let Some(Decision::Refused(why)) = refused else {
            panic!("{refused:?}")
        };
        assert!(why.contains("password") && why.contains("ReleaseClassMismatch"));
    }
}
