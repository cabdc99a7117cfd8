//! `assay verify`: appraises evidence again, with nothing but files: SNP evidence
//! here, TD quotes in [`quote`].
//!
//! Everything that evidence is compared with must be given, or waived by the
//! word `any`, which the output repeats: nothing is left out in silence.

mod quote;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use assay_attest::collateral::collateral_requests;
use assay_attest::evidence::{parse_certificates, parse_evidence};
use assay_attest::policy::{ProductPolicy, RevocationListMode, SigningKeyPolicy};
use assay_attest::{
    AppraisalPolicy, Binding, Check, CheckName, CheckResult, Endorsements, Evidence,
    ReferenceState, ReferenceValue, ReferenceValues, TrustAnchors, Verdict, appraise,
};
use assay_broker::collateral::CollateralStore;
use assay_crds::v1alpha1::AttestationPolicy;
use assay_protocol::svsm;
use assay_tee::guest_message::CertificateTable;
use assay_tee::{
    AttestationReport, InstanceData, LaunchDigest, Product, Sha256Digest, TcbVersion, Tee,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest as _, Sha384};

/// Exit status where the evidence was appraised and refused; clap has 2 for
/// options that make no sense together.
const REFUSED: u8 = 3;

/// What a person may type.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0 accepted, 1 an input cannot be read, 2 usage, 3 refused")]
pub(crate) struct Args {
    /// Attestation report: 1184 bytes, or within an HCL report of Azure or JSON
    /// evidence of Confidential Containers, whose certificates are taken too
    #[arg(
        long,
        visible_alias = "evidence",
        value_name = "FILE",
        required_unless_present_any = ["record", "quote"],
        conflicts_with = "record"
    )]
    report: Option<PathBuf>,
    #[command(flatten)]
    quote: quote::QuoteArgs,
    /// AttestationRecord, YAML or JSON: report, certificates, REPORT_DATA and
    /// HOST_DATA are taken from its status
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// AttestationPolicy, YAML or JSON, that the record must have been made under:
    /// the hashes in its status and in its instance data are compared
    #[arg(long, value_name = "FILE", requires = "record")]
    attestation_policy: Option<PathBuf>,
    /// Certificate table of an extended report
    #[arg(long, value_name = "FILE", conflicts_with = "record")]
    certs: Option<PathBuf>,
    /// Endorsement key (VCEK or VLEK), PEM or DER
    #[arg(long, value_name = "FILE")]
    vek: Option<PathBuf>,
    /// Intermediate (ASK or ASVK), PEM or DER; AMD's ASKs are known
    #[arg(long, value_name = "FILE")]
    ask: Option<PathBuf>,
    /// Root (ARK), PEM or DER; believed only if it is AMD's, which are known, or
    /// --simulated-root
    #[arg(long, value_name = "FILE")]
    ark: Option<PathBuf>,
    /// Revocation list of the root, DER; checked if given
    #[arg(long, value_name = "FILE")]
    crl: Option<PathBuf>,
    /// Directory of `assay collateral fetch`: certificates that the evidence
    /// lacks, and the revocation list, which must be there. With --quote: the file
    /// with Intel's collateral, JSON
    #[arg(long, value_name = "PATH", conflicts_with = "crl")]
    collateral: Option<PathBuf>,
    /// Launch digest to accept, or MRTD of a quote, sha384:<hex>, or `any`; may be
    /// repeated
    #[arg(long, value_name = "DIGEST", required = true)]
    measurement: Vec<Expected<LaunchDigest>>,
    /// REPORT_DATA as 128 hex digits, or `any`
    #[arg(long, value_name = "HEX", required_unless_present = "record")]
    report_data: Option<Expected<Hex<64>>>,
    /// HOST_DATA as 64 hex digits, or `any`
    #[arg(long, value_name = "HEX", required_unless_present_any = ["record", "quote"])]
    host_data: Option<Expected<Hex<32>>>,
    /// Root of a simulation to believe, PEM or DER. Its evidence protects nothing
    #[arg(long, value_name = "FILE")]
    simulated_root: Option<PathBuf>,
    /// Appraisal policy, YAML or JSON [default: VCEK, VMPL 0, no debugging, no
    /// migration, aliasing ruled out, any TCB; of a quote: the TCB is up to date]
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Time of the appraisal, RFC 3339 [default: now]
    #[arg(long, value_name = "TIME")]
    now: Option<Timestamp>,
    /// Print the verdict as JSON
    #[arg(long)]
    json: bool,
}

