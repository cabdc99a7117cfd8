//! Every check, failed alone: good evidence of a simulated processor, one
//! change per row, and the one check that must notice.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "support/case.rs"]
mod case;

use assay_attest::describe::describe_certificate;
use assay_attest::policy::{
    AbiVersion, FirmwareVersion, GuestPolicyBit, IdBlockId, PlatformBit, ProductPolicy,
    RevocationListMode, SigningKeyPolicy,
};
use assay_attest::{
    CheckName, Outcome, ReasonCode, ReferenceState, TrustAnchors, TrustDomain, Verdict,
    VerifiedChains,
};
use assay_psp_sim::Authority;
use assay_tee::{
    AttestationReport, GuestPolicy, Product, Sha256Digest, Sha384Digest, TcbVersion, Tee,
};

use case::{Case, PROVIDER, Setup, authority, tcb};

/// The TCB of [`Case::good`].
const TCB: TcbVersion = TcbVersion {
    fmc: None,
    bootloader: 10,
    tee: 1,
    snp: 25,
    microcode: 200,
};
const AMD_ASK: &[u8] = include_bytes!("../src/anchors/genoa.ask.der");
const P256: &str = include_str!("keys/p256.public.pem");
const KEY_DIGEST: Sha384Digest = Sha384Digest::new([0xab; 48]);

type Row = (CheckName, ReasonCode, fn(&mut Case));

