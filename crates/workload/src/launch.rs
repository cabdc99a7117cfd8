//! The launch specification of a deployment.

use assay_crds::v1alpha1::ConfidentialDeployment;
use assay_crds::v1alpha1::confidential_deployment::{ConsoleMode, SimulatedFault};
use assay_launcher::spec::{Console, Fault, InstanceTemplate, LaunchSpec, PortForward, Simulation};
use assay_tee::GuestPolicy;
use assay_tee::instance::ResourceRequest;

use crate::validate::Valid;

/// The launch specification of a deployment that was found to be valid.
pub fn build_spec(deployment: &ConfidentialDeployment, valid: &Valid) -> LaunchSpec {
    let (metadata, spec) = (&deployment.metadata, &deployment.spec);
    let fault = spec
        .machine
        .simulation
        .as_ref()
        .and_then(|simulation| simulation.fault);
    LaunchSpec {
        version: LaunchSpec::VERSION,
        shape: valid.shape.clone(),
        guest_policy: GuestPolicy::default(),
        memory_mib: valid.memory_mib,
        artifact: valid.artifact.clone(),
        expected_digest: valid.expected_digest,
        ports: spec
            .ports
            .iter()
            .map(|port| PortForward {
                address: None,
                pod: port.container_port,
                guest: port.container_port,
            })
            .collect(),
        console: match spec.console.mode {
            ConsoleMode::None => Console::None,
            ConsoleMode::Full => Console::Full,
        },
        instance: InstanceTemplate {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            deployment: metadata.name.clone().unwrap_or_default(),
            policy_hash: valid.policy_hash,
            verifier: valid.verifier.clone(),
            resources: spec
                .secrets
                .iter()
                .map(|secret| ResourceRequest {
                    name: secret.name.clone(),
                    path: secret.target.path.clone(),
                })
                .collect(),
            attestation_interval_seconds: valid.attestation_interval_seconds,
        },
        simulation: valid.simulation.as_ref().map(|pki| Simulation {
            vcek_key: pki.vcek_key.clone(),
            vcek_chain: pki.vcek_chain.clone(),
            fault: fault.map(|fault| match fault {
                SimulatedFault::TamperedKernel => Fault::TamperedKernel,
                SimulatedFault::TamperedKernelRehashed => Fault::TamperedKernelRehashed,
            }),
        }),
    }
}
