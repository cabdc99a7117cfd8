use super::*;
use crate::rope::Rope;
use crate::uki::tests::{pe_image, stub};
use crate::uki::{UkiParts, encode_uki};

fn private_key(name: &str) -> SigningKey {
    let directory = format!("{}/tests/keys", env!("CARGO_MANIFEST_DIR"));
    let pem = std::fs::read(format!("{directory}/{name}.key.pem")).unwrap();
    SigningKey::from_pem(&pem).unwrap()
}

fn phases(phases: &[&str]) -> Vec<String> {
    phases.iter().map(|&phase| phase.to_owned()).collect()
}

pub(crate) fn signer(of: &[&str]) -> PcrSigner {
    PcrSigner::with_key(private_key("secure-boot"), phases(of)).unwrap()
}

fn uki(cmdline: &str, key: Option<&PcrKey>, signatures: Option<&PcrSignatures>) -> Bytes {
    let parts = UkiParts {
        stub: &stub(),
        kernel: &pe_image(true, &[(".text", &[0xcc; 900])]),
        initrd: &Rope::from(vec![3; 1500]),
        cmdline,
        uname: "6.12",
        optional: OptionalSections {
            pcr_public_key: key.map(|key| key.to_pem().into()),
            pcr_signatures: signatures.map(|signatures| signatures.encode().into()),
            ..OptionalSections::default()
        },
    };
    encode_uki(&parts).unwrap().to_bytes()
}

const PHASES: [&str; 2] = ["", "enter-initrd:leave-initrd"];

#[test]
fn what_is_signed_is_verified_for_its_phases_alone() {
    let signer = signer(&PHASES);
    let key = Some(&signer.key);
    let signatures = signer.sign(&uki("quiet", key, None)).unwrap().unwrap();
    let signed = uki("quiet", key, Some(&signatures));
    let found = verify_pcr_signatures(&signed, &phases(&PHASES)).unwrap();
    let expected = PcrSignatureSummary {
        key: signer.key.fingerprint(),
        phases: phases(&PHASES),
    };
    assert_eq!(found, Some(expected));

    let refused = |uki: &Bytes, of: &[&str]| {
        let error = verify_pcr_signatures(uki, &phases(of)).unwrap_err();
        error.to_string()
    };
    let swapped = ["enter-initrd:leave-initrd", ""];
    assert!(refused(&signed, &swapped).contains("phase \"enter"));
    assert!(refused(&signed, &[""]).contains("2 signatures are there, for 1"));
    // Another UKI has another PCR 11, and so has one with another key.
    let other = uki("verbose", key, Some(&signatures));
    assert!(refused(&other, &PHASES).contains("phase \"\" is not of this UKI"));
    let other = PcrSigner::with_key(private_key("other"), phases(&PHASES)).unwrap();
    let other = uki("quiet", Some(&other.key), Some(&signatures));
    assert!(refused(&other, &PHASES).contains("is not of this UKI"));
    let alone = uki("quiet", None, Some(&signatures));
    assert!(refused(&alone, &PHASES).contains("no .pcrpkey"));

    let unsigned = uki("quiet", key, None);
    assert_eq!(verify_pcr_signatures(&unsigned, &[]).unwrap(), None);
}

#[test]
fn every_part_of_a_signature_counts() {
    let signer = signer(&[""]);
    let key = Some(&signer.key);
    let good = signer.sign(&uki("quiet", key, None)).unwrap().unwrap();
    let changes: [fn(&mut Signature); 4] = [
        |it| it.pcrs = [12],
        |it| it.key = "00".repeat(32),
        |it| it.policy = "00".repeat(32),
        |it| it.made = STANDARD.encode([0; 256]),
    ];
    for (index, change) in changes.iter().enumerate() {
        let mut bad = good.clone();
        change(&mut bad.sha256[0]);
        // The number of the PCR is not among what is written.
        let mut uki = uki("quiet", key, Some(&bad)).to_vec();
        if index == 0 {
            let at = uki.windows(4).position(|it| it == b"[11]").unwrap();
            uki[at..at + 4].copy_from_slice(b"[12]");
        }
        let error = verify_pcr_signatures(&uki.into(), &phases(&[""])).unwrap_err();
        assert!(
            matches!(error, VerifyPcrSignaturesError::NotSigned { .. }),
            "{index}: {error}"
        );
    }
}

#[test]
fn a_signature_made_elsewhere_gives_the_same_bytes() {
    let signer = signer(&PHASES);
    let unsigned = uki("quiet", Some(&signer.key), None);
    let with_key = signer.sign(&unsigned).unwrap().unwrap();
    let made: Vec<_> = PHASES
        .iter()
        .map(|phase| {
            let policy = policy_digest(&unsigned, phase).unwrap();
            private_key("secure-boot").sign(policy.as_bytes()).unwrap()
        })
        .collect();
    let elsewhere = |made: &[Vec<u8>]| PcrSigner {
        key: signer.key.clone(),
        phases: phases(&PHASES),
        by: PcrSignedBy::Signatures(made.to_vec()),
    };
    let signatures = elsewhere(&made).sign(&unsigned).unwrap().unwrap();
    assert_eq!(signatures.encode(), with_key.encode());

    let error = elsewhere(&made[..1]).sign(&unsigned).unwrap_err();
    assert!(matches!(error, SignPcrsError::Count { .. }), "{error}");
    let swapped = [made[1].clone(), made[0].clone()];
    let error = elsewhere(&swapped).sign(&unsigned).unwrap_err().to_string();
    assert!(error.contains("phase \"\"") && error.contains("--policy-digest"));

    let nobody = PcrSigner {
        by: PcrSignedBy::Nobody,
        ..elsewhere(&made)
    };
    assert_eq!(nobody.sign(&unsigned).unwrap(), None);
}

#[test]
fn keys_that_nothing_would_verify_are_refused() {
    let read = |text: &[u8]| PcrKey::from_pem(text).unwrap_err();
    assert_eq!(read(b"key"), ReadPcrKeyError::NotPem);
    let directory = format!("{}/tests/keys", env!("CARGO_MANIFEST_DIR"));
    let certificate = std::fs::read(format!("{directory}/secure-boot.pem")).unwrap();
    assert_eq!(
        read(&certificate),
        ReadPcrKeyError::Label("CERTIFICATE".to_owned())
    );
    // `openssl pkey -in p256.key.pem -pubout` gives the key of this certificate.
    let p256 = std::fs::read(format!("{directory}/p256.pem")).unwrap();
    let (_, der) = pem::decode_vec(&p256).unwrap();
    let p256 = x509_cert::Certificate::from_der(&der).unwrap();
    let info = p256.tbs_certificate().subject_public_key_info();
    let text = pem::encode_string(PUBLIC_KEY, LineEnding::LF, &info.to_der().unwrap());
    let error = read(text.unwrap().as_bytes());
    assert!(matches!(error, ReadPcrKeyError::NotRsa(_)), "{error}");
}