fn rows() -> Vec<Row> {
    use {CheckName as C, ReasonCode as R};
    vec![
        (C::ReportLength, R::ReportLengthInvalid, |c| {
            c.evidence.report.pop();
        }),
        (C::ReportLength, R::ReportLengthInvalid, |c| {
            c.evidence.report.push(0);
        }),
        (C::ReportVersion, R::ReportVersionUnknown, |c| {
            c.report(|r| r.version = 6.into());
        }),
        (C::ReportVersion, R::ReportVersionUnknown, |c| {
            c.report(|r| r.version = 0.into());
        }),
        (C::ReservedBytes, R::ReservedByteSet, |c| {
            c.evidence.report[0x4a0 - 1] = 1;
        }),
        (C::ReservedBytes, R::ReservedByteSet, |c| {
            c.report(|r| r.version = 4.into());
        }),
        (C::SignatureAlgorithm, R::SignatureAlgorithmUnknown, |c| {
            c.report(|r| r.signature_algo = 2.into());
        }),
        (C::KeyInformation, R::KeyInformationInvalid, |c| {
            c.report(|r| r.key_info = 0x20.into());
        }),
        (C::KeyInformation, R::ChipKeyMasked, |c| {
            c.report(|r| r.key_info = 2.into());
        }),
        (C::KeyInformation, R::ReportUnsigned, |c| {
            c.report(|r| r.key_info = (7 << 2).into());
        }),
        (C::KeyInformation, R::SigningKeyNotAllowed, |c| {
            c.policy.signing_keys.clear();
        }),
        (C::Product, R::ProductUnknown, |c| {
            c.report(|r| r.cpuid_family = 0x17);
        }),
        // Version 2 has no CPUID, so the certificate names the product.
        (C::Product, R::ProductContradicted, |c| {
            c.report(|r| {
                as_version_2(r);
                r.chip_id[8..].fill(0);
            });
        }),
        (C::TrustAnchor, R::RootUnknown, |c| {
            c.anchors = TrustAnchors::amd();
        }),
        (C::TrustAnchor, R::RootUnknown, |c| {
            c.anchors = TrustAnchors::with_simulated(Sha256Digest::of(b"other"));
        }),
        (C::TrustAnchor, R::RootMissing, |c| {
            c.evidence.certificates.pop();
        }),
        (C::TrustDomain, R::TeeNotAllowed, |c| {
            c.policy.tees = vec![Tee::Snp];
        }),
        (C::TrustDomain, R::TeeNotAllowed, |c| c.policy.tees.clear()),
        (C::EndorsementKey, R::EndorsementKeyMissing, |c| {
            c.evidence.certificates.remove(0);
        }),
        (C::EndorsementKey, R::EndorsementKeyMissing, |c| {
            c.leaf(|t| "SEV-VLEK".clone_into(&mut t.common_name));
        }),
        (C::EndorsementKey, R::CertificateMalformed, |c| {
            c.evidence.certificates[0].pop();
        }),
        (C::EndorsementKey, R::CertificateAmbiguous, |c| {
            let other = authority(Product::Genoa).issue_vcek(&c.template).unwrap();
            c.evidence.certificates.push(other.chain().leaf.clone());
        }),
        (C::EndorsementKey, R::CertificateExtensionsWrong, |c| {
            c.leaf(|t| t.hw_id.as_mut().unwrap().truncate(9));
        }),
        (C::EndorsementKey, R::CertificateExtensionsWrong, |c| {
            c.leaf(|t| t.hw_id = None);
        }),
        (C::EndorsementKey, R::CertificateExtensionsWrong, |c| {
            c.leaf(|t| t.csp_id = Some("CN=x".to_owned()));
        }),
        (C::EndorsementKey, R::CertificateExtensionsWrong, |c| {
            c.leaf(|t| t.struct_version = 1);
        }),
        (C::EndorsementKey, R::CertificateExtensionsWrong, |c| {
            c.leaf(|t| t.tcb.fmc = Some(0));
        }),
        (C::EndorsementKey, R::CertificateProductWrong, |c| {
            c.leaf(|t| "Turin".clone_into(&mut t.product_name));
        }),
        (C::EndorsementKey, R::CertificateProductWrong, |c| {
            c.leaf(|t| "Genoa2".clone_into(&mut t.product_name));
        }),
        (C::EndorsementKey, R::CertificateKeyWrong, |c| {
            let (_, p256) = der::pem::decode_vec(P256.as_bytes()).unwrap();
            let vcek = authority(Product::Genoa).certify_vcek(&c.template, &p256);
            c.evidence.certificates[0] = vcek.unwrap();
        }),
        (C::CertificateChain, R::IntermediateMissing, |c| {
            c.evidence.certificates.remove(1);
        }),
        (C::CertificateChain, R::IntermediateMissing, |c| {
            *c = Case::vlek();
            let vcek = authority(Product::Genoa).issue_vcek(&c.template).unwrap();
            c.evidence.certificates[1].clone_from(&vcek.chain().intermediate);
        }),
        (C::CertificateChain, R::CertificateNameWrong, |c| {
            c.evidence.certificates[1] = AMD_ASK.to_vec();
        }),
        (C::CertificateChain, R::CertificateSignatureInvalid, |c| {
            *c.evidence.certificates[0].last_mut().unwrap() ^= 1;
        }),
        (C::CertificateChain, R::CertificateSignatureInvalid, |c| {
            let start = "2026-01-01T00:00:00Z".parse().unwrap();
            let other = Authority::generate(Product::Genoa, start).unwrap();
            let other = other.issue_vcek(&c.template).unwrap();
            c.evidence.certificates[1].clone_from(&other.chain().intermediate);
        }),
        (C::CertificateChain, R::CertificateParametersWrong, |c| {
            let vcek = &mut c.evidence.certificates[0];
            let salt = b"\xa2\x03\x02\x01\x30";
            let at = vcek
                .windows(salt.len())
                .rposition(|window| window == salt)
                .unwrap();
            vcek[at + 4] = 0x20;
        }),
        (C::CertificateDates, R::CertificateExpired, |c| {
            c.now = "2033-07-01T00:00:00Z".parse().unwrap();
        }),
        (C::CertificateDates, R::CertificateNotYetValid, |c| {
            c.now = "2025-12-31T23:59:59Z".parse().unwrap();
        }),
        (C::RevocationList, R::RevocationListMissing, |c| {
            c.policy.revocation_list = RevocationListMode::Required;
        }),
        (C::RevocationList, R::RevocationListStale, |c| {
            c.revocation_list(|list| list.next_update = "2026-07-01T00:00:00Z".parse().unwrap());
        }),
        (C::RevocationList, R::RevocationListStale, |c| {
            c.revocation_list(|list| list.this_update = "2026-07-01T00:00:01Z".parse().unwrap());
        }),
        (C::RevocationList, R::RevocationListStale, |c| {
            c.policy.revocation_list_grace_seconds = 86_400;
            c.revocation_list(|list| list.next_update = "2026-06-30T00:00:00Z".parse().unwrap());
        }),
        (C::RevocationList, R::RevocationListInvalid, |c| {
            c.revocation_list(|list| list.number = None);
        }),
        (C::RevocationList, R::RevocationListInvalid, |c| {
            c.revocation_list(|list| list.critical_entries = true);
        }),
        (C::RevocationList, R::RevocationListInvalid, |c| {
            let root = authority(Product::Genoa).root_without_crl_sign().unwrap();
            c.anchors = TrustAnchors::with_simulated(Sha256Digest::of(&root));
            c.evidence.certificates[2] = root;
            c.revocation_list(|_| {});
        }),
        (C::RevocationList, R::RevocationListSuperseded, |c| {
            c.policy.products[0].minimum_revocation_list = Some(8);
            c.revocation_list(|_| {});
        }),
        (C::RevocationList, R::RevocationListSuperseded, |c| {
            c.second_entry(|entry| entry.minimum_revocation_list = Some(8));
            c.revocation_list(|_| {});
        }),
        (C::RevocationList, R::IntermediateRevoked, |c| {
            c.revocation_list(|list| list.revoked.push(Authority::ASK_SERIAL.to_vec()));
        }),
        (C::RevocationList, R::IntermediateRevoked, |c| {
            *c = Case::vlek();
            c.revocation_list(|list| list.revoked.push(Authority::ASVK_SERIAL.to_vec()));
        }),
        // A list that nobody asked for counts all the same.
        (C::RevocationList, R::IntermediateRevoked, |c| {
            c.revocation_list(|list| list.revoked.push(Authority::ASK_SERIAL.to_vec()));
            c.policy.revocation_list = RevocationListMode::NotRequired;
        }),
        (C::RevocationList, R::RevocationListInvalid, |c| {
            c.evidence.revocation_list = Some(b"none".to_vec());
        }),
        (C::DenyList, R::ChipDenied, |c| {
            let chip = Sha256Digest::of(&c.claimed().chip_id);
            c.policy.denied.chips.push(chip);
        }),
        (C::DenyList, R::ChipNotAllowed, |c| {
            c.policy.allowed_chips = Some(vec![Sha256Digest::of(b"other")]);
        }),
        (C::DenyList, R::ChipNotAllowed, |c| {
            *c = Case::vlek();
            c.policy.allowed_chips = Some(vec![Sha256Digest::of(&c.claimed().chip_id)]);
        }),
        (C::DenyList, R::EndorsementKeyDenied, |c| {
            let vcek = describe_certificate(&c.evidence.certificates[0]).unwrap();
            c.policy.denied.keys.push(vcek.key_digest);
        }),
        (C::DenyList, R::ProviderDenied, |c| {
            *c = Case::vlek();
            c.policy.denied.providers.push(PROVIDER.to_owned());
        }),
        (C::DenyList, R::ProviderNotAllowed, |c| {
            *c = Case::vlek();
            c.leaf(|t| t.csp_id = Some("CN=other.example".to_owned()));
        }),
        (C::EndorsedTcb, R::EndorsedTcbMismatch, |c| {
            c.report(|r| {
                r.reported_tcb = TcbVersion { snp: 24, ..TCB }
                    .encode(Product::Genoa)
                    .unwrap();
            });
        }),
        (C::EndorsedTcb, R::EndorsedTcbMismatch, |c| {
            c.leaf(|t| t.tcb.microcode = 201);
        }),
        (C::ChipIdentity, R::ChipIdMismatch, |c| {
            c.report(|r| r.chip_id[63] ^= 1);
        }),
        (C::ChipIdentity, R::ChipIdMismatch, |c| {
            c.report(|r| r.chip_id = [0; 64]);
        }),
        (C::ChipIdentity, R::ChipIdMismatch, |c| {
            *c = Case::vlek();
            c.report(|r| r.chip_id = [1; 64]);
        }),
        (C::ReportSignature, R::ReportSignatureInvalid, |c| {
            c.evidence.report[0x2a0] ^= 1;
        }),
        (C::ReportSignature, R::ReportSignatureInvalid, |c| {
            c.evidence.report[0x2e8] ^= 1;
        }),
        (C::ReportSignature, R::ReportSignatureInvalid, |c| {
            c.evidence.report[0x140] ^= 1;
        }),
        (C::ReportSignature, R::ReportSignatureInvalid, |c| {
            c.evidence.report[0x2a0..0x330].fill(0);
        }),
        (C::ReportData, R::ReportDataMismatch, |c| {
            c.binding.report_data[63] ^= 1;
        }),
        (C::ReportData, R::ReportDataMismatch, |c| {
            c.report(|r| r.report_data = [0; 64]);
        }),
        (C::HostData, R::HostDataMismatch, |c| {
            c.binding.host_data[0] ^= 1;
        }),
        (C::GuestPolicy, R::GuestPolicyInvalid, |c| {
            c.report(|r| r.policy = (r.policy.get() | 1 << 26).into());
        }),
        (C::GuestPolicy, R::GuestPolicyInvalid, |c| {
            c.report(|r| r.policy = (r.policy.get() & !(1 << 17)).into());
        }),
        (C::GuestPolicy, R::DebugAllowed, |c| {
            c.report(|r| r.policy = (r.policy.get() | GuestPolicy::DEBUG).into());
        }),
        (C::GuestPolicy, R::MigrationAllowed, |c| {
            c.report(|r| r.policy = (r.policy.get() | GuestPolicy::MIGRATE_MA).into());
        }),
        (C::GuestPolicy, R::GuestPolicyForbidden, |c| {
            c.policy.guest_policy.forbidden.push(GuestPolicyBit::Smt);
        }),
        (C::GuestPolicy, R::GuestPolicyInsufficient, |c| {
            c.policy
                .guest_policy
                .required
                .push(GuestPolicyBit::SingleSocket);
        }),
        (C::GuestPolicy, R::GuestAbiTooOld, |c| {
            c.policy.guest_policy.minimum_abi = AbiVersion {
                major: 0,
                minor: 31,
            };
        }),
        (C::PlatformInfo, R::AliasCheckMissing, |c| {
            c.report(|r| r.platform_info = 1.into());
        }),
        (C::PlatformInfo, R::PlatformInsufficient, |c| {
            c.policy
                .platform
                .required
                .push(PlatformBit::CiphertextHiding);
        }),
        (C::PlatformInfo, R::PlatformForbidden, |c| {
            c.policy.platform.forbidden.push(PlatformBit::Smt);
        }),
        (C::Vmpl, R::VmplNotAllowed, |c| {
            c.report(|r| r.vmpl = 1.into());
        }),
        (C::Vmpl, R::VmplNotAllowed, |c| c.policy.vmpls.clear()),
        (C::TcbOrder, R::TcbInvalid, |c| {
            c.report(|r| r.launch_tcb[2] = 1);
        }),
        (C::TcbOrder, R::TcbOutOfOrder, |c| {
            c.report(|r| {
                r.committed_tcb = TcbVersion { snp: 24, ..TCB }
                    .encode(Product::Genoa)
                    .unwrap();
            });
        }),
        (C::TcbOrder, R::TcbOutOfOrder, |c| {
            c.report(|r| {
                r.current_tcb = TcbVersion { snp: 24, ..TCB }
                    .encode(Product::Genoa)
                    .unwrap();
            });
        }),
        (C::MinimumTcb, R::TcbTooOld, |c| {
            c.policy.products[0].minimum_tcb.microcode = 201;
        }),
        (C::MinimumTcb, R::TcbTooOld, |c| {
            c.second_entry(|entry| entry.minimum_tcb.microcode = 201);
        }),
        (C::MinimumTcb, R::TcbTooOld, |c| {
            c.report(|r| {
                r.launch_tcb = TcbVersion { snp: 19, ..TCB }
                    .encode(Product::Genoa)
                    .unwrap();
            });
        }),
        (C::MinimumTcb, R::ProductNotAllowed, |c| {
            c.policy.products.clear();
        }),
        (C::MinimumTcb, R::ProductNotAllowed, |c| {
            c.policy.tcb_against.clear();
        }),
        (C::FirmwareVersion, R::FirmwareTooOld, |c| {
            c.policy.products[0].minimum_firmware = Some(firmware(44));
        }),
        (C::FirmwareVersion, R::FirmwareTooOld, |c| {
            c.policy.products[0].minimum_firmware = Some(firmware(43));
            c.second_entry(|entry| entry.minimum_firmware = Some(firmware(44)));
        }),
        (C::FirmwareVersion, R::FirmwareTooOld, |c| {
            c.policy.products[0].minimum_firmware = Some(firmware(43));
            c.report(|r| r.committed_build = 42);
        }),
        (C::Mitigations, R::MitigationMissing, |c| {
            c.policy.products[0].mitigations = 0b11;
        }),
        (C::Mitigations, R::MitigationMissing, |c| {
            c.second_entry(|entry| entry.mitigations = 0b10);
        }),
        (C::Mitigations, R::MitigationMissing, |c| {
            c.policy.products[0].mitigations = 1;
            c.report(|r| r.launch_mit_vector = 0b10.into());
        }),
        (C::IdBlock, R::IdKeyNotAllowed, |c| {
            c.policy.id_block.id_key_digests = Some(vec![Sha384Digest::new([0; 48])]);
        }),
        (C::IdBlock, R::IdKeyNotAllowed, |c| {
            c.policy.id_block.id_key_digests = Some(vec![]);
            c.report(|r| r.id_key_digest = [0xab; 48]);
        }),
        (C::IdBlock, R::AuthorKeyNotAllowed, |c| {
            c.policy.id_block.author_key_digests = Some(vec![KEY_DIGEST]);
            c.report(|r| r.key_info = 1.into());
        }),
        // The digest alone, without AUTHOR_KEY_EN, was verified by nobody.
        (C::IdBlock, R::AuthorKeyNotAllowed, |c| {
            c.policy.id_block.author_key_digests = Some(vec![KEY_DIGEST]);
            c.report(|r| r.author_key_digest = *KEY_DIGEST.as_bytes());
        }),
        (C::IdBlock, R::FamilyIdNotAllowed, |c| {
            c.policy.id_block.family_ids = Some(vec![IdBlockId([1; 16])]);
        }),
        (C::IdBlock, R::ImageIdNotAllowed, |c| {
            c.policy.id_block.image_ids = Some(vec![IdBlockId([1; 16])]);
        }),
        (C::IdBlock, R::GuestSvnTooOld, |c| {
            c.policy.id_block.minimum_guest_svn = 3;
            c.report(|r| r.guest_svn = 2.into());
        }),
        (C::Measurement, R::MeasurementUnknown, |c| {
            c.report(|r| r.measurement[0] ^= 1);
        }),
        (C::Measurement, R::MeasurementUnknown, |c| {
            c.reference_values.0.clear();
        }),
        (C::Measurement, R::MeasurementProposed, |c| {
            c.reference_values.0[0].state = ReferenceState::Proposed;
        }),
        (C::Measurement, R::MeasurementRevoked, |c| {
            c.reference_values.0[0].state = ReferenceState::Revoked;
        }),
    ]
}

