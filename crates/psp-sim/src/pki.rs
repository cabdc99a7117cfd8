//! The development PKI: a root (ARK), intermediates for chip keys (ASK) and for
//! providers' keys (ASVK), and endorsement keys (VCEK, VLEK) of the vendor's
//! shape.
//!
//! Names are the vendor's, because verifiers compare them; the description in
//! every name says that it is a simulation, and no verifier trusts the root
//! unless it is told to.

use std::time::Duration;

use assay_tee::guest_message::{CertificateEntry, CertificateGuid, CertificateTable};
use assay_tee::report::SigningKey;
use assay_tee::{AttestationReport, Product, Sha256Digest, TcbVersion};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use der::asn1::Ia5StringRef;
use der::oid::ObjectIdentifier;
use der::pem::LineEnding;
use der::{Decode, Encode};
use jiff::Timestamp;
use sha2::{Digest as _, Sha512};
use x509_cert::Certificate;
use x509_cert::ext::pkix::{KeyUsage, KeyUsages};
use x509_cert::time::Validity;

pub use crate::certificate::RevocationListTemplate;
use crate::certificate::{self, Contents};
pub use crate::error::PkiError;

const DAY: u64 = 24 * 60 * 60;
/// The vendor's authorities are valid for 25 years.
const AUTHORITY_DAYS: u64 = 25 * 365 + 6;
/// The vendor's VCEKs are valid for 7 years.
const VCEK_DAYS: u64 = 7 * 365 + 2;
/// The vendor's VLEKs are valid for a year.
const VLEK_DAYS: u64 = 365;

const STRUCT_VERSION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.1");
const PRODUCT_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.2");
const BOOTLOADER_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.1");
const TEE_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.2");
const SNP_SPL: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.3");
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

/// A development root and its intermediates with their keys.
pub struct Authority {
    product: Product,
    not_before: Timestamp,
    ark_key: RsaKeyPair,
    ark: Vec<u8>,
    ask: Intermediate,
    asvk: Intermediate,
}

struct Intermediate {
    common_name: String,
    key: RsaKeyPair,
    certificate: Vec<u8>,
}

/// What the certificate of an endorsement key says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyTemplate {
    /// CN of the subject.
    pub common_name: String,
    /// productName.
    pub product_name: String,
    /// structVersion.
    pub struct_version: u8,
    /// Raw bytes of the chip's identity.
    pub hw_id: Option<Vec<u8>>,
    /// The provider.
    pub csp_id: Option<String>,
    /// The TCB that the key is issued for.
    pub tcb: TcbVersion,
}

impl KeyTemplate {
    /// A VCEK of `product` for the chip with this name.
    pub fn vcek(product: Product, chip_name: &str, tcb: TcbVersion) -> Self {
        let digest = Sha512::digest(chip_name);
        // The vendor names the stepping of Milan, and of no other product.
        let product_name = match product {
            Product::Milan => "Milan-B0",
            Product::Genoa | Product::Turin => product.name(),
        };
        Self {
            common_name: "SEV-VCEK".to_owned(),
            product_name: product_name.to_owned(),
            struct_version: struct_version(product),
            hw_id: Some(digest.iter().copied().take(product.chip_id_len()).collect()),
            csp_id: None,
            tcb,
        }
    }

    /// A VLEK of `product` for this provider.
    pub fn vlek(product: Product, csp_id: &str, tcb: TcbVersion) -> Self {
        Self {
            common_name: "SEV-VLEK".to_owned(),
            product_name: product.name().to_owned(),
            struct_version: struct_version(product),
            hw_id: None,
            csp_id: Some(csp_id.to_owned()),
            tcb,
        }
    }
}

fn struct_version(product: Product) -> u8 {
    u8::from(product == Product::Turin)
}

impl Authority {
    /// Serial number of the intermediate for chip keys.
    pub const ASK_SERIAL: &[u8] = &[0x5a];
    /// Serial number of the intermediate for providers' keys.
    pub const ASVK_SERIAL: &[u8] = &[0x5b];
    const ARK_SERIAL: &[u8] = &[0x01];

