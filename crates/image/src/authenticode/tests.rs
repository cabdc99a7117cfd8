use proptest::prelude::*;

use super::*;
use crate::artifact::tests::inputs;
use crate::pcr::{BootPath, predict_pcrs};
use crate::pe::{field, u32_at};
use crate::uki::tests::stub;

const KEY: &[u8] = include_bytes!("../../tests/keys/secure-boot.key.pem");
const CERTIFICATE: &[u8] = include_bytes!("../../tests/keys/secure-boot.pem");
const OTHER_KEY: &[u8] = include_bytes!("../../tests/keys/other.key.pem");
const OTHER: &[u8] = include_bytes!("../../tests/keys/other.pem");
const P256_KEY: &[u8] = include_bytes!("../../tests/keys/p256.key.pem");
const P256: &[u8] = include_bytes!("../../tests/keys/p256.pem");
const PKCS1: &[u8] = include_bytes!("../../tests/keys/secure-boot.pkcs1.pem");
const ENCRYPTED: &[u8] = include_bytes!("../../tests/keys/encrypted.key.pem");

fn signer_with(certificate: &[u8], key: &[u8]) -> ImageSigner {
    ImageSigner {
        certificate: SigningCertificate::parse(certificate).unwrap(),
        by: SignedBy::Key(SigningKey::from_pem(key).unwrap()),
    }
}

/// What signs in tests.
pub(crate) fn signer() -> ImageSigner {
    signer_with(CERTIFICATE, KEY)
}

fn good(image: &[u8]) -> Vec<ImageSignature> {
    let signatures = verify_signatures(image).unwrap();
    signatures.into_iter().map(Result::unwrap).collect()
}

/// Why the only signature is refused.
fn bad(image: &[u8]) -> VerifySignatureError {
    let mut signatures = verify_signatures(image).unwrap();
    assert_eq!(signatures.len(), 1);
    signatures.remove(0).unwrap_err()
}

#[test]
fn a_signed_image_is_pinned() {
    // Who changes this changes launch digests of signed UKIs.
    let signed = signer().sign(&stub()).unwrap();
    assert_eq!(
        Sha256Digest::of(&signed).to_string(),
        "sha256:cdac8aeed7f07aeaa4dc877ebebb911452cccdf303715c5969b9cca5a8563e4b"
    );
    assert_eq!(
        good(&signed),
        [ImageSignature {
            subject: "CN=Secure Boot,O=Assay tests".to_owned(),
            certificate: signer().certificate.digest(),
            key_bits: 2048,
        }]
    );
    assert!(good(&stub()).is_empty());
}

#[test]
fn signing_changes_the_file_and_not_what_is_measured_of_it() {
    let uki = crate::artifact::build(&inputs()).unwrap();
    let (_, uki) = uki
        .files
        .iter()
        .find(|(name, _)| *name == "uki.efi")
        .unwrap();
    let uki = uki.to_bytes();
    let signed: bytes::Bytes = signer().sign(&uki).unwrap().into();
    assert_ne!(Sha256Digest::of(&signed), Sha256Digest::of(&uki));
    for boot in [BootPath::DirectKernel, BootPath::Disk] {
        let events = |image| predict_pcrs(image, boot, &[]).unwrap();
        assert_eq!(events(&signed), events(&uki));
    }
    let changed = |at: usize| signed[at] != uki[at];
    let headers = PeImage::parse(&uki).unwrap();
    let allowed = |offset: usize, len| headers.pe_offset + offset..headers.pe_offset + offset + len;
    let (checksum, table) = (
        allowed(field::CHECKSUM, 4),
        allowed(field::CERTIFICATE_TABLE, 8),
    );
    let outside = (0..uki.len()).filter(|at| changed(*at));
    let outside: Vec<_> = outside
        .filter(|at| !checksum.contains(at) && !table.contains(at))
        .collect();
    assert_eq!(outside, [0; 0]);
}

#[test]
fn the_table_is_where_the_format_wants_it() {
    let signed = signer().sign(&stub()).unwrap();
    let headers = PeImage::parse(&signed).unwrap();
    let table = headers.certificates.unwrap();
    assert_eq!((table.start, table.end), (stub().len(), signed.len()));
    assert!(table.start.is_multiple_of(8) && table.end.is_multiple_of(8));
    let entry = u32_at(&signed, table.start).unwrap() as usize;
    assert_eq!(entry.next_multiple_of(8), table.len());
    // The checksum makes the sum of all words that of the file's length alone.
    let at = headers.pe_offset + field::CHECKSUM;
    let mut without = signed.clone();
    without[at..at + 4].fill(0);
    let fold = |sum: u64| (sum & 0xffff) + (sum >> 16);
    let words = without.chunks_exact(2).fold(0, |sum, word| {
        fold(sum + u64::from(u16::from_le_bytes([word[0], word[1]])))
    });
    assert_eq!(
        u64::from(u32_at(&signed, at).unwrap()),
        words + signed.len() as u64
    );
}

