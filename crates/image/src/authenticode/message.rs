//! The PKCS #7 message of a signature (RFC 2315, §9, with the content of
//! Authenticode), in DER.
//!
//! CMS (RFC 5652) wraps contents in octet strings; Authenticode does not, and
//! its digest is of the content without tag and length.

use assay_tee::Sha256Digest;
use der::asn1::{Any, AnyRef, ObjectIdentifier, OctetStringRef};
use der::{Decode as _, Encode as _, Reader as _, SliceReader, Tag, TagNumber};
use x509_cert::Certificate;

use super::SigningCertificate;

const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
/// SPC_INDIRECT_DATA_OBJID.
const INDIRECT_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.311.2.1.4");
/// SPC_PE_IMAGE_DATAOBJ.
const PE_IMAGE_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.311.2.1.15");
const SHA_256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const RSA_SHA_256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
const CONTENT_TYPE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.3");
const MESSAGE_DIGEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.4");

/// The file that SpcPeImageData names, by convention.
const OBSOLETE: &str = "<<<Obsolete>>>";
/// An empty bit string: SpcPeImageFlags.
const NO_FLAGS: &[u8] = &[3, 1, 0];
/// Version 1 of the message and of a signer's part.
const VERSION: &[u8] = &[2, 1, 1];

type Encoded = Result<Vec<u8>, der::Error>;

fn element(tag: Tag, parts: &[&[u8]]) -> Encoded {
    Any::new(tag, parts.concat())?.to_der()
}

fn sequence(parts: &[&[u8]]) -> Encoded {
    element(Tag::Sequence, parts)
}

fn set(parts: &[&[u8]]) -> Encoded {
    let mut sorted = parts.to_vec();
    sorted.sort_unstable();
    element(Tag::Set, &sorted)
}

fn tagged(number: u32, parts: &[&[u8]]) -> Encoded {
    element(context(number), parts)
}

fn context(number: u32) -> Tag {
    Tag::ContextSpecific {
        constructed: true,
        number: TagNumber(number),
    }
}

/// An AlgorithmIdentifier with the parameter NULL.
fn algorithm(id: ObjectIdentifier) -> Encoded {
    sequence(&[&id.to_der()?, &Any::null().to_der()?])
}

/// The parts of SpcIndirectDataContent: what the digest in the attributes is of.
fn indirect_data(image: Sha256Digest) -> Encoded {
    let name: Vec<u8> = OBSOLETE.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let unicode = Tag::ContextSpecific {
        constructed: false,
        number: TagNumber(0),
    };
    let file = tagged(0, &[&tagged(2, &[&element(unicode, &[&name])?])?])?;
    let data = sequence(&[&PE_IMAGE_DATA.to_der()?, &sequence(&[NO_FLAGS, &file])?])?;
    let digest = OctetStringRef::new(image.as_bytes())?.to_der()?;
    Ok([data, sequence(&[&algorithm(SHA_256)?, &digest])?].concat())
}

/// The attributes of a signature of the image with this digest, in the form
/// that is signed: a SET.
pub(super) fn encode_attributes(image: Sha256Digest) -> Encoded {
    let attribute =
        |id: ObjectIdentifier, value: &[u8]| sequence(&[&id.to_der()?, &set(&[value])?]);
    let digest = Sha256Digest::of(&indirect_data(image)?);
    let digest = OctetStringRef::new(digest.as_bytes())?.to_der()?;
    set(&[
        &attribute(CONTENT_TYPE, &INDIRECT_DATA.to_der()?)?,
        &attribute(MESSAGE_DIGEST, &digest)?,
    ])
}

/// The whole message.
pub(super) fn encode(
    image: Sha256Digest,
    certificate: &SigningCertificate,
    signature: &[u8],
) -> Encoded {
    let attributes = encode_attributes(image)?;
    let attributes = AnyRef::from_der(&attributes)?;
    let signer = sequence(&[
        VERSION,
        &sequence(&[certificate.issuer_and_serial()])?,
        &algorithm(SHA_256)?,
        &tagged(0, &[attributes.value()])?,
        &algorithm(RSA)?,
        &OctetStringRef::new(signature)?.to_der()?,
    ])?;
    let content = sequence(&[&indirect_data(image)?])?;
    let signed_data = sequence(&[
        VERSION,
        &set(&[&algorithm(SHA_256)?])?,
        &sequence(&[&INDIRECT_DATA.to_der()?, &tagged(0, &[&content])?])?,
        &tagged(0, &[certificate.der()])?,
        &set(&[&signer])?,
    ])?;
    sequence(&[&SIGNED_DATA.to_der()?, &tagged(0, &[&signed_data])?])
}

