//! Good objects for tests; a test changes one thing.

use std::sync::Arc;

use assay_crds::duration::Duration;
use assay_crds::names;
use assay_crds::v1alpha1::attestation_policy::{
    AttestationPolicySpec, CrlMode, CrlRules, DenyList, Freshness, GuestPolicyRules, IdBlockRules,
    MinimumTcb, PlatformRules, Product, ProductPolicy, ReleaseRule, Requirement, SigningKeyRule,
    SigningKeyType, SnpPolicy, TcbKind,
};
use assay_crds::v1alpha1::attestation_record::{
    AttestationRecordSpec, AttestationRecordStatus, CheckResult, CheckStatus, EvidenceStatus,
    PodReference, Verdict,
};
use assay_crds::v1alpha1::confidential_deployment::{
    ConfidentialDeploymentSpec, ConsoleSpec, HttpGet, Machine, Port, Readiness, Scheduling,
    SecretKeyReference, SecretMount, SecretTarget, ServicePortSpec, ServiceSpec,
};
use assay_crds::v1alpha1::measured_image::{
    ArtifactFile, ArtifactStatus, BuildOutput, BuildSource, Compression, DigestState, Hardening,
    ImageByDigest, ImageSource, LaunchDigestRow, LaunchShapes, Layout, Lifecycle, LifecycleState,
    OciSource, RootDiskStatus, SourceType, UkiFiles,
};
use assay_crds::v1alpha1::{
    AttestationPolicy, AttestationRecord, BootMethod, ConfidentialDeployment, LocalReference,
    MeasuredImage, MeasuredImageSpec, MeasuredImageStatus, TeeType,
};
use assay_image::igvm::{EncodeIgvmError, MeasureSelfContainedError};
use assay_measure::{FirmwareInputs, MeasurementInputs};
use assay_tee::hashes_table::KernelHashes;
use assay_tee::ovmf::{Section, SectionKind};
use assay_tee::{LaunchDigest, Sha256Digest};
use assay_workload::artifact::MeasuredArtifact;
use assay_workload::simulation::SimulationPki;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::ObjectMeta;

pub(crate) const NAMESPACE: &str = "team-a";
pub(crate) const REFERENCE: &str = "registry.test/measured/web@sha256:dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd";

/// Seconds after the epoch.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

pub(crate) fn metadata(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(NAMESPACE.to_owned()),
        uid: Some(format!("uid-of-{name}")),
        generation: Some(1),
        ..ObjectMeta::default()
    }
}

fn local(name: &str) -> LocalReference {
    LocalReference {
        name: name.to_owned(),
    }
}

fn digest(byte: u8) -> String {
    Sha256Digest::new([byte; 32]).to_string()
}

pub(crate) fn artifact_status() -> ArtifactStatus {
    let file = |path: &str, byte| ArtifactFile {
        path: path.to_owned(),
        sha256: digest(byte),
        size_bytes: 4096,
    };
    ArtifactStatus {
        reference: REFERENCE.to_owned(),
        uki: file("uki.efi", 0x11),
        firmware: file("firmware.fd", 0x22),
        root_disk: Some(RootDiskStatus {
            path: "rootfs.img".to_owned(),
            sha256: digest(0x33),
            size_bytes: 8192,
            serial: "assay-root".to_owned(),
            verity_root_hash: digest(0x44),
        }),
    }
}

pub(crate) fn measurement_inputs() -> MeasurementInputs {
    MeasurementInputs {
        firmware: FirmwareInputs {
            base_gpa: 0xffc0_0000,
            digest: LaunchDigest::new([7; 48]),
            sections: vec![Section {
                gpa: 0x81_0000,
                size: 0x1000,
                kind: SectionKind::KernelHashes,
            }],
            reset_eip: Some(0x80_b004),
            hashes_table_gpa: Some(0x81_0c00),
        },
        kernel_hashes: Some(KernelHashes::from_bytes(b"uki", None, "")),
        cmdline: None,
        igvm_digest: None,
    }
}

