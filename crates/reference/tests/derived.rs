//! What other verifiers read, parsed by an implementation that is not ours; the
//! way back to the cluster's objects; differences.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic is how a test fails"
)]

#[path = "support/good.rs"]
mod support;

use assay_crds::v1alpha1::attestation_policy::Product;
use assay_reference::derived::DerivedValues;
use assay_reference::{
    Accepts, Difference, ObjectError, Side, corim, differences, image_of, policy_of, rvps,
    to_measured_image, to_policy,
};
use coset::{CoseSign1, TaggedCborSerializable as _};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::{good, image_object, policy_json, signing_key, validity, with_policy};

#[test]
fn rvps_values_are_what_they_were() {
    let derived = rvps::derive(&good(), None).unwrap();
    insta::assert_json_snapshot!(derived.left_out);
    let text = serde_json::to_string(&derived.values).unwrap();
    insta::assert_snapshot!(text);
    let read: Vec<rvps::ReferenceValue> = serde_json::from_str(&text).unwrap();
    assert_eq!(read, derived.values);
}

/// A set of versions stands for a minimum, and a revoked image for nothing.
#[test]
fn rvps_values_accept_what_the_statement_accepts() {
    let values = rvps::derive(&good(), None).unwrap().values;
    let value = |name: &str| &values.iter().find(|v| v.name == name).unwrap().value;
    assert_eq!(
        *value("snp_launch_measurement"),
        json!(["2202".repeat(24), "2204".repeat(24)])
    );
    let snp = value("snp_snp_svn").as_array().unwrap();
    assert_eq!(
        (snp.first(), snp.last(), snp.len()),
        (Some(&json!(25)), Some(&json!(255)), 231)
    );
    assert_eq!(*value("snp_smt_allowed"), json!(false));
    assert_eq!(*value("snp_single_socket"), json!(true));
}

#[test]
fn several_products_need_a_choice() {
    let mut policy = policy_json();
    policy["spec"]["snp"]["products"] = json!([
        {"name": "Milan", "minimumTCB": {"bootLoader": 4, "tee": 0, "snp": 24, "microcode": 219}},
        {"name": "Genoa", "minimumTCB": {"bootLoader": 10, "tee": 0, "snp": 25, "microcode": 84}},
    ]);
    let statement = with_policy(policy);
    assert!(matches!(
        rvps::derive(&statement, None),
        Err(rvps::DeriveError::SeveralProducts(2))
    ));
    assert!(matches!(
        corim::derive(&statement, Some(Product::Turin)),
        Err(rvps::DeriveError::OtherProduct(Product::Turin))
    ));
    let milan = rvps::derive(&statement, Some(Product::Milan))
        .unwrap()
        .values;
    let microcode = milan.iter().find(|v| v.name == "snp_microcode").unwrap();
    assert_eq!(microcode.value[0], json!(219));
}

#[test]
fn what_runs_on_no_hardware_is_not_derived() {
    let mut policy = policy_json();
    policy["spec"]["tees"] = json!(["SimulatedSNP"]);
    let statement = with_policy(policy);
    assert_eq!(
        rvps::derive(&statement, None).unwrap_err(),
        rvps::DeriveError::NoDigest
    );
    assert_eq!(
        corim::derive(&statement, None).unwrap_err(),
        rvps::DeriveError::NoDigest
    );
}

#[test]
fn a_message_holds_the_values() {
    use base64::Engine as _;
    let values = rvps::derive(&good(), None).unwrap().values;
    let message = rvps::message(&values).unwrap();
    let payload = base64::engine::general_purpose::STANDARD
        .decode(message["payload"].as_str().unwrap())
        .unwrap();
    let payload: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(message["type"], "sample");
    assert_eq!(payload.as_object().unwrap().len(), values.len());
    assert_eq!(payload["snp_microcode"][0], json!(84));
}

#[test]
fn a_corim_is_what_it_was() {
    let derived = corim::derive(&good(), None).unwrap();
    insta::assert_json_snapshot!(derived.left_out);
    insta::assert_snapshot!(hex::encode(&derived.values));
    let key = signing_key("p384.sec1.pem");
    let signed = corim::sign(derived.values, &validity(), "shop", &key).unwrap();
    insta::assert_snapshot!(hex::encode(signed));
}

