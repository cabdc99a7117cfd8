//! Oracle: two other verifiers on real and simulated evidence and on more than a
//! thousand changes to it. What they accept and we refuse must be a known gap of
//! theirs, and what they refuse we must refuse too.
//!
//! The `sev` crate needs no program. `ASSAY_GO_SEV_GUEST_CHECK` names
//! go-sev-guest's (github.com/google/go-sev-guest/tools/check).
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "support/case.rs"]
mod case;
#[path = "../../measure/tests/support/random.rs"]
#[allow(dead_code, reason = "shared with tests that draw more")]
mod random;
#[path = "support/vectors.rs"]
mod vectors;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::process::Command;

use assay_attest::{CheckResult, Evidence, ReasonCode, Verdict};
use assay_psp_sim::KeyTemplate;
use assay_tee::guest_message::{CertificateEntry, CertificateGuid, CertificateTable};
use assay_tee::report::{PlatformInfo, SigningKey};
use assay_tee::{AttestationReport, GuestPolicy, Product};
use der::pem::LineEnding;
use sev::certs::snp::{Certificate, Chain, Verifiable as _};
use sev::parser::ByteParser as _;

use case::{Case, Setup};
use random::Random;

/// Why another verifier accepts what we refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Gap {
    /// It has no such check.
    Unchecked,
    /// It leaves the comparison to its caller.
    LeftToCaller,
    /// It checks something weaker.
    Weaker,
    /// It verifies the signature of a report that it has written again, from
    /// which it left out reserved bytes of TCB versions.
    Rewritten,
    /// It knows a product (Venice) that we refuse until we have evidence of it.
    NewerProduct,
}

/// How another verifier differs from ours.
struct Peer {
    /// Why it may accept what we refuse for a reason, given all our reasons.
    gap: fn(ReasonCode, &[ReasonCode]) -> Option<Gap>,
    /// Whether it may refuse what we accept.
    is_stricter: fn(&AttestationReport) -> bool,
}

const SEV: Peer = Peer {
    gap: sev_gap,
    is_stricter: |_| false,
};

const GO_SEV_GUEST: Peer = Peer {
    gap: go_sev_guest_gap,
    // It takes an upper bound of either field, and does not know the models of
    // Bergamo and Siena.
    is_stricter: |report| {
        report.platform_info.get() != PLATFORM_INFO
            || report.policy.get() != GuestPolicy::default().0
            || report.cpuid_model >= 0xa0
    },
};

/// What the simulated processor reports.
const PLATFORM_INFO: u64 =
    PlatformInfo::SMT | PlatformInfo::ECC | PlatformInfo::ALIAS_CHECK_COMPLETE;

/// The gaps of the `sev` crate, which verifies a chain and a signature, given
/// all that we find wrong.
fn sev_gap(reason: ReasonCode, failures: &[ReasonCode]) -> Option<Gap> {
    use ReasonCode as R;
    Some(match reason {
        R::SignatureAlgorithmUnknown
        | R::KeyInformationInvalid
        | R::ChipKeyMasked
        | R::ReportUnsigned
        | R::CertificateExtensionsWrong
        | R::CertificateProductWrong
        | R::CertificateNameWrong
        | R::CertificateParametersWrong
        | R::EndorsedTcbMismatch
        | R::ChipIdMismatch
        | R::ProductContradicted
        | R::TcbOutOfOrder => Gap::Unchecked,
        R::SigningKeyNotAllowed
        // The caller says which certificate has which role.
        | R::EndorsementKeyMissing
        | R::IntermediateMissing
        | R::RootMissing
        | R::RootUnknown
        | R::ReportDataMismatch
        | R::HostDataMismatch
        | R::GuestPolicyInvalid
        | R::DebugAllowed
        | R::MigrationAllowed
        | R::AliasCheckMissing
        | R::VmplNotAllowed
        | R::ProductNotAllowed
        | R::TcbTooOld
        | R::MeasurementUnknown => Gap::LeftToCaller,
        // Versions after 5 are read as 5, and the tail of the report is not read.
        R::ReportVersionUnknown | R::ReservedByteSet | R::CertificateMalformed => Gap::Weaker,
        R::ProductUnknown => Gap::NewerProduct,
        R::TcbInvalid => Gap::Rewritten,
        R::ReportSignatureInvalid if failures.contains(&R::TcbInvalid) => Gap::Rewritten,
        _ => return None,
    })
}