/// What a message says. Its signature is not verified.
pub(super) struct Message<'a> {
    /// The digest of the image that was signed.
    pub(super) image_digest: Sha256Digest,
    /// The attributes in the form that was signed.
    pub(super) attributes: Vec<u8>,
    /// The signature.
    pub(super) signature: &'a [u8],
    /// The signer's certificate, DER.
    pub(super) certificate: &'a [u8],
}

/// A message that is no signature of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseMessageError {
    /// Not DER.
    #[error("the message is not DER")]
    Der(#[source] der::Error),
    /// Another structure.
    #[error("{0} is not as in a signature of an image")]
    Structure(&'static str),
    /// An algorithm other than SHA-256 and RSA (PKCS #1 v1.5).
    #[error("{what} is {found}, expected {expected}")]
    Algorithm {
        /// Of what.
        what: &'static str,
        /// Its object identifier.
        found: String,
        /// The name of the one supported.
        expected: &'static str,
    },
    /// The attributes belong to another content.
    #[error("the signed attributes are of another content")]
    OtherContent,
    /// No certificate of the signer.
    #[error("the signer's certificate is not in the message")]
    NoCertificate,
}

type Parsed<T> = Result<T, ParseMessageError>;

fn wrong<T>(what: &'static str) -> Parsed<T> {
    Err(ParseMessageError::Structure(what))
}

/// The elements of a constructed value, each with tag and length.
fn members(value: &[u8]) -> Parsed<Vec<&[u8]>> {
    let mut reader = SliceReader::new(value).map_err(ParseMessageError::Der)?;
    let mut members = Vec::new();
    while !reader.is_finished() {
        members.push(reader.tlv_bytes().map_err(ParseMessageError::Der)?);
    }
    Ok(members)
}

/// The value of an element that must have this tag.
fn value<'a>(element: &'a [u8], tag: Tag, what: &'static str) -> Parsed<&'a [u8]> {
    let any = AnyRef::from_der(element).map_err(ParseMessageError::Der)?;
    if der::Tagged::tag(&any) != tag {
        return wrong(what);
    }
    Ok(any.value())
}

fn sequence_of<'a>(element: &'a [u8], what: &'static str) -> Parsed<Vec<&'a [u8]>> {
    members(value(element, Tag::Sequence, what)?)
}

fn identifier(element: &[u8]) -> Parsed<ObjectIdentifier> {
    ObjectIdentifier::from_der(element).map_err(ParseMessageError::Der)
}

fn expect_algorithm(
    element: &[u8],
    what: &'static str,
    accepted: &[ObjectIdentifier],
    expected: &'static str,
) -> Parsed<()> {
    let parts = sequence_of(element, what)?;
    let Some(id) = parts.first() else {
        return wrong(what);
    };
    let found = identifier(id)?;
    if !accepted.contains(&found) {
        let found = found.to_string();
        return Err(ParseMessageError::Algorithm {
            what,
            found,
            expected,
        });
    }
    Ok(())
}

/// Reads a message. What follows it is padding of the table's entry.
pub(super) fn parse(bytes: &[u8]) -> Parsed<Message<'_>> {
    let mut reader = SliceReader::new(bytes).map_err(ParseMessageError::Der)?;
    let message = reader.tlv_bytes().map_err(ParseMessageError::Der)?;
    let content_info = sequence_of(message, "the message")?;
    let [kind, content] = content_info.as_slice() else {
        return wrong("the message");
    };
    if identifier(kind)? != SIGNED_DATA {
        return wrong("the message's type");
    }
    let signed_data = value(content, context(0), "the message's content")?;
    let parts = sequence_of(signed_data, "SignedData")?;
    let [_version, _algorithms, content, certificates, .., signers] = parts.as_slice() else {
        return wrong("SignedData");
    };
    let content = parse_content(content)?;
    let certificates = members(value(certificates, context(0), "certificates")?)?;
    let signers = members(value(signers, Tag::Set, "signerInfos")?)?;
    let [signer] = signers.as_slice() else {
        return wrong("the number of signers");
    };
    parse_signer(signer, &content, &certificates)
}

