//! What a statement may look like, who may sign it, and when it counts.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic is how a test fails"
)]

#[path = "support/good.rs"]
mod support;

use assay_reference::{
    Bundle, BundleError, PAYLOAD_TYPE, PublicKey, ReadKeyError, SignatureError, SigningKey,
    Statement, StatementError, VerifyError, pre_authentication_encoding, verify,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::{Value, json};
use support::{NOW, good, public_key, signing_key, time};

/// Where, which member, its new value, and whether that is the error.
type Mutation<E> = (&'static str, &'static str, Value, fn(&E) -> bool);

#[test]
fn a_statement_is_what_it_was() {
    let encoded = good().encode().unwrap();
    assert_eq!(Statement::parse(&encoded).unwrap(), good());
    insta::assert_snapshot!(String::from_utf8(encoded).unwrap());
}

#[test]
fn a_bundle_is_what_it_was() {
    for (private, public) in [
        ("p256.pkcs8.pem", "p256.public.pem"),
        ("p256.sec1.pem", "p256.public.pem"),
        ("p384.pkcs8.pem", "p384.public.pem"),
        ("p384.sec1.pem", "p384.public.pem"),
    ] {
        let bundle = Bundle::sign(&good(), &signing_key(private)).unwrap();
        let encoded = bundle.encode().unwrap();
        assert_eq!(Bundle::parse(&encoded).unwrap(), bundle);
        let believed = verify(&[bundle], &[public_key(public)], 1, time(NOW)).unwrap();
        assert_eq!(believed, good());
    }
}

/// Deterministic signatures: bytes that change here change for every user.
#[test]
fn a_bundle_of_a_fixed_key_is_fixed() {
    let bundle = Bundle::sign(&good(), &signing_key("p384.sec1.pem")).unwrap();
    insta::assert_snapshot!(String::from_utf8(bundle.encode().unwrap()).unwrap());
}

/// One mutation of the good statement for each rule.
#[test]
fn every_rule_of_a_statement_refuses() {
    let rows: [Mutation<StatementError>; 12] = [
        (
            "",
            "_type",
            json!("https://in-toto.io/Statement/v0.1"),
            |e| matches!(e, StatementError::Type(_)),
        ),
        (
            "",
            "predicateType",
            json!("https://assay.dev/attestation/reference-values/v2"),
            |e| matches!(e, StatementError::PredicateType(_)),
        ),
        ("", "comment", json!("x"), |e| {
            matches!(e, StatementError::Parse(_))
        }),
        ("/predicate/policy/snp", "onlyOnSundays", json!(true), |e| {
            matches!(e, StatementError::NotCanonical)
        }),
        ("/predicate/policy/snp", "allowedChips", Value::Null, |e| {
            matches!(e, StatementError::NotCanonical)
        }),
        ("", "subject", json!([]), |e| {
            matches!(e, StatementError::Subject)
        }),
        ("/predicate", "images", json!([]), |e| {
            matches!(e, StatementError::NoImages)
        }),
        ("/predicate/policy", "tees", json!([]), |e| {
            matches!(e, StatementError::NoTees)
        }),
        ("/predicate/policy/snp", "products", json!([]), |e| {
            matches!(e, StatementError::NoProducts)
        }),
        ("/predicate/images/0", "launchDigests", json!([]), |e| {
            matches!(e, StatementError::NoRows(_))
        }),
        (
            "/predicate/validity",
            "notAfter",
            json!("2025-01-01T00:00:00Z"),
            |e| matches!(e, StatementError::ValidityReversed(_)),
        ),
        (
            "/predicate/validity",
            "notAfter",
            json!("2026-04-01T00:00:00.5Z"),
            |e| matches!(e, StatementError::ValidityFraction(_)),
        ),
    ];
    for (pointer, member, value, is_expected) in rows {
        let mut document = serde_json::to_value(good()).unwrap();
        document.pointer_mut(pointer).unwrap()[member] = value;
        let bytes = assay_tee::canonical::encode_canonical(&document).unwrap();
        let error = Statement::parse(&bytes).unwrap_err();
        assert!(is_expected(&error), "{pointer}/{member}: {error:?}");
    }
}

#[test]
fn rows_and_images_are_there_once_and_in_order() {
    let mut twice = serde_json::to_value(good()).unwrap();
    let image = twice["predicate"]["images"][0].clone();
    twice["predicate"]["images"]
        .as_array_mut()
        .unwrap()
        .push(image);
    let bytes = assay_tee::canonical::encode_canonical(&twice).unwrap();
    assert!(matches!(
        Statement::parse(&bytes),
        Err(StatementError::ImageOrder)
    ));

    let mut swapped = serde_json::to_value(good()).unwrap();
    swapped["predicate"]["images"][0]["launchDigests"]
        .as_array_mut()
        .unwrap()
        .reverse();
    let bytes = assay_tee::canonical::encode_canonical(&swapped).unwrap();
    assert!(matches!(
        Statement::parse(&bytes),
        Err(StatementError::RowOrder(_))
    ));
}

#[test]
fn other_bytes_of_the_same_values_are_refused() {
    let text = String::from_utf8(good().encode().unwrap()).unwrap();
    let pretty = serde_json::to_string_pretty(&good()).unwrap();
    let duplicate = text.replacen("{\"_type\"", "{\"_type\":\"x\",\"_type\"", 1);
    let nested = text.replacen("\"vcpus\":2", "\"vcpus\":8,\"vcpus\":2", 1);
    assert_ne!(nested, text);
    for bytes in [
        pretty,
        duplicate,
        nested,
        format!("{text} "),
        format!("{text}{{}}"),
    ] {
        assert!(
            matches!(
                Statement::parse(bytes.as_bytes()),
                Err(StatementError::Parse(_) | StatementError::NotCanonical)
            ),
            "{bytes}"
        );
    }
}

#[test]
fn a_statement_counts_only_within_its_validity() {
    let bundle = Bundle::sign(&good(), &signing_key("p256.sec1.pem")).unwrap();
    let at = |now: &str| {
        verify(
            std::slice::from_ref(&bundle),
            &[public_key("p256.public.pem")],
            1,
            time(now),
        )
    };
    assert!(at("2026-01-01T00:00:00Z").is_ok());
    assert!(at("2026-04-01T00:00:00Z").is_ok());
    assert!(matches!(
        at("2025-12-31T23:59:59Z"),
        Err(VerifyError::Statement(StatementError::NotYetValid(_)))
    ));
    assert!(matches!(
        at("2026-04-01T00:00:01Z"),
        Err(VerifyError::Statement(StatementError::Expired(_)))
    ));
}

#[test]
fn the_key_must_be_one_of_the_given() {
    let bundle = Bundle::sign(&good(), &signing_key("p384.sec1.pem")).unwrap();
    let other = [public_key("p256.public.pem")];
    assert!(matches!(
        verify(std::slice::from_ref(&bundle), &other, 1, time(NOW)),
        Err(VerifyError::Signature { index: 0, .. })
    ));
    assert!(matches!(
        verify(std::slice::from_ref(&bundle), &[], 1, time(NOW)),
        Err(VerifyError::Threshold { keys: 0, .. })
    ));
}

#[test]
fn a_threshold_counts_different_keys() {
    let (p256, p384) = (public_key("p256.public.pem"), public_key("p384.public.pem"));
    let by = |name| Bundle::sign(&good(), &signing_key(name)).unwrap();
    let keys = [p256.clone(), p384];
    assert!(
        verify(
            &[by("p256.sec1.pem"), by("p384.sec1.pem")],
            &keys,
            2,
            time(NOW)
        )
        .is_ok()
    );
    assert!(matches!(
        verify(
            &[by("p256.sec1.pem"), by("p256.sec1.pem")],
            &keys,
            2,
            time(NOW)
        ),
        Err(VerifyError::TooFew {
            threshold: 2,
            got: 1
        })
    ));
    assert!(matches!(
        verify(&[by("p256.sec1.pem")], &[p256.clone(), p256], 2, time(NOW)),
        Err(VerifyError::Threshold {
            threshold: 2,
            keys: 1
        })
    ));
    assert!(matches!(
        verify(&[by("p256.sec1.pem")], &keys, 0, time(NOW)),
        Err(VerifyError::Threshold { threshold: 0, .. })
    ));
    assert!(matches!(
        verify(&[], &keys, 1, time(NOW)),
        Err(VerifyError::NoBundle)
    ));
    // A foreign signature beside a good one is not ignored.
    assert!(matches!(
        verify(
            &[by("p256.sec1.pem"), by("author.sec1.pem")],
            &keys,
            1,
            time(NOW)
        ),
        Err(VerifyError::Signature { index: 1, .. })
    ));

    let mut other = good();
    other.predicate.validity.not_after = time("2026-05-01T00:00:00Z");
    let other = Bundle::sign(&other, &signing_key("p384.sec1.pem")).unwrap();
    assert!(matches!(
        verify(&[by("p256.sec1.pem"), other], &keys, 2, time(NOW)),
        Err(VerifyError::Differ { index: 1 })
    ));
}

#[test]
fn every_rule_of_a_bundle_refuses() {
    let rows: [Mutation<BundleError>; 9] = [
        (
            "",
            "mediaType",
            json!("application/vnd.dev.sigstore.bundle.v0.4+json"),
            |e| matches!(e, BundleError::MediaType(_)),
        ),
        ("", "more", json!(1), |e| matches!(e, BundleError::Parse(_))),
        (
            "/verificationMaterial",
            "certificate",
            json!({"rawBytes": ""}),
            |e| matches!(e, BundleError::Certificate),
        ),
        ("/verificationMaterial", "publicKey", Value::Null, |e| {
            matches!(e, BundleError::NoKey)
        }),
        ("", "messageSignature", json!({}), |e| {
            matches!(e, BundleError::MessageSignature)
        }),
        (
            "/dsseEnvelope",
            "payloadType",
            json!("application/json"),
            |e| matches!(e, BundleError::PayloadType(_)),
        ),
        ("/dsseEnvelope", "signatures", json!([]), |e| {
            matches!(e, BundleError::Signatures(0))
        }),
        ("/dsseEnvelope", "payload", json!("*"), |e| {
            matches!(
                e,
                BundleError::Base64 {
                    field: "dsseEnvelope.payload",
                    ..
                }
            )
        }),
        ("/dsseEnvelope/signatures/0", "sig", json!("*"), |e| {
            matches!(e, BundleError::Base64 { .. })
        }),
    ];
    let good = Bundle::sign(&good(), &signing_key("p256.sec1.pem")).unwrap();
    let good: Value = serde_json::from_slice(&good.encode().unwrap()).unwrap();
    for (pointer, member, value, is_expected) in rows {
        let mut document = good.clone();
        document.pointer_mut(pointer).unwrap()[member] = value;
        let error = Bundle::parse(document.to_string().as_bytes()).unwrap_err();
        assert!(is_expected(&error), "{pointer}/{member}: {error:?}");
    }
    // What a log adds is let through.
    let mut logged = good;
    logged["verificationMaterial"]["tlogEntries"] = json!([]);
    assert!(Bundle::parse(logged.to_string().as_bytes()).is_ok());
}

#[test]
fn a_signature_from_elsewhere_is_put_to_its_statement() {
    let statement = good().encode().unwrap();
    let message = pre_authentication_encoding(PAYLOAD_TYPE, &statement);
    for (private, public) in [
        ("p256.sec1.pem", "p256.public.pem"),
        ("p384.sec1.pem", "p384.public.pem"),
    ] {
        let signed = Bundle::sign(&good(), &signing_key(private)).unwrap();
        let der = signing_key(private).sign(&message);
        let assembled = Bundle::assemble(&statement, &public_key(public), &der).unwrap();
        assert_eq!(assembled, signed);
    }
    let der = signing_key("p256.sec1.pem").sign(&message);
    assert!(matches!(
        Bundle::assemble(&statement, &public_key("p384.public.pem"), &der),
        Err(BundleError::Signature(SignatureError::Refused))
    ));
    assert!(matches!(
        Bundle::assemble(&statement, &public_key("p256.public.pem"), b"none"),
        Err(BundleError::Signature(SignatureError::Form { got: 4, .. }))
    ));
    assert!(matches!(
        Bundle::assemble(b"{}", &public_key("p256.public.pem"), &der),
        Err(BundleError::Statement(StatementError::Parse(_)))
    ));
}

#[test]
fn keys_of_other_kinds_are_refused() {
    let private = |name| SigningKey::from_pem(&support::key_text(name)).err();
    let public = |name| PublicKey::read(support::key_text(name).as_bytes()).err();
    assert_eq!(private("ed25519.pkcs8.pem"), Some(ReadKeyError::Kind));
    assert_eq!(private("p384.encrypted.pem"), Some(ReadKeyError::Encrypted));
    assert_eq!(private("p256.public.pem"), Some(ReadKeyError::NotPrivate));
    assert_eq!(public("p256.sec1.pem"), Some(ReadKeyError::NotPublic));
    assert_eq!(PublicKey::read(b"").err(), Some(ReadKeyError::NotPem));
    assert_eq!(PublicKey::read(b"\x30\x00").err(), Some(ReadKeyError::Kind));
}

/// Whatever byte of the signed statement changes, the bundle is refused.
#[test]
fn every_flipped_byte_is_refused() {
    let key = [public_key("p256.public.pem")];
    let bundle = Bundle::sign(&good(), &signing_key("p256.sec1.pem")).unwrap();
    let mut document: Value = serde_json::from_slice(&bundle.encode().unwrap()).unwrap();
    let payload = bundle.unverified_payload();
    for index in 0..payload.len() {
        let mut changed = payload.to_vec();
        changed[index] ^= 1;
        document["dsseEnvelope"]["payload"] = json!(STANDARD.encode(changed));
        let changed = Bundle::parse(document.to_string().as_bytes()).unwrap();
        assert!(
            matches!(
                verify(&[changed], &key, 1, time(NOW)),
                Err(VerifyError::Signature { .. })
            ),
            "byte {index}"
        );
    }
}

proptest! {
    #[test]
    fn parsers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = Statement::parse(&bytes);
        let _ = Bundle::parse(&bytes);
        let _ = PublicKey::read(&bytes);
        let _ = SigningKey::from_pem(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn damaged_documents_never_panic(at in 0usize..8192, with in any::<u8>()) {
        let bundle = Bundle::sign(&good(), &signing_key("p256.sec1.pem")).unwrap();
        for mut bytes in [bundle.encode().unwrap(), good().encode().unwrap()] {
            let at = at % bytes.len();
            bytes[at] = with;
            let _ = Bundle::parse(&bytes);
            let _ = Statement::parse(&bytes);
            let _ = Statement::parse(&bytes[..at]);
        }
    }
}
