//! Writing certificates and revocation lists as the vendor writes them. The
//! usual builders refuse serial number 0 and other habits of the vendor.

use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use aws_lc_rs::signature::RSA_PSS_SHA384;
use der::asn1::{AnyRef, BitString, GeneralizedTime, Ia5String, OctetString, Uint};
use der::oid::{AssociatedOid, ObjectIdentifier};
use der::{Decode, Encode, Sequence};
use jiff::Timestamp;
use x509_cert::crl::{RevokedCert, TbsCertList};
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::crl::dp::DistributionPoint;
use x509_cert::ext::pkix::name::{DistributionPointName, GeneralName};
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, CrlDistributionPoints, CrlNumber, CrlReason,
    KeyUsage, SubjectKeyIdentifier,
};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::time::{Time, Validity};

use crate::error::PkiError;

/// AlgorithmIdentifier of RSASSA-PSS with SHA-384, MGF1 with SHA-384 and a salt
/// of 48 bytes, as the vendor writes it in endorsement keys.
const RSA_PSS_SHA384_DER: &[u8] = b"\x30\x41\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x34\
      \xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
      \xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\
      \x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
      \xa2\x03\x02\x01\x30";

/// The vendor's names, because verifiers compare them, and a description that
/// no certificate of the vendor has.
const SUBJECT_SUFFIX: &str = "O=Advanced Micro Devices,ST=CA,L=Santa Clara,C=US,OU=Engineering,\
     description=Assay simulation: protects nothing";

#[derive(Sequence)]
struct TbsCertificate<'a> {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    version: u8,
    serial_number: SerialNumber,
    signature: AnyRef<'a>,
    issuer: Name,
    validity: Validity,
    subject: Name,
    subject_public_key_info: AnyRef<'a>,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT")]
    extensions: Vec<Extension>,
}

#[derive(Sequence)]
struct SignedDer<'a> {
    body: AnyRef<'a>,
    algorithm: AnyRef<'a>,
    signature: BitString,
}

/// What a certificate says.
pub(crate) struct Contents<'a> {
    pub(crate) serial_number: &'a [u8],
    pub(crate) issuer: &'a str,
    pub(crate) subject: &'a str,
    pub(crate) validity: Validity,
    /// SubjectPublicKeyInfo, DER.
    pub(crate) public_key: &'a [u8],
    pub(crate) extensions: Vec<Extension>,
}

/// A distinguished name of the vendor's form.
pub(crate) fn name(common_name: &str) -> Result<Name, der::Error> {
    format!("CN={common_name},{SUBJECT_SUFFIX}").parse()
}

pub(crate) fn issue(contents: Contents<'_>, key: &RsaKeyPair) -> Result<Vec<u8>, PkiError> {
    let body = TbsCertificate {
        version: 2,
        serial_number: SerialNumber::new(contents.serial_number)?,
        signature: AnyRef::from_der(RSA_PSS_SHA384_DER)?,
        issuer: name(contents.issuer)?,
        validity: contents.validity,
        subject: name(contents.subject)?,
        subject_public_key_info: AnyRef::from_der(contents.public_key)?,
        extensions: contents.extensions,
    };
    sign(&body.to_der()?, key)
}

/// What a revocation list says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationListTemplate {
    /// thisUpdate.
    pub this_update: Timestamp,
    /// nextUpdate.
    pub next_update: Timestamp,
    /// The CRL number.
    pub number: Option<u64>,
    /// Serial numbers of revoked certificates.
    pub revoked: Vec<Vec<u8>>,
    /// Gives every entry a critical extension, which the vendor does not use.
    pub critical_entries: bool,
}