/// The crate `corim` decodes and validates what we wrote.
#[test]
fn another_implementation_reads_the_corim() {
    use ::corim::types::measurement::Digest;
    use ::corim::types::measurement::SvnChoice;
    let derived = corim::derive(&good(), None).unwrap();
    let inside = support::time(support::NOW).as_second();
    let (map, comids) = ::corim::validate::decode_and_validate_at(&derived.values, inside).unwrap();
    assert!(map.profile.is_some());
    let late = support::time("2026-04-01T00:00:01Z").as_second();
    assert!(::corim::validate::decode_and_validate_at(&derived.values, late).is_err());
    let triples = comids[0].triples.reference_triples.as_ref().unwrap();
    let digests: Vec<Digest> = triples
        .iter()
        .flat_map(|triple| {
            triple
                .measurements()
                .first()
                .unwrap()
                .mval
                .digests
                .clone()
                .unwrap()
        })
        .collect();
    let expected = |text: &str| Digest::new(7, hex::decode(text.repeat(24)).unwrap());
    assert_eq!(digests, [expected("2202"), expected("2204")]);
    let first = &triples[0];
    let tcb = first
        .measurements()
        .iter()
        .filter_map(|m| match m.mval.svn {
            Some(SvnChoice::ExactValue(svn)) => Some(svn),
            _ => None,
        });
    // Reported, committed, launch: microcode 84, SNP 25, TEE 0, boot loader 10.
    assert_eq!(tcb.collect::<Vec<_>>(), [0x5419_0000_0000_000a; 3]);
}

/// A key elsewhere gives the CoRIM that the key here gives, and no other one does.
#[test]
fn a_corim_can_be_signed_elsewhere() {
    for (private, public) in [
        ("p256.sec1.pem", "p256.public.pem"),
        ("p384.sec1.pem", "p384.public.pem"),
    ] {
        let unsigned = corim::derive(&good(), None).unwrap().values;
        let key = signing_key(private);
        let signed = corim::sign(unsigned.clone(), &validity(), "shop", &key).unwrap();
        let public = support::public_key(public);
        let message = corim::to_be_signed(unsigned, &validity(), "shop", &public).unwrap();
        let signature = key.sign(&message);
        let assembled = corim::assemble(&message, &public, &signature).unwrap();
        assert_eq!(hex::encode(assembled), hex::encode(signed));

        // Another's key, whose signature is good, is not the one that the header names.
        let other = support::public_key(if private.starts_with("p256") {
            "p384.public.pem"
        } else {
            "p256.public.pem"
        });
        let refused = corim::assemble(&message, &other, &signature);
        assert_eq!(refused, Err(corim::AssembleError::Key));
        let refused = corim::assemble(&message, &public, &key.sign(b"something else"));
        let refused = refused.unwrap_err();
        assert!(
            matches!(refused, corim::AssembleError::Signature(_)),
            "{refused}"
        );
        for malformed in [
            &[][..],
            b"\x80",
            &message[1..],
            &[&message[..], b"\0"].concat(),
        ] {
            let refused = corim::assemble(malformed, &public, &signature);
            assert_eq!(refused, Err(corim::AssembleError::Malformed));
        }
        // The same array by a longer head: another encoding of what was signed.
        let longer = [&[0x98, 4], &message[1..]].concat();
        let refused = corim::assemble(&longer, &public, &key.sign(&longer));
        assert_eq!(refused, Err(corim::AssembleError::Malformed));
    }
}

#[test]
fn a_signed_corim_verifies_with_the_public_key_alone() {
    for (private, public) in [
        ("p256.sec1.pem", "p256.public.pem"),
        ("p384.sec1.pem", "p384.public.pem"),
    ] {
        let derived = corim::derive(&good(), None).unwrap();
        let key = signing_key(private);
        let signed = corim::sign(derived.values.clone(), &validity(), "shop", &key).unwrap();
        let inside = support::time(support::NOW).as_second();
        let read = ::corim::types::signed::decode_signed_corim(&signed).unwrap();
        ::corim::types::signed::validate_signed_corim_payload(&read, inside).unwrap();

        let key = support::public_key(public);
        let sign1 = CoseSign1::from_tagged_slice(&signed).unwrap();
        assert_eq!(sign1.payload.as_deref(), Some(derived.values.as_slice()));
        // What another implementation says is signed.
        assert_eq!(sign1.tbs_data(b""), read.to_be_signed(b"").unwrap());
        sign1
            .verify_signature(b"", |signature, message| {
                key.accept_signature(message, signature).map(drop)
            })
            .unwrap();
        let mut changed = sign1;
        changed.payload.as_mut().unwrap()[20] ^= 1;
        assert!(
            changed
                .verify_signature(b"", |signature, message| {
                    key.accept_signature(message, signature).map(drop)
                })
                .is_err()
        );
    }
}