/// The gaps of go-sev-guest's check, given what [`Checker::accepts`] gives it.
fn go_sev_guest_gap(reason: ReasonCode, _: &[ReasonCode]) -> Option<Gap> {
    use ReasonCode as R;
    Some(match reason {
        // It is told the product, and compares a certificate's with nothing where
        // it cannot read it; it does not read structVersion.
        R::CertificateProductWrong | R::CertificateExtensionsWrong => Gap::Unchecked,
        // It lets the mitigation vectors pass in versions before 5.
        R::ReservedByteSet => Gap::Weaker,
        // It knows an upper bound of the platform's bits and no lower one.
        R::AliasCheckMissing | R::TcbTooOld => Gap::LeftToCaller,
        _ => return None,
    })
}

/// What two verifiers said about every piece of evidence.
#[derive(Default)]
struct Comparison {
    /// Both accept, both refuse.
    agreed: [usize; 2],
    stricter: usize,
    gaps: BTreeMap<(Gap, ReasonCode), usize>,
    unexplained: BTreeSet<String>,
}

impl Comparison {
    fn add(&mut self, peer: &Peer, name: &str, report: &[u8], ours: &Verdict, theirs: bool) {
        let report = AttestationReport::read_layout(report).unwrap();
        let failures: Vec<ReasonCode> = ours
            .checks
            .iter()
            .filter(|check| check.result == CheckResult::Fail)
            .filter_map(|check| check.reason)
            .collect();
        match (ours.is_accepted(), theirs) {
            (true, true) => self.agreed[0] += 1,
            (false, false) => self.agreed[1] += 1,
            (true, false) if (peer.is_stricter)(&report) => self.stricter += 1,
            (true, false) => {
                self.unexplained
                    .insert(format!("{name}: they refuse it, we do not"));
            }
            // Every one of our reasons must be one that they do not have.
            (false, true) => {
                for &reason in &failures {
                    if let Some(gap) = (peer.gap)(reason, &failures) {
                        *self.gaps.entry((gap, reason)).or_default() += 1;
                    } else {
                        let text = format!("{name}: they accept it, we say {reason}");
                        self.unexplained.insert(text);
                    }
                }
            }
        }
    }

    #[track_caller]
    fn conclude(&self) {
        let Self {
            agreed: [accepted, refused],
            stricter,
            gaps,
            unexplained,
        } = self;
        println!(
            "both accept {accepted}, both refuse {refused}, they alone refuse {stricter}, \
             we alone {gaps:?}"
        );
        assert!(unexplained.is_empty(), "{unexplained:#?}");
        assert!(*accepted > 0 && *refused > 0);
    }
}

/// Endorsement key, intermediate and root, as the `sev` crate wants them named.
fn sev_accepts(report: &[u8], [leaf, intermediate, root]: [&[u8]; 3]) -> bool {
    let accepts = || {
        let parse = |der| Certificate::from_der(der);
        let chain = Chain::from((parse(intermediate)?, parse(root)?, parse(leaf)?));
        let report = sev::firmware::guest::AttestationReport::from_bytes(report)?;
        (&chain, &report).verify()
    };
    accepts().is_ok()
}

fn flip(random: &mut Random, bytes: &mut [u8]) -> String {
    let offset = random.below(u32::try_from(bytes.len()).unwrap()) as usize;
    let bit = 1 << random.below(8);
    bytes[offset] ^= bit;
    format!("{offset:#x} ^ {bit:#x}")
}

/// Certificates of `evidence` in the order that [`sev_accepts`] takes.
fn roles(evidence: &Evidence) -> [&[u8]; 3] {
    match evidence.certificates.as_slice() {
        [leaf, intermediate, root] => [leaf, intermediate, root],
        // Real evidence comes with both intermediates: ASK, ARK, ASVK.
        [leaf, ask, root, asvk] => {
            let report = AttestationReport::read_layout(&evidence.report).unwrap();
            let vlek = report
                .key_info()
                .is_ok_and(|info| info.signing_key == SigningKey::Vlek);
            [leaf, if vlek { asvk } else { ask }, root]
        }
        _ => [&[]; 3],
    }
}

