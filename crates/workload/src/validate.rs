//! Whether a deployment can be launched. A user's mistakes and what is missing
//! are values, each with the field and the remedy.

use std::collections::BTreeSet;
use std::sync::Arc;

use assay_crds::v1alpha1::confidential_deployment::{
    ConfidentialDeploymentReason as Reason, SimulatedFault,
};
use assay_crds::v1alpha1::measured_image::{DigestState, LifecycleState};
use assay_crds::v1alpha1::{
    AttestationPolicy, BootMethod, ConfidentialDeployment, MeasuredImage, TeeType,
};
use assay_image::igvm::min_memory;
use assay_launcher::plan::MIN_MEMORY_MIB;
use assay_launcher::spec::{ArtifactFiles, FileRef, RootDisk};
use assay_tee::cpu::CpuModel;
use assay_tee::instance::VerifierEndpoint;
use assay_tee::{GuestFeatures, LaunchDigest, LaunchShape, Sha256Digest, VcpuCount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::simulation::SimulationPki;

/// Name of the launcher's own port, which no workload may take.
pub const STATUS_PORT_NAME: &str = "assay-status";
/// Longest name: it becomes a label's value and the name of a Service.
const MAX_NAME_LEN: usize = 63;
const MIB: u64 = 1 << 20;
/// Most memory of a guest: 1 TiB. It catches `512G` typed as `512T`.
const MAX_MEMORY_MIB: u64 = 1 << 20;

/// What there is besides a deployment.
#[derive(Debug, Clone, Default)]
pub struct Surroundings<'a> {
    /// The image that the deployment names.
    pub image: Option<&'a MeasuredImage>,
    /// Why that image, which is there, does not decode.
    pub image_error: Option<&'a str>,
    /// The policy that the deployment names.
    pub policy: Option<&'a AttestationPolicy>,
    /// Why that policy, which is there, does not decode.
    pub policy_error: Option<&'a str>,
    /// How guests reach the broker.
    pub verifier: Option<VerifierEndpoint>,
    /// Namespace of the installation.
    pub installation: &'a str,
    /// The development PKI, where simulation is enabled.
    pub simulation: Option<Arc<SimulationPki>>,
}

/// A deployment that can be launched: everything that the plan needs, parsed.
#[derive(Debug, Clone)]
pub struct Valid {
    /// What the launch digest depends on besides bytes.
    pub shape: LaunchShape,
    /// Guest memory.
    pub memory_mib: u32,
    /// Reference of the artifact's image, by digest.
    pub artifact_reference: String,
    /// The artifact's files.
    pub artifact: ArtifactFiles,
    /// The digest that guests must have.
    pub expected_digest: LaunchDigest,
    /// Bytes of the artifact's UKI.
    pub uki_bytes: u64,
    /// Hash of the policy.
    pub policy_hash: Sha256Digest,
    /// Seconds between attestations.
    pub attestation_interval_seconds: u32,
    /// The broker that guests attest to.
    pub verifier: VerifierEndpoint,
    /// What a simulated launch needs; present exactly when the TEE is simulated.
    pub simulation: Option<Arc<SimulationPki>>,
    /// Secret with registry credentials, of a private artifact.
    pub pull_secret: Option<String>,
}

/// Why nothing is launched, or nothing new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The cause.
    pub reason: Reason,
    /// What to do about it, with the field.
    pub message: String,
    /// Whether only a change of the specification or of the installation helps.
    pub stalled: bool,
}

fn reject<T>(reason: Reason, message: impl Into<String>) -> Result<T, Rejection> {
    let stalled = !matches!(
        reason,
        Reason::ImageMissing
            | Reason::ImageNotReady
            | Reason::PolicyMissing
            | Reason::BrokerNotReady
    );
    Err(Rejection {
        reason,
        message: message.into(),
        stalled,
    })
}