#[test]
fn objects_come_back_as_strict_as_they_went() {
    for image in &good().predicate.images {
        let object = to_measured_image(image).unwrap();
        assert_eq!(image_of(&object).unwrap(), *image);
    }
    let policy = good().predicate.policy;
    let object = to_policy(&policy);
    assert_eq!(policy_of(&object).unwrap(), policy);
    assert!(object.spec.release.is_empty());
}

#[test]
fn a_revoked_image_has_revoked_rows() {
    use assay_crds::v1alpha1::measured_image::DigestState;
    let image = image_of(&image_object("web", "11", "Revoked")).unwrap();
    assert!(
        image
            .launch_digests
            .iter()
            .all(|row| row.state == DigestState::Revoked)
    );
    assert_eq!(image.accepted().count(), 0);
}

#[test]
fn what_is_not_measured_is_not_exported() {
    let mut object = image_object("web", "11", "Active");
    object.metadata.generation = Some(3);
    assert_eq!(image_of(&object), Err(ObjectError::Stale("web".to_owned())));
    object.status = None;
    assert_eq!(
        image_of(&object),
        Err(ObjectError::NotMeasured("web".to_owned()))
    );
    let mut object = image_object("web", "11", "Active");
    object.status.as_mut().unwrap().launch_digests[0].digest = "sha384:00".to_owned();
    assert!(matches!(image_of(&object), Err(ObjectError::Field { .. })));
    object.metadata.name = None;
    assert_eq!(image_of(&object), Err(ObjectError::Name));
}

fn diff(policy: Value) -> Vec<Difference> {
    let (a, b) = (good(), with_policy(policy));
    differences(Accepts::from(&a.predicate), Accepts::from(&b.predicate)).unwrap()
}

#[test]
fn equal_statements_have_no_differences() {
    assert_eq!(diff(policy_json()), []);
    // Order in lists, names and release rules do not count.
    let mut policy = policy_json();
    policy["metadata"]["name"] = json!("other");
    policy["spec"]["release"] = json!([]);
    policy["spec"]["snp"]["tcbAgainst"] = json!(["Launch", "Reported", "Committed"]);
    assert_eq!(diff(policy), []);
}

#[test]
fn a_changed_demand_is_named() {
    let mut policy = policy_json();
    policy["spec"]["snp"]["products"][0]["minimumTCB"]["snp"] = json!(24);
    assert_eq!(
        diff(policy),
        [Difference::Value {
            field: "policy.snp.products[Genoa].minimumTCB.snp".to_owned(),
            a: Some(json!(25)),
            b: Some(json!(24)),
        }]
    );
}

#[test]
fn a_digest_of_one_side_is_named() {
    let (a, mut b) = (good(), good());
    b.predicate.images[1].launch_digests.pop();
    b.predicate.validity.not_after = support::time("2026-03-01T00:00:00Z");
    let found = differences(Accepts::from(&a.predicate), Accepts::from(&b.predicate)).unwrap();
    assert!(matches!(
        &found[..],
        [
            Difference::LaunchDigest { accepted_by: Side::A, shapes, .. },
            Difference::Value { field, .. },
        ] if shapes == &["web-2: EPYC-Genoa, 4 vCPUs, features 0x1, ovmf-aaaaaaaaaaaa"]
            && field == "validity.notAfter"
    ));
    let reverse = differences(Accepts::from(&b.predicate), Accepts::from(&a.predicate)).unwrap();
    assert!(matches!(
        &reverse[0],
        Difference::LaunchDigest {
            accepted_by: Side::B,
            ..
        }
    ));
}

proptest! {
    /// What somebody else wrote is read or refused.
    #[test]
    fn damaged_corims_never_panic(at in 0usize..8192, with in any::<u8>()) {
        let unsigned = corim::derive(&good(), None).unwrap().values;
        let key = support::public_key("p256.public.pem");
        let message = corim::to_be_signed(unsigned.clone(), &validity(), "shop", &key).unwrap();
        let sign1 = corim::sign(unsigned.clone(), &validity(), "shop", &signing_key("p256.sec1.pem"));
        for mut bytes in [unsigned, message, sign1.unwrap()] {
            let at = at % bytes.len();
            bytes[at] = with;
            for bytes in [&bytes[..], &bytes[..at]] {
                let _ = DerivedValues::of_corim(bytes);
                prop_assert!(corim::assemble(bytes, &key, &[0x30]).is_err());
            }
        }
    }
}