/// A change to the report before it is signed: a bit of a field that a
/// processor could have filled in otherwise, or any bit.
fn change(random: &mut Random, report: &mut AttestationReport) -> String {
    match random.below(10) {
        0 => {
            report.version = random.below(8).into();
            format!("version {}", report.version)
        }
        1 => {
            report.key_info = (random.below(8) << 2 | random.below(4)).into();
            format!("key_info {}", report.key_info)
        }
        2 => {
            (report.cpuid_family, report.cpuid_model) = (
                0x19 + random.pick(&[0, 1]),
                random.pick(&[1, 0x11, 0xa0, 2]),
            );
            format!("CPUID {:#x} {:#x}", report.cpuid_family, report.cpuid_model)
        }
        3 => {
            report.policy = (report.policy.get() ^ 1 << random.below(28)).into();
            format!("policy {:#x}", report.policy)
        }
        4 => {
            report.platform_info = (report.platform_info.get() ^ 1 << random.below(10)).into();
            format!("platform {:#x}", report.platform_info)
        }
        5 => {
            report.vmpl = random.below(4).into();
            format!("VMPL {}", report.vmpl)
        }
        6 => format!("reported TCB {}", flip(random, &mut report.reported_tcb)),
        7 => format!("committed TCB {}", flip(random, &mut report.committed_tcb)),
        _ => {
            let mut bytes = report.encode();
            let text = flip(random, &mut bytes[..0x2a0]);
            *report = AttestationReport::read_layout(&bytes).unwrap();
            format!("signed {text}")
        }
    }
}

/// A change to what the endorsement key's certificate says.
fn change_certificate(random: &mut Random, template: &mut KeyTemplate) -> String {
    let csp_id = || "CN=other.example".to_owned();
    match random.below(6) {
        0 => {
            let names = ["Milan", "Genoa", "Turin", "Rome"];
            random.pick(&names).clone_into(&mut template.product_name);
        }
        1 => template.struct_version ^= 1,
        2 => template.hw_id = template.hw_id.is_none().then(|| vec![1; 64]),
        3 => template.csp_id = template.csp_id.is_none().then(csp_id),
        4 => template.tcb.snp ^= 1 << random.below(8),
        _ => {
            let names = ["SEV-VCEK", "SEV-VLEK", "SEV"];
            random.pick(&names).clone_into(&mut template.common_name);
        }
    }
    format!("{template:?}")
}

#[test]
fn the_sev_crate_agrees_about_real_evidence() {
    let Some(directory) = vectors::vectors() else {
        return;
    };
    let mut comparison = Comparison::default();
    let mut random = Random(1);
    for (name, mut case) in vectors::good(&directory) {
        if case.evidence.certificates.len() == 1 {
            let roots = vectors::roots(&directory, Product::Genoa);
            case.evidence.certificates.extend(roots);
        }
        let theirs =
            |case: &vectors::Case| sev_accepts(&case.evidence.report, roles(&case.evidence));
        comparison.add(
            &SEV,
            name,
            &case.evidence.report,
            &case.appraise(),
            theirs(&case),
        );
        for _ in 0..60 {
            let mut changed = case.clone();
            let what = flip(&mut random, &mut changed.evidence.report);
            let name = format!("{name}, report {what}");
            let report = &changed.evidence.report;
            comparison.add(&SEV, &name, report, &changed.appraise(), theirs(&changed));
        }
        // What replaces a damaged intermediate or root is part of our program.
        for _ in 0..60 {
            let mut changed = case.clone();
            let what = flip(&mut random, &mut changed.evidence.certificates[0]);
            let name = format!("{name}, endorsement key {what}");
            let report = &changed.evidence.report;
            comparison.add(&SEV, &name, report, &changed.appraise(), theirs(&changed));
        }
    }
    comparison.conclude();
}

