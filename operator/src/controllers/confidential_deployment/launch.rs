//! The launch specification of a deployment, and the ConfigMap that carries it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use assay_crds::names;
use assay_crds::v1alpha1::ConfidentialDeployment;
use assay_crds::v1alpha1::confidential_deployment::{ConsoleMode, SimulatedFault};
use assay_launcher::spec::{
    Console, Fault, InstanceTemplate, LAUNCH_SPEC_KEY, LaunchSpec, PortForward, Simulation,
};
use assay_tee::canonical::encode_canonical;
use assay_tee::instance::{ResourceRequest, VerifierEndpoint};
use assay_tee::{GuestPolicy, Sha256Digest};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;

use super::observe::{Broker, Observed};
use super::validate::Valid;
use crate::manifest::child_metadata;

/// Hexadecimal digits of a revision: 40 bits tell the revisions of one
/// deployment apart.
const REVISION_LEN: usize = 10;

/// The launch specification of one revision.
pub(super) struct Launch {
    /// Digest of the specification, abbreviated.
    pub(super) revision: String,
    /// The ConfigMap that carries it.
    pub(super) config_map: ConfigMap,
}

pub(super) fn build_launch(
    deployment: &ConfidentialDeployment,
    valid: &Valid,
    observed: &Observed,
) -> Launch {
    let spec = build_spec(deployment, valid, &observed.installation.namespace);
    // A LaunchSpec has string keys only, so it always has a canonical form.
    let document = encode_canonical(&spec).unwrap_or_default();
    let digest = Sha256Digest::of(&document).to_hex();
    let revision = digest.get(..REVISION_LEN).unwrap_or_default().to_owned();
    let document = String::from_utf8(document).unwrap_or_default();
    let name = deployment.name_any();
    let labels = [
        (names::DEPLOYMENT_LABEL, name.as_str()),
        (names::IMAGE_LABEL, deployment.spec.image_ref.name.as_str()),
        (names::REVISION_LABEL, revision.as_str()),
    ];
    let config_map = ConfigMap {
        metadata: child_metadata(deployment, format!("{name}-launch-{revision}"), &labels),
        data: Some(BTreeMap::from([(LAUNCH_SPEC_KEY.to_owned(), document)])),
        immutable: Some(true),
        ..ConfigMap::default()
    };
    Launch {
        revision,
        config_map,
    }
}

fn build_spec(
    deployment: &ConfidentialDeployment,
    valid: &Valid,
    installation: &str,
) -> LaunchSpec {
    let spec = &deployment.spec;
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
                pod: port.container_port,
                guest: port.container_port,
            })
            .collect(),
        console: match spec.console.mode {
            ConsoleMode::None => Console::None,
            ConsoleMode::Full => Console::Full,
        },
        instance: InstanceTemplate {
            namespace: deployment.namespace().unwrap_or_default(),
            deployment: deployment.name_any(),
            policy_hash: valid.policy_hash,
            verifier: verifier(&valid.broker, installation),
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

fn verifier(broker: &Broker, installation: &str) -> VerifierEndpoint {
    let port = names::BROKER_PORT;
    let address = match broker.cluster_ip.parse() {
        Ok(IpAddr::V6(address)) => format!("[{address}]:{port}"),
        _ => format!("{}:{port}", broker.cluster_ip),
    };
    VerifierEndpoint {
        url: format!("https://{}.{installation}.svc:{port}", names::BROKER),
        addresses: vec![address],
        ca: broker.ca.clone(),
    }
}
