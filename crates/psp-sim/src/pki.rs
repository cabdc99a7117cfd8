//! The development PKI: a root (ARK), an intermediate (ASK) and chip endorsement
//! keys (VCEK) of the vendor's shape.
//!
//! Names are the vendor's, because verifiers compare them; the description in
//! every name says that it is a simulation, and no verifier trusts the root
//! unless it is told to.

use std::time::Duration;

use assay_tee::guest_message::{CertificateEntry, CertificateGuid, CertificateTable};
use assay_tee::{AttestationReport, Product, Sha256Digest, TcbVersion};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use der::asn1::{GeneralizedTime, Ia5StringRef};
use der::oid::ObjectIdentifier;
use der::pem::LineEnding;
use der::{Decode, Encode};
use jiff::Timestamp;
use sha2::{Digest as _, Sha512};
use x509_cert::Certificate;
use x509_cert::time::{Time, Validity};

use crate::certificate::{self, Contents};

const DAY: u64 = 24 * 60 * 60;
/// The vendor's authorities are valid for 25 years.
const AUTHORITY_DAYS: u64 = 25 * 365 + 6;
/// The vendor's VCEKs are valid for 7 years.
const VCEK_DAYS: u64 = 7 * 365 + 2;

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

/// The development PKI cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A key cannot be generated.
    #[error("cannot generate a {kind} key")]
    GenerateKey {
        /// Kind of the key.
        kind: &'static str,
    },
    /// Signing failed.
    #[error("cannot sign")]
    Sign,
    /// A certificate cannot be written or read.
    #[error("cannot write or read a certificate")]
    Certificate(#[from] der::Error),
    /// A date is out of range.
    #[error("the date {0} is out of range for a certificate")]
    Date(Timestamp),
    /// The key is not an unencrypted PKCS#8 key on P-384.
    #[error("not an unencrypted PKCS#8 key on P-384")]
    ParseKey,
    /// The chain has not three certificates.
    #[error("the chain has {got} certificates, not VCEK, ASK and ARK")]
    ChainLength {
        /// Certificates in the chain.
        got: usize,
    },
    /// The key is not the one of the VCEK.
    #[error("the key is not that of the VCEK")]
    KeyMismatch,
    /// The VCEK lacks an extension of the vendor, or has a malformed one.
    #[error("the VCEK's extension {0} is missing or malformed")]
    Extension(ObjectIdentifier),
}

/// A development root and intermediate with their keys.
pub struct Authority {
    product: Product,
    not_before: Timestamp,
    ark_key: RsaKeyPair,
    ark: Vec<u8>,
    ask_key: RsaKeyPair,
    ask: Vec<u8>,
}

/// What a VCEK says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VcekTemplate {
    /// CN of the subject.
    pub common_name: String,
    /// productName.
    pub product_name: String,
    /// structVersion.
    pub struct_version: u8,
    /// Raw bytes of the chip's identity.
    pub hw_id: Vec<u8>,
    /// The TCB that the key is issued for.
    pub tcb: TcbVersion,
}

impl VcekTemplate {
    /// A VCEK of `product` for the chip with this name.
    pub fn new(product: Product, chip_name: &str, tcb: TcbVersion) -> Self {
        let digest = Sha512::digest(chip_name);
        Self {
            common_name: "SEV-VCEK".to_owned(),
            product_name: product.name().to_owned(),
            struct_version: u8::from(product == Product::Turin),
            hw_id: digest.iter().copied().take(product.chip_id_len()).collect(),
            tcb,
        }
    }
}

impl Authority {
    /// Serial number of the intermediate.
    pub const ASK_SERIAL: &[u8] = &[0x5a];
    const ARK_SERIAL: &[u8] = &[0x01];

    /// Makes new keys and certificates that are valid from `not_before`, for 25
    /// years.
    ///
    /// # Errors
    /// When the random number generator fails or the date is out of range.
    pub fn generate(product: Product, not_before: Timestamp) -> Result<Self, PkiError> {
        let generate = || {
            RsaKeyPair::generate(KeySize::Rsa4096)
                .map_err(|_| PkiError::GenerateKey { kind: "RSA-4096" })
        };
        let (ark_key, ask_key) = (generate()?, generate()?);
        let validity = validity(not_before, AUTHORITY_DAYS)?;
        let (ark_name, ask_name) = (format!("ARK-{product}"), format!("SEV-{product}"));
        let (ark_id, ask_id) = (key_id(&ark_key)?, key_id(&ask_key)?);
        let ark = Contents {
            serial_number: Self::ARK_SERIAL,
            issuer: &ark_name,
            subject: &ark_name,
            validity,
            public_key: &public_key_info(&ark_key)?,
            extensions: certificate::authority_extensions(product.name(), &ark_id, None)?,
        };
        let ark = certificate::issue(ark, &ark_key)?;
        let ask = Contents {
            serial_number: Self::ASK_SERIAL,
            issuer: &ark_name,
            subject: &ask_name,
            validity,
            public_key: &public_key_info(&ask_key)?,
            extensions: certificate::authority_extensions(product.name(), &ask_id, Some(&ark_id))?,
        };
        let ask = certificate::issue(ask, &ark_key)?;
        Ok(Self {
            product,
            not_before,
            ark_key,
            ark,
            ask_key,
            ask,
        })
    }

    /// SHA-256 of the root's DER: what a verifier is configured with.
    pub fn anchor(&self) -> Sha256Digest {
        Sha256Digest::of(&self.ark)
    }