pub(crate) fn measured_artifact() -> Arc<MeasuredArtifact> {
    Arc::new(MeasuredArtifact::new(
        artifact_status(),
        measurement_inputs(),
        Some(MeasureSelfContainedError::Encode(
            EncodeIgvmError::NoHobArea,
        )),
    ))
}

pub(crate) fn row() -> LaunchDigestRow {
    LaunchDigestRow {
        id: "ovmf-222222222222.EPYC-v4.2.0x1.SimulatedSNP".to_owned(),
        firmware: "ovmf-222222222222".to_owned(),
        cpu_model: "EPYC-v4".to_owned(),
        vcpus: 2,
        guest_features: "0x1".to_owned(),
        tee: TeeType::SimulatedSnp,
        boot: BootMethod::DirectKernel,
        digest: LaunchDigest::new([9; 48]).to_string(),
        state: DigestState::Accepted,
    }
}

pub(crate) fn build_source() -> BuildSource {
    let image = |name: &str, byte| ImageByDigest {
        image: format!("registry.test/{name}@{}", digest(byte)),
    };
    BuildSource {
        rootfs: image("web", 0xaa),
        boot_kit: image("boot-kit", 0xbb),
        layout: Layout::DmVerity,
        compression: Compression::None,
        extra_cmdline: None,
        uki: UkiFiles::default(),
        hardening: Hardening::default(),
        git: None,
        verify_rebuild: false,
        output: BuildOutput {
            repository: "registry.test/measured/web".to_owned(),
            secret_ref: None,
        },
    }
}

/// A MeasuredImage that is built and has no status yet.
pub(crate) fn new_image() -> MeasuredImage {
    MeasuredImage {
        metadata: metadata("web-1"),
        spec: MeasuredImageSpec {
            source: ImageSource {
                type_: SourceType::Build,
                build: Some(build_source()),
                oci: None,
            },
            pull_secret_ref: None,
            build_job: None,
            shapes: LaunchShapes::default(),
            lifecycle: Lifecycle::default(),
        },
        status: None,
    }
}

/// A MeasuredImage that is pulled and has no status yet.
pub(crate) fn new_oci_image() -> MeasuredImage {
    let mut image = new_image();
    image.spec.source = ImageSource {
        type_: SourceType::Oci,
        build: None,
        oci: Some(OciSource {
            reference: REFERENCE.to_owned(),
        }),
    };
    image
}

/// A MeasuredImage with an accepted digest for [`deployment`].
pub(crate) fn image() -> MeasuredImage {
    MeasuredImage {
        status: Some(MeasuredImageStatus {
            artifact: Some(artifact_status()),
            launch_digests: vec![row()],
            ..MeasuredImageStatus::default()
        }),
        ..new_image()
    }
}

pub(crate) fn policy() -> AttestationPolicy {
    AttestationPolicy {
        metadata: metadata("demo"),
        spec: AttestationPolicySpec {
            tees: vec![TeeType::Snp, TeeType::SimulatedSnp],
            snp: SnpPolicy {
                products: vec![ProductPolicy {
                    name: Product::Genoa,
                    minimum_tcb: MinimumTcb {
                        boot_loader: 10,
                        tee: 0,
                        snp: 25,
                        microcode: 84,
                        fmc: None,
                    },
                    minimum_firmware: None,
                    mitigations: Vec::new(),
                    minimum_crl_number: None,
                }],
                tcb_against: vec![TcbKind::Reported],
                signing_keys: vec![SigningKeyRule {
                    type_: SigningKeyType::Vcek,
                    providers: None,
                }],
                allowed_chips: None,
                denied: DenyList::default(),
                vmpls: vec![0],
                guest_policy: GuestPolicyRules::default(),
                platform: PlatformRules {
                    alias_check: Requirement::Any,
                    ..PlatformRules::default()
                },
                id_block: IdBlockRules::default(),
                crl: CrlRules {
                    mode: CrlMode::NotRequired,
                    grace: None,
                },
            },
            freshness: Freshness {
                interval: Duration::from_secs(600),
                max_age: Duration::from_secs(1800),
            },
            release: vec![ReleaseRule {
                resource: "password".to_owned(),
                image_states: vec![LifecycleState::Active],
            }],
        },
        status: None,
    }
}

