//! Certificates as AMD makes them (VCEK certificate specification, AMD 57230), and
//! what Intel's have in common with them.
//!
//! They are not those of RFC 5280: endorsement keys have serial number 0 and no
//! key usage, and some encode the default trailer field of RSASSA-PSS. So the
//! signature parameters are compared as bytes, with the two encodings that the
//! vendor uses, and names and extensions by the vendor's rules alone.

use assay_tee::report::SigningKey;
use assay_tee::{Product, Sha256Digest, TcbVersion};
use der::asn1::{AnyRef, BitStringRef, Ia5StringRef, OctetStringRef, Utf8StringRef};
use der::oid::ObjectIdentifier;
use der::{Decode, Encode, Sequence, Tag, Tagged};
use jiff::Timestamp;
use x509_cert::TbsCertificate;
use x509_cert::certificate::Version;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage};
use x509_cert::name::Name;
use x509_cert::time::Time;

use crate::crypto;
use crate::extensions::{TcbExtensions, VendorExtensions};
use crate::ledger::Finding;
use crate::verdict::ReasonCode;

/// AlgorithmIdentifier of RSASSA-PSS with SHA-384, MGF1 with SHA-384 and a salt
/// of 48 bytes: with the default trailer field left out, and spelt out.
const RSA_PSS_SHA384: [&[u8]; 2] = [
    b"\x30\x41\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x34\
      \xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
      \xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\
      \x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
      \xa2\x03\x02\x01\x30",
    b"\x30\x46\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x39\
      \xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
      \xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\
      \x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
      \xa2\x03\x02\x01\x30\xa3\x03\x02\x01\x01",
];

/// AlgorithmIdentifier of ECDSA with SHA-256.
const ECDSA_SHA256: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";

const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const SECP256R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const SECP384R1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");

const STRUCT_VERSION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.1");
const PRODUCT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.2");
const BOOTLOADER_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.1");
const TEE_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.2");
const SNP_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.3");
/// spl4 to spl7: the reserved bytes of a TCB version of Milan and Genoa.
const RESERVED_SPL: [ObjectIdentifier; 4] = [
    ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.4"),
    ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.5"),
    ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.6"),
    ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.7"),
];
const MICROCODE_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.8");
const FMC_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.9");
const HW_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.4");
const CSP_ID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.5");

/// Anything signed in the manner of X.509: certificates and revocation lists.
/// Keeps the signed bytes as they came.
#[derive(Sequence)]
struct SignedDer<'a> {
    body: AnyRef<'a>,
    algorithm: AnyRef<'a>,
    signature: BitStringRef<'a>,
}

/// The parts of a signed object that its signature needs.
#[derive(Debug, Clone)]
pub(crate) struct SignedObject {
    pub(crate) body: Vec<u8>,
    algorithm: Vec<u8>,
    signature: Vec<u8>,
}

impl SignedObject {
    pub(crate) fn parse(der: &[u8]) -> Result<Self, der::Error> {
        let signed = SignedDer::from_der(der)?;
        // DER has one encoding of a value, and the decoder refuses any other:
        // what is encoded here are the bytes that were read.
        Ok(Self {
            body: signed.body.to_der()?,
            algorithm: signed.algorithm.to_der()?,
            signature: signed
                .signature
                .as_bytes()
                .ok_or_else(|| Tag::BitString.value_error())?
                .to_vec(),
        })
    }

    /// Verifies the signature by `issuer`. `inner` is the signature algorithm
    /// that the signed body repeats.
    pub(crate) fn verify(&self, inner: &[u8], issuer: &RsaPublicKey) -> Result<(), ReasonCode> {
        if !RSA_PSS_SHA384.contains(&self.algorithm.as_slice()) || inner != self.algorithm {
            return Err(ReasonCode::CertificateParametersWrong);
        }
        crypto::verify_rsa_pss_sha384(&issuer.0, &self.body, &self.signature)
            .map_err(|_| ReasonCode::CertificateSignatureInvalid)
    }
}

impl SignedObject {
    /// As [`Self::verify`], by a `point` on P-256.
    fn verify_p256(&self, inner: &[u8], point: &[u8]) -> Result<(), ReasonCode> {
        if self.algorithm != ECDSA_SHA256 || inner != self.algorithm {
            return Err(ReasonCode::CertificateParametersWrong);
        }
        crypto::verify_ecdsa_p256_sha256_der(point, &self.body, &self.signature)
            .map_err(|_| ReasonCode::CertificateSignatureInvalid)
    }
}

/// A PKCS#1 RSA public key.
pub(crate) struct RsaPublicKey(Vec<u8>);