    /// Makes a chip endorsement key and its certificate, valid for 7 years from
    /// the authority's own start.
    ///
    /// # Errors
    /// When the random number generator fails or the template cannot be encoded.
    pub fn issue_vcek(&self, template: &VcekTemplate) -> Result<Endorsement, PkiError> {
        let failed = PkiError::GenerateKey { kind: "P-384" };
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &SystemRandom::new())
                .map_err(|_| failed)?;
        let key = parse_key(pkcs8.as_ref())?;
        let info: PublicKeyX509Der<'_> =
            key.public_key().as_der().map_err(|_| PkiError::ParseKey)?;
        let contents = Contents {
            serial_number: &[0],
            issuer: &format!("SEV-{}", self.product),
            subject: &template.common_name,
            validity: validity(self.not_before, VCEK_DAYS)?,
            public_key: info.as_ref(),
            extensions: vcek_extensions(template)?,
        };
        let vcek = certificate::issue(contents, &self.ask_key)?;
        Ok(Endorsement {
            key: pkcs8.as_ref().to_vec(),
            chain: Chain {
                vcek,
                ask: self.ask.clone(),
                ark: self.ark.clone(),
            },
        })
    }

    /// A revocation list of the root.
    ///
    /// # Errors
    /// When a date or serial number cannot be encoded.
    pub fn revocation_list(
        &self,
        this_update: Timestamp,
        next_update: Timestamp,
        revoked: &[&[u8]],
    ) -> Result<Vec<u8>, PkiError> {
        certificate::issue_revocation_list(
            &format!("ARK-{}", self.product),
            (time(this_update)?, time(next_update)?),
            revoked,
            &self.ark_key,
        )
    }
}

/// The certificates of an endorsement key, DER.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The chip endorsement key.
    pub vcek: Vec<u8>,
    /// The intermediate.
    pub ask: Vec<u8>,
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
        CertificateTable(vec![
            entry(CertificateGuid::VCEK, &self.vcek),
            entry(CertificateGuid::ASK, &self.ask),
            entry(CertificateGuid::ARK, &self.ark),
        ])
    }

    /// SHA-256 of the root's DER: what a verifier is configured with.
    pub fn anchor(&self) -> Sha256Digest {
        Sha256Digest::of(&self.ark)
    }
}

/// A chip endorsement key with its certificates: all that a simulated processor
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
        authority.issue_vcek(&VcekTemplate::new(Product::Genoa, chip_name, tcb))
    }

    /// Reads a PKCS#8 private key, and VCEK, ASK and ARK in this order, from
    /// PEM.
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
        let [vcek, ask, ark] = <[Certificate; 3]>::try_from(certificates)
            .map_err(|_| PkiError::ChainLength { got })?;
        let info = vcek.tbs_certificate().subject_public_key_info();
        let point = info.subject_public_key.as_bytes().unwrap_or_default();
        if point != parse_key(&key)?.public_key().as_ref() {
            return Err(PkiError::KeyMismatch);
        }
        let chain = Chain {
            vcek: vcek.to_der()?,
            ask: ask.to_der()?,
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

    /// VCEK, ASK and ARK in this order, PEM.
    ///
    /// # Errors
    /// Never in practice; the encoder's error is passed on.
    pub fn chain_pem(&self) -> Result<String, PkiError> {
        let Chain { vcek, ask, ark } = &self.chain;
        [vcek, ask, ark]
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

    /// What the VCEK says of the chip.
    ///
    /// # Errors
    /// When an extension of the vendor is missing or malformed.
    pub(crate) fn identity(&self) -> Result<ChipIdentity, PkiError> {
        let vcek = Certificate::from_der(&self.chain.vcek)?;
        let extensions = vcek.tbs_certificate().extensions();
        let value = |oid| {
            extensions
                .and_then(|all| all.iter().find(|extension| extension.extn_id == oid))
                .map(|extension| extension.extn_value.as_bytes())
        };
        let required = |oid| value(oid).ok_or(PkiError::Extension(oid));
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
        let hw_id = required(HW_ID)?;
        let mut chip_id = [0; 64];
        let (head, _) = chip_id
            .split_at_mut_checked(hw_id.len())
            .filter(|_| hw_id.len() == product.chip_id_len())
            .ok_or(PkiError::Extension(HW_ID))?;
        head.copy_from_slice(hw_id);
        Ok(ChipIdentity {
            product,
            tcb,
            chip_id,
        })
    }
}

/// What a VCEK says of its chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChipIdentity {
    pub(crate) product: Product,
    pub(crate) tcb: TcbVersion,
    pub(crate) chip_id: [u8; 64],
}

fn vcek_extensions(template: &VcekTemplate) -> Result<Vec<x509_cert::ext::Extension>, PkiError> {
    let product_name = Ia5StringRef::new(&template.product_name)?.to_der()?;
    let tcb = template.tcb;
    let mut values = vec![
        (STRUCT_VERSION, template.struct_version.to_der()?),
        (PRODUCT_NAME, product_name),
        (BOOTLOADER_SPL, tcb.bootloader.to_der()?),
        (TEE_SPL, tcb.tee.to_der()?),
        (SNP_SPL, tcb.snp.to_der()?),
        (MICROCODE_SPL, tcb.microcode.to_der()?),
        (HW_ID, template.hw_id.clone()),
    ];
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

fn time(at: Timestamp) -> Result<Time, PkiError> {
    let seconds = u64::try_from(at.as_second()).map_err(|_| PkiError::Date(at))?;
    let time = GeneralizedTime::from_unix_duration(Duration::from_secs(seconds))
        .map_err(|_| PkiError::Date(at))?;
    Ok(Time::from(time.to_date_time()))
}

fn validity(not_before: Timestamp, days: u64) -> Result<Validity, PkiError> {
    let not_after = not_before
        .checked_add(Duration::from_secs(days * DAY))
        .map_err(|_| PkiError::Date(not_before))?;
    Ok(Validity::new(time(not_before)?, time(not_after)?))
}