fn firmware(build: u8) -> FirmwareVersion {
    FirmwareVersion {
        major: 1,
        minor: 55,
        build,
    }
}

fn as_version_2(report: &mut AttestationReport) {
    report.version = 2.into();
    (
        report.cpuid_family,
        report.cpuid_model,
        report.cpuid_stepping,
    ) = (0, 0, 0);
    report.launch_mit_vector = 0.into();
    report.current_mit_vector = 0.into();
}

#[test]
fn good_evidence_is_accepted() {
    let case = Case::good();
    let verdict = case.appraise();
    assert_eq!(
        verdict.outcome,
        Outcome::Accepted,
        "{:#?}",
        verdict.first_failure()
    );
    assert_eq!(
        verdict.trust_domain,
        Some(TrustDomain::Simulated {
            anchor: authority(Product::Genoa).anchor()
        })
    );
    assert_eq!(verdict.reference_value.as_deref(), Some("good"));
    assert_eq!(verdict.reason(), None);
    assert_eq!(verdict.revocation_list_number, None);
    assert_eq!(verdict.claims.unwrap().tcb.unwrap().reported, TCB);
}

#[test]
fn every_product_and_kind_of_key_is_accepted() {
    use assay_tee::report::SigningKey::{Vcek, Vlek};
    for product in Product::ALL {
        for key in [Vcek, Vlek] {
            let case = Case::new(&Setup {
                product,
                key,
                ..Setup::default()
            });
            assert_eq!(case.failures(), [], "{product} {key:?}");
        }
    }
}

