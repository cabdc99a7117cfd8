//! The binding profile of COCONUT-SVSM's attestation proxy (`aproxy` and libaproxy
//! 0.1.0): the messages of KBS 0.4.0, bound into the evidence in another way.
//!
//! REPORT_DATA is the SHA-512 of the coordinates of a key on P-521 and the challenge,
//! one after the other. The evidence has fields of its own, and nothing says whose
//! guest it is: the instance data, which HOST_DATA binds, is in the path of every
//! request, because the proxy takes a base URL and appends to it.

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha512};

use crate::jwe::{Curve, TeePublicKey};
use crate::messages::{RuntimeData, SnpEvidence};

/// Path below which the profile is; the instance data as base64url follows, then the
/// paths of KBS.
pub const SVSM_PATH: &str = "/svsm";
/// What the proxy asks for, whatever the guest is to get.
pub const SVSM_RESOURCE: [&str; 3] = ["default", "sample", "test"];
/// Most bytes of instance data: in base64 and with the rest of the path they fit into
/// the longest URL that servers take, 64 KiB.
pub const MAX_SVSM_DOCUMENT: usize = 32 * 1024;

/// Why a message of the profile cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SvsmError {
    /// A part is not base64.
    #[error("{0} is not base64")]
    Base64(&'static str),
    /// The path has no instance data that could be.
    #[error(
        "the path has no instance data as base64url of at most {MAX_SVSM_DOCUMENT} bytes of UTF-8"
    )]
    Document,
    /// The key is not what the guest hashes.
    #[error("tee-pubkey is not a key on P-521 with coordinates of 66 bytes")]
    Key,
}

/// What a proxy's base URL ends with for a guest with this instance data.
pub fn encode_document(document: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(document)
}

/// The instance data in a path, byte for byte.
///
/// # Errors
/// When it is malformed or too long.
pub fn parse_document(segment: &str) -> Result<String, SvsmError> {
    if segment.len() > MAX_SVSM_DOCUMENT.div_ceil(3) * 4 {
        return Err(SvsmError::Document);
    }
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(segment);
    let bytes = bytes.map_err(|_| SvsmError::Document)?;
    if bytes.len() > MAX_SVSM_DOCUMENT {
        return Err(SvsmError::Document);
    }
    String::from_utf8(bytes).map_err(|_| SvsmError::Document)
}

/// The evidence as the proxy sends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SvsmEvidence {
    /// The attestation report, base64.
    #[serde(rename = "snp-report")]
    pub report: String,
    /// The certificate table, base64, where the host has one.
    #[serde(rename = "certs-buf", default)]
    pub certificates: Option<String>,
}

impl SvsmEvidence {
    /// The same as raw bytes.
    ///
    /// # Errors
    /// When a part is not base64.
    pub fn decode(&self) -> Result<SnpEvidence, SvsmError> {
        let decode = |part, text: &str| {
            let bytes = BASE64_STANDARD.decode(text);
            bytes.map_err(|_| SvsmError::Base64(part))
        };
        let certificates = self.certificates.as_deref().unwrap_or_default();
        Ok(SnpEvidence {
            report: decode("snp-report", &self.report)?,
            certificates: decode("certs-buf", certificates)?,
        })
    }
}

