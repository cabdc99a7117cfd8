//! Which collateral evidence needs, and what is kept of the answers.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "support/case.rs"]
mod case;
#[path = "support/vectors.rs"]
mod vectors;

use assay_attest::collateral::{
    CollateralRequest, Content, KeyKind, check_collateral, collateral_requests,
};
use assay_attest::policy::RevocationListMode;
use assay_attest::{Endorsements, Evidence, ReasonCode, TrustAnchors};
use assay_psp_sim::kds::Fault;
use assay_psp_sim::{KeyDistributionService, KeyTemplate, RevocationListTemplate};
use assay_tee::report::SigningKey;
use assay_tee::{Product, TcbVersion};

use case::{Case, Setup, authority, tcb};
use vectors::{good, load, vectors};

fn list() -> RevocationListTemplate {
    RevocationListTemplate {
        this_update: "2026-06-01T00:00:00Z".parse().unwrap(),
        next_update: "2026-08-01T00:00:00Z".parse().unwrap(),
        number: Some(7),
        revoked: vec![],
        critical_entries: false,
    }
}

/// Evidence without the host's certificates, as far as it has none.
fn bare(case: &Case) -> Evidence {
    let keep = usize::from(case.endorsement.chain().kind == SigningKey::Vlek);
    let certificates = case.evidence.certificates.iter().take(keep).cloned();
    Evidence::new(case.evidence.report.clone(), certificates.collect())
}

/// What `kds` answers to `requests`, each checked by the answers before.
fn obtain(
    kds: &mut KeyDistributionService<'_>,
    requests: &[CollateralRequest],
    anchors: &TrustAnchors,
) -> Endorsements {
    let mut endorsements = Endorsements::default();
    for request in requests {
        let (status, body) = kds.respond(&request.path()).unwrap();
        assert_eq!(status, 200, "{}", request.path());
        let authorities = &endorsements.certificates;
        let collateral = check_collateral(request, &body, authorities, anchors).unwrap();
        endorsements.add(&collateral);
    }
    endorsements
}

#[test]
fn a_report_alone_is_accepted_with_what_it_needs() {
    for product in Product::ALL {
        for key in [SigningKey::Vcek, SigningKey::Vlek] {
            let mut case = Case::new(&Setup {
                product,
                key,
                ..Setup::default()
            });
            case.policy.revocation_list = RevocationListMode::Required;
            case.evidence = bare(&case);
            let requests = collateral_requests(&case.evidence, &case.anchors);
            let needed = if key == SigningKey::Vcek { 3 } else { 2 };
            assert_eq!(requests.len(), needed, "{requests:?}");

            let mut kds = KeyDistributionService::new(authority(product), list());
            if key == SigningKey::Vcek {
                kds.publish(&case.endorsement).unwrap();
            }
            let endorsements = obtain(&mut kds, &requests, &case.anchors);
            assert!(!case.appraise().is_accepted());
            case.evidence.endorse(&endorsements);
            assert_eq!(case.failures(), [], "{product} {key:?}");
            assert_eq!(case.appraise().revocation_list_number, Some(7));
        }
    }
}

#[test]
fn evidence_under_the_simulated_root_needs_nothing() {
    let case = Case::good();
    assert_eq!(collateral_requests(&case.evidence, &case.anchors), []);
    // The same evidence, where nobody configured that root.
    let requests = collateral_requests(&case.evidence, &TrustAnchors::amd());
    let (product, kind) = (Product::Genoa, KeyKind::Vcek);
    assert_eq!(
        requests,
        [CollateralRequest::RevocationList { product, kind }]
    );
}

#[test]
fn what_was_not_asked_for_is_refused() {
    let case = Case::good();
    let other = TcbVersion {
        microcode: 201,
        ..tcb(Product::Genoa)
    };
    let authority = authority(Product::Genoa);
    let issue = |chip, tcb| {
        let template = KeyTemplate::vcek(Product::Genoa, chip, tcb);
        authority.issue_vcek(&template).unwrap()
    };
    let mut kds = KeyDistributionService::new(authority, list());
    kds.publish(&case.endorsement).unwrap();
    kds.publish(&issue("another chip", tcb(Product::Genoa)))
        .unwrap();
    let requests = collateral_requests(&bare(&case), &case.anchors);
    let [chain, list, vcek] = requests.as_slice() else {
        panic!("{requests:?}")
    };
    let mut answer = |request: &CollateralRequest| kds.respond(&request.path()).unwrap().1;
    let (chain_pem, crl, leaf) = (answer(chain), answer(list), answer(vcek));
    kds.faults.push_back(Fault::WrongChip);
    let (_, wrong_chip) = kds.respond(&vcek.path()).unwrap();
    let wrong_tcb = issue("chip", other).chain().leaf.clone();

    let authorities = obtain(&mut kds, &requests[..1], &case.anchors).certificates;
    let refusal = |request, body: &[u8], anchors: &TrustAnchors| {
        let refusal = check_collateral(request, body, &authorities, anchors).unwrap_err();
        refusal.reason().unwrap()
    };
    let (simulated, amd) = (case.anchors, TrustAnchors::amd());
    for (request, body, anchors, reason) in [
        (vcek, &wrong_chip, &simulated, ReasonCode::ChipIdMismatch),
        (
            vcek,
            &wrong_tcb,
            &simulated,
            ReasonCode::EndorsedTcbMismatch,
        ),
        (vcek, &leaf, &amd, ReasonCode::RootUnknown),
        (chain, &chain_pem, &amd, ReasonCode::RootUnknown),
        (chain, &leaf, &amd, ReasonCode::IntermediateMissing),
        (
            chain,
            &b"text".to_vec(),
            &amd,
            ReasonCode::CertificateMalformed,
        ),
        (list, &crl, &amd, ReasonCode::RootUnknown),
        (list, &leaf, &simulated, ReasonCode::RevocationListInvalid),
    ] {
        assert_eq!(
            refusal(request, body, anchors),
            reason,
            "{}",
            request.path()
        );
    }
    let mut forged = leaf.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(
        refusal(vcek, &forged, &simulated),
        ReasonCode::CertificateSignatureInvalid
    );
}

