//! What a certificate says, for people to read. Nothing is verified, and
//! nothing here takes part in a decision: what cannot be read is described as
//! such instead of refused.

use assay_tee::{Product, Sha256Digest};
use der::oid::ObjectIdentifier;
use der::{Decode as _, Encode as _};
use serde::Serialize;

use crate::anchors::TrustAnchors;
use crate::certificate::Certificate;
use crate::domain::TrustDomain;
pub use crate::extensions::{TcbExtensions, VendorExtensions};

/// A certificate as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateDescription {
    /// What the subject's common name makes of it.
    pub role: CertificateRole,
    /// Product by the vendor's extension, or else by the common name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<Product>,
    /// Subject, RFC 4514.
    pub subject: String,
    /// Issuer, RFC 4514.
    pub issuer: String,
    /// Serial number, hexadecimal.
    pub serial_number: String,
    /// Start of validity, RFC 3339.
    pub not_before: String,
    /// End of validity, RFC 3339.
    pub not_after: String,
    /// SHA-256 of the certificate's DER.
    pub fingerprint: Sha256Digest,
    /// SHA-256 of the SubjectPublicKeyInfo: what a deny list names.
    pub key_digest: Sha256Digest,
    /// Kind of the public key.
    pub key: String,
    /// Whether this very certificate is a root of AMD's.
    pub is_amd_root: bool,
    /// The vendor's extensions; absent in roots and intermediates.
    #[serde(skip_serializing_if = "VendorExtensions::is_empty")]
    pub vendor: VendorExtensions,
    /// What could not be read, a sentence each.
    pub problems: Vec<String>,
}

/// What a certificate is, by its common name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum CertificateRole {
    /// Root of a product.
    Ark,
    /// Intermediate for chip keys.
    Ask,
    /// Intermediate for providers' keys.
    Asvk,
    /// Chip endorsement key.
    Vcek,
    /// Provider's endorsement key.
    Vlek,
    /// None of these.
    Other,
}

impl CertificateRole {
    /// What it is, for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ark => "root (ARK)",
            Self::Ask => "intermediate (ASK)",
            Self::Asvk => "intermediate (ASVK)",
            Self::Vcek => "chip endorsement key (VCEK)",
            Self::Vlek => "provider's endorsement key (VLEK)",
            Self::Other => "not one of AMD's",
        }
    }

    fn of(common_name: &str) -> Self {
        match common_name {
            "SEV-VCEK" => Self::Vcek,
            "SEV-VLEK" => Self::Vlek,
            name if name.starts_with("ARK-") => Self::Ark,
            name if name.starts_with("SEV-VLEK-") => Self::Asvk,
            name if name.starts_with("SEV-") => Self::Ask,
            _ => Self::Other,
        }
    }
}

/// Bytes are no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no X.509 certificate in DER")]
pub struct DescribeCertificateError(#[from] der::Error);

/// Describes a certificate.
///
/// # Errors
/// When it cannot be read at all, with the offset where reading stopped.
pub fn describe_certificate(
    der: &[u8],
) -> Result<CertificateDescription, DescribeCertificateError> {
    let certificate = Certificate::parse(der)?;
    let tbs = certificate.tbs();
    let info = tbs.subject_public_key_info();
    let (vendor, problems) = certificate.vendor_extensions();
    let common_name = certificate.common_name.as_str();
    let line = common_name.rsplit('-').next().unwrap_or_default();
    let product = vendor.product_name.as_deref().unwrap_or(line);
    Ok(CertificateDescription {
        product: product.parse().ok(),
        role: CertificateRole::of(common_name),
        subject: tbs.subject().to_string(),
        issuer: tbs.issuer().to_string(),
        serial_number: hex::encode(certificate.serial_number()),
        not_before: tbs.validity().not_before.to_string(),
        not_after: tbs.validity().not_after.to_string(),
        fingerprint: certificate.fingerprint,
        key_digest: Sha256Digest::of(&info.to_der()?),
        key: key_name(info),
        is_amd_root: Product::ALL.into_iter().any(|product| {
            TrustAnchors::amd().domain_of(product, certificate.fingerprint)
                == Some(TrustDomain::Amd)
        }),
        vendor,
        problems,
    })
}

fn key_name(info: &x509_cert::spki::SubjectPublicKeyInfoOwned) -> String {
    const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
    const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
    let bytes = info.subject_public_key.as_bytes().unwrap_or_default();
    if info.algorithm.oid == RSA {
        return match RsaKey::from_der(bytes) {
            Ok(key) => format!("RSA-{}", key.modulus.as_bytes().len() * 8),
            Err(_) => "RSA, damaged".to_owned(),
        };
    }
    let curve = info
        .algorithm
        .parameters
        .as_ref()
        .and_then(|curve| curve.decode_as::<ObjectIdentifier>().ok());
    match curve {
        Some(P384) => "ECDSA P-384".to_owned(),
        Some(curve) => format!("{} on {curve}", info.algorithm.oid),
        None => info.algorithm.oid.to_string(),
    }
}

/// PKCS#1 RSAPublicKey.
#[derive(der::Sequence)]
struct RsaKey<'a> {
    modulus: der::asn1::UintRef<'a>,
    exponent: der::asn1::UintRef<'a>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_follow_the_common_name() {
        for (name, role) in [
            ("ARK-Milan", CertificateRole::Ark),
            ("SEV-Genoa", CertificateRole::Ask),
            ("SEV-VLEK-Genoa", CertificateRole::Asvk),
            ("SEV-VCEK", CertificateRole::Vcek),
            ("SEV-VLEK", CertificateRole::Vlek),
            ("example.org", CertificateRole::Other),
            ("", CertificateRole::Other),
        ] {
            assert_eq!(CertificateRole::of(name), role, "{name}");
        }
    }

    #[test]
    fn damage_is_located() {
        let DescribeCertificateError(source) = describe_certificate(&[0x30, 3, 2, 1]).unwrap_err();
        assert!(source.to_string().contains("DER byte"), "{source}");
    }
}