struct Content<'a> {
    image_digest: Sha256Digest,
    /// The bytes that the attributes have the digest of.
    digested: &'a [u8],
}

fn parse_content(element: &[u8]) -> Parsed<Content<'_>> {
    let parts = sequence_of(element, "contentInfo")?;
    let [kind, content] = parts.as_slice() else {
        return wrong("contentInfo");
    };
    if identifier(kind)? != INDIRECT_DATA {
        return wrong("the content's type");
    }
    let content = value(content, context(0), "the content")?;
    let digested = value(content, Tag::Sequence, "SpcIndirectDataContent")?;
    let parts = members(digested)?;
    let [_data, digest_info] = parts.as_slice() else {
        return wrong("SpcIndirectDataContent");
    };
    let digest_info = sequence_of(digest_info, "messageDigest")?;
    let [algorithm, digest] = digest_info.as_slice() else {
        return wrong("messageDigest");
    };
    expect_algorithm(algorithm, "the image's digest", &[SHA_256], "SHA-256")?;
    Ok(Content {
        image_digest: digest_in(digest)?,
        digested,
    })
}

fn digest_in(element: &[u8]) -> Parsed<Sha256Digest> {
    let bytes = value(element, Tag::OctetString, "a digest")?;
    let Ok(bytes) = <[u8; 32]>::try_from(bytes) else {
        return wrong("the length of a digest");
    };
    Ok(Sha256Digest::new(bytes))
}

fn parse_signer<'a>(
    element: &'a [u8],
    content: &Content<'_>,
    certificates: &[&'a [u8]],
) -> Parsed<Message<'a>> {
    let parts = sequence_of(element, "SignerInfo")?;
    // Unauthenticated attributes may follow, such as a time stamp's signature.
    let [_version, signer, digest, attributes, key, signature, ..] = parts.as_slice() else {
        return wrong("SignerInfo");
    };
    expect_algorithm(digest, "the signer's digest", &[SHA_256], "SHA-256")?;
    let rsa = [RSA, RSA_SHA_256];
    expect_algorithm(key, "the signature's algorithm", &rsa, "RSA")?;
    let attributes = value(attributes, context(0), "the signed attributes")?;
    check_attributes(attributes, content)?;
    let signer = value(signer, Tag::Sequence, "issuerAndSerialNumber")?;
    let is_signers = |der: &&&[u8]| {
        let certificate = Certificate::from_der(der).ok();
        let named = certificate.and_then(|certificate| issuer_and_serial(&certificate).ok());
        named.is_some_and(|named| named == signer)
    };
    let certificate = certificates.iter().find(is_signers);
    Ok(Message {
        image_digest: content.image_digest,
        attributes: element_of_set(attributes)?,
        signature: value(signature, Tag::OctetString, "the signature")?,
        certificate: certificate.ok_or(ParseMessageError::NoCertificate)?,
    })
}

fn element_of_set(value: &[u8]) -> Parsed<Vec<u8>> {
    element(Tag::Set, &[value]).map_err(ParseMessageError::Der)
}

/// Each of the two attributes must be there once, with one value, of the content.
fn check_attributes(attributes: &[u8], content: &Content<'_>) -> Parsed<()> {
    let mut kinds = Vec::new();
    let mut digests = Vec::new();
    for attribute in members(attributes)? {
        let parts = sequence_of(attribute, "a signed attribute")?;
        let [id, values] = parts.as_slice() else {
            return wrong("a signed attribute");
        };
        let id = identifier(id)?;
        let values = members(value(values, Tag::Set, "an attribute's values")?)?;
        match id {
            CONTENT_TYPE => kinds.extend(values),
            MESSAGE_DIGEST => digests.extend(values),
            _ => {}
        }
    }
    let ([kind], [digest]) = (kinds.as_slice(), digests.as_slice()) else {
        return wrong("the number of signed attributes");
    };
    let same_kind = identifier(kind)? == INDIRECT_DATA;
    if !same_kind || digest_in(digest)? != Sha256Digest::of(content.digested) {
        return Err(ParseMessageError::OtherContent);
    }
    Ok(())
}

/// The parts of IssuerAndSerialNumber that name a certificate.
pub(super) fn issuer_and_serial(certificate: &Certificate) -> Encoded {
    let certificate = certificate.tbs_certificate();
    let issuer = certificate.issuer().to_der()?;
    Ok([issuer, certificate.serial_number().to_der()?].concat())
}
