//! Readers of what guests and their hosts send never panic: on random text, and on good
//! input with damage.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use assay_broker::submission::{Submission, SvsmDocument};
use assay_protocol::svsm;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use proptest::prelude::*;
use serde_json::{Value, json};

fn instance() -> String {
    json!({
        "version": 1, "namespace": "shop", "deployment": "web",
        "pod": { "name": "web-1", "uid": "7e2c6bcb-3c53-4f8c-9b5e-0a4f6d1d2c3b" },
        "node": "node-a", "policyHash": format!("sha256:{}", "ab".repeat(32)),
        "verifier": { "url": "https://b", "addresses": [], "ca": "" },
        "network": { "address": "", "gateway": "", "nameservers": [], "hostname": "" },
        "resources": [{ "name": "state", "path": "/run/secrets/state" }],
        "attestationIntervalSeconds": 60,
    })
    .to_string()
}

fn body() -> Value {
    let coordinate = BASE64_URL_SAFE_NO_PAD.encode([1; 66]);
    json!({
        "init-data": null,
        "runtime-data": {
            "nonce": BASE64_STANDARD.encode([7; 64]),
            "tee-pubkey": {
                "kty": "EC", "crv": "P-521", "alg": "ECDH-ES+A256KW",
                "x": coordinate, "y": coordinate,
            },
        },
        "tee-evidence": {
            "primary_evidence": {
                "snp-report": BASE64_STANDARD.encode([0; 1184]), "certs-buf": null,
            },
            "additional_evidence": "",
        },
    })
}

fn document() -> SvsmDocument {
    SvsmDocument::parse(&svsm::encode_document(instance().as_bytes())).unwrap()
}

#[test]
fn the_undamaged_ones_are_read() {
    Submission::parse_svsm(document(), body().to_string().as_bytes()).unwrap();
}

proptest! {
    #[test]
    fn text_of_any_kind(text in ".{0,256}", bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = SvsmDocument::parse(&text);
        let _ = SvsmDocument::parse(&svsm::encode_document(&bytes));
        let _ = SvsmDocument::parse(&svsm::encode_document(text.as_bytes()));
        let _ = Submission::parse(&bytes);
        prop_assert!(Submission::parse_svsm(document(), &bytes).is_err());
    }

    #[test]
    fn one_byte_of_damage(at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let mut bytes = body().to_string().into_bytes();
        let index = at.index(bytes.len());
        bytes[index] = with;
        let _ = Submission::parse_svsm(document(), &bytes);
        let _ = Submission::parse(&bytes);
        prop_assert!(Submission::parse_svsm(document(), &bytes[..index]).is_err());
        let mut bytes = instance().into_bytes();
        let index = at.index(bytes.len());
        bytes[index] = with;
        let _ = SvsmDocument::parse(&svsm::encode_document(&bytes));
    }
}