/// An expected value, or the explicit wish not to compare.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Expected<T> {
    Any,
    Value(T),
}

impl<T: FromStr> FromStr for Expected<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "any" {
            Ok(Self::Any)
        } else {
            text.parse().map(Self::Value)
        }
    }
}

/// Exactly `N` bytes in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hex<const N: usize>([u8; N]);

impl<const N: usize> FromStr for Hex<N> {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; N];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

/// Appraises the evidence and prints every check.
pub(crate) fn run(args: &Args) -> ExitCode {
    match verify(args) {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(refusal)) => {
            eprintln!("error: the evidence is refused{refusal}");
            ExitCode::from(REFUSED)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Why the evidence is refused, or nothing if it is accepted.
fn verify(args: &Args) -> anyhow::Result<Option<String>> {
    if let Some(path) = &args.quote.quote {
        let (verdict, waived) = quote::appraise(args, path)?;
        return show(verdict, &waived, args.json);
    }
    let record = args.record.as_deref().map(Record::read).transpose()?;
    let mut evidence = evidence(args, record.as_ref())?;
    let now = args.now.unwrap_or_else(Timestamp::now);
    let anchors = match &args.simulated_root {
        Some(path) => TrustAnchors::with_simulated(Sha256Digest::of(&certificate(path)?)),
        None => TrustAnchors::amd(),
    };
    if let Some(directory) = &args.collateral {
        let requests = collateral_requests(&evidence, &anchors);
        let store = CollateralStore::offline(directory, anchors, Arc::new(move || now));
        evidence.endorse(&store.endorsements(&requests));
    }
    let policy = policy(args)?;
    let policy_hash = args.attestation_policy.as_deref().map(policy_hash);
    let policy_hash = policy_hash.transpose()?;
    let claimed = AttestationReport::read_layout(&evidence.report)
        .unwrap_or_else(|_| AttestationReport::zeroed());

    let mut waived = Vec::new();
    let report_data = match expected(
        args.report_data.as_ref(),
        record.as_ref().map(|record| record.report_data),
    )? {
        Expected::Value(Hex(bytes)) => bytes,
        Expected::Any => {
            waived.push(CheckName::ReportData);
            claimed.report_data
        }
    };
    let host_data = match expected(
        args.host_data.as_ref(),
        record.as_ref().map(|record| record.host_data),
    )? {
        Expected::Value(Hex(bytes)) => bytes,
        Expected::Any => {
            waived.push(CheckName::HostData);
            claimed.host_data
        }
    };
    let reference_values = reference_values(&args.measurement, &claimed, &mut waived);

    let binding = Binding {
        report_data,
        host_data,
    };
    let verdict = appraise(
        &evidence,
        &anchors,
        &reference_values,
        &policy,
        &binding,
        now,
    );
    let refusal = show(verdict, &waived, args.json)?;
    match (&refusal, &policy_hash, &record) {
        (None, Some(hash), Some(record)) => record.policy_refusal(hash),
        _ => Ok(refusal),
    }
}

/// Prints a verdict, with what was waived as such. Gives why the evidence is
/// refused, if it is.
fn show(mut verdict: Verdict, waived: &[CheckName], json: bool) -> anyhow::Result<Option<String>> {
    for check in &mut verdict.checks {
        if waived.contains(&check.name) && check.result == CheckResult::Pass {
            check.result = CheckResult::NotApplicable;
            check.expected = Some("any".to_owned());
        }
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&verdict)?);
    } else {
        print!("{}", render(&verdict));
    }
    if verdict.is_accepted() {
        return Ok(None);
    }
    let refusal = verdict.first_failure().and_then(|check| {
        let Check { name, reason, .. } = check;
        Some(format!(": {name}: {}", (*reason)?))
    });
    Ok(Some(refusal.unwrap_or_default()))
}

/// The hash that the cluster knows an AttestationPolicy by.
fn policy_hash(path: &Path) -> anyhow::Result<String> {
    let text = String::from_utf8(read(path)?)
        .with_context(|| format!("{} is not text", path.display()))?;
    let policy: AttestationPolicy = serde_saphyr::from_str(&text)
        .with_context(|| format!("{} is not an AttestationPolicy", path.display()))?;
    Ok(policy.spec.hash()?.to_string())
}