    /// Makes new keys and certificates that are valid from `not_before`, for 25
    /// years.
    ///
    /// # Errors
    /// When the random number generator fails or the date is out of range.
    pub fn generate(product: Product, not_before: Timestamp) -> Result<Self, PkiError> {
        let ark_key = generate_rsa()?;
        let validity = validity(not_before, AUTHORITY_DAYS)?;
        let ark_name = format!("ARK-{product}");
        let ark_id = key_id(&ark_key)?;
        let usage = KeyUsage(KeyUsages::KeyCertSign | KeyUsages::CRLSign);
        let ark = issue_root(&ark_key, product, validity, usage)?;
        let intermediate = |common_name: String, serial_number| {
            let key = generate_rsa()?;
            let extensions = certificate::authority_extensions(
                product.name(),
                KeyUsage(KeyUsages::KeyCertSign.into()),
                &key_id(&key)?,
                Some(&ark_id),
            )?;
            let contents = Contents {
                serial_number,
                issuer: &ark_name,
                subject: &common_name,
                validity,
                public_key: &public_key_info(&key)?,
                extensions,
            };
            let certificate = certificate::issue(contents, &ark_key)?;
            Ok::<_, PkiError>(Intermediate {
                common_name,
                key,
                certificate,
            })
        };
        let ask = intermediate(format!("SEV-{product}"), Self::ASK_SERIAL)?;
        let asvk = intermediate(format!("SEV-VLEK-{product}"), Self::ASVK_SERIAL)?;
        Ok(Self {
            product,
            not_before,
            ark_key,
            ark,
            ask,
            asvk,
        })
    }

    /// SHA-256 of the root's DER: what a verifier is configured with.
    pub fn anchor(&self) -> Sha256Digest {
        Sha256Digest::of(&self.ark)
    }

    /// Another certificate of the root's key, which does not allow it to sign
    /// revocation lists.
    ///
    /// # Errors
    /// When signing fails.
    pub fn root_without_crl_sign(&self) -> Result<Vec<u8>, PkiError> {
        let validity = validity(self.not_before, AUTHORITY_DAYS)?;
        let usage = KeyUsage(KeyUsages::KeyCertSign.into());
        issue_root(&self.ark_key, self.product, validity, usage)
    }

    /// The product whose keys it issues.
    pub const fn product(&self) -> Product {
        self.product
    }

    /// The intermediate of a kind of key and the root, PEM.
    pub(crate) fn chain_pem(&self, kind: SigningKey) -> Result<String, PkiError> {
        let intermediate = match kind {
            SigningKey::Vlek => &self.asvk,
            SigningKey::Vcek | SigningKey::None => &self.ask,
        };
        [&intermediate.certificate, &self.ark]
            .into_iter()
            .map(|der| encode_pem("CERTIFICATE", der))
            .collect()
    }

    /// DER of the intermediate for providers' keys.
    pub fn asvk(&self) -> &[u8] {
        &self.asvk.certificate
    }

    /// Makes a chip endorsement key and its certificate, valid for 7 years from
    /// the authority's own start.
    ///
    /// # Errors
    /// When the random number generator fails or the template cannot be encoded.
    pub fn issue_vcek(&self, template: &KeyTemplate) -> Result<Endorsement, PkiError> {
        self.issue(SigningKey::Vcek, template, &self.ask, VCEK_DAYS)
    }

    /// Makes a provider's endorsement key and its certificate, valid for a year
    /// from the authority's own start.
    ///
    /// # Errors
    /// When the random number generator fails or the template cannot be encoded.
    pub fn issue_vlek(&self, template: &KeyTemplate) -> Result<Endorsement, PkiError> {
        self.issue(SigningKey::Vlek, template, &self.asvk, VLEK_DAYS)
    }