/// The positive twins of rows that are near them.
#[test]
fn what_the_policy_allows_is_accepted() {
    let changes: &[fn(&mut Case)] = &[
        |c| c.report(as_version_2),
        |c| c.report(|r| r.cpuid_model = 0xa0),
        |c| c.leaf(|t| "Genoa-B1".clone_into(&mut t.product_name)),
        |c| c.revocation_list(|_| {}),
        |c| {
            c.policy.revocation_list_grace_seconds = 86_401;
            c.revocation_list(|list| list.next_update = "2026-06-30T00:00:00Z".parse().unwrap());
        },
        |c| {
            c.policy.products[0].minimum_revocation_list = Some(7);
            c.revocation_list(|_| {});
        },
        |c| c.second_entry(|entry| entry.minimum_firmware = Some(firmware(43))),
        |c| {
            let mut turin = ProductPolicy::new(Product::Turin, tcb(Product::Turin));
            (turin.mitigations, turin.minimum_firmware) = (0b10, Some(firmware(61)));
            c.policy.products.push(turin);
        },
        |c| c.policy.products[0].mitigations = 1,
        |c| {
            c.policy.id_block.author_key_digests = Some(vec![KEY_DIGEST]);
            c.report(|r| {
                r.author_key_digest = *KEY_DIGEST.as_bytes();
                r.key_info = 1.into();
            });
        },
        |c| {
            c.policy.id_block.family_ids = Some(vec![IdBlockId([1; 16])]);
            c.policy.id_block.image_ids = Some(vec![IdBlockId([2; 16])]);
            c.policy.id_block.minimum_guest_svn = 3;
            c.report(|r| (r.family_id, r.image_id, r.guest_svn) = ([1; 16], [2; 16], 3.into()));
        },
    ];
    for (index, change) in changes.iter().enumerate() {
        let mut case = Case::good();
        change(&mut case);
        assert_eq!(case.failures(), [], "change {index}");
    }
}