/// Checks a deployment against itself, its image, its policy and the
/// installation.
///
/// # Errors
/// The first thing that is wrong; mistakes in the specification itself first.
pub fn validate(
    deployment: &ConfidentialDeployment,
    surroundings: &Surroundings<'_>,
) -> Result<Valid, Rejection> {
    let spec = &deployment.spec;
    check_names(deployment)?;
    let memory_mib = memory(&spec.machine.memory)?;
    let shape = shape(deployment)?;

    let Some(policy) = surroundings.policy else {
        let name = &spec.policy_ref.name;
        return match surroundings.policy_error {
            Some(error) => reject(
                Reason::PolicyInvalid,
                format!(
                    "AttestationPolicy {name} cannot be read: {error}; correct it or change \
                     spec.policyRef"
                ),
            ),
            None => reject(
                Reason::PolicyMissing,
                format!(
                    "AttestationPolicy {name} does not exist: create it or change spec.policyRef"
                ),
            ),
        };
    };
    if !policy.spec.tees.contains(&spec.machine.tee) {
        return reject(
            Reason::TeeNotAllowed,
            format!(
                "AttestationPolicy {} does not name {} in spec.tees: change it or \
                 spec.machine.tee",
                spec.policy_ref.name, shape.tee
            ),
        );
    }
    let simulation = match spec.machine.tee {
        TeeType::Snp => None,
        TeeType::SimulatedSnp => match &surroundings.simulation {
            Some(simulation) => Some(simulation.clone()),
            None => {
                return reject(
                    Reason::SimulationDisabled,
                    "spec.machine.tee is SimulatedSNP, which this installation refuses; install \
                     with simulation enabled, or use SNP",
                );
            }
        },
    };
    check_release(deployment, policy)?;
    let Ok(policy_hash) = policy.spec.hash() else {
        return reject(
            Reason::SpecInvalid,
            "the AttestationPolicy has no canonical form",
        );
    };

    let Some(image) = surroundings.image else {
        let name = &spec.image_ref.name;
        return match surroundings.image_error {
            Some(error) => reject(
                Reason::ImageInvalid,
                format!(
                    "MeasuredImage {name} cannot be read: {error}; correct it or change \
                     spec.imageRef"
                ),
            ),
            None => reject(
                Reason::ImageMissing,
                format!("MeasuredImage {name} does not exist: create it or change spec.imageRef"),
            ),
        };
    };
    if image.spec.lifecycle.state == LifecycleState::Revoked {
        return reject(
            Reason::ImageRevoked,
            format!(
                "MeasuredImage {} is revoked ({}): change spec.imageRef",
                spec.image_ref.name,
                image
                    .spec
                    .lifecycle
                    .reason
                    .as_deref()
                    .unwrap_or("no reason given")
            ),
        );
    }
    let not_ready = |why: &str| {
        reject(
            Reason::ImageNotReady,
            format!("MeasuredImage {}: {why}", spec.image_ref.name),
        )
    };
    let Some((status, artifact)) = image
        .status
        .as_ref()
        .and_then(|status| Some((status, status.artifact.as_ref()?)))
    else {
        return not_ready("the artifact is not ready yet");
    };
    let Ok(uki_bytes) = u64::try_from(artifact.uki.size_bytes) else {
        return not_ready("its status holds a negative size of the UKI");
    };
    check_igvm_memory(deployment, memory_mib, uki_bytes)?;
    let features = format!("{:#x}", shape.guest_features.0);
    let row = status.launch_digests.iter().find(|row| {
        row.vcpus == shape.vcpus.get()
            && row.cpu_model == shape.cpu_model
            && row.guest_features == features
            && row.tee == spec.machine.tee
            && row.boot == spec.machine.boot
    });
    let Some(row) = row.filter(|row| row.state == DigestState::Accepted) else {
        return not_ready("no launch digest is accepted for this machine yet");
    };
    let (Ok(expected_digest), Some(artifact_files)) = (row.digest.parse(), files(artifact)) else {
        return not_ready("its status holds a malformed digest");
    };

    let Some(verifier) = surroundings.verifier.clone() else {
        return reject(
            Reason::BrokerNotReady,
            format!(
                "the broker's Service or certificate authority is not there yet in namespace {}",
                surroundings.installation
            ),
        );
    };
    let pull_secret = image.spec.pull_secret().map(|secret| secret.name.clone());
    Ok(Valid {
        shape,
        memory_mib,
        artifact_reference: artifact.reference.clone(),
        artifact: artifact_files,
        expected_digest,
        uki_bytes,
        policy_hash,
        attestation_interval_seconds: policy.spec.freshness.interval.as_secs(),
        verifier,
        simulation,
        pull_secret,
    })
}

