//! Evidence as it arrives, and what it must be bound to.

mod coco;
mod hcl;

use assay_tee::guest_message::CertificateTable;
use der::pem;

pub use coco::ParseCocoError;
pub use hcl::ParseHclError;

/// Evidence of one guest, as it arrived: all of it is untrusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The attestation report, byte for byte.
    pub report: Vec<u8>,
    /// DER certificates in any order. What each of them is follows from its
    /// content; labels prove nothing.
    pub certificates: Vec<Vec<u8>>,
    /// DER of the vendor's revocation list for the product, if it was obtained.
    pub revocation_list: Option<Vec<u8>>,
}

impl Evidence {
    /// A report and its certificates, without a revocation list.
    pub fn new(report: Vec<u8>, certificates: Vec<Vec<u8>>) -> Self {
        Self {
            report,
            certificates,
            revocation_list: None,
        }
    }

    /// Adds what was obtained from the vendor for this evidence.
    pub fn endorse(&mut self, endorsements: &Endorsements) {
        let Endorsements {
            certificates,
            revocation_list,
        } = endorsements;
        self.certificates.extend_from_slice(certificates);
        if revocation_list.is_some() {
            self.revocation_list.clone_from(revocation_list);
        }
    }

    /// A report and the certificate table of its extended request.
    pub fn from_table(report: Vec<u8>, table: CertificateTable) -> Self {
        Self::new(report, table.0.into_iter().map(|entry| entry.der).collect())
    }
}

/// What the vendor says of evidence, beside what the evidence brings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endorsements {
    /// DER certificates.
    pub certificates: Vec<Vec<u8>>,
    /// DER of the root's revocation list.
    pub revocation_list: Option<Vec<u8>>,
}

/// What the report must contain, so that it is this guest's and fresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// REPORT_DATA: binds nonce and session key.
    pub report_data: [u8; 64],
    /// HOST_DATA: binds the instance data.
    pub host_data: [u8; 32],
}

/// Evidence of a known form cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ParseEvidenceError {
    /// It begins like an HCL report.
    #[error("cannot read the HCL report")]
    Hcl(#[from] ParseHclError),
    /// It begins like JSON.
    #[error("cannot read the JSON evidence")]
    Coco(#[from] ParseCocoError),
}

/// Reads evidence in any of its forms: an HCL report of Azure, the JSON of
/// Confidential Containers, or else a report as it came, which is not looked at.
///
/// # Errors
/// When one of the first two is malformed.
pub fn parse_evidence(bytes: Vec<u8>) -> Result<Evidence, ParseEvidenceError> {
    if hcl::is_hcl(&bytes) {
        Ok(Evidence::new(hcl::parse(&bytes)?, Vec::new()))
    } else if bytes.trim_ascii_start().starts_with(b"{") {
        Ok(coco::parse(&bytes)?)
    } else {
        Ok(Evidence::new(bytes, Vec::new()))
    }
}

/// Certificates are neither DER nor PEM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseCertificatesError {
    /// There is no certificate.
    #[error("neither a DER certificate nor PEM with a CERTIFICATE")]
    Missing,
    /// A PEM document cannot be decoded.
    #[error("PEM certificate {index} is malformed")]
    Pem {
        /// Index of the document.
        index: usize,
    },
}

/// Splits one DER certificate, or any number of PEM certificates, into DER. The
/// certificates themselves are not read.
///
/// # Errors
/// When there is no certificate or one is malformed PEM.
pub fn parse_certificates(bytes: &[u8]) -> Result<Vec<Vec<u8>>, ParseCertificatesError> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const DER_SEQUENCE: u8 = 0x30;
    if bytes.first() == Some(&DER_SEQUENCE) {
        return Ok(vec![bytes.to_vec()]);
    }
    let text = str::from_utf8(bytes).map_err(|_| ParseCertificatesError::Missing)?;
    let mut certificates = Vec::new();
    for (index, document) in text.split(BEGIN).skip(1).enumerate() {
        let malformed = ParseCertificatesError::Pem { index };
        let end = "-----END CERTIFICATE-----";
        let (body, _) = document.split_once(end).ok_or(malformed)?;
        let document = format!("{BEGIN}{body}{end}");
        let (_, der) = pem::decode_vec(document.as_bytes()).map_err(|_| malformed)?;
        certificates.push(der);
    }
    if certificates.is_empty() {
        Err(ParseCertificatesError::Missing)
    } else {
        Ok(certificates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem_of(der: &[u8]) -> String {
        pem::encode_string("CERTIFICATE", pem::LineEnding::LF, der).unwrap()
    }

    #[test]
    fn der_and_pem_are_told_apart() {
        assert_eq!(parse_certificates(&[0x30, 0]), Ok(vec![vec![0x30, 0]]));
        let chain = format!("text\n{}\n{}", pem_of(&[1, 2]), pem_of(&[3]));
        assert_eq!(
            parse_certificates(chain.as_bytes()),
            Ok(vec![vec![1, 2], vec![3]])
        );
    }

    #[test]
    fn what_is_neither_is_refused() {
        for bytes in [&b""[..], b"text", b"\xff"] {
            assert_eq!(
                parse_certificates(bytes),
                Err(ParseCertificatesError::Missing)
            );
        }
        let cut = pem_of(&[1, 2]).replace("-----END", "");
        let error = Err(ParseCertificatesError::Pem { index: 0 });
        assert_eq!(parse_certificates(cut.as_bytes()), error);
    }
}