/// A certificate that can be read; nothing about it has been verified.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    der: Vec<u8>,
    pub(crate) fingerprint: Sha256Digest,
    signed: SignedObject,
    tbs: TbsCertificate,
    inner_algorithm: Vec<u8>,
    pub(crate) common_name: String,
}

impl Certificate {
    pub(crate) fn parse(der: &[u8]) -> Result<Self, der::Error> {
        let signed = SignedObject::parse(der)?;
        let tbs = TbsCertificate::from_der(&signed.body)?;
        let inner_algorithm = tbs.signature().to_der()?;
        let common_name = single_common_name(tbs.subject()).unwrap_or_default();
        Ok(Self {
            der: der.to_vec(),
            fingerprint: Sha256Digest::of(der),
            signed,
            tbs,
            inner_algorithm,
            common_name,
        })
    }

    /// The certificate as it came.
    pub(crate) fn der(&self) -> &[u8] {
        &self.der
    }

    pub(crate) fn tbs(&self) -> &TbsCertificate {
        &self.tbs
    }

    /// What the vendor's extensions say, and a sentence for each that cannot be
    /// read.
    pub(crate) fn vendor_extensions(&self) -> (VendorExtensions, Vec<String>) {
        let mut problems = Vec::new();
        let mut note = |oid: ObjectIdentifier| {
            problems.push(format!("the extension {oid} is repeated or malformed"));
        };
        let mut integer = |oid| self.integer(oid).unwrap_or_else(|_| (note(oid), None).1);
        let (struct_version, tcb) = (
            integer(STRUCT_VERSION),
            TcbExtensions {
                fmc: integer(FMC_SPL),
                bootloader: integer(BOOTLOADER_SPL),
                tee: integer(TEE_SPL),
                snp: integer(SNP_SPL),
                microcode: integer(MICROCODE_SPL),
            },
        );
        let mut string = |oid| self.string(oid).unwrap_or_else(|_| (note(oid), None).1);
        let (product_name, csp_id) = (string(PRODUCT_NAME), string(CSP_ID));
        let hw_id = self
            .extension(HW_ID)
            .and_then(|value| value.map(parse_hw_id).transpose())
            .unwrap_or_else(|_| (note(HW_ID), None).1);
        let extensions = VendorExtensions {
            struct_version,
            product_name,
            hw_id: hw_id.map(hex::encode),
            csp_id,
            tcb,
        };
        (extensions, problems)
    }

    /// Serial number, big-endian without leading zeros.
    pub(crate) fn serial_number(&self) -> &[u8] {
        self.tbs.serial_number().as_bytes()
    }

    pub(crate) fn subject(&self) -> &Name {
        self.tbs.subject()
    }

    pub(crate) fn issuer(&self) -> &Name {
        self.tbs.issuer()
    }

    /// Verifies that `issuer` issued this certificate: names and signature.
    pub(crate) fn verify_issued_by(&self, issuer: &Self) -> Result<(), ReasonCode> {
        if self.issuer() != issuer.subject() {
            return Err(ReasonCode::CertificateNameWrong);
        }
        self.signed
            .verify(&self.inner_algorithm, &issuer.rsa_public_key()?)
    }

    /// As [`Self::verify_issued_by`], for an issuer with a key on P-256.
    pub(crate) fn verify_issued_by_p256(&self, issuer: &Self) -> Result<(), ReasonCode> {
        if self.issuer() != issuer.subject() {
            return Err(ReasonCode::CertificateNameWrong);
        }
        let point = issuer.ec_point(SECP256R1)?;
        self.signed.verify_p256(&self.inner_algorithm, point)
    }

    /// `x || y` of a key on P-256.
    pub(crate) fn p256_coordinates(&self) -> Result<&[u8; 64], ReasonCode> {
        let point = self.ec_point(SECP256R1)?;
        let coordinates = point.split_first().map(|(_, coordinates)| coordinates);
        coordinates
            .and_then(|coordinates| coordinates.try_into().ok())
            .ok_or(ReasonCode::CertificateKeyWrong)
    }

    /// Checks that this is a certificate authority's certificate of version 3
    /// that may sign certificates, with no critical extension but these.
    pub(crate) fn check_authority(&self) -> Result<(), ReasonCode> {
        let wrong = ReasonCode::CertificateExtensionsWrong;
        if self.tbs.version() != Version::V3 {
            return Err(wrong);
        }
        for extension in self
            .extensions()
            .iter()
            .filter(|extension| extension.critical)
        {
            if ![BASIC_CONSTRAINTS, KEY_USAGE].contains(&extension.extn_id) {
                return Err(wrong);
            }
        }
        let constraints = self.extension(BASIC_CONSTRAINTS)?.ok_or(wrong)?;
        let constraints = BasicConstraints::from_der(constraints).map_err(|_| wrong)?;
        if constraints.ca && self.key_usage()?.key_cert_sign() {
            Ok(())
        } else {
            Err(wrong)
        }
    }

