//! The in-toto statement (in-toto Attestation Framework, Statement v1) and its
//! predicate, documented for people in `docs/reference-values.md`.

use std::collections::BTreeSet;

use assay_crds::v1alpha1::attestation_policy::{Freshness, SnpPolicy};
use assay_crds::v1alpha1::measured_image::{DigestState, LifecycleState};
use assay_crds::v1alpha1::{AttestationPolicySpec, BootMethod, TeeType};
use assay_tee::canonical::{EncodeCanonicalError, encode_canonical};
use assay_tee::vmsa::Vmm;
use assay_tee::{LaunchDigest, Sha256Digest};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// `_type` of an in-toto Statement, version 1.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// `predicateType` of the reference values that this crate reads and writes.
pub const PREDICATE_TYPE: &str = "https://assay.dev/attestation/reference-values/v1";

/// An in-toto Statement whose predicate is reference values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Statement {
    /// [`STATEMENT_TYPE`].
    #[serde(rename = "_type")]
    pub type_: String,
    /// The files that the images consist of, each digest once.
    pub subject: Vec<Subject>,
    /// [`PREDICATE_TYPE`].
    pub predicate_type: String,
    /// The reference values.
    pub predicate: Predicate,
}

/// A file that the statement is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// Image and path: `web-1/uki.efi`.
    pub name: String,
    /// Its digest.
    pub digest: SubjectDigest,
}

/// An in-toto DigestSet with the one algorithm that parts have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubjectDigest {
    /// SHA-256, 64 lower-case hex digits.
    pub sha256: String,
}

/// Reference values and what else evidence must show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Predicate {
    /// When the statement may be relied on.
    pub validity: Validity,
    /// The images, by name.
    pub images: Vec<Image>,
    /// What evidence must show besides a launch digest.
    pub policy: Policy,
}

/// When a statement may be relied on. Both ends are included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Validity {
    /// Not before this time, whole seconds, UTC.
    pub not_before: Timestamp,
    /// Not after this time, whole seconds, UTC.
    pub not_after: Timestamp,
}

/// An image and its launch digests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Image {
    /// Name of the MeasuredImage.
    pub name: String,
    /// The OCI image, `host/repository@sha256:…`.
    pub reference: String,
    /// Whether the image may be used.
    pub state: LifecycleState,
    /// Why, for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The files.
    pub parts: Vec<Part>,
    /// One row for each launch shape, by identity.
    pub launch_digests: Vec<Row>,
}

impl Image {
    /// Rows that verifiers may accept: none of a revoked image.
    pub fn accepted(&self) -> impl Iterator<Item = &Row> {
        let usable = self.state != LifecycleState::Revoked;
        self.launch_digests
            .iter()
            .filter(move |row| usable && row.state == DigestState::Accepted)
    }
}

/// A file of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Part {
    /// What it is.
    pub kind: PartKind,
    /// Path in the artifact.
    pub path: String,
    /// SHA-256 of the content.
    pub sha256: Sha256Digest,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Serial of the virtio disk; for a root disk only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Root hash of the dm-verity tree; for a root disk only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verity_root_hash: Option<Sha256Digest>,
}

/// The kinds of part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PartKind {
    /// The unified kernel image.
    Uki,
    /// The firmware.
    Firmware,
    /// The root disk.
    RootDisk,
}

/// The launch digest of one launch shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Row {
    /// Identity of the row in its MeasuredImage.
    pub id: String,
    /// The firmware's name.
    pub firmware: String,
    /// CPU model by QEMU's name.
    pub cpu_model: String,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// SEV_FEATURES of the VMSA, as hexadecimal.
    pub guest_features: String,
    /// The VMM, and its era, whose initial register state was measured.
    pub vmm: Vmm,
    /// The TEE.
    pub tee: TeeType,
    /// How the firmware gets the UKI.
    #[serde(default, skip_serializing_if = "BootMethod::is_direct_kernel")]
    pub boot: BootMethod,
    /// The launch digest.
    pub digest: LaunchDigest,
    /// Whether verifiers accept it.
    pub state: DigestState,
}

