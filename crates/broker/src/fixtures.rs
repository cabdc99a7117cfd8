//! A good world for tests: a guest with real evidence of a simulated processor,
//! and the cluster's objects that make it acceptable. Tests change one thing.

use std::sync::{Arc, OnceLock};

use assay_attest::policy::DenyList;
use assay_attest::{Endorsements, TrustAnchors};
use assay_crds::names::{DEPLOYMENT_LABEL, IMAGE_LABEL, RELEASE_CLASS_LABEL};
use assay_crds::v1alpha1::{
    AttestationPolicy, AttestationRecord, ConfidentialDeployment, MeasuredImage,
};
use assay_measure::VcpuProfile;
use assay_measure::vcpus::SaveAreas;
use assay_protocol::broker::{IssuedNonce, NonceIssuer, Profile};
use assay_protocol::guest::{ChallengedSession, GuestSession, HttpResponse};
use assay_protocol::messages::{Challenge, SESSION_COOKIE, SnpEvidence};
use assay_psp_sim::{Authority, Endorsement, KeyTemplate, Processor};
use assay_tee::cpu::CpuModel;
use assay_tee::guest_message::{CertificateTable, ReportRequest, ReportResponse};
use assay_tee::instance::{Network, PodIdentity, ResourceRequest, VerifierEndpoint};
use assay_tee::page_info::{PAGE_SIZE, PageType};
use assay_tee::vmsa::{KVM_VMSA_GPA, Vmm};
use assay_tee::{
    AttestationReport, GuestFeatures, GuestPolicy, InstanceData, LaunchDigest, Product, TcbVersion,
};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, Secret};
use rcgen::KeyPair;
use serde_json::json;
use zerocopy::IntoBytes as _;

use crate::appraisal::{Appraisal, Decision, Observed, VerifierIdentity, decide_attestation};
use crate::identity::{Lineage, Witness};
use crate::record::plan_record;
use crate::release::{ReleaseObserved, ResourcePath};
use crate::submission::Submission;
use crate::token::{Claims, TokenKey};

pub(crate) const NAMESPACE: &str = "shop";
pub(crate) const DEPLOYMENT: &str = "web";
pub(crate) const IMAGE: &str = "web-1";
pub(crate) const POD: &str = "web-6d5f-abcde";
pub(crate) const POD_UID: &str = "7e2c6bcb-3c53-4f8c-9b5e-0a4f6d1d2c3b";
pub(crate) const NODE: &str = "node-1";
pub(crate) const CA: &str = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
pub(crate) const SESSION: &str = "0123456789abcdef0123456789abcdef";
pub(crate) const SECRET_VALUE: &[u8] = b"correct horse battery staple";

pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

pub(crate) fn now_seconds() -> u64 {
    u64::try_from(now().as_second()).unwrap()
}

/// RSA keys take seconds to make: one authority serves every test.
pub(crate) fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| {
        let not_before = Timestamp::from_second(1_700_000_000).unwrap();
        Authority::generate(Product::Genoa, not_before).unwrap()
    })
}

/// The TCB of the one chip.
pub(crate) fn tcb() -> TcbVersion {
    TcbVersion {
        fmc: None,
        bootloader: 9,
        tee: 0,
        snp: 23,
        microcode: 72,
    }
}

pub(crate) fn endorsement() -> &'static Endorsement {
    static ENDORSEMENT: OnceLock<Endorsement> = OnceLock::new();
    ENDORSEMENT.get_or_init(|| {
        let template = KeyTemplate::vcek(Product::Genoa, "chip", tcb());
        authority().issue_vcek(&template).unwrap()
    })
}

pub(crate) fn verifier() -> VerifierIdentity {
    let anchors = TrustAnchors::with_simulated(endorsement().chain().anchor());
    VerifierIdentity {
        ca: CA.to_owned(),
        anchors,
        denied: DenyList::default(),
        chains: Arc::default(),
    }
}

pub(crate) fn instance() -> InstanceData {
    InstanceData {
        version: InstanceData::VERSION,
        namespace: NAMESPACE.to_owned(),
        deployment: DEPLOYMENT.to_owned(),
        pod: PodIdentity {
            name: POD.to_owned(),
            uid: POD_UID.to_owned(),
        },
        node: NODE.to_owned(),
        policy_hash: policy().spec.hash().unwrap(),
        verifier: VerifierEndpoint {
            url: "https://assay-broker.assay-system.svc:8443".to_owned(),
            addresses: vec!["10.96.0.20:8443".to_owned()],
            ca: CA.to_owned(),
        },
        network: Network {
            address: "10.0.2.15/24".to_owned(),
            gateway: "10.0.2.2".to_owned(),
            nameservers: vec![],
            hostname: "web".to_owned(),
        },
        resources: vec![ResourceRequest {
            name: "greeting".to_owned(),
            path: "/run/secrets/greeting".to_owned(),
        }],
        attestation_interval_seconds: 600,
    }
}

