//! SNP_LAUNCH_FINISH with an ID block that the owner's tools made.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::sync::OnceLock;

use assay_attest::id_block::{PrivateKey, differences, sign, verify};
use assay_psp_sim::{Endorsement, Guest, IdBlockError, IdBlockInput, LaunchError, Processor};
use assay_tee::guest_message::{ReportRequest, ReportResponse};
use assay_tee::id_block::{IdAuth, IdBlock, ParseIdBlockError};
use assay_tee::page_info::PageType;
use assay_tee::{AttestationReport, GuestPolicy, LaunchDigest, Sha256Digest, TcbVersion};

const ID_KEY: &str = include_str!("../../attest/tests/keys/p384.pkcs8.pem");
const AUTHOR_KEY: &str = include_str!("../../attest/tests/keys/author.sec1.pem");

fn processor() -> Processor {
    static PROCESSOR: OnceLock<Processor> = OnceLock::new();
    let make = || {
        let tcb = TcbVersion {
            fmc: None,
            bootloader: 10,
            tee: 0,
            snp: 25,
            microcode: 200,
        };
        let start = "2026-01-01T00:00:00Z".parse().unwrap();
        Processor::new(Endorsement::generate("chip", tcb, start).unwrap()).unwrap()
    };
    PROCESSOR.get_or_init(make).clone()
}

/// Launches one page of `content` with this ID block.
fn launch(content: u8, block: &[u8], auth: &[u8], author: bool) -> Result<Guest, LaunchError> {
    let mut launch = processor().launch_start(GuestPolicy::default()).unwrap();
    launch
        .launch_update(PageType::Normal, 0, &[content; 4096])
        .unwrap();
    launch.launch_finish_with_id_block(
        Sha256Digest::of(b"instance"),
        &IdBlockInput {
            block,
            auth,
            author_key_enabled: author,
        },
    )
}

/// What a launch of a page of ones has.
fn digest() -> LaunchDigest {
    let mut launch = processor().launch_start(GuestPolicy::default()).unwrap();
    launch
        .launch_update(PageType::Normal, 0, &[1; 4096])
        .unwrap();
    launch
        .launch_finish(Sha256Digest::of(b""))
        .unwrap()
        .launch_digest()
}

fn block() -> IdBlock {
    let mut block = IdBlock::new(digest(), GuestPolicy::default());
    block.family_id = [0xfa; 16];
    block.image_id = [0x1a; 16];
    block.guest_svn = 7.into();
    block
}

fn auth(block: &IdBlock, author: bool) -> IdAuth {
    let key = |text| PrivateKey::from_pem(text).unwrap();
    let author = author.then(|| key(AUTHOR_KEY));
    sign(block, &key(ID_KEY), author.as_ref())
}

fn report(guest: &Guest) -> AttestationReport {
    let request = ReportRequest::new([0; 64], 0).encode();
    let response = guest.guest_request(&request).unwrap();
    AttestationReport::parse(&ReportResponse::parse(&response).unwrap().report).unwrap()
}

#[test]
fn reports_name_the_owner() {
    let block = block();
    for author in [false, true] {
        let auth = auth(&block, author);
        let guest = launch(1, &block.encode(), &auth.encode(), author).unwrap();
        let signers = verify(&block, &auth).unwrap();
        let found = differences(&block, &signers, &report(&guest)).unwrap();
        assert_eq!(found, []);
    }
}

#[test]
fn an_author_key_that_is_not_enabled_is_not_reported() {
    let block = block();
    let auth = auth(&block, true);
    let guest = launch(1, &block.encode(), &auth.encode(), false).unwrap();
    let report = report(&guest);
    assert_eq!(report.author_key_digest, [0; 48]);
    assert!(!report.key_info().unwrap().author_key_enabled);
    assert_eq!(report.id_key_digest, *auth.id_key.digest().as_bytes());
}

#[test]
fn other_launches_than_the_signed_one_are_refused() {
    let good = block();
    let mut other_policy = good;
    other_policy.policy = (GuestPolicy::default().0 | GuestPolicy::DEBUG).into();
    let mut unsigned_svn = good;
    unsigned_svn.guest_svn = 8.into();
    let signed = auth(&good, true);
    let mut foreign_author = signed;
    foreign_author.author_key = signed.id_key;
    let refusal = |content, block: &IdBlock, auth: &IdAuth| match launch(
        content,
        &block.encode(),
        &auth.encode(),
        true,
    ) {
        Err(LaunchError::IdBlock(error)) => error,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("launched"),
    };
    assert!(matches!(
        refusal(2, &good, &signed),
        IdBlockError::Measurement { wanted, .. } if wanted == good.launch_digest()
    ));
    assert_eq!(
        refusal(1, &other_policy, &auth(&other_policy, true)),
        IdBlockError::Policy {
            wanted: other_policy.policy.get(),
            got: good.policy.get()
        }
    );
    assert_eq!(
        refusal(1, &unsigned_svn, &signed),
        IdBlockError::Signature { what: "ID block" }
    );
    assert_eq!(
        refusal(1, &good, &foreign_author),
        IdBlockError::Signature { what: "ID key" }
    );
    assert_eq!(
        refusal(1, &good, &auth(&good, false)),
        IdBlockError::Signature { what: "ID key" }
    );
    let cut = launch(1, &good.encode()[1..], &signed.encode(), true);
    assert!(matches!(
        cut.err(),
        Some(LaunchError::IdBlock(IdBlockError::Parse(
            ParseIdBlockError::Length { .. }
        )))
    ));
}