pub(crate) fn issue_revocation_list(
    issuer: &str,
    template: &RevocationListTemplate,
    key: &RsaKeyPair,
) -> Result<Vec<u8>, PkiError> {
    let this_update = time(template.this_update)?;
    let reason = || extension_of(true, &CrlReason::KeyCompromise);
    let entry = |serial: &Vec<u8>| {
        let critical = template.critical_entries.then(reason).transpose()?;
        Ok(RevokedCert {
            serial_number: SerialNumber::new(serial)?,
            revocation_date: this_update,
            crl_entry_extensions: critical.map(|extension| vec![extension]),
        })
    };
    let entries = template
        .revoked
        .iter()
        .map(entry)
        .collect::<Result<Vec<_>, der::Error>>()?;
    let number = |number: u64| {
        let number = Uint::new(&number.to_be_bytes())?;
        extension_of(false, &CrlNumber(number)).map(|extension| vec![extension])
    };
    let body = TbsCertList::<x509_cert::certificate::Rfc5280> {
        version: x509_cert::Version::V2,
        signature: x509_cert::AlgorithmIdentifier::from_der(RSA_PSS_SHA384_DER)?,
        issuer: name(issuer)?,
        this_update,
        next_update: Some(time(template.next_update)?),
        revoked_certificates: (!entries.is_empty()).then_some(entries),
        crl_extensions: template.number.map(number).transpose()?,
    };
    sign(&body.to_der()?, key)
}

pub(crate) fn time(at: Timestamp) -> Result<Time, PkiError> {
    let seconds = u64::try_from(at.as_second()).map_err(|_| PkiError::Date(at))?;
    let time = GeneralizedTime::from_unix_duration(Duration::from_secs(seconds))
        .map_err(|_| PkiError::Date(at))?;
    Ok(Time::from(time.to_date_time()))
}

fn sign(body: &[u8], key: &RsaKeyPair) -> Result<Vec<u8>, PkiError> {
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PSS_SHA384, &SystemRandom::new(), body, &mut signature)
        .map_err(|_| PkiError::Sign)?;
    let signed = SignedDer {
        body: AnyRef::from_der(body)?,
        algorithm: AnyRef::from_der(RSA_PSS_SHA384_DER)?,
        signature: BitString::from_bytes(&signature)?,
    };
    Ok(signed.to_der()?)
}

/// Extensions of a root or an intermediate. Identifiers are the first 20 bytes
/// of a digest of the key.
pub(crate) fn authority_extensions(
    product: &str,
    usage: KeyUsage,
    subject_key_id: &[u8],
    authority_key_id: Option<&[u8]>,
) -> Result<Vec<Extension>, der::Error> {
    let is_root = authority_key_id.is_none();
    let constraints = BasicConstraints {
        ca: true,
        path_len_constraint: (!is_root).then_some(0),
    };
    let address = format!("https://kdsintf.amd.com/vcek/v1/{product}/crl");
    let point = DistributionPoint {
        distribution_point: Some(DistributionPointName::FullName(vec![
            GeneralName::UniformResourceIdentifier(Ia5String::new(&address)?),
        ])),
        reasons: None,
        crl_issuer: None,
    };
    let mut extensions = vec![
        extension_of(true, &usage)?,
        extension_of(
            false,
            &SubjectKeyIdentifier(OctetString::new(subject_key_id)?),
        )?,
        extension_of(true, &constraints)?,
        extension_of(false, &CrlDistributionPoints(vec![point]))?,
    ];
    if let Some(id) = authority_key_id {
        let identifier = AuthorityKeyIdentifier {
            key_identifier: Some(OctetString::new(id)?),
            authority_cert_issuer: None,
            authority_cert_serial_number: None,
        };
        extensions.push(extension_of(false, &identifier)?);
    }
    Ok(extensions)
}

fn extension_of<T: AssociatedOid + Encode>(
    critical: bool,
    value: &T,
) -> Result<Extension, der::Error> {
    extension(T::OID, critical, &value.to_der()?)
}

pub(crate) fn extension(
    oid: ObjectIdentifier,
    critical: bool,
    value: &[u8],
) -> Result<Extension, der::Error> {
    Ok(Extension {
        extn_id: oid,
        critical,
        extn_value: OctetString::new(value)?,
    })
}
