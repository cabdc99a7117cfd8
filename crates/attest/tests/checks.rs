//! Every check, failed alone: good evidence of a simulated processor, one
//! change per row, and the one check that must notice.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::sync::OnceLock;

use assay_attest::policy::{
    AbiVersion, FirmwareVersion, GuestPolicyBit, IdBlockPolicy, PlatformBit, ProductPolicy,
    RevocationListMode, SigningKeyPolicy,
};
use assay_attest::{
    AppraisalPolicy, Binding, CheckName, CheckResult, Evidence, Outcome, ReasonCode,
    ReferenceState, ReferenceValue, ReferenceValues, TrustAnchors, TrustDomain, Verdict, appraise,
};
use assay_psp_sim::{Authority, Endorsement, Processor, VcekTemplate};
use assay_tee::guest_message::{ReportRequest, ReportResponse};
use assay_tee::page_info::PageType;
use assay_tee::{AttestationReport, GuestPolicy, Product, Sha256Digest, TcbVersion, Tee};
use jiff::Timestamp;

const TCB: TcbVersion = TcbVersion {
    fmc: None,
    bootloader: 10,
    tee: 1,
    snp: 25,
    microcode: 200,
};
const REPORT_DATA: [u8; 64] = [0x5a; 64];

fn start() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn now() -> Timestamp {
    "2026-07-01T00:00:00Z".parse().unwrap()
}

fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| Authority::generate(Product::Genoa, start()).unwrap())
}

fn template() -> VcekTemplate {
    VcekTemplate::new(Product::Genoa, "chip", TCB)
}

struct Case {
    evidence: Evidence,
    endorsement: Endorsement,
    anchors: TrustAnchors,
    reference_values: ReferenceValues,
    policy: AppraisalPolicy,
    binding: Binding,
    now: Timestamp,
}

impl Case {
    fn good() -> Self {
        let endorsement = authority().issue_vcek(&template()).unwrap();
        let host_data = Sha256Digest::of(b"instance");
        let processor = Processor::new(endorsement.clone()).unwrap();
        let mut launch = processor.launch_start(GuestPolicy::default()).unwrap();
        launch
            .launch_update(PageType::Normal, 0x1000, &[1; 4096])
            .unwrap();
        let guest = launch.launch_finish(host_data).unwrap();
        let request = ReportRequest::new(REPORT_DATA, 0).encode();
        let response = guest.extended_guest_request(&request).unwrap();
        let response = ReportResponse::parse(&response).unwrap();
        let mut policy = AppraisalPolicy::strict(vec![ProductPolicy {
            product: Product::Genoa,
            minimum_tcb: TcbVersion { snp: 20, ..TCB },
            minimum_firmware: None,
        }]);
        policy.tees = vec![Tee::SimulatedSnp];
        policy.revocation_list = RevocationListMode::NotRequired;
        Self {
            evidence: Evidence::from_table(response.report.to_vec(), response.certificates),
            endorsement,
            anchors: TrustAnchors::with_simulated(authority().anchor()),
            reference_values: ReferenceValues(vec![ReferenceValue {
                id: "good".to_owned(),
                digest: guest.launch_digest(),
                state: ReferenceState::Accepted,
            }]),
            policy,
            binding: Binding {
                report_data: REPORT_DATA,
                host_data: *host_data.as_bytes(),
            },
            now: now(),
        }
    }

    fn appraise(&self) -> Verdict {
        appraise(
            &self.evidence,
            &self.anchors,
            &self.reference_values,
            &self.policy,
            &self.binding,
            self.now,
        )
    }

    /// Changes the report and signs it again: only the change can be noticed.
    fn report(&mut self, change: impl Fn(&mut AttestationReport)) {
        let mut report = AttestationReport::read_layout(&self.evidence.report).unwrap();
        change(&mut report);
        self.endorsement.sign_report(&mut report).unwrap();
        self.evidence.report = report.encode().to_vec();
    }

    /// Replaces the VCEK by one that says something else, and signs again.
    fn vcek(&mut self, change: impl Fn(&mut VcekTemplate)) {
        let mut template = template();
        change(&mut template);
        self.endorsement = authority().issue_vcek(&template).unwrap();
        self.evidence.certificates[0].clone_from(&self.endorsement.chain().vcek);
        self.report(|_| {});
    }