pub(crate) fn deployment() -> ConfidentialDeployment {
    ConfidentialDeployment {
        metadata: metadata("web"),
        spec: ConfidentialDeploymentSpec {
            replicas: Some(2),
            image_ref: local("web-1"),
            policy_ref: local("demo"),
            machine: Machine {
                vcpus: 2,
                memory: Quantity("512Mi".to_owned()),
                cpu_model: "EPYC-v4".to_owned(),
                tee: TeeType::SimulatedSnp,
                boot: BootMethod::DirectKernel,
                simulation: None,
            },
            ports: vec![Port {
                name: "http".to_owned(),
                container_port: 8080,
            }],
            service: Some(ServiceSpec {
                ports: vec![ServicePortSpec {
                    name: "http".to_owned(),
                    port: 80,
                }],
            }),
            readiness: Some(Readiness {
                http_get: HttpGet {
                    path: "/".to_owned(),
                    port: "http".to_owned(),
                },
            }),
            secrets: vec![SecretMount {
                name: "password".to_owned(),
                secret_ref: SecretKeyReference {
                    name: "web-password".to_owned(),
                    key: "value".to_owned(),
                },
                target: SecretTarget {
                    path: "/run/secrets/password".to_owned(),
                },
            }],
            console: ConsoleSpec::default(),
            scheduling: Scheduling::default(),
        },
        status: None,
    }
}

pub(crate) fn simulation() -> Arc<SimulationPki> {
    Arc::new(SimulationPki {
        vcek_key: "vcek key".to_owned(),
        vcek_chain: "vcek, ask, ark".to_owned(),
        ark: "ark".to_owned(),
    })
}

pub(crate) fn pod() -> Pod {
    let mut metadata = metadata("web-abc");
    metadata.labels = Some([(names::DEPLOYMENT_LABEL.to_owned(), "web".to_owned())].into());
    Pod {
        metadata,
        status: Some(PodStatus {
            phase: Some("Running".to_owned()),
            ..PodStatus::default()
        }),
        ..Pod::default()
    }
}

/// [`pod`] with a condition of the gate.
pub(crate) fn pod_with_gate(status: &str, reason: &str, message: &str, since: Timestamp) -> Pod {
    let mut pod = pod();
    pod.status.as_mut().unwrap().conditions = Some(vec![PodCondition {
        type_: names::ATTESTED_GATE.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(Time(since)),
        ..PodCondition::default()
    }]);
    pod
}

/// An accepted record of [`pod`], made at 1,000 s and good until 2,800 s.
pub(crate) fn record() -> AttestationRecord {
    AttestationRecord {
        metadata: metadata("web-abc"),
        spec: AttestationRecordSpec {
            pod_ref: PodReference {
                name: "web-abc".to_owned(),
                uid: "uid-of-web-abc".to_owned(),
            },
            node_name: "node-1".to_owned(),
            deployment_ref: local("web"),
            image_ref: local("web-1"),
            policy_ref: local("demo"),
        },
        status: Some(AttestationRecordStatus {
            verdict: Verdict::Accepted,
            reason: "Accepted".to_owned(),
            tee: TeeType::SimulatedSnp,
            trust_domain: "Simulated".to_owned(),
            measurement: Some(row().digest),
            reference_value: Some(row().id),
            policy_hash: policy().spec.hash().unwrap().to_string(),
            verified_at: Time(at(1_000)),
            expires_at: Some(Time(at(2_800))),
            checks: vec![CheckStatus {
                name: "Measurement".to_owned(),
                result: CheckResult::Pass,
                reason: None,
                expected: None,
                observed: None,
            }],
            diagnosis: None,
            evidence: EvidenceStatus::default(),
            endorsements: None,
            history: Vec::new(),
            used_nonces: Vec::new(),
            secrets: Vec::new(),
            conditions: Vec::new(),
        }),
    }
}