#[test]
fn a_signature_from_elsewhere_gives_the_same_file() {
    let attributes = signed_attributes(&stub()).unwrap();
    let signature = SigningKey::from_pem(KEY)
        .unwrap()
        .sign(&attributes)
        .unwrap();
    let elsewhere = |certificate: &[u8], signature: &[u8]| ImageSigner {
        certificate: SigningCertificate::parse(certificate).unwrap(),
        by: SignedBy::Signature(signature.to_vec()),
    };
    let signed = elsewhere(CERTIFICATE, &signature).sign(&stub()).unwrap();
    assert_eq!(signed, signer().sign(&stub()).unwrap());

    let refused = |signer: ImageSigner, image: &[u8]| {
        matches!(signer.sign(image), Err(SignImageError::NotTheSignature))
    };
    assert!(refused(elsewhere(OTHER, &signature), &stub()));
    assert!(refused(elsewhere(CERTIFICATE, &signature[1..]), &stub()));
    assert!(refused(signer_with(OTHER, KEY), &stub()));
    let mut other = stub().to_vec();
    other[0x400] ^= 1;
    assert!(refused(elsewhere(CERTIFICATE, &signature), &other));
}

#[test]
fn signatures_add_up() {
    let once = signer().sign(&stub()).unwrap();
    let twice = signer_with(OTHER, OTHER_KEY).sign(&once).unwrap();
    let subjects: Vec<_> = good(&twice).into_iter().map(|it| it.subject).collect();
    assert_eq!(subjects, ["CN=Secure Boot,O=Assay tests", "CN=Other"]);
}

#[test]
fn an_image_of_any_length_can_be_signed() {
    for more in 1..8 {
        let image = [stub().as_ref(), &vec![7; more]].concat();
        assert_eq!(good(&signer().sign(&image).unwrap()).len(), 1);
    }
}

#[test]
fn another_content_is_noticed() {
    let signed = signer().sign(&stub()).unwrap();
    let changed = |at: usize| {
        let mut image = signed.clone();
        image[at] ^= 1;
        image
    };
    assert!(matches!(
        bad(&changed(0x400)),
        VerifySignatureError::OtherImage { .. }
    ));
    let table = PeImage::parse(&signed).unwrap().certificates.unwrap();
    assert!(matches!(
        bad(&changed(table.start + 4)),
        VerifySignatureError::Kind { .. }
    ));
    let padding = table.len() - u32_at(&signed, table.start).unwrap() as usize;
    let last = signed.len() - padding - 1;
    assert!(matches!(
        bad(&changed(last)),
        VerifySignatureError::NotSigned
    ));
    // The digest in the message, and the attributes' digest of it.
    let digest = digest_of(&signed).unwrap();
    let mut windows = signed.windows(32);
    let at = windows.position(|window| window == digest.as_bytes());
    assert!(matches!(
        bad(&changed(at.unwrap())),
        VerifySignatureError::Message(ParseMessageError::OtherContent)
    ));
}

#[test]
fn a_table_elsewhere_is_refused() {
    let mut signed = signer().sign(&stub()).unwrap();
    signed.extend([0; 8]);
    assert!(matches!(
        signer().sign(&signed),
        Err(SignImageError::TableNotLast)
    ));
    assert_eq!(
        verify_signatures(&signed).unwrap_err(),
        ParseSignaturesError::TableNotLast
    );
    let mut image = stub().to_vec();
    let headers = PeImage::parse(&image).unwrap();
    image[headers.pe_offset + field::NUMBER_OF_DIRECTORIES] = 4;
    assert!(matches!(
        signer().sign(&image),
        Err(SignImageError::NoDirectory)
    ));
}

#[test]
fn only_rsa_keys_that_are_not_encrypted_are_taken() {
    let key = |bytes| SigningKey::from_pem(bytes).map(|key| key.sign(b"x"));
    assert_eq!(key(PKCS1), key(KEY));
    assert_eq!(key(ENCRYPTED), Err(ReadKeyError::Encrypted));
    assert_eq!(key(P256_KEY), Err(ReadKeyError::NotRsa));
    assert_eq!(key(b"key"), Err(ReadKeyError::NotPem));
    assert_eq!(
        key(CERTIFICATE),
        Err(ReadKeyError::Label("CERTIFICATE".to_owned()))
    );
}

#[test]
fn only_certificates_of_rsa_keys_are_taken() {
    let refused = |bytes: &[u8]| SigningCertificate::parse(bytes).unwrap_err();
    assert!(matches!(refused(P256), ReadCertificateError::NotRsa(_)));
    assert!(matches!(refused(KEY), ReadCertificateError::Label(_)));
    assert!(matches!(refused(b""), ReadCertificateError::NotPem));
    let two = [CERTIFICATE, OTHER].concat();
    assert!(matches!(refused(&two), ReadCertificateError::NotPem));
    let der = SigningCertificate::parse(CERTIFICATE).unwrap();
    assert_eq!(SigningCertificate::parse(der.der()).unwrap(), der);
}

proptest! {
    #[test]
    fn no_table_makes_the_reader_panic(noise: Vec<u8>, at: usize, byte: u8) {
        let mut signed = signer().sign(&stub()).unwrap();
        let table = stub().len() + 8;
        let at = table + at % (signed.len() - table);
        signed[at] = byte;
        let _ = verify_signatures(&signed);
        let _ = message::parse(&noise);
    }
}