/// What the command line says, or else the record.
fn expected<const N: usize>(
    given: Option<&Expected<Hex<N>>>,
    recorded: Option<[u8; N]>,
) -> anyhow::Result<Expected<Hex<N>>> {
    match (given, recorded) {
        (Some(given), _) => Ok(given.clone()),
        (None, Some(recorded)) => Ok(Expected::Value(Hex(recorded))),
        (None, None) => bail!("--report-data and --host-data, or --record, are needed"),
    }
}

fn evidence(args: &Args, record: Option<&Record>) -> anyhow::Result<Evidence> {
    let mut evidence = match (record, &args.report) {
        (Some(record), _) => {
            let (report, table) = (record.report.clone(), record.certificates.clone());
            let mut evidence = Evidence::from_table(report, table);
            evidence.endorse(&record.endorsements);
            evidence
        }
        (None, Some(path)) => parse_evidence(read(path)?)
            .with_context(|| format!("cannot read {}", path.display()))?,
        (None, None) => bail!("neither --report nor --record"),
    };
    if let Some(path) = &args.certs {
        let table = CertificateTable::parse(&read(path)?)
            .with_context(|| format!("cannot read the certificate table {}", path.display()))?;
        evidence
            .certificates
            .extend(table.0.into_iter().map(|entry| entry.der));
    }
    for path in [&args.vek, &args.ask, &args.ark].into_iter().flatten() {
        let certificates = parse_certificates(&read(path)?)
            .with_context(|| format!("cannot read {}", path.display()))?;
        evidence.certificates.extend(certificates);
    }
    if let Some(path) = &args.crl {
        evidence.revocation_list = Some(read(path)?);
    }
    Ok(evidence)
}

fn policy(args: &Args) -> anyhow::Result<AppraisalPolicy> {
    if let Some(path) = &args.policy {
        let text = String::from_utf8(read(path)?)
            .with_context(|| format!("{} is not text", path.display()))?;
        return serde_saphyr::from_str(&text)
            .with_context(|| format!("{} is not an appraisal policy", path.display()));
    }
    let any_tcb = |product| {
        let minimum_tcb = TcbVersion {
            fmc: (product == Product::Turin).then_some(0),
            bootloader: 0,
            tee: 0,
            snp: 0,
            microcode: 0,
        };
        ProductPolicy::new(product, minimum_tcb)
    };
    let mut policy = AppraisalPolicy::strict(Product::ALL.map(any_tcb).to_vec());
    policy.signing_keys = vec![SigningKeyPolicy::Vcek];
    if args.crl.is_none() && args.collateral.is_none() {
        policy.revocation_list = RevocationListMode::NotRequired;
    }
    if args.simulated_root.is_some() {
        policy.tees.push(Tee::SimulatedSnp);
    }
    eprintln!("note: no --policy, so any TCB is accepted");
    Ok(policy)
}

fn reference_values(
    expected: &[Expected<LaunchDigest>],
    claimed: &AttestationReport,
    waived: &mut Vec<CheckName>,
) -> ReferenceValues {
    let value = |expected: &Expected<LaunchDigest>| {
        let (id, digest) = match expected {
            Expected::Value(digest) => ("--measurement", *digest),
            Expected::Any => {
                waived.push(CheckName::Measurement);
                ("any", claimed.launch_digest())
            }
        };
        ReferenceValue {
            id: id.to_owned(),
            digest,
            state: ReferenceState::Accepted,
        }
    };
    ReferenceValues(expected.iter().map(value).collect())
}

/// What an AttestationRecord holds of the evidence. Read loosely: a record of a
/// later version has more fields.
struct Record {
    report: Vec<u8>,
    certificates: CertificateTable,
    /// What the verifier added to the evidence.
    endorsements: Endorsements,
    report_data: [u8; 64],
    host_data: [u8; 32],
    /// The policy that the verifier says it appraised under.
    policy_hash: Option<String>,
    instance_data: String,
}