    fn revocation_list(&mut self, this_update: &str, next_update: &str, revoked: &[&[u8]]) {
        let (this, next) = (this_update.parse().unwrap(), next_update.parse().unwrap());
        self.policy.revocation_list = RevocationListMode::Required;
        self.evidence.revocation_list =
            Some(authority().revocation_list(this, next, revoked).unwrap());
    }
}

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
            c.vcek(|t| "SEV-VLEK".clone_into(&mut t.common_name));
        }),
        (C::EndorsementKey, R::CertificateMalformed, |c| {
            c.evidence.certificates[0].pop();
        }),
        (C::EndorsementKey, R::CertificateAmbiguous, |c| {
            let other = authority().issue_vcek(&template()).unwrap();
            c.evidence.certificates.push(other.chain().vcek.clone());
        }),
        (C::EndorsementKey, R::CertificateExtensionsWrong, |c| {
            c.vcek(|t| t.hw_id.truncate(9));
        }),
        (C::EndorsementKey, R::CertificateExtensionsWrong, |c| {
            c.vcek(|t| t.struct_version = 1);
        }),
        (C::EndorsementKey, R::CertificateExtensionsWrong, |c| {
            c.vcek(|t| t.tcb.fmc = Some(0));
        }),
        (C::CertificateChain, R::IntermediateMissing, |c| {
            c.evidence.certificates.remove(1);
        }),
        (C::CertificateChain, R::CertificateSignatureInvalid, |c| {
            *c.evidence.certificates[0].last_mut().unwrap() ^= 1;
        }),
        (C::CertificateChain, R::CertificateSignatureInvalid, |c| {
            let other = Authority::generate(Product::Genoa, start()).unwrap();
            let chain = other.issue_vcek(&template()).unwrap();
            c.evidence.certificates[1].clone_from(&chain.chain().ask);
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
            c.revocation_list("2026-01-01T00:00:00Z", "2026-07-01T00:00:00Z", &[]);
        }),
        (C::RevocationList, R::RevocationListStale, |c| {
            c.revocation_list("2026-07-01T00:00:01Z", "2026-08-01T00:00:00Z", &[]);
        }),
        (C::RevocationList, R::IntermediateRevoked, |c| {
            let revoked = [&[7][..], Authority::ASK_SERIAL];
            c.revocation_list("2026-06-01T00:00:00Z", "2026-08-01T00:00:00Z", &revoked);
        }),
        (C::DenyList, R::ChipDenied, |c| {
            let report = AttestationReport::read_layout(&c.evidence.report).unwrap();
            c.policy
                .denied
                .chips
                .push(Sha256Digest::of(&report.chip_id));
        }),
        (C::EndorsedTcb, R::EndorsedTcbMismatch, |c| {
            c.report(|r| {
                r.reported_tcb = TcbVersion { snp: 24, ..TCB }
                    .encode(Product::Genoa)
                    .unwrap();
            });
        }),
        (C::EndorsedTcb, R::EndorsedTcbMismatch, |c| {
            c.vcek(|t| t.tcb.microcode = 201);
        }),
        (C::ChipIdentity, R::ChipIdMismatch, |c| {
            c.report(|r| r.chip_id[63] ^= 1);
        }),
        (C::ChipIdentity, R::ChipIdMismatch, |c| {
            c.report(|r| r.chip_id = [0; 64]);
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
            let minimum = FirmwareVersion {
                major: 1,
                minor: 55,
                build: 44,
            };
            c.policy.products[0].minimum_firmware = Some(minimum);
        }),
        (C::Mitigations, R::MitigationMissing, |c| {
            c.policy.mitigations = 0b11;
        }),
        (C::Mitigations, R::MitigationMissing, |c| {
            c.policy.mitigations = 1;
            c.report(|r| r.launch_mit_vector = 0b10.into());
        }),
        (C::IdBlock, R::IdKeyNotAllowed, |c| {
            c.policy.id_block = IdBlockPolicy::Required {
                id_key_digests: vec!["00".repeat(48)],
                author_key_digests: vec![],
                minimum_guest_svn: 0,
            };
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
            anchor: authority().anchor()
        })
    );
    assert_eq!(verdict.reference_value.as_deref(), Some("good"));
    assert_eq!(verdict.reason(), None);
    assert_eq!(verdict.claims.unwrap().tcb.unwrap().reported, TCB);
}

#[test]
fn a_fresh_revocation_list_is_accepted() {
    let mut case = Case::good();
    case.revocation_list("2026-06-01T00:00:00Z", "2026-08-01T00:00:00Z", &[&[7]]);
    let verdict = case.appraise();
    assert!(verdict.is_accepted(), "{:#?}", verdict.first_failure());
    let check = verdict.check(CheckName::RevocationList).unwrap();
    assert_eq!(check.result, CheckResult::Pass);
}

#[test]
fn each_change_is_noticed_by_its_check_alone() {
    for (index, (name, reason, change)) in rows().into_iter().enumerate() {
        let mut case = Case::good();
        change(&mut case);
        let verdict = case.appraise();
        let failures: Vec<_> = verdict
            .checks
            .iter()
            .filter(|check| check.result == CheckResult::Fail)
            .map(|check| (check.name, check.reason))
            .collect();
        assert_eq!(
            failures,
            [(name, Some(reason))],
            "row {index}: {name} {reason}"
        );
        assert_eq!(
            verdict.outcome,
            Outcome::Rejected,
            "row {index}: {name} {reason}"
        );
    }
}

#[test]
fn no_check_is_without_a_row() {
    let rows = rows();
    let missing: Vec<_> = CheckName::ALL
        .iter()
        .filter(|name| !rows.iter().any(|row| row.0 == **name))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
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