fn invalid<T>(message: impl Into<String>) -> Result<T, Rejection> {
    reject(Reason::SpecInvalid, message)
}

fn check_names(deployment: &ConfidentialDeployment) -> Result<(), Rejection> {
    let spec = &deployment.spec;
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    if name.len() > MAX_NAME_LEN || !is_dns_label(name) {
        return invalid(format!(
            "metadata.name {name:?} must be at most {MAX_NAME_LEN} characters of a-z, 0-9 and -, \
             and start with a letter: it becomes a label and the name of a Service; create the \
             ConfidentialDeployment under another name"
        ));
    }
    if spec.image_ref.name.len() > MAX_NAME_LEN {
        return invalid(format!(
            "spec.imageRef.name is longer than {MAX_NAME_LEN} characters, but it becomes a \
             label: use a MeasuredImage with a shorter name"
        ));
    }
    let mut seen = BTreeSet::new();
    for port in &spec.ports {
        if port.name == STATUS_PORT_NAME {
            return invalid(format!(
                "spec.ports: the name {STATUS_PORT_NAME} is the launcher's own; choose another"
            ));
        }
        if !seen.insert(port.container_port) {
            return invalid(format!(
                "spec.ports: containerPort {} occurs twice; remove one",
                port.container_port
            ));
        }
    }
    let known = |name: &str| spec.ports.iter().any(|port| port.name == name);
    let mut numbers = BTreeSet::new();
    for port in spec.service.iter().flat_map(|service| &service.ports) {
        if !known(&port.name) {
            return invalid(format!(
                "spec.service.ports: {} is no entry of spec.ports; add it there",
                port.name
            ));
        }
        if !numbers.insert(port.port) {
            return invalid(format!(
                "spec.service.ports: port {} occurs twice; remove one",
                port.port
            ));
        }
    }
    if let Some(readiness) = &spec.readiness
        && !known(&readiness.http_get.port)
    {
        return invalid(format!(
            "spec.readiness.httpGet.port: {} is no entry of spec.ports; add it there",
            readiness.http_get.port
        ));
    }
    let mut paths: BTreeSet<&str> = BTreeSet::new();
    for secret in &spec.secrets {
        let path = secret.target.path.as_str();
        let below = |dir: &str, path: &str| {
            path.strip_prefix(dir)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if paths
            .iter()
            .any(|other| below(other, path) || below(path, other))
        {
            return invalid(format!(
                "spec.secrets[{}].target.path: {path} collides with another secret's path; \
                 choose another",
                secret.name
            ));
        }
        paths.insert(path);
    }
    Ok(())
}

fn check_release(
    deployment: &ConfidentialDeployment,
    policy: &AttestationPolicy,
) -> Result<(), Rejection> {
    let released = |name: &str| policy.spec.release.iter().any(|rule| rule.resource == name);
    match deployment
        .spec
        .secrets
        .iter()
        .find(|secret| !released(&secret.name))
    {
        None => Ok(()),
        Some(secret) => invalid(format!(
            "spec.secrets[{}]: AttestationPolicy {} has no release rule for it, so no guest would \
             get it; add one, or remove the secret",
            secret.name, deployment.spec.policy_ref.name
        )),
    }
}

fn is_dns_label(name: &str) -> bool {
    let edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_lowercase())
        && name.bytes().next_back().is_some_and(edge)
        && name.bytes().all(|byte| edge(byte) || byte == b'-')
}