#[test]
fn a_list_is_due_halfway_through_its_life() {
    let case = Case::good();
    let kind = KeyKind::Vcek;
    let product = Product::Genoa;
    let request = CollateralRequest::RevocationList { product, kind };
    let mut kds = KeyDistributionService::new(authority(product), list());
    let (_, chain) = kds.respond("/vcek/v1/Genoa/cert_chain").unwrap();
    let authorities = assay_attest::evidence::parse_certificates(&chain).unwrap();
    let (_, body) = kds.respond(&request.path()).unwrap();
    let collateral = check_collateral(&request, &body, &authorities, &case.anchors).unwrap();
    assert_eq!(collateral.revocation_list_number(), Some(7));
    for (now, valid, due) in [
        ("2026-05-31T23:59:59Z", false, false),
        ("2026-06-01T00:00:00Z", true, false),
        ("2026-07-01T11:59:59Z", true, false),
        ("2026-07-01T12:00:00Z", true, true),
        ("2026-07-31T23:59:59Z", true, true),
        ("2026-08-01T00:00:00Z", false, true),
    ] {
        let now = now.parse().unwrap();
        assert_eq!(
            (collateral.is_valid(now), collateral.is_due(now)),
            (valid, due),
            "{now}"
        );
    }
}

/// Real keys are the answers to the requests of their real reports.
#[test]
fn genuine_keys_and_lists_are_kept() {
    let Some(vectors) = vectors() else { return };
    let anchors = TrustAnchors::amd();
    for (name, mut case) in good(&vectors) {
        let vcek = case.evidence.certificates.remove(0);
        case.evidence.certificates.clear();
        let requests = collateral_requests(&case.evidence, &anchors);
        // Reports of version 2 do not name the product.
        let expected = match name {
            "milan-v2-cloud" | "milan-v2-debug" => 0,
            "milan-v3-vlek" => 2,
            _ => 3,
        };
        assert_eq!(requests.len(), expected, "{name}");
        if let [_, _, request] = requests.as_slice() {
            let kept = check_collateral(request, &vcek, &[], &anchors).unwrap();
            assert_eq!(kept.content, Content::Certificates(vec![vcek]), "{name}");
        }
    }
    for (product, number) in [(Product::Milan, 6), (Product::Genoa, 4)] {
        let file = format!("crl/{}.crl.der", product.name().to_lowercase());
        let list = std::fs::read(vectors.join(file)).unwrap();
        let kind = KeyKind::Vcek;
        let request = CollateralRequest::RevocationList { product, kind };
        let kept = check_collateral(&request, &list, &[], &anchors).unwrap();
        assert_eq!(kept.revocation_list_number(), Some(number));
        let product = Product::Turin;
        let request = CollateralRequest::RevocationList { product, kind };
        let refusal = check_collateral(&request, &list, &[], &anchors).unwrap_err();
        assert_eq!(refusal.reason(), Some(ReasonCode::RevocationListInvalid));
    }
    let turin = load(&vectors, Product::Turin, "turin-v5", "vcek.der");
    let bare = Evidence::new(turin.evidence.report, Vec::new());
    let [_, _, vcek] = collateral_requests(&bare, &anchors).try_into().unwrap();
    let CollateralRequest::Vcek { hw_id, .. } = &vcek else {
        panic!("{vcek:?}")
    };
    assert_eq!(
        vcek.path(),
        format!(
            "/vcek/v1/Turin/{}?fmcSPL=00&blSPL=01&teeSPL=00&snpSPL=02&ucodeSPL=71",
            hex::encode(hw_id)
        )
    );
    assert_eq!(hw_id.len(), 8);
}
