//! What a guest submits, read strictly. Nothing in it is believed yet.

use assay_attest::evidence::{Evidence, ParseEvidenceError, parse_evidence};
use assay_protocol::broker::Profile;
use assay_protocol::jwe::JweError;
use assay_protocol::messages::{
    Attestation, INIT_DATA_FORMAT, NO_ADDITIONAL_EVIDENCE, RuntimeData, SnpEvidence,
};
use assay_protocol::svsm::{self, SVSM_RESOURCE, SvsmError, SvsmEvidence};
use assay_tee::InstanceData;
use assay_tee::canonical::{EncodeCanonicalError, encode_canonical};
use assay_tee::guest_message::{
    CertificateEntry, CertificateGuid, CertificateTable, GuestMessageError,
};
use serde_json::Value;

use crate::release::ResourcePath;

/// Most bytes of instance data. It is stored in the record with the evidence.
const MAX_INSTANCE_DATA: usize = 64 * 1024;
/// Most bytes of a certificate table: three times what processors hand out.
const MAX_CERTIFICATES: usize = 48 * 1024;
/// Stands in a certificate table for a label that tables do not know.
const UNLABELLED: CertificateGuid = CertificateGuid([0xff; 16]);

/// Why a submission cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ParseSubmissionError {
    /// The body is not an attestation of KBS 0.4.0.
    #[error("the body is not an attestation with SNP evidence")]
    Attestation(#[source] serde_json::Error),
    /// The evidence is that of a guest of Confidential Containers and cannot be
    /// read.
    #[error("primary_evidence has an attestation_report that cannot be read")]
    Evidence(#[source] ParseEvidenceError),
    /// There is no init-data, or it is not instance data.
    #[error("init-data of format {INIT_DATA_FORMAT:?} is needed")]
    InitDataMissing,
    /// The instance data cannot be read.
    #[error("init-data is not instance data")]
    InstanceData(#[source] serde_json::Error),
    /// The instance data has another version.
    #[error(
        "instance data of version {got} is not known, only {}",
        InstanceData::VERSION
    )]
    InstanceVersion {
        /// The version.
        got: u32,
    },
    /// A name in the instance data is not one of Kubernetes.
    #[error("{field} in the instance data is not a name: {got:?}")]
    Name {
        /// The field.
        field: &'static str,
        /// Its value.
        got: String,
    },
    /// There is evidence of devices, which nobody would appraise.
    #[error("additional evidence is not supported")]
    AdditionalEvidence,
    /// The key is not one that resources can be encrypted to.
    #[error("tee-pubkey is not a key that resources can be encrypted to")]
    TeePublicKey(#[source] JweError),
    /// A part is larger than it can be.
    #[error("{part} has more than {limit} bytes")]
    TooLarge {
        /// The part.
        part: &'static str,
        /// The most bytes that it may have.
        limit: usize,
    },
    /// The certificate table cannot be read.
    #[error("the certificate table is malformed")]
    Certificates(#[source] GuestMessageError),
    /// The request is not one of the SVSM profile.
    #[error("not a request of the SVSM profile")]
    Svsm(#[from] SvsmError),
    /// The SVSM's proxy would bring instance data of its own, beside what is in the
    /// path.
    #[error("init-data is in the path of the SVSM profile, and nowhere else")]
    SvsmInitData,
    /// The proxy asks for one resource without saying which.
    #[error(
        "the instance data lists {count} resources: list the one that {} stands for",
        SVSM_RESOURCE.join("/")
    )]
    SvsmResources {
        /// How many there are.
        count: usize,
    },
}

/// How REPORT_DATA follows from what a guest submits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoundBy {
    /// By the runtime data and the evidence of devices, as in KBS 0.4.0.
    Kbs,
    /// By key and challenge, as an SVSM does.
    Svsm {
        /// The digest of both.
        report_data: [u8; 64],
    },
}

/// What a guest submits.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The instance data.
    pub instance: InstanceData,
    /// The instance data, byte for byte.
    pub instance_document: String,
    /// What the evidence must bind.
    pub runtime_data: RuntimeData,
    /// Evidence of devices: none, in one of two spellings.
    pub additional_evidence: String,
    /// The SNP evidence.
    pub evidence: SnpEvidence,
    /// Its certificates, read from the table.
    pub certificates: CertificateTable,
    /// How REPORT_DATA follows from it.
    pub bound_by: BoundBy,
}

