//! Real evidence: the vectors, each with the policy that it meets.
#![allow(dead_code, reason = "not every test needs every vector")]

use std::path::{Path, PathBuf};

use assay_attest::evidence::parse_evidence;
use assay_attest::policy::{
    GuestPolicyRules, PlatformRules, ProductPolicy, RevocationListMode, SigningKeyPolicy,
};
use assay_attest::{
    AppraisalPolicy, Binding, Evidence, ReferenceState, ReferenceValue, ReferenceValues,
    TrustAnchors, Verdict, appraise,
};
use assay_tee::{AttestationReport, LaunchDigest, Product, TcbVersion};
use der::Encode as _;
use jiff::Timestamp;
use x509_cert::Certificate;

pub(crate) const NOW: &str = "2026-07-01T00:00:00Z";

pub(crate) fn vectors() -> Option<PathBuf> {
    let path = std::env::var_os("ASSAY_VECTORS").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"),
        PathBuf::from,
    );
    if path.is_dir() {
        Some(path)
    } else {
        eprintln!(
            "SKIPPED: no test vectors at {} (set ASSAY_VECTORS)",
            path.display()
        );
        None
    }
}

/// One piece of evidence, and everything it is appraised against: matching,
/// until a test changes it.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) evidence: Evidence,
    pub(crate) anchors: TrustAnchors,
    pub(crate) reference_values: ReferenceValues,
    pub(crate) policy: AppraisalPolicy,
    pub(crate) binding: Binding,
    pub(crate) now: Timestamp,
}

impl Case {
    pub(crate) fn new(product: Product, report: Vec<u8>, leaf: Vec<u8>, roots: &[Vec<u8>]) -> Self {
        let parsed = AttestationReport::read_layout(&report).unwrap();
        let minimum_tcb = TcbVersion {
            fmc: (product == Product::Turin).then_some(0),
            bootloader: 0,
            tee: 0,
            snp: 0,
            microcode: 0,
        };
        let entry = ProductPolicy::new(product, minimum_tcb);
        let mut policy = AppraisalPolicy::strict(vec![entry]);
        policy.revocation_list = RevocationListMode::NotRequired;
        let mut certificates = vec![leaf];
        certificates.extend_from_slice(roots);
        Self {
            evidence: Evidence::new(report, certificates),
            anchors: TrustAnchors::amd(),
            reference_values: reference(parsed.launch_digest()),
            policy,
            binding: Binding {
                report_data: parsed.report_data,
                host_data: parsed.host_data,
            },
            now: NOW.parse().unwrap(),
        }
    }

    pub(crate) fn appraise(&self) -> Verdict {
        let Self {
            evidence,
            anchors,
            reference_values,
            policy,
            binding,
            now,
        } = self;
        appraise(evidence, anchors, reference_values, policy, binding, *now)
    }
}

pub(crate) fn reference(digest: LaunchDigest) -> ReferenceValues {
    let state = ReferenceState::Accepted;
    ReferenceValues(vec![ReferenceValue {
        id: "vector".to_owned(),
        digest,
        state,
    }])
}

/// ASK, ARK and ASVK of a product, DER.
pub(crate) fn roots(vectors: &Path, product: Product) -> Vec<Vec<u8>> {
    let file = format!(
        "amd-roots/{}/ask_ark_asvk.pem",
        product.name().to_lowercase()
    );
    let pem = std::fs::read(vectors.join(file)).unwrap();
    let chain = Certificate::load_pem_chain(&pem).unwrap();
    chain
        .iter()
        .map(|certificate| certificate.to_der().unwrap())
        .collect()
}

pub(crate) fn load(vectors: &Path, product: Product, name: &str, leaf: &str) -> Case {
    let read = |file: &str| std::fs::read(vectors.join("snp").join(name).join(file)).unwrap();
    let mut leaf_der = read(leaf);
    if leaf_der.starts_with(b"-----") {
        leaf_der = Certificate::load_pem_chain(&leaf_der).unwrap()[0]
            .to_der()
            .unwrap();
    }
    Case::new(
        product,
        read("report.bin"),
        leaf_der,
        &roots(vectors, product),
    )
}

pub(crate) fn vlek(vectors: &Path) -> Case {
    let mut case = load(vectors, Product::Milan, "milan-v3-vlek", "vlek.der");
    let csp_ids = vec!["CN=cc-us-east-2.amazonaws.com".to_owned()];
    case.policy.signing_keys = vec![SigningKeyPolicy::Vlek { csp_ids }];
    case.policy.vmpls = vec![1];
    case.now = "2025-06-01T00:00:00Z".parse().unwrap();
    case
}

pub(crate) fn cloud_v2(vectors: &Path) -> Case {
    let mut case = load(vectors, Product::Milan, "milan-v2-cloud", "vcek.der");
    case.policy.platform = PlatformRules {
        required: vec![],
        forbidden: vec![],
    };
    case
}

pub(crate) fn debug_v2(vectors: &Path) -> Case {
    let mut case = load(vectors, Product::Milan, "milan-v2-debug", "vcek.der");
    case.policy.platform = PlatformRules {
        required: vec![],
        forbidden: vec![],
    };
    case.policy.guest_policy = GuestPolicyRules {
        forbidden: vec![],
        ..Default::default()
    };
    case
}

pub(crate) fn good(vectors: &Path) -> Vec<(&'static str, Case)> {
    // These two bring their VCEK and nothing else.
    let json = |file: &str| {
        let bytes = std::fs::read(vectors.join("coco").join(file)).unwrap();
        let evidence = parse_evidence(bytes).unwrap();
        let [vcek] = <[Vec<u8>; 1]>::try_from(evidence.certificates).unwrap();
        Case::new(Product::Genoa, evidence.report, vcek, &[])
    };
    vec![
        (
            "milan-v3-endtoend",
            load(vectors, Product::Milan, "milan-v3-endtoend", "vcek.pem"),
        ),
        (
            "genoa-v5",
            load(vectors, Product::Genoa, "genoa-v5", "vcek.der"),
        ),
        (
            "turin-v5",
            load(vectors, Product::Turin, "turin-v5", "vcek.der"),
        ),
        (
            "milan-v3-a",
            load(vectors, Product::Milan, "milan-v3-a", "vcek.der"),
        ),
        (
            "milan-v3-b",
            load(vectors, Product::Milan, "milan-v3-b", "vcek.der"),
        ),
        ("milan-v2-cloud", cloud_v2(vectors)),
        ("milan-v2-debug", debug_v2(vectors)),
        ("milan-v3-vlek", vlek(vectors)),
        ("azure-genoa", json("azure-genoa-evidence.json")),
        ("coco-genoa", json("evidence-genoa-chain.json")),
    ]
}