    fn issue(
        &self,
        kind: SigningKey,
        template: &KeyTemplate,
        issuer: &Intermediate,
        days: u64,
    ) -> Result<Endorsement, PkiError> {
        let failed = PkiError::GenerateKey { kind: "P-384" };
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &SystemRandom::new())
                .map_err(|_| failed)?;
        let key = parse_key(pkcs8.as_ref())?;
        let info: PublicKeyX509Der<'_> =
            key.public_key().as_der().map_err(|_| PkiError::ParseKey)?;
        Ok(Endorsement {
            key: pkcs8.as_ref().to_vec(),
            chain: Chain {
                kind,
                leaf: self.certify(template, issuer, days, info.as_ref())?,
                intermediate: issuer.certificate.clone(),
                ark: self.ark.clone(),
            },
        })
    }

    /// A chip endorsement key's certificate for a public key of any kind, which
    /// the vendor would not certify: a SubjectPublicKeyInfo in DER.
    ///
    /// # Errors
    /// When the key or the template cannot be encoded.
    pub fn certify_vcek(
        &self,
        template: &KeyTemplate,
        public_key: &[u8],
    ) -> Result<Vec<u8>, PkiError> {
        self.certify(template, &self.ask, VCEK_DAYS, public_key)
    }

    fn certify(
        &self,
        template: &KeyTemplate,
        issuer: &Intermediate,
        days: u64,
        public_key: &[u8],
    ) -> Result<Vec<u8>, PkiError> {
        let contents = Contents {
            serial_number: &[0],
            issuer: &issuer.common_name,
            subject: &template.common_name,
            validity: validity(self.not_before, days)?,
            public_key,
            extensions: key_extensions(template)?,
        };
        certificate::issue(contents, &issuer.key)
    }

    /// A revocation list of the root.
    ///
    /// # Errors
    /// When a date or serial number cannot be encoded.
    pub fn revocation_list(&self, template: &RevocationListTemplate) -> Result<Vec<u8>, PkiError> {
        let issuer = format!("ARK-{}", self.product);
        certificate::issue_revocation_list(&issuer, template, &self.ark_key)
    }
}

/// The certificates of an endorsement key, DER.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// What the endorsement key is.
    pub kind: SigningKey,
    /// The endorsement key: VCEK or VLEK.
    pub leaf: Vec<u8>,
    /// The intermediate: ASK or ASVK.
    pub intermediate: Vec<u8>,
    /// The root.
    pub ark: Vec<u8>,
}

impl Chain {
    /// The certificate table of an extended request.
    pub fn to_table(&self) -> CertificateTable {
        let entry = |guid, der: &Vec<u8>| CertificateEntry {
            guid,
            der: der.clone(),
        };
        let leaf = match self.kind {
            SigningKey::Vlek => CertificateGuid::VLEK,
            SigningKey::Vcek | SigningKey::None => CertificateGuid::VCEK,
        };
        CertificateTable(vec![
            entry(leaf, &self.leaf),
            entry(CertificateGuid::ASK, &self.intermediate),
            entry(CertificateGuid::ARK, &self.ark),
        ])
    }

    /// SHA-256 of the root's DER: what a verifier is configured with.
    pub fn anchor(&self) -> Sha256Digest {
        Sha256Digest::of(&self.ark)
    }
}

/// An endorsement key with its certificates: all that a simulated processor
/// needs. The authorities' keys may be thrown away.
///
/// The key guards nothing, so it is not kept secret in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Endorsement {
    /// Private key, PKCS#8 DER.
    key: Vec<u8>,
    chain: Chain,
}

impl Endorsement {
    /// Makes a new authority and one VCEK of it, for a Genoa chip.
    ///
    /// # Errors
    /// When the random number generator fails or the date is out of range.
    pub fn generate(
        chip_name: &str,
        tcb: TcbVersion,
        not_before: Timestamp,
    ) -> Result<Self, PkiError> {
        let authority = Authority::generate(Product::Genoa, not_before)?;
        authority.issue_vcek(&KeyTemplate::vcek(Product::Genoa, chip_name, tcb))
    }