impl Submission {
    /// Reads the body of an attestation request.
    ///
    /// # Errors
    /// When any part of it is not what a guest sends.
    pub fn parse(body: &[u8]) -> Result<Self, ParseSubmissionError> {
        let Attestation::<Value> {
            init_data,
            runtime_data,
            tee_evidence,
        } = serde_json::from_slice(body).map_err(ParseSubmissionError::Attestation)?;
        let init_data = init_data
            .filter(|data| data.format == INIT_DATA_FORMAT)
            .ok_or(ParseSubmissionError::InitDataMissing)?;
        let evidence = read_evidence(tee_evidence.primary_evidence)?;
        check_size("init-data", init_data.body.len(), MAX_INSTANCE_DATA)?;
        let certificates = read_certificates(&evidence.certificates)?;
        let additional_evidence = tee_evidence.additional_evidence;
        if !["", NO_ADDITIONAL_EVIDENCE].contains(&additional_evidence.as_str()) {
            return Err(ParseSubmissionError::AdditionalEvidence);
        }
        runtime_data
            .tee_pubkey
            .validate()
            .map_err(ParseSubmissionError::TeePublicKey)?;
        let instance = parse_instance(&init_data.body)?;
        Ok(Self {
            instance,
            instance_document: init_data.body,
            runtime_data,
            additional_evidence,
            evidence,
            certificates,
            bound_by: BoundBy::Kbs,
        })
    }

    /// Reads the body of an attestation request that an SVSM's proxy sends for the
    /// guest with `document`.
    ///
    /// # Errors
    /// When any part of it is not what the proxy sends.
    pub fn parse_svsm(document: SvsmDocument, body: &[u8]) -> Result<Self, ParseSubmissionError> {
        let Attestation::<SvsmEvidence> {
            init_data,
            runtime_data,
            tee_evidence,
        } = serde_json::from_slice(body).map_err(ParseSubmissionError::Attestation)?;
        if init_data.is_some() {
            return Err(ParseSubmissionError::SvsmInitData);
        }
        if !tee_evidence.additional_evidence.is_empty() {
            return Err(ParseSubmissionError::AdditionalEvidence);
        }
        let evidence = tee_evidence.primary_evidence.decode()?;
        let certificates = read_certificates(&evidence.certificates)?;
        runtime_data
            .tee_pubkey
            .validate()
            .map_err(ParseSubmissionError::TeePublicKey)?;
        let bound_by = BoundBy::Svsm {
            report_data: svsm::report_data(&runtime_data)?,
        };
        let SvsmDocument { text, instance } = document;
        Ok(Self {
            instance,
            instance_document: text,
            runtime_data,
            additional_evidence: String::new(),
            evidence,
            certificates,
            bound_by,
        })
    }

    /// The profile of its session.
    pub const fn profile(&self) -> Profile {
        match self.bound_by {
            BoundBy::Kbs => Profile::Kbs,
            BoundBy::Svsm { .. } => Profile::Svsm,
        }
    }

    /// What REPORT_DATA must be.
    ///
    /// # Errors
    /// Never for values that came from JSON; the encoder's error is passed on.
    pub fn report_data(&self) -> Result<[u8; 64], EncodeCanonicalError> {
        match self.bound_by {
            BoundBy::Kbs => self.runtime_data.report_data(&self.additional_evidence),
            BoundBy::Svsm { report_data } => Ok(report_data),
        }
    }

    /// The document from which anybody can tell what REPORT_DATA must be.
    ///
    /// # Errors
    /// As [`Submission::report_data`].
    pub fn bound_document(&self) -> Result<Vec<u8>, EncodeCanonicalError> {
        match self.bound_by {
            BoundBy::Kbs => self.runtime_data.binding(&self.additional_evidence),
            BoundBy::Svsm { .. } => encode_canonical(&self.runtime_data),
        }
    }

    /// The report with its certificates.
    pub fn evidence(&self) -> Evidence {
        Evidence::from_table(self.evidence.report.clone(), self.certificates.clone())
    }
}