/// A guest whose first page is filled with `fill`, launched with `instance`.
pub(crate) fn launch(fill: u8, instance: &InstanceData) -> assay_psp_sim::Guest {
    let processor = Processor::new(endorsement().clone()).unwrap();
    let mut launching = processor.launch_start(GuestPolicy::default()).unwrap();
    launching
        .launch_update(PageType::Normal, 0, &[fill; PAGE_SIZE])
        .unwrap();
    launching
        .launch_finish(InstanceData::host_data(&instance.encode().unwrap()))
        .unwrap()
}

/// A guest whose firmware is one page filled with `fill`, started as QEMU would
/// start `vcpus` virtual CPUs: the launch of [`measurement_inputs`].
pub(crate) fn launch_measured(
    fill: u8,
    vcpus: u32,
    instance: &InstanceData,
) -> assay_psp_sim::Guest {
    let processor = Processor::new(endorsement().clone()).unwrap();
    let mut launching = processor.launch_start(GuestPolicy::default()).unwrap();
    let mut update = |page_type, gpa, page: &[u8]| {
        launching.launch_update(page_type, gpa, page).unwrap();
    };
    update(PageType::Normal, 0, &[fill; PAGE_SIZE]);
    update(PageType::Zero, 0x80_0000, &[0; PAGE_SIZE]);
    let profile = VcpuProfile {
        vmm: Vmm::Qemu,
        cpu_signature: CpuModel::by_name("EPYC-v4").unwrap().signature(),
        guest_features: GuestFeatures::default(),
    };
    let areas = SaveAreas::snp(&profile, Some(0x80_b004));
    for index in 0..vcpus {
        let area = areas.get(index).unwrap().as_bytes();
        update(PageType::Vmsa, KVM_VMSA_GPA, area);
    }
    launching
        .launch_finish(InstanceData::host_data(&instance.encode().unwrap()))
        .unwrap()
}

/// What an image publishes whose guests are those of [`launch_measured`].
pub(crate) fn measurement_inputs(fill: u8) -> serde_json::Value {
    json!({
        "firmware": {
            "baseGpa": 0xffff_f000_u32,
            "digest": launch(fill, &instance()).launch_digest(),
            "sections": [{ "gpa": 0x80_0000, "size": 0x1000, "kind": 1 }],
            "resetEip": 0x80_b004,
        },
    })
}

/// An image that publishes [`measurement_inputs`] and nothing else.
pub(crate) fn measured_image(name: &str, fill: u8) -> MeasuredImage {
    let mut image = image();
    image.metadata.name = Some(name.to_owned());
    let status = json!({ "measurementInputs": measurement_inputs(fill) });
    image.status = Some(serde_json::from_value(status).unwrap());
    image
}

pub(crate) fn digest() -> LaunchDigest {
    launch(1, &instance()).launch_digest()
}

/// What the guest's agent does between challenge and token.
pub(crate) fn evidence(guest: &assay_psp_sim::Guest, report_data: [u8; 64]) -> SnpEvidence {
    let request = ReportRequest::new(report_data, 0).encode();
    let response = guest.extended_guest_request(&request).unwrap();
    let response = ReportResponse::parse(&response).unwrap();
    SnpEvidence {
        report: response.report.to_vec(),
        certificates: response.certificates.encode().unwrap(),
    }
}

pub(crate) fn response<T: serde::Serialize>(cookie: &str, body: &T) -> HttpResponse {
    HttpResponse {
        status: 200,
        headers: vec![(
            "set-cookie".to_owned(),
            format!("{SESSION_COOKIE}={cookie}"),
        )],
        body: serde_json::to_vec(body).unwrap(),
    }
}

