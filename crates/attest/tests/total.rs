//! Readers of keys, signatures and certificates never panic: on random bytes,
//! and on good input with damage. The targets in `fuzz/` hold the same
//! properties for longer.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::sync::OnceLock;

use assay_attest::describe::{CertificateRole, describe_certificate};
use assay_attest::evidence::{parse_certificates, parse_evidence};
use assay_attest::id_block::{PrivateKey, read_public_key, read_signature};
use assay_psp_sim::Endorsement;
use assay_psp_sim::pki::Chain;
use assay_tee::TcbVersion;
use proptest::prelude::*;

const PRIVATE: &str = include_str!("keys/p384.pkcs8.pem");
const SEC1: &str = include_str!("keys/p384.sec1.pem");
const PUBLIC: &str = include_str!("keys/p384.public.pem");

fn chain() -> &'static Chain {
    static CHAIN: OnceLock<Endorsement> = OnceLock::new();
    let make = || {
        let tcb = TcbVersion {
            fmc: None,
            bootloader: 1,
            tee: 2,
            snp: 3,
            microcode: 200,
        };
        let start = "2026-01-01T00:00:00Z".parse().unwrap();
        Endorsement::generate("chip", tcb, start).unwrap()
    };
    CHAIN.get_or_init(make).chain()
}

fn check(bytes: &[u8]) {
    if let Ok(text) = str::from_utf8(bytes) {
        let _ = PrivateKey::from_pem(text);
    }
    let _ = read_public_key(bytes);
    if let Ok(signature) = read_signature(bytes) {
        assert_eq!(read_signature(&signature.to_fixed()), Ok(signature));
    }
    let _ = describe_certificate(bytes);
    let _ = parse_evidence(bytes.to_vec());
    for der in parse_certificates(bytes).unwrap_or_default() {
        let _ = describe_certificate(&der);
    }
}

fn damaged(
    good: &[u8],
    changes: &[(prop::sample::Index, u8)],
    cut: prop::sample::Index,
) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for (index, value) in changes {
        bytes[index.index(good.len())] = *value;
    }
    // Lengths are drawn from eight times the range, so most keep all.
    bytes.truncate(cut.index(8 * good.len()));
    bytes
}

proptest! {
    #[test]
    fn random_bytes_give_a_value_or_an_error(bytes: Vec<u8>, text: String) {
        check(&bytes);
        check(text.as_bytes());
    }

    #[test]
    fn damaged_files_give_a_value_or_an_error(
        changes in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..6),
        cut: prop::sample::Index,
    ) {
        let Chain {
            leaf,
            intermediate,
            ark,
            ..
        } = chain();
        let texts = [PRIVATE, SEC1, PUBLIC].map(str::as_bytes);
        for good in [&leaf[..], intermediate, ark].into_iter().chain(texts) {
            check(&damaged(good, &changes, cut));
        }
    }
}

#[test]
fn a_chain_is_described() {
    let Chain {
        leaf,
        intermediate,
        ark,
        ..
    } = chain();
    let roles = [leaf, intermediate, ark].map(|der| describe_certificate(der).unwrap().role);
    let expected = [
        CertificateRole::Vcek,
        CertificateRole::Ask,
        CertificateRole::Ark,
    ];
    assert_eq!(roles, expected);
    let found = describe_certificate(leaf).unwrap();
    assert_eq!(found.vendor.tcb.microcode, Some(200));
    assert_eq!(found.vendor.hw_id.unwrap().len(), 128);
    assert_eq!(found.problems, [""; 0]);
    assert_eq!(found.key, "ECDSA P-384");
    assert_eq!(describe_certificate(ark).unwrap().key, "RSA-4096");
}