/// The instance data in the path of a request of the SVSM profile. Nothing binds it
/// yet.
#[derive(Debug, Clone)]
pub struct SvsmDocument {
    text: String,
    instance: InstanceData,
}

impl SvsmDocument {
    /// Reads a path's segment.
    ///
    /// # Errors
    /// When it is not instance data with one resource.
    pub fn parse(segment: &str) -> Result<Self, ParseSubmissionError> {
        let text = svsm::parse_document(segment)?;
        let instance = parse_instance(&text)?;
        match instance.resources.len() {
            1 => Ok(Self { text, instance }),
            count => Err(ParseSubmissionError::SvsmResources { count }),
        }
    }

    /// HOST_DATA of the guest, hex.
    pub fn host_data(&self) -> String {
        InstanceData::host_data(self.text.as_bytes()).to_hex()
    }

    /// What the proxy's request for [`SVSM_RESOURCE`] stands for.
    pub fn resource(&self) -> Option<ResourcePath> {
        let InstanceData {
            namespace,
            deployment,
            resources,
            ..
        } = &self.instance;
        resources.first().map(|resource| ResourcePath {
            namespace: namespace.clone(),
            deployment: deployment.clone(),
            name: resource.name.clone(),
        })
    }
}

fn check_size(part: &'static str, len: usize, limit: usize) -> Result<(), ParseSubmissionError> {
    if len > limit {
        return Err(ParseSubmissionError::TooLarge { part, limit });
    }
    Ok(())
}

/// Reads a certificate table; an empty one is none.
fn read_certificates(table: &[u8]) -> Result<CertificateTable, ParseSubmissionError> {
    check_size("the certificate table", table.len(), MAX_CERTIFICATES)?;
    if table.is_empty() {
        return Ok(CertificateTable::default());
    }
    CertificateTable::parse(table).map_err(ParseSubmissionError::Certificates)
}

/// Reads evidence of our guests, or that of Confidential Containers, whose
/// certificates become a table.
fn read_evidence(evidence: Value) -> Result<SnpEvidence, ParseSubmissionError> {
    if evidence.get("attestation_report").is_none() {
        return serde_json::from_value(evidence).map_err(ParseSubmissionError::Attestation);
    }
    let label = |index: usize| {
        let pointer = format!("/cert_chain/{index}/cert_type");
        match evidence.pointer(&pointer).and_then(Value::as_str) {
            Some("VCEK") => CertificateGuid::VCEK,
            Some("VLEK") => CertificateGuid::VLEK,
            Some("ASK") => CertificateGuid::ASK,
            Some("ARK") => CertificateGuid::ARK,
            _ => UNLABELLED,
        }
    };
    let Evidence {
        report,
        certificates,
        ..
    } = parse_evidence(evidence.to_string().into_bytes())
        .map_err(ParseSubmissionError::Evidence)?;
    let entries = certificates.into_iter().enumerate();
    let table = CertificateTable(
        entries
            .map(|(index, der)| CertificateEntry {
                guid: label(index),
                der,
            })
            .collect(),
    );
    let certificates = if table.0.is_empty() {
        Vec::new()
    } else {
        table.encode().map_err(ParseSubmissionError::Certificates)?
    };
    Ok(SnpEvidence {
        report,
        certificates,
    })
}

fn parse_instance(document: &str) -> Result<InstanceData, ParseSubmissionError> {
    let instance: InstanceData =
        serde_json::from_str(document).map_err(ParseSubmissionError::InstanceData)?;
    if instance.version != InstanceData::VERSION {
        return Err(ParseSubmissionError::InstanceVersion {
            got: instance.version,
        });
    }
    // These become parts of paths at the API server.
    for (field, name) in [
        ("namespace", &instance.namespace),
        ("deployment", &instance.deployment),
        ("pod.name", &instance.pod.name),
    ] {
        if !is_name(name) {
            return Err(ParseSubmissionError::Name {
                field,
                got: name.clone(),
            });
        }
    }
    Ok(instance)
}