/// Evidence in the JSON of Confidential Containers' attester.
pub(crate) fn coco_evidence(evidence: &SnpEvidence) -> serde_json::Value {
    let report = AttestationReport::read_layout(&evidence.report).unwrap();
    let tcb = |bytes| {
        let tcb = TcbVersion::parse(Product::Genoa, bytes).unwrap();
        json!({
            "fmc": tcb.fmc, "bootloader": tcb.bootloader, "tee": tcb.tee, "snp": tcb.snp,
            "microcode": tcb.microcode,
        })
    };
    let version = |major, minor, build| json!({"major": major, "minor": minor, "build": build});
    let table = CertificateTable::parse(&evidence.certificates).unwrap();
    let certificates = table
        .0
        .iter()
        .map(|entry| json!({ "cert_type": format!("{:?}", entry.guid), "data": entry.der }));
    json!({
        "attestation_report": {
            "version": report.version.get(),
            "guest_svn": report.guest_svn.get(),
            "policy": report.policy.get(),
            "family_id": report.family_id,
            "image_id": report.image_id,
            "vmpl": report.vmpl.get(),
            "sig_algo": report.signature_algo.get(),
            "current_tcb": tcb(report.current_tcb),
            "plat_info": report.platform_info.get(),
            "key_info": report.key_info.get(),
            "report_data": report.report_data.to_vec(),
            "measurement": report.measurement.to_vec(),
            "host_data": report.host_data,
            "id_key_digest": report.id_key_digest.to_vec(),
            "author_key_digest": report.author_key_digest.to_vec(),
            "report_id": report.report_id,
            "report_id_ma": report.report_id_ma,
            "reported_tcb": tcb(report.reported_tcb),
            "cpuid_fam_id": report.cpuid_family,
            "cpuid_mod_id": report.cpuid_model,
            "cpuid_step": report.cpuid_stepping,
            "chip_id": report.chip_id.to_vec(),
            "committed_tcb": tcb(report.committed_tcb),
            "current": version(report.current_major, report.current_minor, report.current_build),
            "committed": version(
                report.committed_major, report.committed_minor, report.committed_build,
            ),
            "launch_tcb": tcb(report.launch_tcb),
            "launch_mit_vector": report.launch_mit_vector.get(),
            "current_mit_vector": report.current_mit_vector.get(),
            "signature": {
                "r": report.signature_r.to_vec(),
                "s": report.signature_s.to_vec(),
            },
        },
        "cert_chain": certificates.collect::<Vec<_>>(),
    })
}

/// A session that was challenged with a real nonce at [`now`].
pub(crate) fn challenged() -> (ChallengedSession, IssuedNonce) {
    let issuer = NonceIssuer::new(&[7; 32]);
    let nonce = issuer.issue(Profile::Kbs, SESSION, now_seconds()).unwrap();
    let issued = issuer
        .verify(Profile::Kbs, &nonce, SESSION, now_seconds())
        .unwrap();
    let session = GuestSession::new().unwrap();
    (
        session
            .on_challenge(&response(SESSION, &Challenge::new(nonce)))
            .unwrap(),
        issued,
    )
}

/// The body of the guest's attestation request.
pub(crate) fn attest(guest: &assay_psp_sim::Guest, instance: &InstanceData) -> Vec<u8> {
    let (session, _) = challenged();
    let evidence = evidence(guest, session.report_data().unwrap());
    let document = String::from_utf8(instance.encode().unwrap()).unwrap();
    session.attest_request(evidence, &document).unwrap().body
}

pub(crate) fn attestation_body() -> Vec<u8> {
    static BODY: OnceLock<Vec<u8>> = OnceLock::new();
    BODY.get_or_init(|| attest(&launch(1, &instance()), &instance()))
        .clone()
}

pub(crate) fn submission() -> Submission {
    Submission::parse(&attestation_body()).unwrap()
}

pub(crate) fn nonce() -> IssuedNonce {
    IssuedNonce {
        id: [3; 24],
        issued_at: now_seconds(),
    }
}

pub(crate) fn deployment() -> ConfidentialDeployment {
    serde_json::from_value(json!({
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "ConfidentialDeployment",
        "metadata": { "name": DEPLOYMENT, "namespace": NAMESPACE, "uid": "cdep-uid" },
        "spec": {
            "imageRef": { "name": IMAGE },
            "policyRef": { "name": "standard" },
            "machine": {
                "vcpus": 1, "memory": "512Mi", "cpuModel": "EPYC-v4", "tee": "SimulatedSNP",
            },
            "secrets": [{
                "name": "greeting",
                "secretRef": { "name": "web-secrets", "key": "greeting" },
                "target": { "path": "/run/secrets/greeting" },
            }],
        },
    }))
    .unwrap()
}

pub(crate) fn image() -> MeasuredImage {
    let pinned = format!("registry.example/web@sha256:{}", "0".repeat(64));
    serde_json::from_value(json!({
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "MeasuredImage",
        "metadata": { "name": IMAGE, "namespace": NAMESPACE },
        "spec": {
            "source": { "type": "OCI", "oci": { "reference": pinned } },
        },
        "status": {
            "launchDigests": [
                row("one", 1, &digest()),
                row("two", 2, &launch(2, &instance()).launch_digest()),
            ],
        },
    }))
    .unwrap()
}

