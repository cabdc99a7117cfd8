//! Which of the objects the guest is made of, checked as in a cluster.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use assay_crds::v1alpha1::{AttestationPolicy, ConfidentialDeployment, MeasuredImage};
use assay_tee::instance::VerifierEndpoint;
use assay_workload::simulation::SimulationPki;
use assay_workload::validate::{Rejection, Surroundings, Valid, validate};

use super::{Args, say};
use crate::objects::{Objects, choose, full_name};

/// The objects that matter.
pub(super) struct Chosen {
    pub(super) deployment: ConfidentialDeployment,
    pub(super) image: MeasuredImage,
    pub(super) policy: AttestationPolicy,
}

impl Chosen {
    pub(super) fn find(args: &Args, objects: &Objects) -> Result<Self> {
        let kind = "ConfidentialDeployment";
        let name = args.deployment.as_deref();
        let deployment = choose(kind, &objects.deployments, "--deployment", name)?;
        let full = full_name(&deployment.metadata);
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let referenced = |field: &str, name: &str| {
            let text = format!("{kind} {full}: {field}");
            (format!("{namespace}/{name}"), text)
        };
        let (image, field) = referenced("spec.imageRef", &deployment.spec.image_ref.name);
        let image = choose("MeasuredImage", &objects.images, "", Some(&image)).context(field)?;
        let (policy, field) = referenced("spec.policyRef", &deployment.spec.policy_ref.name);
        let policy =
            choose("AttestationPolicy", &objects.policies, "", Some(&policy)).context(field)?;
        say(
            "objects",
            format_args!(
                "{kind} {full}, MeasuredImage {}, AttestationPolicy {}",
                deployment.spec.image_ref.name, deployment.spec.policy_ref.name
            ),
        );
        if !objects.left_out.is_empty() {
            let left_out: Vec<&str> = objects.left_out.iter().map(String::as_str).collect();
            say(
                "",
                format_args!("of no meaning here: {}", left_out.join(", ")),
            );
        }
        Ok(Self {
            deployment: deployment.clone(),
            image: image.clone(),
            policy: policy.clone(),
        })
    }

    /// Checks the deployment as the operator does.
    pub(super) fn validate(
        &self,
        simulation: Option<Arc<SimulationPki>>,
        verifier: Option<VerifierEndpoint>,
    ) -> Result<Valid, Rejection> {
        let surroundings = Surroundings {
            image: Some(&self.image),
            policy: Some(&self.policy),
            verifier,
            simulation,
            ..Surroundings::default()
        };
        validate(&self.deployment, &surroundings)
    }

    /// Finds a person's mistakes before anything is built.
    pub(super) fn check(&self, simulation: Option<Arc<SimulationPki>>) -> Result<()> {
        match self.validate(simulation, None) {
            Err(why) if why.stalled => Err(self.refusal(&why)),
            // What is not there yet comes later.
            _ => Ok(()),
        }
    }

    pub(super) fn refusal(&self, why: &Rejection) -> anyhow::Error {
        let name = full_name(&self.deployment.metadata);
        let reason = why.reason.as_str();
        anyhow!("ConfidentialDeployment {name}: {reason}: {}", why.message)
    }
}
