//! Appraisals of real evidence: against the one signature that nobody can leave
//! out, the `sev` crate, and go-sev-guest as a process.

use std::hint::black_box;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use assay_attest::evidence::parse_certificates;
use assay_attest::policy::{ProductPolicy, RevocationListMode};
use assay_attest::{
    AppraisalPolicy, Binding, ChainMemory, Evidence, NoMemory, ReferenceState, ReferenceValue,
    ReferenceValues, TrustAnchors, VerifiedChains, appraise_with,
};
use assay_tee::guest_message::{CertificateEntry, CertificateGuid, CertificateTable};
use assay_tee::{AttestationReport, Product, TcbVersion};
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};
use jiff::Timestamp;
use sev::certs::snp::{Certificate, Chain, Verifiable as _};
use sev::firmware::guest::AttestationReport as SevReport;
use sev::parser::ByteParser as _;

use crate::peers::Peers;
use crate::process::in_turn;
use crate::rate::rates_in_turn;
use crate::table::{compare, duration, heading, skipped};

/// Verifications of one measurement.
const BATCH: usize = 200;
/// Of evidence and certificates alike.
const VALID_AT: &str = "2026-07-01T00:00:00Z";

/// Runs the benchmark.
pub(crate) fn run(peers: &Peers) -> Result<()> {
    heading("Verification: a Genoa report of version 5, from bytes to verdict, one core");
    let Some(vectors) = &peers.vectors else {
        skipped("everything", "ASSAY_VECTORS names no directory of evidence");
        return Ok(());
    };
    let case = Case::read(vectors)?;
    in_memory(&case)?;
    as_processes(peers, &case)
}

/// Real evidence, and what it is appraised against.
struct Case {
    evidence: Evidence,
    claimed: AttestationReport,
    now: Timestamp,
}

impl Case {
    fn read(vectors: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = vectors.join(name);
            std::fs::read(&path).with_context(|| format!("read {}", path.display()))
        };
        let mut certificates = Vec::new();
        for name in [
            "snp/genoa-v5/vcek.der",
            "amd-roots/genoa/ask.pem",
            "amd-roots/genoa/ark.pem",
        ] {
            certificates.extend(parse_certificates(&read(name)?)?);
        }
        let report = read("snp/genoa-v5/report.bin")?;
        Ok(Self {
            claimed: AttestationReport::read_layout(&report)?,
            evidence: Evidence::new(report, certificates),
            now: VALID_AT.parse()?,
        })
    }

    fn certificates(&self) -> Result<[&[u8]; 3]> {
        let [vcek, ask, ark] = self.evidence.certificates.as_slice() else {
            anyhow::bail!("the vectors hold other certificates than VCEK, ASK and ARK");
        };
        Ok([vcek, ask, ark])
    }
}