impl Record {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = String::from_utf8(read(path)?)
            .with_context(|| format!("{} is not text", path.display()))?;
        let document: Value = serde_saphyr::from_str(&text)
            .with_context(|| format!("{} is neither YAML nor JSON", path.display()))?;
        Self::parse(&document).with_context(|| format!("cannot read the record {}", path.display()))
    }

    fn parse(document: &Value) -> anyhow::Result<Self> {
        let text = |field: &str| {
            document
                .pointer(&format!("/status/evidence/{field}"))
                .and_then(Value::as_str)
                .with_context(|| format!("it has no status.evidence.{field}"))
        };
        let bytes = |field: &str| {
            STANDARD
                .decode(text(field)?)
                .with_context(|| format!("status.evidence.{field} is not base64"))
        };
        let bound_by = document.pointer("/status/evidence/boundBy");
        let report_data = match bound_by.and_then(Value::as_str) {
            // KBS 0.4.0: the SHA-384 of the canonical runtime data, then zeros.
            None => {
                let mut report_data = [0; 64];
                let (digest, _) = report_data.split_at_mut(48);
                digest.copy_from_slice(&Sha384::digest(text("runtimeData")?));
                report_data
            }
            Some("SVSM") => {
                let runtime_data = serde_json::from_str(text("runtimeData")?)
                    .context("status.evidence.runtimeData is not what an SVSM binds")?;
                svsm::report_data(&runtime_data)
                    .context("status.evidence.runtimeData is not what an SVSM binds")?
            }
            Some(other) => anyhow::bail!(
                "status.evidence.boundBy is {other:?}, which this version cannot verify"
            ),
        };
        let instance_data = text("instanceData")?.to_owned();
        Ok(Self {
            report: bytes("report")?,
            certificates: CertificateTable::parse(&bytes("certificates")?)?,
            endorsements: endorsements(document)?,
            report_data,
            host_data: *InstanceData::host_data(instance_data.as_bytes()).as_bytes(),
            policy_hash: document
                .pointer("/status/policyHash")
                .and_then(Value::as_str)
                .map(ToOwned::to_owned),
            instance_data,
        })
    }

    /// Why the record is not one of the policy with this hash, if it is not: both
    /// the verifier and the guest, whose report binds the instance data, must
    /// name it.
    fn policy_refusal(&self, hash: &str) -> anyhow::Result<Option<String>> {
        let instance: Value = serde_json::from_str(&self.instance_data)
            .context("status.evidence.instanceData is not JSON")?;
        let launched = instance.get("policyHash").and_then(Value::as_str);
        let named = [
            ("status.policyHash", self.policy_hash.as_deref()),
            ("policyHash in the instance data", launched),
        ];
        let other = named.into_iter().find(|(_, found)| *found != Some(hash));
        Ok(other.map(|(field, found)| {
            let found = found.unwrap_or("absent");
            format!(": {field} is {found}, the policy's hash is {hash}")
        }))
    }
}

/// What a record says that the verifier added to the evidence.
fn endorsements(document: &Value) -> anyhow::Result<Endorsements> {
    let Some(status) = document.pointer("/status/endorsements") else {
        return Ok(Endorsements::default());
    };
    let decode = |value: &Value| {
        let text = value.as_str().context("status.endorsements has no text")?;
        let decoded = STANDARD.decode(text);
        decoded.context("status.endorsements is not base64")
    };
    let certificates = status.get("certificates").and_then(Value::as_array);
    let certificates = certificates.into_iter().flatten().map(decode);
    Ok(Endorsements {
        certificates: certificates.collect::<anyhow::Result<_>>()?,
        revocation_list: status.get("revocationList").map(decode).transpose()?,
    })
}

pub(crate) fn certificate(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut certificates = parse_certificates(&read(path)?)
        .with_context(|| format!("cannot read {}", path.display()))?;
    match (certificates.pop(), certificates.is_empty()) {
        (Some(certificate), true) => Ok(certificate),
        _ => bail!("{} must hold one certificate", path.display()),
    }
}

pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The verdict as a table, one check a line.
fn render(verdict: &Verdict) -> String {
    let mut lines = Vec::new();
    for check in &verdict.checks {
        let result = match check.result {
            CheckResult::Pass => "pass",
            CheckResult::Fail => "FAIL",
            CheckResult::Skipped => "skipped",
            CheckResult::NotApplicable => "n/a",
        };
        let details = [
            check.reason.map(|reason| reason.to_string()),
            check
                .expected
                .as_ref()
                .filter(|_| check.result != CheckResult::Pass)
                .map(|expected| format!("expected {expected}")),
            check.observed.clone(),
        ];
        let details: Vec<String> = details.into_iter().flatten().collect();
        let line = format!("{:<20} {:<8} {}", check.name, result, details.join("; "));
        lines.push(line.trim_end().to_owned());
    }
    let domain = match verdict.trust_domain {
        Some(domain) if domain.is_hardware() => domain.to_string(),
        Some(domain) => format!("{domain}: protects nothing"),
        None => "no trust anchor".to_owned(),
    };
    lines.push(format!(
        "{:<20} {:?} ({domain})",
        "Verdict", verdict.outcome
    ));
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use sha2::Sha512;

    #[test]
    fn expected_values_are_exact_or_waived_by_name() {
        assert_eq!("any".parse(), Ok(Expected::<Hex<32>>::Any));
        assert_eq!("00".repeat(32).parse(), Ok(Expected::Value(Hex([0; 32]))));
        for text in ["", "ANY", "00", &"00".repeat(33)] {
            assert!(text.parse::<Expected<Hex<32>>>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_record_binds_runtime_and_instance_data() {
        let document = serde_json::json!({"status": {"evidence": {
            "report": STANDARD.encode([7; 1184]),
            "certificates": "",
            "instanceData": "{}",
            "nonce": "",
            "runtimeData": "{\"nonce\":\"\"}",
        }}});
        let record = Record::parse(&document).unwrap();
        assert_eq!(record.report, [7; 1184]);
        assert_eq!(record.host_data, *Sha256Digest::of(b"{}").as_bytes());
        assert_eq!(
            record.report_data[..48],
            *Sha384::digest(b"{\"nonce\":\"\"}")
        );
        assert_eq!(record.report_data[48..], [0; 16]);

        let mut svsm = document.clone();
        let evidence = svsm.pointer_mut("/status/evidence").unwrap();
        evidence["boundBy"] = "SVSM".into();
        assert!(Record::parse(&svsm).is_err(), "it has no key");
        let (x, y) = (
            URL_SAFE_NO_PAD.encode([1; 66]),
            URL_SAFE_NO_PAD.encode([2; 66]),
        );
        let runtime_data = serde_json::json!({
            "nonce": STANDARD.encode([3; 64]),
            "tee-pubkey": { "kty": "EC", "crv": "P-521", "alg": "ECDH-ES+A256KW", "x": x, "y": y },
        });
        svsm["status"]["evidence"]["runtimeData"] = runtime_data.to_string().into();
        let bound = Sha512::digest([&[1; 66][..], &[2; 66], &[3; 64]].concat());
        assert_eq!(Record::parse(&svsm).unwrap().report_data, *bound);
        svsm["status"]["evidence"]["boundBy"] = "Other".into();
        assert!(Record::parse(&svsm).is_err());

        for field in ["report", "certificates", "instanceData", "runtimeData"] {
            let mut document = document.clone();
            document["status"]["evidence"]
                .as_object_mut()
                .unwrap()
                .remove(field);
            let error = Record::parse(&document).err().unwrap();
            assert!(error.to_string().contains(field), "{error}");
        }
    }

    #[test]
    fn a_record_brings_what_the_verifier_added() {
        let document = |endorsements: Value| {
            let status = serde_json::json!({ "endorsements": endorsements });
            serde_json::json!({ "status": status })
        };
        let added = serde_json::json!({
            "certificates": [STANDARD.encode([1]), STANDARD.encode([2])],
            "revocationList": STANDARD.encode([3]),
            "revocationListNumber": 7,
        });
        let expected = Endorsements {
            certificates: vec![vec![1], vec![2]],
            revocation_list: Some(vec![3]),
        };
        assert_eq!(endorsements(&document(added)).unwrap(), expected);
        let none = endorsements(&serde_json::json!({ "status": {} })).unwrap();
        assert_eq!(none, Endorsements::default());
        for wrong in [
            serde_json::json!({ "certificates": ["*"] }),
            serde_json::json!({ "revocationList": 7 }),
        ] {
            assert!(endorsements(&document(wrong)).is_err());
        }
    }
}