/// What evidence must show: an AttestationPolicy without its release rules,
/// which are about the Secrets of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// Name of the AttestationPolicy.
    pub name: String,
    /// TEEs to accept.
    pub tees: Vec<TeeType>,
    /// What SEV-SNP evidence must show.
    pub snp: SnpPolicy,
    /// How often guests attest, and how long it holds.
    pub freshness: Freshness,
}

impl Policy {
    /// The specification of a policy that demands the same and releases nothing.
    pub fn to_spec(&self) -> AttestationPolicySpec {
        AttestationPolicySpec {
            tees: self.tees.clone(),
            snp: self.snp.clone(),
            freshness: self.freshness,
            release: Vec::new(),
        }
    }
}

impl Statement {
    /// A statement of these images and this policy. Order does not matter.
    ///
    /// # Errors
    /// What makes the statement contradict itself; see [`StatementError`].
    pub fn build(
        validity: Validity,
        mut images: Vec<Image>,
        policy: Policy,
    ) -> Result<Self, StatementError> {
        images.sort_by(|a, b| a.name.cmp(&b.name));
        for image in &mut images {
            image
                .parts
                .sort_by(|a, b| (a.kind, &a.path).cmp(&(b.kind, &b.path)));
            image.launch_digests.sort_by(|a, b| a.id.cmp(&b.id));
        }
        let statement = Self {
            type_: STATEMENT_TYPE.to_owned(),
            subject: subjects(&images),
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate: Predicate {
                validity,
                images,
                policy,
            },
        };
        statement.validate()?;
        Ok(statement)
    }

    /// The canonical JSON (RFC 8785), which is what is signed.
    ///
    /// # Errors
    /// Never for a value of this type; the encoder's error is passed on.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeCanonicalError> {
        encode_canonical(self)
    }

    /// Reads a statement in exactly the form of [`Statement::encode`].
    ///
    /// # Errors
    /// See [`StatementError`]. Whether it is valid now is [`Validity::check`]'s
    /// business.
    pub fn parse(bytes: &[u8]) -> Result<Self, StatementError> {
        let head: Head = serde_json::from_slice(bytes).map_err(StatementError::Parse)?;
        if head.type_ != STATEMENT_TYPE {
            return Err(StatementError::Type(head.type_));
        }
        if head.predicate_type != PREDICATE_TYPE {
            return Err(StatementError::PredicateType(head.predicate_type));
        }
        let statement: Self = serde_json::from_slice(bytes).map_err(StatementError::Parse)?;
        if statement.encode().map_err(StatementError::Encode)? != bytes {
            return Err(StatementError::NotCanonical);
        }
        statement.validate()?;
        Ok(statement)
    }

    fn validate(&self) -> Result<(), StatementError> {
        let Predicate {
            validity,
            images,
            policy,
        } = &self.predicate;
        if validity.not_after < validity.not_before {
            return Err(StatementError::ValidityReversed(*validity));
        }
        if [validity.not_before, validity.not_after]
            .iter()
            .any(|time| time.subsec_nanosecond() != 0)
        {
            return Err(StatementError::ValidityFraction(*validity));
        }
        if images.is_empty() {
            return Err(StatementError::NoImages);
        }
        if policy.tees.is_empty() {
            return Err(StatementError::NoTees);
        }
        if policy.snp.products.is_empty() {
            return Err(StatementError::NoProducts);
        }
        if !images.is_sorted_by(|a, b| a.name < b.name) {
            return Err(StatementError::ImageOrder);
        }
        for image in images {
            let rows = &image.launch_digests;
            if rows.is_empty() {
                return Err(StatementError::NoRows(image.name.clone()));
            }
            if !rows.is_sorted_by(|a, b| a.id < b.id) {
                return Err(StatementError::RowOrder(image.name.clone()));
            }
        }
        if self.subject.is_empty() || self.subject != subjects(images) {
            return Err(StatementError::Subject);
        }
        Ok(())
    }
}

