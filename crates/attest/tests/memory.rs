//! A memory of verified chains saves a verification and nothing else: whatever
//! comes true after a chain was remembered is noticed all the same.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "support/case.rs"]
mod case;

use std::sync::atomic::{AtomicUsize, Ordering};

use assay_attest::memory::ChainDigest;
use assay_attest::{ChainMemory, CheckName, ReasonCode, TrustAnchors, VerifiedChains};
use assay_psp_sim::Authority;
use assay_tee::{Product, Sha256Digest};

use case::{Case, authority};

/// A memory that counts what it was good for.
struct Counting {
    chains: VerifiedChains,
    known: AtomicUsize,
    learnt: AtomicUsize,
}

impl Counting {
    fn new() -> Self {
        Self {
            chains: VerifiedChains::new(16),
            known: AtomicUsize::new(0),
            learnt: AtomicUsize::new(0),
        }
    }

    /// Chains known and chains learnt.
    fn counts(&self) -> (usize, usize) {
        (
            self.known.load(Ordering::Relaxed),
            self.learnt.load(Ordering::Relaxed),
        )
    }
}

impl ChainMemory for Counting {
    fn knows(&self, chain: &ChainDigest) -> bool {
        let known = self.chains.knows(chain);
        self.known.fetch_add(usize::from(known), Ordering::Relaxed);
        known
    }

    fn remember(&self, chain: ChainDigest) {
        self.learnt.fetch_add(1, Ordering::Relaxed);
        self.chains.remember(chain);
    }
}

/// Good evidence whose chain is remembered.
fn remembered() -> (Case, Counting) {
    let (case, memory) = (Case::good(), Counting::new());
    let first = case.appraise_with(&memory);
    assert!(first.is_accepted());
    assert_eq!(memory.counts(), (0, 1));
    assert_eq!(case.appraise_with(&memory), first);
    assert_eq!(memory.counts(), (1, 1));
    (case, memory)
}

#[track_caller]
fn assert_noticed(case: &Case, memory: &Counting, check: CheckName, reason: ReasonCode) {
    let (known, learnt) = memory.counts();
    let verdict = case.appraise_with(memory);
    let found = verdict
        .first_failure()
        .map(|check| (check.name, check.reason));
    assert_eq!(found, Some((check, Some(reason))));
    // The chain itself was known: that is not what noticed it.
    assert_eq!(memory.counts(), (known + 1, learnt));
}

#[test]
fn a_remembered_chain_expires() {
    let (mut case, memory) = remembered();
    case.now = "2040-01-01T00:00:00Z".parse().unwrap();
    let (check, reason) = (CheckName::CertificateDates, ReasonCode::CertificateExpired);
    assert_noticed(&case, &memory, check, reason);
}

#[test]
fn a_remembered_chain_is_revoked() {
    let (mut case, memory) = remembered();
    case.revocation_list(|list| list.revoked.push(Authority::ASK_SERIAL.to_vec()));
    let (check, reason) = (CheckName::RevocationList, ReasonCode::IntermediateRevoked);
    assert_noticed(&case, &memory, check, reason);
    let (mut case, memory) = remembered();
    case.revocation_list(|list| list.next_update = list.this_update);
    let reason = ReasonCode::RevocationListStale;
    assert_noticed(&case, &memory, check, reason);
}

#[test]
fn a_remembered_chain_is_denied() {
    let (case, memory) = remembered();
    let check = CheckName::DenyList;
    let mut chip = case.clone();
    let chip_id = Sha256Digest::of(&case.claimed().chip_id);
    chip.policy.denied.chips.push(chip_id);
    assert_noticed(&chip, &memory, check, ReasonCode::ChipDenied);
    let mut key = case;
    let signed_by = key
        .appraise()
        .check(CheckName::ReportSignature)
        .unwrap()
        .observed
        .clone();
    let digest = signed_by.unwrap().replace("by key ", "").parse().unwrap();
    key.policy.denied.keys.push(digest);
    assert_noticed(&key, &memory, check, ReasonCode::EndorsementKeyDenied);
}

#[test]
fn a_remembered_chain_loses_its_anchor() {
    let (mut case, memory) = remembered();
    case.anchors = TrustAnchors::amd();
    let verdict = case.appraise_with(&memory);
    assert_eq!(verdict.reason(), Some(ReasonCode::RootUnknown));
    assert_eq!(verdict.trust_domain, None);
}

/// A certificate of the same key for another TCB is another certificate: it is
/// verified, and the report is not of that TCB.
#[test]
fn the_same_key_for_another_tcb_is_another_chain() {
    let (mut case, memory) = remembered();
    case.template.tcb.snp += 1;
    let key = x509_key(&case.evidence.certificates[0]);
    let other = authority(Product::Genoa)
        .certify_vcek(&case.template, &key)
        .unwrap();
    case.evidence.certificates[0] = other.clone();
    let (known, learnt) = memory.counts();
    let verdict = case.appraise_with(&memory);
    assert_eq!(verdict.reason(), Some(ReasonCode::EndorsedTcbMismatch));
    assert_eq!(memory.counts(), (known, learnt + 1));

    // Not signed by the intermediate at all, it is refused for that.
    let mut forged = other;
    *forged.last_mut().unwrap() ^= 1;
    case.evidence.certificates[0] = forged;
    let verdict = case.appraise_with(&memory);
    assert_eq!(
        verdict.reason(),
        Some(ReasonCode::CertificateSignatureInvalid)
    );
    assert_eq!(memory.counts(), (known, learnt + 1));
}

/// Only what was verified is remembered, and it stays within bounds.
#[test]
fn refused_chains_are_not_remembered() {
    let memory = Counting::new();
    let good = Case::good();
    for bit in 0..8 {
        let mut case = good.clone();
        let leaf = &mut case.evidence.certificates[0];
        *leaf.last_mut().unwrap() ^= 1 << bit;
        assert!(!case.appraise_with(&memory).is_accepted());
    }
    assert_eq!(memory.counts(), (0, 0));
    assert!(memory.chains.is_empty());
}

/// SubjectPublicKeyInfo of a certificate.
fn x509_key(der: &[u8]) -> Vec<u8> {
    use der::{Decode as _, Encode as _};
    let certificate = x509_cert::Certificate::from_der(der).unwrap();
    let info = certificate.tbs_certificate().subject_public_key_info();
    info.to_der().unwrap()
}