    /// Reads a PKCS#8 private key, and endorsement key, intermediate and ARK in
    /// this order, from PEM.
    ///
    /// # Errors
    /// When either is malformed or they do not belong together.
    pub fn from_pem(key: &str, chain: &str) -> Result<Self, PkiError> {
        let (label, key) =
            der::pem::decode_vec(key.trim().as_bytes()).map_err(|_| PkiError::ParseKey)?;
        if label != "PRIVATE KEY" {
            return Err(PkiError::ParseKey);
        }
        let certificates = Certificate::load_pem_chain(chain.as_bytes())?;
        let got = certificates.len();
        let [leaf, intermediate, ark] = <[Certificate; 3]>::try_from(certificates)
            .map_err(|_| PkiError::ChainLength { got })?;
        let info = leaf.tbs_certificate().subject_public_key_info();
        let point = info.subject_public_key.as_bytes().unwrap_or_default();
        if point != parse_key(&key)?.public_key().as_ref() {
            return Err(PkiError::KeyMismatch);
        }
        let kind = match extension(&leaf, CSP_ID) {
            Some(_) => SigningKey::Vlek,
            None => SigningKey::Vcek,
        };
        let chain = Chain {
            kind,
            leaf: leaf.to_der()?,
            intermediate: intermediate.to_der()?,
            ark: ark.to_der()?,
        };
        Ok(Self { key, chain })
    }

    /// The private key, PKCS#8 PEM.
    ///
    /// # Errors
    /// Never in practice; the encoder's error is passed on.
    pub fn key_pem(&self) -> Result<String, PkiError> {
        encode_pem("PRIVATE KEY", &self.key)
    }

    /// Endorsement key, intermediate and ARK in this order, PEM.
    ///
    /// # Errors
    /// Never in practice; the encoder's error is passed on.
    pub fn chain_pem(&self) -> Result<String, PkiError> {
        let Chain {
            leaf,
            intermediate,
            ark,
            ..
        } = &self.chain;
        [leaf, intermediate, ark]
            .into_iter()
            .map(|der| encode_pem("CERTIFICATE", der))
            .collect()
    }

    /// The certificates.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Signs the signed part of a report, whatever it says. A real processor
    /// signs only what it has filled in itself.
    ///
    /// # Errors
    /// When the random number generator fails.
    pub fn sign_report(&self, report: &mut AttestationReport) -> Result<(), PkiError> {
        let signature = parse_key(&self.key)?
            .sign(&SystemRandom::new(), report.signed_bytes())
            .map_err(|_| PkiError::Sign)?;
        let fixed: &[u8; 96] = signature.as_ref().try_into().map_err(|_| PkiError::Sign)?;
        report.set_signature_fixed(fixed);
        Ok(())
    }

    /// What the certificate says of the processor.
    ///
    /// # Errors
    /// When an extension of the vendor is missing or malformed.
    pub(crate) fn identity(&self) -> Result<Identity, PkiError> {
        let leaf = Certificate::from_der(&self.chain.leaf)?;
        let required = |oid| extension(&leaf, oid).ok_or(PkiError::Extension(oid));
        let spl = |oid| u8::from_der(required(oid)?).map_err(|_| PkiError::Extension(oid));
        let product = Ia5StringRef::from_der(required(PRODUCT_NAME)?)?;
        let product: Product = product
            .as_str()
            .parse()
            .map_err(|_| PkiError::Extension(PRODUCT_NAME))?;
        let fmc = if product == Product::Turin {
            Some(spl(FMC_SPL)?)
        } else {
            None
        };
        let tcb = TcbVersion {
            fmc,
            bootloader: spl(BOOTLOADER_SPL)?,
            tee: spl(TEE_SPL)?,
            snp: spl(SNP_SPL)?,
            microcode: spl(MICROCODE_SPL)?,
        };
        let mut chip_id = [0; 64];
        if self.chain.kind == SigningKey::Vcek {
            let hw_id = required(HW_ID)?;
            let (head, _) = chip_id
                .split_at_mut_checked(hw_id.len())
                .filter(|_| hw_id.len() == product.chip_id_len())
                .ok_or(PkiError::Extension(HW_ID))?;
            head.copy_from_slice(hw_id);
        }
        Ok(Identity {
            product,
            tcb,
            chip_id,
        })
    }
}