impl Validity {
    /// Whether the statement may be relied on at `now`.
    ///
    /// # Errors
    /// When it may not be yet, or no longer.
    pub fn check(&self, now: Timestamp) -> Result<(), StatementError> {
        if now < self.not_before {
            return Err(StatementError::NotYetValid(self.not_before));
        }
        if now > self.not_after {
            return Err(StatementError::Expired(self.not_after));
        }
        Ok(())
    }
}

/// What says how the rest is to be read.
#[derive(Deserialize)]
struct Head {
    #[serde(rename = "_type")]
    type_: String,
    #[serde(rename = "predicateType")]
    predicate_type: String,
}

fn subjects(images: &[Image]) -> Vec<Subject> {
    let all: BTreeSet<Subject> = images
        .iter()
        .flat_map(|image| {
            image.parts.iter().map(|part| Subject {
                name: format!("{}/{}", image.name, part.path),
                digest: SubjectDigest {
                    sha256: part.sha256.to_hex(),
                },
            })
        })
        .collect();
    all.into_iter().collect()
}

/// Bytes or values are no statement, or one that may not be relied on.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    /// The bytes are no JSON of the schema.
    #[error("the statement does not follow the schema of docs/reference-values.md")]
    Parse(#[source] serde_json::Error),
    /// The statement cannot be written.
    #[error("write the statement")]
    Encode(#[source] EncodeCanonicalError),
    /// Another kind of document.
    #[error(
        "_type is {0:?}, expected {STATEMENT_TYPE:?}; give a statement of `assay policy export`"
    )]
    Type(String),
    /// Another predicate, or another version of it.
    #[error(
        "predicateType is {0:?}, and this assay reads {PREDICATE_TYPE:?} alone; use the assay that \
         wrote the statement, or export again"
    )]
    PredicateType(String),
    /// The same values in other bytes, or with members that are not understood.
    #[error(
        "the statement is not in canonical form (RFC 8785), or has a member that this assay does \
         not know; export again with this version, and do not reformat what was signed"
    )]
    NotCanonical,
    /// The validity ends before it starts.
    #[error("validity.notAfter {} is before validity.notBefore {}; give a later end", .0.not_after, .0.not_before)]
    ValidityReversed(Validity),
    /// The validity has fractions of seconds.
    #[error("validity {} to {} has fractions of a second; give whole seconds", .0.not_before, .0.not_after)]
    ValidityFraction(Validity),
    /// Too early.
    #[error("the statement is valid from {0} (validity.notBefore); wait, or check the clock")]
    NotYetValid(Timestamp),
    /// Too late.
    #[error("the statement expired at {0} (validity.notAfter); ask its issuer for a new one")]
    Expired(Timestamp),
    /// No image.
    #[error("images names no image, so nothing would be accepted; add a MeasuredImage")]
    NoImages,
    /// No TEE.
    #[error(
        "policy.tees names no TEE, so nothing would be accepted; name at least one, such as SNP"
    )]
    NoTees,
    /// No product.
    #[error(
        "policy.snp.products names no product, so nothing would be accepted; name at least one"
    )]
    NoProducts,
    /// Images out of order, or one twice.
    #[error("images has a name twice, or is not in order; give each MeasuredImage once")]
    ImageOrder,
    /// No digest.
    #[error("image {0} has no launch digest; wait until it is Measured, and export again")]
    NoRows(String),
    /// Rows out of order, or one twice.
    #[error("launchDigests of image {0} has an id twice, or is not in order; give each row once")]
    RowOrder(String),
    /// The subject is not what the images consist of.
    #[error("subject does not list exactly the parts of the images; export again")]
    Subject,
}