    pub(crate) fn key_usage(&self) -> Result<KeyUsage, ReasonCode> {
        let wrong = ReasonCode::CertificateExtensionsWrong;
        let usage = self.extension(KEY_USAGE)?.ok_or(wrong)?;
        KeyUsage::from_der(usage).map_err(|_| wrong)
    }

    /// The first and the last second of its validity, since 1970.
    pub(crate) fn validity(&self) -> (i64, i64) {
        let validity = self.tbs.validity();
        (
            unix_seconds(validity.not_before),
            unix_seconds(validity.not_after),
        )
    }

    /// Checks that the certificate is valid at `now`.
    pub(crate) fn check_dates(&self, now: Timestamp) -> Result<(), Finding> {
        let (not_before, not_after) = self.validity();
        let reason = if now.as_second() < not_before {
            ReasonCode::CertificateNotYetValid
        } else if now.as_second() > not_after {
            ReasonCode::CertificateExpired
        } else {
            return Ok(());
        };
        let validity = self.tbs.validity();
        Err(Finding::fail(reason)
            .expected(format!(
                "{} valid from {} to {}",
                self.common_name, validity.not_before, validity.not_after
            ))
            .observed(now.to_string()))
    }

    pub(crate) fn rsa_public_key(&self) -> Result<RsaPublicKey, ReasonCode> {
        let wrong = ReasonCode::CertificateKeyWrong;
        let info = self.tbs.subject_public_key_info();
        if info.algorithm.oid != RSA_ENCRYPTION {
            return Err(wrong);
        }
        Ok(RsaPublicKey(
            info.subject_public_key.as_bytes().ok_or(wrong)?.to_vec(),
        ))
    }

    fn p384_public_key(&self) -> Result<[u8; 97], ReasonCode> {
        let point = self.ec_point(SECP384R1)?;
        point
            .try_into()
            .map_err(|_| ReasonCode::CertificateKeyWrong)
    }

    /// The point of a key on this curve.
    fn ec_point(&self, curve: ObjectIdentifier) -> Result<&[u8], ReasonCode> {
        let wrong = ReasonCode::CertificateKeyWrong;
        let info = self.tbs.subject_public_key_info();
        let found = info.algorithm.parameters.as_ref().ok_or(wrong)?;
        let found = found.decode_as::<ObjectIdentifier>().map_err(|_| wrong)?;
        if info.algorithm.oid != EC_PUBLIC_KEY || found != curve {
            return Err(wrong);
        }
        info.subject_public_key.as_bytes().ok_or(wrong)
    }

    fn extensions(&self) -> &[Extension] {
        self.tbs.extensions().map_or(&[], Vec::as_slice)
    }

    /// The value of an extension; an error if there are several.
    fn extension(&self, oid: ObjectIdentifier) -> Result<Option<&[u8]>, ReasonCode> {
        let mut values = self
            .extensions()
            .iter()
            .filter(|extension| extension.extn_id == oid);
        let value = values
            .next()
            .map(|extension| extension.extn_value.as_bytes());
        match values.next() {
            Some(_) => Err(ReasonCode::CertificateExtensionsWrong),
            None => Ok(value),
        }
    }

    fn integer(&self, oid: ObjectIdentifier) -> Result<Option<u8>, ReasonCode> {
        let wrong = |_| ReasonCode::CertificateExtensionsWrong;
        self.extension(oid)?
            .map(|value| u8::from_der(value).map_err(wrong))
            .transpose()
    }

    fn string(&self, oid: ObjectIdentifier) -> Result<Option<String>, ReasonCode> {
        let wrong = |_| ReasonCode::CertificateExtensionsWrong;
        self.extension(oid)?
            .map(|value| parse_string(value).map_err(wrong))
            .transpose()
    }
}

/// An endorsement key as its certificate describes it.
#[derive(Debug, Clone)]
pub(crate) struct EndorsementKey {
    pub(crate) kind: SigningKey,
    pub(crate) public_key: [u8; 97],
    /// SHA-256 of the SubjectPublicKeyInfo.
    pub(crate) key_digest: Sha256Digest,
    pub(crate) product_name: String,
    /// The chip, of a VCEK.
    pub(crate) hw_id: Option<Vec<u8>>,
    /// The provider, of a VLEK.
    pub(crate) csp_id: Option<String>,
    struct_version: u8,
    tcb: TcbVersion,
}