fn shape(deployment: &ConfidentialDeployment) -> Result<LaunchShape, Rejection> {
    let machine = &deployment.spec.machine;
    let vcpus = match VcpuCount::try_from(machine.vcpus) {
        Ok(vcpus) => vcpus,
        Err(error) => return invalid(format!("spec.machine.vcpus: {error}")),
    };
    let fault = machine.simulation.as_ref().and_then(|s| s.fault);
    if machine.boot == BootMethod::Igvm && fault == Some(SimulatedFault::TamperedKernel) {
        return invalid(
            "spec.machine.simulation.fault: TamperedKernel is about the hashes table, which a \
             guest with boot IGVM has none of; say TamperedKernelRehashed",
        );
    }
    if let Err(error) = CpuModel::by_name(&machine.cpu_model) {
        return invalid(format!("spec.machine.cpuModel: {error}"));
    }
    Ok(LaunchShape {
        tee: machine.tee.into(),
        boot: machine.boot.into(),
        vcpus,
        cpu_model: machine.cpu_model.clone(),
        guest_features: GuestFeatures::default(),
    })
}

/// A guest with too little memory for its IGVM file would hang without a word.
fn check_igvm_memory(
    deployment: &ConfidentialDeployment,
    memory_mib: u32,
    uki_bytes: u64,
) -> Result<(), Rejection> {
    let least = min_memory(uki_bytes).div_ceil(MIB);
    if deployment.spec.machine.boot != BootMethod::Igvm || u64::from(memory_mib) >= least {
        return Ok(());
    }
    invalid(format!(
        "spec.machine.memory: {} is too little for boot IGVM, which has the image's UKI of {} MiB \
         in guest memory from 512 MiB on: give at least {least}Mi, or use boot DirectKernel",
        deployment.spec.machine.memory.0,
        uki_bytes.div_ceil(MIB),
    ))
}

fn memory(quantity: &Quantity) -> Result<u32, Rejection> {
    let text = quantity.0.as_str();
    let Some(bytes) = bytes_of(text) else {
        return invalid(format!(
            "spec.machine.memory: {text:?} is not an amount such as 512Mi or 2Gi"
        ));
    };
    if bytes % MIB != 0 {
        return invalid(format!(
            "spec.machine.memory: {text} is not a whole number of MiB; write it with Mi or Gi"
        ));
    }
    let mib = bytes / MIB;
    match u32::try_from(mib) {
        Ok(mib) if mib >= MIN_MEMORY_MIB && u64::from(mib) <= MAX_MEMORY_MIB => Ok(mib),
        _ => invalid(format!(
            "spec.machine.memory: {text} must be between {MIN_MEMORY_MIB}Mi and {}Gi",
            MAX_MEMORY_MIB / 1024
        )),
    }
}

/// The bytes of a Kubernetes quantity, where it is one without a sign, exponent or fraction:
/// an amount of memory needs none of them.
pub fn bytes_of(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at_checked(digits)?;
    let unit: u64 = match suffix {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

fn files(artifact: &assay_crds::v1alpha1::measured_image::ArtifactStatus) -> Option<ArtifactFiles> {
    let file = |file: &assay_crds::v1alpha1::measured_image::ArtifactFile| {
        Some(FileRef {
            path: file.path.clone(),
            sha256: file.sha256.parse().ok()?,
        })
    };
    Some(ArtifactFiles {
        uki: file(&artifact.uki)?,
        firmware: file(&artifact.firmware)?,
        root_disk: artifact.root_disk.as_ref().map(|disk| RootDisk {
            path: disk.path.clone(),
            serial: disk.serial.clone(),
        }),
    })
}