fn in_memory(case: &Case) -> Result<()> {
    let minimum_tcb = TcbVersion {
        fmc: None,
        bootloader: 0,
        tee: 0,
        snp: 0,
        microcode: 0,
    };
    let mut policy = AppraisalPolicy::strict(vec![ProductPolicy::new(Product::Genoa, minimum_tcb)]);
    policy.revocation_list = RevocationListMode::NotRequired;
    let values = ReferenceValues(vec![ReferenceValue {
        id: "vector".to_owned(),
        digest: case.claimed.launch_digest(),
        state: ReferenceState::Accepted,
    }]);
    let binding = Binding {
        report_data: case.claimed.report_data,
        host_data: case.claimed.host_data,
    };
    let anchors = TrustAnchors::amd();
    // As the broker does: a node's chain is verified once.
    let memory = VerifiedChains::new(2);
    let appraise = |memory: &dyn ChainMemory| {
        let evidence = black_box(&case.evidence);
        let now = case.now;
        appraise_with(evidence, &anchors, &values, &policy, &binding, now, memory)
    };
    let (known, unknown) = (|| appraise(&memory), || appraise(&NoMemory));
    ensure!(known().is_accepted(), "the evidence is refused");

    let [vcek, ask, ark] = case.certificates()?;
    let sev = || -> std::io::Result<()> {
        let parse = |der| Certificate::from_der(black_box(der));
        let chain = Chain::from((parse(ask)?, parse(ark)?, parse(vcek)?));
        let report = SevReport::from_bytes(black_box(&case.evidence.report))?;
        (&chain, &report).verify()
    };
    sev().context("the sev crate refuses the evidence")?;

    let point = Certificate::from_der(vcek)?.public_key_sec1().to_vec();
    let key = UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point);
    let signature = case.claimed.signature_fixed();
    let raw = || key.verify(black_box(case.claimed.signed_bytes()), &signature);
    ensure!(raw().is_ok(), "the raw signature does not verify");

    let [known, unknown, sev, raw] = rates_in_turn(
        BATCH,
        [
            &|| repeat(|| _ = black_box(known())),
            &|| repeat(|| _ = black_box(unknown())),
            &|| repeat(|| _ = black_box(sev())),
            &|| repeat(|| _ = black_box(raw())),
        ],
    )?;
    let per_second = |rate: f64| format!("{rate:.0}/s");
    for (what, ours, peer) in [
        ("of a known chain against a raw P-384 verify", known, raw),
        ("of a new chain against a raw P-384 verify", unknown, raw),
        ("of a new chain against the sev crate", unknown, sev),
    ] {
        compare(what, &per_second(ours), &per_second(peer), ours / peer);
    }
    Ok(())
}

fn repeat(work: impl Fn()) {
    for _ in 0..BATCH {
        work();
    }
}

fn as_processes(peers: &Peers, case: &Case) -> Result<()> {
    let what = "`assay verify` against go-sev-guest's check";
    let Some(check) = &peers.go_sev_guest_check else {
        skipped(what, "go-sev-guest is not installed");
        return Ok(());
    };
    let directory = tempfile::tempdir().context("create a directory")?;
    let write = |name: &str, bytes: &[u8]| -> Result<std::path::PathBuf> {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    };
    let [vcek, ask, ark] = case.certificates()?;
    let entries = [
        (CertificateGuid::VCEK, vcek),
        (CertificateGuid::ASK, ask),
        (CertificateGuid::ARK, ark),
    ];
    let table = CertificateTable(Vec::from(entries.map(|(guid, der)| CertificateEntry {
        guid,
        der: der.to_vec(),
    })))
    .encode()?;
    let report = write("report.bin", &case.evidence.report)?;
    let extended = write(
        "extended.bin",
        &[&case.evidence.report[..], &table].concat(),
    )?;
    let table = write("table.bin", &table)?;
    let AttestationReport {
        measurement,
        report_data,
        host_data,
        ..
    } = &case.claimed;
    let mut ours = Command::new(&peers.assay);
    ours.args(["verify", "--now", VALID_AT, "--report"])
        .arg(&report)
        .arg("--certs")
        .arg(&table)
        .args([
            "--measurement",
            &format!("sha384:{}", hex::encode(measurement)),
        ])
        .args(["--report-data", &hex::encode(report_data)])
        .args(["--host-data", &hex::encode(host_data)]);
    let mut peer = Command::new(check);
    peer.args([
        "-inform=bin",
        "-network=false",
        "-check_crl=false",
        "-quiet",
    ])
    .args(["-product_name=Genoa-B1", "-vmpl=0"])
    .args(["-guest_policy=0x30000", "-platform_info=0x25"])
    .arg(format!("-in={}", extended.display()))
    .arg(format!("-measurement={}", hex::encode(measurement)))
    .arg(format!("-report_data={}", hex::encode(report_data)))
    .arg(format!("-host_data={}", hex::encode(host_data)));
    let [ours, peer] = in_turn([&ours, &peer], 15, || Ok(()))?.map(|cost| cost.wall);
    compare(
        what,
        &duration(ours),
        &duration(peer),
        peer.as_secs_f64() / ours.as_secs_f64(),
    );
    Ok(())
}
