use assay_tee::{GuestPolicy, LaunchDigest};

use super::*;

const ID_KEY: &str = include_str!("../../tests/keys/p384.pkcs8.pem");
const AUTHOR_KEY: &str = include_str!("../../tests/keys/author.sec1.pem");

fn block() -> IdBlock {
    let mut block = IdBlock::new(LaunchDigest::new([7; 48]), GuestPolicy::default());
    block.family_id = [1; 16];
    block.image_id = [2; 16];
    block.guest_svn = 3.into();
    block
}

fn keys() -> (PrivateKey, PrivateKey) {
    let key = |text| PrivateKey::from_pem(text).unwrap();
    (key(ID_KEY), key(AUTHOR_KEY))
}

#[test]
fn what_is_signed_verifies_and_is_the_same_each_time() {
    let (id, author) = keys();
    for author in [None, Some(&author)] {
        let auth = sign(&block(), &id, author);
        assert_eq!(auth, sign(&block(), &id, author));
        let signers = verify(&block(), &auth).unwrap();
        assert_eq!(signers.id_key_digest, id.public_key().digest());
        let expected = author.map(|author| author.public_key().digest());
        assert_eq!(signers.author_key_digest, expected);
    }
}

#[test]
fn every_changed_byte_of_the_block_is_noticed() {
    let (id, author) = keys();
    let auth = sign(&block(), &id, Some(&author));
    let good = block().encode();
    for offset in (0..good.len()).filter(|offset| !(0x50..0x54).contains(offset)) {
        let mut bytes = good;
        bytes[offset] ^= 1;
        let changed = IdBlock::parse(&bytes).unwrap();
        assert!(
            matches!(verify(&changed, &auth), Err(VerifyIdBlockError::Block(_))),
            "{offset:#x}"
        );
    }
}

#[test]
fn signatures_of_other_keys_are_refused() {
    let (id, author) = keys();
    let good = sign(&block(), &id, Some(&author));

    let mut swapped = good;
    swapped.author_key = good.id_key;
    let error = verify(&block(), &swapped);
    assert!(matches!(error, Err(VerifyIdBlockError::IdKey(_))));

    let mut swapped = good;
    swapped.id_key = good.author_key;
    let error = verify(&block(), &swapped);
    assert!(matches!(error, Err(VerifyIdBlockError::Block(_))));

    let mut keyless = sign(&block(), &id, None);
    keyless.id_key_signature = good.id_key_signature;
    let error = verify(&block(), &keyless);
    assert_eq!(error, Err(VerifyIdBlockError::NoAuthorKey));
}

#[test]
fn assembled_parts_are_what_signing_makes() {
    let (id, author) = keys();
    let good = sign(&block(), &id, Some(&author));
    let id_part = KeyAndSignature {
        key: good.id_key,
        signature: good.id_block_signature,
    };
    let author_part = KeyAndSignature {
        key: good.author_key,
        signature: good.id_key_signature,
    };
    assert_eq!(assemble(&block(), &id_part, Some(&author_part)), Ok(good));
    let wrong = KeyAndSignature {
        signature: good.id_key_signature,
        ..id_part
    };
    assert!(assemble(&block(), &wrong, None).is_err());
}

fn report() -> (Signers, AttestationReport) {
    let (id, author) = keys();
    let signers = verify(&block(), &sign(&block(), &id, Some(&author))).unwrap();
    let mut report = AttestationReport::zeroed();
    report.measurement = [7; 48];
    report.family_id = [1; 16];
    report.image_id = [2; 16];
    report.guest_svn = 3.into();
    report.policy = GuestPolicy::default().0.into();
    report.id_key_digest = *signers.id_key_digest.as_bytes();
    report.author_key_digest = *signers.author_key_digest.unwrap().as_bytes();
    report.key_info = 1.into();
    (signers, report)
}

#[test]
fn each_field_of_a_report_is_compared() {
    type Change = fn(&mut AttestationReport);
    let (signers, good) = report();
    assert_eq!(differences(&block(), &signers, &good), Ok(Vec::new()));
    let changes: [(&str, Change); 8] = [
        ("MEASUREMENT", |report| report.measurement[47] ^= 1),
        ("FAMILY_ID", |report| report.family_id[0] ^= 1),
        ("IMAGE_ID", |report| report.image_id[0] ^= 1),
        ("GUEST_SVN", |report| report.guest_svn = 4.into()),
        ("POLICY", |report| report.policy = 0xb_0000.into()),
        ("ID_KEY_DIGEST", |report| report.id_key_digest = [0; 48]),
        ("AUTHOR_KEY_EN", |report| report.key_info = 0.into()),
        ("AUTHOR_KEY_DIGEST", |report| {
            report.author_key_digest[9] ^= 1;
        }),
    ];
    for (field, change) in changes {
        let mut report = good;
        change(&mut report);
        let found = differences(&block(), &signers, &report).unwrap();
        let fields: Vec<&str> = found.iter().map(|difference| difference.field).collect();
        assert_eq!(fields, [field]);
    }
}

#[test]
fn an_author_key_that_was_not_asked_for_is_a_difference() {
    let (signers, report) = report();
    let alone = Signers {
        author_key_digest: None,
        ..signers
    };
    let found = differences(&block(), &alone, &report).unwrap();
    let fields: Vec<&str> = found.iter().map(|difference| difference.field).collect();
    assert_eq!(fields, ["AUTHOR_KEY_EN", "AUTHOR_KEY_DIGEST"]);
}
