//! Evidence as Confidential Containers' attesters put it into JSON: the fields of
//! an SNP report by the names of the `sev` crate, or the HCL report of Azure
//! beside its VCEK. A compatibility input: the bytes of the report are written
//! again, and its signature says whether they are the ones that were signed.

use assay_tee::{AttestationReport, Product, TcbVersion};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::hcl::{self, ParseHclError};
use super::{Evidence, ParseCertificatesError, parse_certificates};

/// JSON is not evidence of an SNP guest.
#[derive(Debug, thiserror::Error)]
pub enum ParseCocoError {
    /// It is no JSON.
    #[error("the evidence is not JSON")]
    Json(#[source] serde_json::Error),
    /// It has none of the known forms.
    #[error("the evidence has neither the field attestation_report nor report and vcek")]
    Form,
    /// A field is missing, unknown or of another type.
    #[error("a field of the evidence is missing, unknown or of another type")]
    Field(#[source] serde_json::Error),
    /// A TCB version has a component that its layout has not.
    #[error("TCB versions of the evidence differ in having fmc")]
    Tcb,
    /// The HCL report cannot be read.
    #[error("cannot read the evidence's HCL report")]
    Hcl(#[source] ParseHclError),
    /// The VCEK cannot be read.
    #[error("cannot read the evidence's VCEK")]
    Vcek(#[source] ParseCertificatesError),
}

/// Reads either form.
pub(crate) fn parse(bytes: &[u8]) -> Result<Evidence, ParseCocoError> {
    let document: Value = serde_json::from_slice(bytes).map_err(ParseCocoError::Json)?;
    if document.get("attestation_report").is_some() {
        let evidence: SnpEvidence =
            serde_json::from_value(document).map_err(ParseCocoError::Field)?;
        let certificates = evidence.cert_chain.unwrap_or_default();
        Ok(Evidence::new(
            evidence.attestation_report.encode()?,
            certificates.into_iter().map(|entry| entry.data).collect(),
        ))
    } else if document.get("vcek").is_some() {
        let evidence: AzureEvidence =
            serde_json::from_value(document).map_err(ParseCocoError::Field)?;
        Ok(Evidence::new(
            hcl::parse(&evidence.report).map_err(ParseCocoError::Hcl)?,
            parse_certificates(evidence.vcek.as_bytes()).map_err(ParseCocoError::Vcek)?,
        ))
    } else {
        Err(ParseCocoError::Form)
    }
}

/// Evidence of the attester `snp`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SnpEvidence {
    attestation_report: Fields,
    cert_chain: Option<Vec<CertificateEntry>>,
}

/// A certificate; its type is the host's word and not needed.
#[derive(Deserialize)]
struct CertificateEntry {
    data: Vec<u8>,
}

/// Evidence of the attester `az-snp-vtpm`. Its TPM quote is not appraised.
#[derive(Deserialize)]
struct AzureEvidence {
    report: Vec<u8>,
    vcek: String,
}

/// An attestation report, field by field.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    version: u32,
    guest_svn: u32,
    policy: u64,
    family_id: [u8; 16],
    image_id: [u8; 16],
    vmpl: u32,
    sig_algo: u32,
    current_tcb: Tcb,
    plat_info: u64,
    key_info: u32,
    #[serde(deserialize_with = "bytes")]
    report_data: [u8; 64],
    #[serde(deserialize_with = "bytes")]
    measurement: [u8; 48],
    host_data: [u8; 32],
    #[serde(deserialize_with = "bytes")]
    id_key_digest: [u8; 48],
    #[serde(deserialize_with = "bytes")]
    author_key_digest: [u8; 48],
    report_id: [u8; 32],
    report_id_ma: [u8; 32],
    reported_tcb: Tcb,
    cpuid_fam_id: Option<u8>,
    cpuid_mod_id: Option<u8>,
    cpuid_step: Option<u8>,
    #[serde(deserialize_with = "bytes")]
    chip_id: [u8; 64],
    committed_tcb: Tcb,
    current: Version,
    committed: Version,
    launch_tcb: Tcb,
    launch_mit_vector: Option<u64>,
    current_mit_vector: Option<u64>,
    signature: Signature,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tcb {
    fmc: Option<u8>,
    bootloader: u8,
    tee: u8,
    snp: u8,
    microcode: u8,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Version {
    major: u8,
    minor: u8,
    build: u8,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    #[serde(deserialize_with = "bytes")]
    r: [u8; 72],
    #[serde(deserialize_with = "bytes")]
    s: [u8; 72],
}

/// Exactly `N` bytes, as an array of numbers.
fn bytes<'de, D: Deserializer<'de>, const N: usize>(deserializer: D) -> Result<[u8; N], D::Error> {
    let bytes = Vec::<u8>::deserialize(deserializer)?;
    let got = bytes.len();
    bytes
        .try_into()
        .map_err(|_| serde::de::Error::invalid_length(got, &format!("{N} bytes").as_str()))
}

impl Fields {
    /// The report's bytes. What the JSON has no field for is zero.
    fn encode(self) -> Result<Vec<u8>, ParseCocoError> {
        // The layout of a TCB version follows from its having `fmc`.
        let product = if self.reported_tcb.fmc.is_some() {
            Product::Turin
        } else {
            Product::Genoa
        };
        let tcb = |tcb: Tcb| {
            let version = TcbVersion {
                fmc: tcb.fmc,
                bootloader: tcb.bootloader,
                tee: tcb.tee,
                snp: tcb.snp,
                microcode: tcb.microcode,
            };
            version.encode(product).map_err(|_| ParseCocoError::Tcb)
        };
        let mut report = AttestationReport::zeroed();
        report.version = self.version.into();
        report.guest_svn = self.guest_svn.into();
        report.policy = self.policy.into();
        report.family_id = self.family_id;
        report.image_id = self.image_id;
        report.vmpl = self.vmpl.into();
        report.signature_algo = self.sig_algo.into();
        report.current_tcb = tcb(self.current_tcb)?;
        report.platform_info = self.plat_info.into();
        report.key_info = self.key_info.into();
        report.report_data = self.report_data;
        report.measurement = self.measurement;
        report.host_data = self.host_data;
        report.id_key_digest = self.id_key_digest;
        report.author_key_digest = self.author_key_digest;
        report.report_id = self.report_id;
        report.report_id_ma = self.report_id_ma;
        report.reported_tcb = tcb(self.reported_tcb)?;
        report.cpuid_family = self.cpuid_fam_id.unwrap_or_default();
        report.cpuid_model = self.cpuid_mod_id.unwrap_or_default();
        report.cpuid_stepping = self.cpuid_step.unwrap_or_default();
        report.chip_id = self.chip_id;
        report.committed_tcb = tcb(self.committed_tcb)?;
        report.current_major = self.current.major;
        report.current_minor = self.current.minor;
        report.current_build = self.current.build;
        report.committed_major = self.committed.major;
        report.committed_minor = self.committed.minor;
        report.committed_build = self.committed.build;
        report.launch_tcb = tcb(self.launch_tcb)?;
        report.launch_mit_vector = self.launch_mit_vector.unwrap_or_default().into();
        report.current_mit_vector = self.current_mit_vector.unwrap_or_default().into();
        report.signature_r = self.signature.r;
        report.signature_s = self.signature.s;
        Ok(report.encode().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Change = fn(&mut Value);

    /// Every field of a report of Turin has a value of its own, and comes back
    /// at its place.
    #[test]
    fn every_field_finds_its_place() {
        let zeros = |n: usize| vec![0; n];
        let tcb = |fmc: Option<u8>| {
            serde_json::json!({
                "fmc": fmc, "bootloader": 2, "tee": 3, "snp": 4, "microcode": 5,
            })
        };
        let filled = |value: u8, n: usize| vec![value; n];
        let document = serde_json::json!({
            "attestation_report": {
                "version": 5, "guest_svn": 6, "policy": 0x30000, "family_id": filled(7, 16),
                "image_id": filled(8, 16), "vmpl": 1, "sig_algo": 1, "current_tcb": tcb(Some(1)),
                "plat_info": 0x67, "key_info": 1, "report_data": filled(9, 64),
                "measurement": filled(10, 48), "host_data": filled(11, 32),
                "id_key_digest": filled(12, 48), "author_key_digest": filled(13, 48),
                "report_id": filled(14, 32), "report_id_ma": filled(15, 32),
                "reported_tcb": tcb(Some(1)), "cpuid_fam_id": 0x1a, "cpuid_mod_id": 2,
                "cpuid_step": 1, "chip_id": filled(16, 64), "committed_tcb": tcb(Some(1)),
                "current": { "major": 1, "minor": 55, "build": 61 },
                "committed": { "major": 1, "minor": 55, "build": 60 },
                "launch_tcb": tcb(Some(1)), "launch_mit_vector": 3, "current_mit_vector": 7,
                "signature": { "r": filled(17, 72), "s": filled(18, 72) },
            },
            "cert_chain": [{ "cert_type": "VCEK", "data": [48, 0] }],
        });
        let evidence = parse(document.to_string().as_bytes()).unwrap();
        assert_eq!(evidence.certificates, [[48, 0]]);
        let raw = &evidence.report;
        for (offset, expected) in [
            (0x000, &[5, 0, 0, 0, 6, 0, 0, 0, 0, 0, 3, 0][..]),
            (0x010, &[7; 16]),
            (0x020, &[8; 16]),
            (
                0x030,
                &[1, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 5, 0x67],
            ),
            (0x048, &[1, 0, 0, 0]),
            (0x050, &[9; 64]),
            (0x090, &[10; 48]),
            (0x0c0, &[11; 32]),
            (0x0e0, &[12; 48]),
            (0x110, &[13; 48]),
            (0x140, &[14; 32]),
            (0x160, &[15; 32]),
            (0x180, &[1, 2, 3, 4, 0, 0, 0, 5, 0x1a, 2, 1]),
            (0x1a0, &[16; 64]),
            (0x1e0, &[1, 2, 3, 4, 0, 0, 0, 5, 61, 55, 1, 0, 60, 55, 1, 0]),
            (0x1f0, &[1, 2, 3, 4, 0, 0, 0, 5, 3]),
            (0x200, &[7]),
            (0x2a0, &[17; 72]),
            (0x2e8, &[18; 72]),
        ] {
            assert_eq!(&raw[offset..][..expected.len()], expected, "{offset:#x}");
        }

        let changes: [(&str, Change); 5] = [
            ("Field", |report| report["vmpl"] = Value::Null),
            ("Field", |report| report["report_data"] = vec![0; 63].into()),
            ("Field", |report| report["page"] = 0.into()),
            ("Field", |report| report["current"]["major"] = 256.into()),
            ("Tcb", |report| report["launch_tcb"]["fmc"] = Value::Null),
        ];
        for (error, change) in changes {
            let mut document = document.clone();
            change(&mut document["attestation_report"]);
            let refused = parse(document.to_string().as_bytes()).unwrap_err();
            assert!(format!("{refused:?}").starts_with(error), "{refused:?}");
        }
        let hcl = serde_json::json!({ "report": zeros(10), "vcek": "" }).to_string();
        for (error, text) in [("Json", "{"), ("Form", "{}"), ("Hcl", &hcl)] {
            let refused = parse(text.as_bytes()).unwrap_err();
            assert!(format!("{refused:?}").starts_with(error), "{refused:?}");
        }
    }
}