fn row(id: &str, vcpus: u32, digest: &LaunchDigest) -> serde_json::Value {
    json!({
        "id": id, "firmware": "ovmf-000000000000", "cpuModel": "EPYC-v4", "vcpus": vcpus,
        "guestFeatures": "0x1", "tee": "SimulatedSNP", "digest": digest, "state": "Accepted",
    })
}

pub(crate) fn policy() -> AttestationPolicy {
    serde_json::from_value(json!({
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "AttestationPolicy",
        "metadata": { "name": "standard", "namespace": NAMESPACE },
        "spec": {
            "tees": ["SimulatedSNP"],
            "snp": {
                "products": [{
                    "name": "Genoa",
                    "minimumTCB": { "bootLoader": 9, "tee": 0, "snp": 23, "microcode": 72 },
                }],
                "crl": { "mode": "NotRequired" },
            },
            "release": [{ "resource": "greeting" }],
        },
    }))
    .unwrap()
}

fn owned_by(kind: &str, name: &str, uid: &str) -> serde_json::Value {
    json!([{ "apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": true }])
}

pub(crate) fn lineage() -> Lineage {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {
            "name": POD, "namespace": NAMESPACE, "uid": POD_UID,
            "labels": { DEPLOYMENT_LABEL: DEPLOYMENT },
            "ownerReferences": owned_by("ReplicaSet", "web-6d5f", "rs-uid"),
        },
        "spec": { "nodeName": NODE, "containers": [] },
    }))
    .unwrap();
    let replica_set: ReplicaSet = serde_json::from_value(json!({
        "metadata": {
            "uid": "rs-uid", "ownerReferences": owned_by("Deployment", DEPLOYMENT, "dep-uid"),
        },
        "spec": {
            "selector": {},
            "template": { "metadata": { "labels": { IMAGE_LABEL: IMAGE } } },
        },
    }))
    .unwrap();
    Lineage {
        pod: Some(pod),
        replica_set: Some(replica_set),
    }
}

pub(crate) fn observed() -> Observed {
    Observed {
        witness: Witness::ApiServer(Box::new(lineage())),
        deployment: Some(Arc::new(deployment())),
        image: Some(Arc::new(image())),
        policy: Some(Arc::new(policy())),
        record: None,
    }
}

pub(crate) fn appraised(decision: Decision) -> Appraisal {
    match decision {
        Decision::Appraised(appraisal) => *appraisal,
        Decision::Unidentified(error) => panic!("unidentified: {error}"),
    }
}

/// The appraisal of [`submission`] at [`now`].
pub(crate) fn accepted() -> Appraisal {
    let decision = decide_attestation(
        &submission(),
        &nonce(),
        &observed(),
        &Endorsements::default(),
        &verifier(),
        now(),
    )
    .unwrap();
    let appraisal = appraised(decision);
    assert!(appraisal.is_accepted(), "{:#?}", appraisal.status.checks);
    appraisal
}

/// As [`accepted`], in answer to another nonce.
pub(crate) fn accepted_again() -> Appraisal {
    let mut appraisal = accepted();
    appraisal.nonce.id = [4; 24];
    appraisal
}

pub(crate) fn record() -> AttestationRecord {
    plan_record(NAMESPACE, &accepted(), None).unwrap()
}

pub(crate) fn claims() -> Claims {
    Claims::of(&accepted(), NAMESPACE, &submission().runtime_data).unwrap()
}

pub(crate) fn token_key() -> TokenKey {
    static KEY: OnceLock<KeyPair> = OnceLock::new();
    TokenKey::new(KEY.get_or_init(|| KeyPair::generate().unwrap())).unwrap()
}

pub(crate) fn resource_path() -> ResourcePath {
    ResourcePath {
        namespace: NAMESPACE.to_owned(),
        deployment: DEPLOYMENT.to_owned(),
        name: "greeting".to_owned(),
    }
}

pub(crate) fn release_observed() -> ReleaseObserved {
    ReleaseObserved {
        record: Some(record()),
        deployment: Some(deployment()),
        image: Some(image()),
        policy: Some(policy()),
    }
}

pub(crate) fn secret() -> Secret {
    let mut secret: Secret = serde_json::from_value(json!({
        "metadata": {
            "name": "web-secrets", "namespace": NAMESPACE,
            "labels": { RELEASE_CLASS_LABEL: "simulated" },
        },
    }))
    .unwrap();
    secret.data = Some([("greeting".to_owned(), ByteString(SECRET_VALUE.to_vec()))].into());
    secret
}
