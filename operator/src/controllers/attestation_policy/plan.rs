//! The status of a policy.

use assay_crds::v1alpha1::attestation_policy::AttestationPolicyReason as Reason;
use assay_crds::v1alpha1::{AttestationPolicy, AttestationPolicyStatus, TeeType};
use jiff::Timestamp;

use super::observe::Observed;
use crate::controllers::{own_conditions, same_conditions, state};
use crate::plan::{Plan, Requeue, Severity, transitions};

pub(super) fn plan(
    policy: &AttestationPolicy,
    observed: &Observed,
    now: Timestamp,
) -> Plan<AttestationPolicyStatus> {
    let simulated = policy.spec.tees.contains(&TeeType::SimulatedSnp);
    let ready = if simulated && !observed.simulation {
        state(
            "Ready",
            false,
            Reason::SimulationDisabled.as_str(),
            "spec.tees names SimulatedSNP, which this installation refuses; remove it, or \
             install with simulation enabled",
        )
    } else if simulated {
        state(
            "Ready",
            true,
            Reason::InForce.as_str(),
            "in force; it accepts simulated guests, which nothing protects",
        )
    } else {
        state("Ready", true, Reason::InForce.as_str(), "in force")
    };
    let before = policy
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice());
    let before = before.unwrap_or_default();
    let conditions = own_conditions(before, &[ready], policy.metadata.generation, now);
    Plan {
        writes: Vec::new(),
        deletes: Vec::new(),
        events: transitions(before, &conditions, &["Ready"], |ready| {
            if ready.status == "True" {
                Severity::Quiet
            } else {
                Severity::Warning
            }
        }),
        status: AttestationPolicyStatus {
            observed_generation: policy.metadata.generation,
            policy_hash: policy.spec.hash().ok().map(|hash| hash.to_string()),
            bound_deployments: i32::try_from(observed.bound).unwrap_or(i32::MAX),
            conditions,
        },
        requeue: Requeue::Resync,
        waiting_on: None,
    }
}

/// Whether the policy has this status already.
pub(super) fn is_current(policy: &AttestationPolicy, next: &AttestationPolicyStatus) -> bool {
    policy.status.as_ref().is_some_and(|status| {
        same_conditions(&status.conditions, &next.conditions)
            && AttestationPolicyStatus {
                conditions: Vec::new(),
                ..status.clone()
            } == AttestationPolicyStatus {
                conditions: Vec::new(),
                ..next.clone()
            }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    fn reason(plan: &Plan<AttestationPolicyStatus>) -> (&str, &str) {
        let ready = &plan.status.conditions[0];
        (ready.status.as_str(), ready.reason.as_str())
    }

    #[test]
    fn simulation_needs_the_installation_s_consent() {
        let now = Timestamp::UNIX_EPOCH;
        let mut policy = fixtures::policy();
        let allowed = Observed {
            bound: 2,
            simulation: true,
        };
        let refused = Observed {
            bound: 2,
            simulation: false,
        };
        assert_eq!(reason(&plan(&policy, &allowed, now)), ("True", "InForce"));
        let plan_refused = plan(&policy, &refused, now);
        assert_eq!(reason(&plan_refused), ("False", "SimulationDisabled"));
        assert_eq!(plan_refused.events.len(), 1);
        policy.spec.tees = vec![TeeType::Snp];
        assert_eq!(reason(&plan(&policy, &refused, now)), ("True", "InForce"));
    }

    #[test]
    fn a_status_that_is_there_is_not_written_again() {
        let observed = Observed {
            bound: 2,
            simulation: true,
        };
        let mut policy = fixtures::policy();
        let first = plan(&policy, &observed, Timestamp::UNIX_EPOCH);
        assert!(!is_current(&policy, &first.status));
        policy.status = Some(first.status);
        let later = Timestamp::from_second(3_600).unwrap();
        let second = plan(&policy, &observed, later);
        assert!(is_current(&policy, &second.status));
        assert!(second.events.is_empty());
        let other = plan(
            &policy,
            &Observed {
                bound: 3,
                simulation: true,
            },
            later,
        );
        assert!(!is_current(&policy, &other.status));
    }
}