/// Whether `name` is a DNS subdomain (RFC 1123), as names of Kubernetes are.
pub(crate) fn is_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    #[test]
    fn a_guest_s_submission_is_read() {
        let submission = Submission::parse(&fixtures::attestation_body()).unwrap();
        assert_eq!(submission.instance, fixtures::instance());
        assert_eq!(submission.certificates.0.len(), 3);
    }

    #[test]
    fn evidence_of_confidential_containers_is_the_same_evidence() {
        let good = Submission::parse(&fixtures::attestation_body()).unwrap();
        let mut body: Value = serde_json::from_slice(&fixtures::attestation_body()).unwrap();
        body["tee-evidence"]["primary_evidence"] = fixtures::coco_evidence(&good.evidence);
        let submission = Submission::parse(body.to_string().as_bytes()).unwrap();
        assert_eq!(submission.evidence.report, good.evidence.report);
        assert_eq!(submission.certificates, good.certificates);
        let stored = CertificateTable::parse(&submission.evidence.certificates).unwrap();
        assert_eq!(stored, good.certificates);

        let primary = |change: fn(&mut Value)| {
            let mut body = body.clone();
            change(&mut body["tee-evidence"]["primary_evidence"]);
            Submission::parse(body.to_string().as_bytes())
        };
        let unlabelled = primary(|e| e["cert_chain"][0]["cert_type"] = "CRL".into()).unwrap();
        assert_eq!(unlabelled.certificates.0[0].guid, UNLABELLED);
        let bare = primary(|e| e["cert_chain"] = Value::Null).unwrap();
        assert_eq!(bare.certificates, CertificateTable::default());
        let error = primary(|e| e["attestation_report"]["vmpl"] = Value::Null).unwrap_err();
        assert!(
            matches!(error, ParseSubmissionError::Evidence(_)),
            "{error:?}"
        );
        let error = primary(|e| {
            e["cert_chain"] = vec![e["cert_chain"][0].clone(); 64].into();
        })
        .unwrap_err();
        assert!(
            matches!(error, ParseSubmissionError::Certificates(_)),
            "{error:?}"
        );
    }

    #[test]
    fn anything_else_is_refused() {
        let good: serde_json::Value =
            serde_json::from_slice(&fixtures::attestation_body()).unwrap();
        let instance = |change: fn(&mut InstanceData)| {
            let mut instance = fixtures::instance();
            change(&mut instance);
            serde_json::Value::String(String::from_utf8(instance.encode().unwrap()).unwrap())
        };
        let rows: Vec<(&str, serde_json::Value, &str)> = vec![
            ("/init-data", serde_json::Value::Null, "InitDataMissing"),
            ("/init-data/format", "toml".into(), "InitDataMissing"),
            ("/init-data/body", "{}".into(), "InstanceData"),
            (
                "/init-data/body",
                " ".repeat(MAX_INSTANCE_DATA + 1).into(),
                "TooLarge",
            ),
            (
                "/init-data/body",
                instance(|i| i.version = 2),
                "InstanceVersion",
            ),
            (
                "/init-data/body",
                instance(|i| i.namespace = "a/../b".to_owned()),
                "Name",
            ),
            (
                "/init-data/body",
                instance(|i| i.pod.name = String::new()),
                "Name",
            ),
            (
                "/init-data/body",
                instance(|i| i.deployment = "Web".to_owned()),
                "Name",
            ),
            (
                "/runtime-data/tee-pubkey/alg",
                "ECDH-ES".into(),
                "TeePublicKey",
            ),
            ("/runtime-data/tee-pubkey/x", "AAAA".into(), "TeePublicKey"),
            ("/runtime-data/tee-pubkey/kty", "RSA".into(), "Attestation"),
            ("/runtime-data/tee-pubkey/kid", "a".into(), "Attestation"),
            (
                "/tee-evidence/additional_evidence",
                "{\"nvidia\":1}".into(),
                "AdditionalEvidence",
            ),
            (
                "/tee-evidence/primary_evidence/report",
                "?".into(),
                "Attestation",
            ),
            (
                "/tee-evidence/primary_evidence/certificates",
                "AAAA".into(),
                "Certificates",
            ),
        ];
        for (pointer, value, expected) in rows {
            let mut changed = good.clone();
            let (parent, field) = pointer.rsplit_once('/').unwrap();
            changed.pointer_mut(parent).unwrap()[field] = value;
            let error = Submission::parse(changed.to_string().as_bytes()).unwrap_err();
            let name = format!("{error:?}");
            assert!(name.starts_with(expected), "{pointer}: {name}");
        }
    }
}