/// What the certificate of an endorsement key says of the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) product: Product,
    pub(crate) tcb: TcbVersion,
    /// Zeros for a VLEK.
    pub(crate) chip_id: [u8; 64],
}

fn extension(certificate: &Certificate, oid: ObjectIdentifier) -> Option<&[u8]> {
    let extensions = certificate.tbs_certificate().extensions()?;
    let found = extensions.iter().find(|found| found.extn_id == oid)?;
    Some(found.extn_value.as_bytes())
}

fn key_extensions(template: &KeyTemplate) -> Result<Vec<x509_cert::ext::Extension>, PkiError> {
    let product_name = Ia5StringRef::new(&template.product_name)?.to_der()?;
    let tcb = template.tcb;
    let mut values = vec![
        (STRUCT_VERSION, template.struct_version.to_der()?),
        (PRODUCT_NAME, product_name),
        (BOOTLOADER_SPL, tcb.bootloader.to_der()?),
        (TEE_SPL, tcb.tee.to_der()?),
        (SNP_SPL, tcb.snp.to_der()?),
        (MICROCODE_SPL, tcb.microcode.to_der()?),
    ];
    if let Some(hw_id) = &template.hw_id {
        values.push((HW_ID, hw_id.clone()));
    }
    if let Some(csp_id) = &template.csp_id {
        values.push((CSP_ID, Ia5StringRef::new(csp_id)?.to_der()?));
    }
    match tcb.fmc {
        Some(fmc) => values.push((FMC_SPL, fmc.to_der()?)),
        None => {
            for oid in RESERVED_SPL {
                values.push((oid, 0_u8.to_der()?));
            }
        }
    }
    let extension =
        |(oid, value): (ObjectIdentifier, Vec<u8>)| Ok(certificate::extension(oid, false, &value)?);
    values.into_iter().map(extension).collect()
}

fn parse_key(pkcs8: &[u8]) -> Result<EcdsaKeyPair, PkiError> {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, pkcs8)
        .map_err(|_| PkiError::ParseKey)
}

fn issue_root(
    key: &RsaKeyPair,
    product: Product,
    validity: Validity,
    usage: KeyUsage,
) -> Result<Vec<u8>, PkiError> {
    let name = format!("ARK-{product}");
    let contents = Contents {
        serial_number: Authority::ARK_SERIAL,
        issuer: &name,
        subject: &name,
        validity,
        public_key: &public_key_info(key)?,
        extensions: certificate::authority_extensions(product.name(), usage, &key_id(key)?, None)?,
    };
    certificate::issue(contents, key)
}

fn generate_rsa() -> Result<RsaKeyPair, PkiError> {
    RsaKeyPair::generate(KeySize::Rsa4096).map_err(|_| PkiError::GenerateKey { kind: "RSA-4096" })
}

fn public_key_info(key: &RsaKeyPair) -> Result<Vec<u8>, PkiError> {
    let info: PublicKeyX509Der<'_> = key
        .public_key()
        .as_der()
        .map_err(|_| PkiError::GenerateKey { kind: "RSA-4096" })?;
    Ok(info.as_ref().to_vec())
}

/// The first 20 bytes of the key's SHA-256 (RFC 7093, method 1).
fn key_id(key: &RsaKeyPair) -> Result<Vec<u8>, PkiError> {
    let digest = Sha256Digest::of(&public_key_info(key)?);
    Ok(digest.as_bytes().iter().copied().take(20).collect())
}

fn encode_pem(label: &'static str, der: &[u8]) -> Result<String, PkiError> {
    der::pem::encode_string(label, LineEnding::LF, der)
        .map_err(|error| PkiError::Certificate(error.into()))
}

fn validity(not_before: Timestamp, days: u64) -> Result<Validity, PkiError> {
    let not_after = not_before
        .checked_add(Duration::from_secs(days * DAY))
        .map_err(|_| PkiError::Date(not_before))?;
    Ok(Validity::new(
        certificate::time(not_before)?,
        certificate::time(not_after)?,
    ))
}