#[test]
fn the_number_of_a_list_is_reported_even_if_it_is_refused() {
    let mut case = Case::good();
    case.revocation_list(|_| {});
    assert_eq!(case.appraise().revocation_list_number, Some(7));
    case.policy.products[0].minimum_revocation_list = Some(8);
    assert_eq!(case.appraise().revocation_list_number, Some(7));
    *case
        .evidence
        .revocation_list
        .as_mut()
        .unwrap()
        .last_mut()
        .unwrap() ^= 1;
    assert_eq!(case.appraise().revocation_list_number, None);
}

#[test]
fn each_change_is_noticed_by_its_check_alone() {
    for (index, (name, reason, change)) in rows().into_iter().enumerate() {
        let mut case = Case::good();
        change(&mut case);
        assert_eq!(
            case.failures(),
            [(name, reason)],
            "row {index}: {name} {reason}"
        );
    }
}

#[test]
fn no_check_and_no_reason_is_without_a_row() {
    let rows = rows();
    let checks: Vec<_> = CheckName::SNP
        .iter()
        .filter(|name| !rows.iter().any(|row| row.0 == **name))
        .collect();
    assert!(checks.is_empty(), "{checks:?}");
    // Not a finding of its own: it stands where an earlier one failed.
    let derived = ReasonCode::EarlierCheckFailed;
    let reasons: Vec<_> = ReasonCode::SNP
        .iter()
        .filter(|reason| **reason != derived && !rows.iter().any(|row| row.1 == **reason))
        .collect();
    assert!(reasons.is_empty(), "{reasons:?}");
}