/// One change to evidence, signed again by whoever would have signed it. Of the
/// certificates only the first `certificates` are damaged.
fn signed_again(random: &mut Random, good: &Case, certificates: u32) -> (String, Case) {
    let mut case = good.clone();
    let what = match random.below(8) {
        0 => {
            let index = random.below(certificates);
            let what = flip(random, &mut case.evidence.certificates[index as usize]);
            format!("certificate {index} {what}")
        }
        1 => {
            let mut template = case.template.clone();
            let what = change_certificate(random, &mut template);
            case.leaf(|changed| changed.clone_from(&template));
            what
        }
        _ => {
            let mut report = case.claimed();
            let what = change(random, &mut report);
            case.report(|changed| *changed = report);
            what
        }
    };
    (what, case)
}

#[test]
fn the_sev_crate_agrees_about_what_is_signed_again() {
    let mut comparison = Comparison::default();
    let mut random = Random(2);
    for product in Product::ALL {
        for key in [SigningKey::Vcek, SigningKey::Vlek] {
            let good = Case::new(&Setup {
                product,
                key,
                ..Setup::default()
            });
            for _ in 0..120 {
                let (what, case) = signed_again(&mut random, &good, 3);
                let theirs = sev_accepts(&case.evidence.report, roles(&case.evidence));
                let name = format!("{product} {key:?}, {what}");
                comparison.add(&SEV, &name, &case.evidence.report, &case.appraise(), theirs);
            }
        }
    }
    comparison.conclude();
}

/// go-sev-guest's check, with what [`Case::good`] demands where it can be told.
struct Checker {
    program: OsString,
    directory: tempfile::TempDir,
    arguments: Vec<String>,
}

impl Checker {
    fn new(program: OsString, good: &Case) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let [_, ask, ark] = roles(&good.evidence);
        let roots = [ask, ark]
            .map(|der| der::pem::encode_string("CERTIFICATE", LineEnding::LF, der).unwrap());
        std::fs::write(directory.path().join("roots.pem"), roots.concat()).unwrap();
        let report = good.claimed();
        let arguments = [
            "-in=report.bin",
            "-inform=bin",
            "-network=false",
            "-check_crl=false",
            "-product_name=Genoa-B1",
            "-product_key_path=roots.pem",
            "-guest_policy=0x30000",
            "-platform_info=0x25",
            "-vmpl=0",
        ];
        let mut arguments = arguments.map(str::to_owned).to_vec();
        arguments.push(format!("-measurement={}", hex::encode(report.measurement)));
        arguments.push(format!("-report_data={}", hex::encode(report.report_data)));
        arguments.push(format!("-host_data={}", hex::encode(report.host_data)));
        Self {
            program,
            directory,
            arguments,
        }
    }

    fn accepts(&self, evidence: &Evidence) -> bool {
        let guids = [
            CertificateGuid::VCEK,
            CertificateGuid::ASK,
            CertificateGuid::ARK,
        ];
        let entries = guids.into_iter().zip(roles(evidence));
        let entry = |(guid, der): (CertificateGuid, &[u8])| CertificateEntry {
            guid,
            der: der.to_vec(),
        };
        let table = CertificateTable(entries.map(entry).collect())
            .encode()
            .unwrap();
        let path = self.directory.path();
        std::fs::write(
            path.join("report.bin"),
            [&evidence.report[..], &table].concat(),
        )
        .unwrap();
        let status = Command::new(&self.program)
            .current_dir(path)
            .arg("-quiet")
            .args(&self.arguments)
            .status();
        status.unwrap().success()
    }
}

#[test]
fn go_sev_guest_agrees_about_what_is_signed_again() {
    let Some(program) = std::env::var_os("ASSAY_GO_SEV_GUEST_CHECK") else {
        eprintln!("SKIPPED: ASSAY_GO_SEV_GUEST_CHECK does not name go-sev-guest's check program");
        return;
    };
    let good = Case::good();
    let checker = Checker::new(program, &good);
    let mut comparison = Comparison::default();
    let mut random = Random(3);
    let mut compare = |what: &str, case: &Case| {
        let (report, accepts) = (&case.evidence.report, checker.accepts(&case.evidence));
        comparison.add(&GO_SEV_GUEST, what, report, &case.appraise(), accepts);
    };
    compare("good", &good);
    for _ in 0..200 {
        let (what, case) = signed_again(&mut random, &good, 1);
        compare(&what, &case);
    }
    for _ in 0..100 {
        let mut case = good.clone();
        let what = flip(&mut random, &mut case.evidence.report);
        compare(&what, &case);
    }
    comparison.conclude();
}