/// REPORT_DATA of evidence that binds `runtime_data`: SHA-512 of x, y and the
/// challenge, each as its bytes.
///
/// # Errors
/// When the key or the challenge is none of the profile. Coordinates of another length
/// are refused: their end is nowhere marked.
pub fn report_data(runtime_data: &RuntimeData) -> Result<[u8; 64], SvsmError> {
    let TeePublicKey::Ec { crv, x, y, .. } = &runtime_data.tee_pubkey else {
        return Err(SvsmError::Key);
    };
    let mut hash = Sha512::new();
    for coordinate in [x, y] {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(coordinate);
        let bytes = bytes.map_err(|_| SvsmError::Key)?;
        if crv != Curve::P521.name() || bytes.len() != Curve::P521.coordinate_len() {
            return Err(SvsmError::Key);
        }
        hash.update(bytes);
    }
    let challenge = BASE64_STANDARD.decode(&runtime_data.nonce);
    hash.update(challenge.map_err(|_| SvsmError::Base64("nonce"))?);
    Ok(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwe::{ECDH_ALGORITHM, RSA_ALGORITHM, RecipientKey};

    fn runtime_data(x: &[u8], y: &[u8], challenge: &[u8]) -> RuntimeData {
        RuntimeData {
            nonce: BASE64_STANDARD.encode(challenge),
            tee_pubkey: TeePublicKey::Ec {
                crv: "P-521".to_owned(),
                alg: ECDH_ALGORITHM.to_owned(),
                x: BASE64_URL_SAFE_NO_PAD.encode(x),
                y: BASE64_URL_SAFE_NO_PAD.encode(y),
            },
        }
    }

    fn hex(bytes: [u8; 64]) -> String {
        let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        let digits = digits.map(|digit| char::from_digit(digit.into(), 16).unwrap());
        digits.collect()
    }

    /// x of 66 bytes 0x10, y of 66 bytes 0x20, a challenge of 48 bytes 0xdd; the digest
    /// by `sha512sum`.
    #[test]
    fn report_data_is_the_digest_of_key_and_challenge() {
        let good = runtime_data(&[0x10; 66], &[0x20; 66], &[0xdd; 48]);
        assert_eq!(
            hex(report_data(&good).unwrap()),
            concat!(
                "bd350b253faeadc5ff36fe96236b883f280fc010f38786c0c6531edaa3b9fe77",
                "97d1c0bc12a1e55a1e6c721352939a486273a6c4b4ec75ebc99fe0c69651b611"
            )
        );
        for other in [
            runtime_data(&[0x20; 66], &[0x10; 66], &[0xdd; 48]),
            runtime_data(&[0x10; 66], &[0x20; 66], &[0xdd; 47]),
        ] {
            assert_ne!(report_data(&other), report_data(&good));
        }
    }

    #[test]
    fn keys_of_other_profiles_are_refused() {
        let mut p256 = runtime_data(&[1; 66], &[2; 66], b"c");
        p256.tee_pubkey =
            TeePublicKey::new(&RecipientKey::generate().unwrap().public_key().unwrap());
        let mut rsa = p256.clone();
        rsa.tee_pubkey = TeePublicKey::Rsa {
            alg: RSA_ALGORITHM.to_owned(),
            n: "AQAB".to_owned(),
            e: "AQAB".to_owned(),
        };
        // A byte that moves from one coordinate to the other leaves the digest.
        let short = runtime_data(&[1; 65], &[1; 67], b"c");
        for other in [p256, rsa, short] {
            assert_eq!(report_data(&other), Err(SvsmError::Key));
        }
        let mut nonce = runtime_data(&[1; 66], &[2; 66], b"c");
        nonce.nonce = "?".to_owned();
        assert_eq!(report_data(&nonce), Err(SvsmError::Base64("nonce")));
    }

    #[test]
    fn the_evidence_is_as_the_proxy_writes_it() {
        let text = r#"{"snp-report":"AQI=","certs-buf":null}"#;
        let evidence: SvsmEvidence = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&evidence).unwrap(), text);
        let decoded = evidence.decode().unwrap();
        assert_eq!((decoded.report, decoded.certificates), (vec![1, 2], vec![]));
        let text = r#"{"snp-report":"AQI=","certs-buf":"Aw=="}"#;
        let evidence: SvsmEvidence = serde_json::from_str(text).unwrap();
        assert_eq!(evidence.decode().unwrap().certificates, [3]);
        for other in [
            r#"{"snp-report":"?","certs-buf":null}"#,
            r#"{"snp-report":"","certs-buf":"?"}"#,
        ] {
            let evidence: SvsmEvidence = serde_json::from_str(other).unwrap();
            assert!(evidence.decode().is_err(), "{other}");
        }
        let more = r#"{"snp-report":"","tpm":""}"#;
        assert!(serde_json::from_str::<SvsmEvidence>(more).is_err());
    }

    #[test]
    fn a_document_is_its_bytes_and_bounded() {
        let document = r#"{"a":"ä?>"}"#;
        let segment = encode_document(document.as_bytes());
        assert!(!segment.contains(['/', '+', '=', '%']), "{segment}");
        assert_eq!(parse_document(&segment).unwrap(), document);
        let largest = " ".repeat(MAX_SVSM_DOCUMENT);
        let largest = parse_document(&encode_document(largest.as_bytes()));
        assert_eq!(largest.unwrap().len(), MAX_SVSM_DOCUMENT);
        for refused in [
            encode_document(" ".repeat(MAX_SVSM_DOCUMENT + 1).as_bytes()),
            encode_document(&[0xff, 0xfe]),
            format!("{segment}="),
            "a".to_owned(),
            "../x".to_owned(),
        ] {
            assert_eq!(parse_document(&refused), Err(SvsmError::Document));
        }
    }
}