/// However a chain is remembered, before or while evidence is changed, it changes no
/// verdict.
#[test]
fn a_remembered_chain_changes_no_verdict() {
    for (check, reason, change) in rows() {
        let mut case = Case::good();
        let memory = VerifiedChains::new(16);
        assert!(case.appraise_with(&memory).is_accepted());
        change(&mut case);
        let verdict = case.appraise();
        assert!(!verdict.is_accepted(), "{check}, {reason}");
        for _ in 0..2 {
            assert_eq!(case.appraise_with(&memory), verdict, "{check}, {reason}");
        }
    }
}

/// ECDSA signatures have a twin. Both are the vendor's word for the same bytes,
/// so the name of a report must not depend on which of them it carries.
#[test]
fn a_report_is_named_by_its_signed_part() {
    let mut case = Case::good();
    let first = case.appraise().claims.unwrap().report_digest;
    let before = case.evidence.report.clone();
    case.report(|_| {});
    assert_ne!(case.evidence.report, before);
    assert_eq!(case.appraise().claims.unwrap().report_digest, first);
}

#[test]
fn a_verdict_survives_serialisation() {
    for change in [(|_| {}) as fn(&mut Case), |case| {
        case.policy.vmpls = vec![3];
    }] {
        let mut case = Case::good();
        change(&mut case);
        let verdict = case.appraise();
        let json = serde_json::to_string(&verdict).unwrap();
        assert_eq!(serde_json::from_str::<Verdict>(&json).unwrap(), verdict);
    }
}

#[test]
fn a_vlek_policy_does_not_accept_a_vcek() {
    let mut case = Case::good();
    case.policy.signing_keys = vec![SigningKeyPolicy::Vlek { csp_ids: vec![] }];
    assert_eq!(
        case.appraise().reason(),
        Some(ReasonCode::SigningKeyNotAllowed)
    );
}

/// A host supplies the certificates: whatever it changes in them must neither
/// be believed nor bring the verifier down.
#[test]
fn no_changed_byte_of_a_certificate_is_believed() {
    let mut case = Case::good();
    for index in 0..case.evidence.certificates.len() {
        for offset in (0..case.evidence.certificates[index].len()).step_by(3) {
            case.evidence.certificates[index][offset] ^= 0x01;
            assert!(
                !case.appraise().is_accepted(),
                "certificate {index}, byte {offset}"
            );
            case.evidence.certificates[index][offset] ^= 0x01;
        }
    }
    assert!(case.appraise().is_accepted());
}

#[test]
fn no_domain_is_named_without_a_verified_chain() {
    let mut case = Case::good();
    *case.evidence.certificates[0].last_mut().unwrap() ^= 1;
    assert_eq!(case.appraise().trust_domain, None);
}
