//! A statement as two images and a policy give it, and the keys that sign it.
#![allow(dead_code, reason = "each test uses its part")]

use assay_crds::v1alpha1::{AttestationPolicy, MeasuredImage};
use assay_reference::{PublicKey, SigningKey, Statement, Validity, image_of, policy_of};
use jiff::Timestamp;
use serde_json::{Value, json};

/// Within the statement's validity.
pub(crate) const NOW: &str = "2026-02-01T00:00:00Z";

pub(crate) fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn key_file(name: &str) -> Vec<u8> {
    let path = format!("{}/../attest/tests/keys/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(path).unwrap()
}

pub(crate) fn key_text(name: &str) -> String {
    String::from_utf8(key_file(name)).unwrap()
}

pub(crate) fn signing_key(name: &str) -> SigningKey {
    SigningKey::from_pem(&key_text(name)).unwrap()
}

pub(crate) fn public_key(name: &str) -> PublicKey {
    PublicKey::read(&key_file(name)).unwrap()
}

pub(crate) fn policy_json() -> Value {
    json!({
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "AttestationPolicy",
        "metadata": {"name": "strict", "namespace": "shop"},
        "spec": {
            "tees": ["SNP"],
            "snp": {
                "products": [{
                    "name": "Genoa",
                    "minimumTCB": {"bootLoader": 10, "tee": 0, "snp": 25, "microcode": 84},
                }],
                "idBlock": {
                    "idKeyDigests": [format!("sha384:{}", "1d".repeat(48))],
                    "minimumGuestSvn": 3,
                },
                "guestPolicy": {
                    "smt": "Forbidden",
                    "required": ["SingleSocket"],
                    "minimumABI": {"major": 1, "minor": 55},
                },
            },
            "release": [{"resource": "database-password"}],
        },
    })
}

pub(crate) fn image_json(name: &str, byte: &str, state: &str) -> Value {
    let row = |vcpus: u32, digest: String| {
        json!({
            "id": format!("ovmf-aaaaaaaaaaaa.EPYC-Genoa.{vcpus}.0x1.SNP"),
            "firmware": "ovmf-aaaaaaaaaaaa",
            "cpuModel": "EPYC-Genoa",
            "vcpus": vcpus,
            "guestFeatures": "0x1",
            "tee": "SNP",
            "digest": digest,
            "state": "Accepted",
        })
    };
    let file = |path: &str, digit: &str| {
        json!({
            "path": path,
            "sha256": format!("sha256:{}", digit.repeat(32)),
            "sizeBytes": 4096,
        })
    };
    let mut disk = file("rootfs.img", "cc");
    disk["serial"] = json!("assay-root");
    disk["verityRootHash"] = json!(format!("sha256:{}", "dd".repeat(32)));
    let reference = format!("registry.example/{name}@sha256:{}", byte.repeat(32));
    json!({
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "MeasuredImage",
        "metadata": {"name": name, "namespace": "shop", "generation": 2},
        "spec": {
            "source": {"type": "OCI", "oci": {"reference": reference}},
            "lifecycle": {"state": state},
        },
        "status": {
            "observedGeneration": 2,
            "artifact": {
                "reference": reference,
                "uki": file("uki.efi", "aa"),
                "firmware": file("firmware.fd", "bb"),
                "rootDisk": disk,
            },
            "launchDigests": [
                row(4, format!("sha384:{}", format!("{byte}04").repeat(24))),
                row(2, format!("sha384:{}", format!("{byte}02").repeat(24))),
            ],
        },
    })
}

pub(crate) fn image_object(name: &str, byte: &str, state: &str) -> MeasuredImage {
    serde_json::from_value(image_json(name, byte, state)).unwrap()
}

pub(crate) fn validity() -> Validity {
    Validity {
        not_before: time("2026-01-01T00:00:00Z"),
        not_after: time("2026-04-01T00:00:00Z"),
    }
}

pub(crate) fn good() -> Statement {
    with_policy(policy_json())
}

pub(crate) fn with_policy(policy: Value) -> Statement {
    let policy: AttestationPolicy = serde_json::from_value(policy).unwrap();
    let images = [
        image_object("web-2", "22", "Active"),
        image_object("web-1", "11", "Revoked"),
    ];
    Statement::build(
        validity(),
        images
            .iter()
            .map(|image| image_of(image).unwrap())
            .collect(),
        policy_of(&policy).unwrap(),
    )
    .unwrap()
}