impl EndorsementKey {
    /// Reads the certificate of a `kind` of key, by the rules that hold for
    /// every product.
    pub(crate) fn parse(certificate: &Certificate, kind: SigningKey) -> Result<Self, ReasonCode> {
        let wrong = ReasonCode::CertificateExtensionsWrong;
        let any_critical = certificate
            .extensions()
            .iter()
            .any(|extension| extension.critical);
        if any_critical || certificate.tbs.version() != Version::V3 {
            return Err(wrong);
        }
        for oid in RESERVED_SPL {
            if certificate.integer(oid)?.unwrap_or(0) != 0 {
                return Err(wrong);
            }
        }
        let spl = |oid| certificate.integer(oid)?.ok_or(wrong);
        let tcb = TcbVersion {
            fmc: certificate.integer(FMC_SPL)?,
            bootloader: spl(BOOTLOADER_SPL)?,
            tee: spl(TEE_SPL)?,
            snp: spl(SNP_SPL)?,
            microcode: spl(MICROCODE_SPL)?,
        };
        let hw_id = certificate.extension(HW_ID)?.map(parse_hw_id).transpose()?;
        let csp_id = certificate.string(CSP_ID)?;
        match (kind, &hw_id, &csp_id) {
            (SigningKey::Vcek, Some(_), None) | (SigningKey::Vlek, None, Some(_)) => {}
            _ => return Err(wrong),
        }
        let info = certificate.tbs.subject_public_key_info().to_der();
        Ok(Self {
            kind,
            public_key: certificate.p384_public_key()?,
            key_digest: Sha256Digest::of(&info.map_err(|_| ReasonCode::CertificateMalformed)?),
            product_name: certificate.string(PRODUCT_NAME)?.ok_or(wrong)?,
            hw_id,
            csp_id,
            struct_version: spl(STRUCT_VERSION)?,
            tcb,
        })
    }

    /// Checks the rules that depend on the product: the certificate names it,
    /// with or without a stepping, and has its form.
    pub(crate) fn check_product(&self, product: Product) -> Result<(), ReasonCode> {
        if self.product_name.parse() != Ok(product) {
            return Err(ReasonCode::CertificateProductWrong);
        }
        let (struct_version, fmc) = match product {
            Product::Milan | Product::Genoa => (0, false),
            Product::Turin => (1, true),
        };
        let hw_id_len = self.hw_id.as_ref().map_or(product.chip_id_len(), Vec::len);
        if self.struct_version == struct_version
            && self.tcb.fmc.is_some() == fmc
            && hw_id_len == product.chip_id_len()
        {
            Ok(())
        } else {
            Err(ReasonCode::CertificateExtensionsWrong)
        }
    }

    /// The TCB that the key was issued for.
    pub(crate) fn tcb(&self) -> TcbVersion {
        self.tcb
    }
}

/// A date of a certificate or a revocation list in seconds since 1970.
pub(crate) fn unix_seconds(time: Time) -> i64 {
    i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX)
}

/// The chip's identity: raw bytes, or wrapped in an OCTET STRING by newer
/// certificates. Told apart by length, because raw bytes may look like a tag.
fn parse_hw_id(value: &[u8]) -> Result<Vec<u8>, ReasonCode> {
    let wrong = ReasonCode::CertificateExtensionsWrong;
    match value.len() {
        8 | 64 => Ok(value.to_vec()),
        10 | 66 => {
            let inner = <&OctetStringRef>::from_der(value).map_err(|_| wrong)?;
            Ok(inner.as_bytes().to_vec())
        }
        _ => Err(wrong),
    }
}

fn parse_string(value: &[u8]) -> Result<String, der::Error> {
    let any = AnyRef::from_der(value)?;
    match any.tag() {
        Tag::Ia5String => Ok(any.decode_as::<Ia5StringRef<'_>>()?.as_str().to_owned()),
        _ => Ok(any.decode_as::<Utf8StringRef<'_>>()?.as_str().to_owned()),
    }
}

/// The common name, if there is exactly one.
fn single_common_name(name: &Name) -> Option<String> {
    let mut names = name.iter().filter(|attribute| attribute.oid == COMMON_NAME);
    let value = names.next()?.value.to_der().ok()?;
    let any = AnyRef::from_der(&value).ok()?;
    let text = match any.tag() {
        Tag::PrintableString => any
            .decode_as::<der::asn1::PrintableStringRef<'_>>()
            .ok()?
            .as_str()
            .to_owned(),
        _ => any
            .decode_as::<Utf8StringRef<'_>>()
            .ok()?
            .as_str()
            .to_owned(),
    };
    names.next().is_none().then_some(text)
}
