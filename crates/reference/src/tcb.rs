//! What other verifiers can be told of a policy, and what not.

use assay_crds::v1alpha1::TeeType;
use assay_crds::v1alpha1::attestation_policy::{Product, ProductPolicy};
use assay_tee::TcbVersion;

use crate::statement::{Image, Policy, Row, Statement};

/// A statement cannot be written for another verifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeriveError {
    /// No launch digest is accepted on hardware.
    #[error(
        "the statement accepts no launch digest on SNP: all are revoked, simulated, or of a TEE \
         that policy.tees lacks; export an image that may be used"
    )]
    NoDigest,
    /// There are several products, and the format has one minimum TCB.
    #[error(
        "policy.snp.products has {0}, and this format has one minimum TCB; choose with --product, \
         and write one file for each"
    )]
    SeveralProducts(usize),
    /// The product is not accepted.
    #[error("policy.snp.products does not name {0:?}; choose one that it names")]
    OtherProduct(Product),
    /// The minimum TCB is not one of the product.
    #[error("minimumTCB of {0:?} is not laid out as the product's; set fmc on Turin alone")]
    Layout(Product),
    /// The document cannot be encoded.
    #[error("encode the document: {0}")]
    Encode(String),
}

/// The one product that a document is about.
pub(crate) fn product(
    policy: &Policy,
    chosen: Option<Product>,
) -> Result<&ProductPolicy, DeriveError> {
    let products = &policy.snp.products;
    match (chosen, products.as_slice()) {
        (None, [only]) => Ok(only),
        (None, several) => Err(DeriveError::SeveralProducts(several.len())),
        (Some(name), products) => products
            .iter()
            .find(|product| product.name == name)
            .ok_or(DeriveError::OtherProduct(name)),
    }
}

/// Rows that a verifier of hardware may accept, each digest once.
pub(crate) fn hardware_rows(statement: &Statement) -> Result<Vec<&Row>, DeriveError> {
    let policy = &statement.predicate.policy;
    let mut rows: Vec<&Row> = Vec::new();
    if policy.tees.contains(&TeeType::Snp) {
        for row in statement.predicate.images.iter().flat_map(Image::accepted) {
            if row.tee == TeeType::Snp && rows.iter().all(|seen| seen.digest != row.digest) {
                rows.push(row);
            }
        }
    }
    if rows.is_empty() {
        return Err(DeriveError::NoDigest);
    }
    rows.sort_by_key(|row| row.digest);
    Ok(rows)
}

/// The minimum as the processor writes it, read as a little-endian number.
pub(crate) fn packed(product: &ProductPolicy) -> Result<u64, DeriveError> {
    TcbVersion::from(product.minimum_tcb)
        .encode(product.name.into())
        .map(u64::from_le_bytes)
        .map_err(|_| DeriveError::Layout(product.name))
}

/// Demands of the policy that neither derived format carries.
pub(crate) fn never_expressed(policy: &Policy, product: &ProductPolicy) -> Vec<&'static str> {
    let snp = &policy.snp;
    let mut fields = vec!["snp.signingKeys", "snp.crl", "freshness"];
    for (demanded, field) in [
        (snp.allowed_chips.is_some(), "snp.allowedChips"),
        (!snp.denied.chips.is_empty(), "snp.denied.chips"),
        (!snp.denied.keys.is_empty(), "snp.denied.keys"),
        (snp.id_block.family_ids.is_some(), "snp.idBlock.familyIds"),
        (snp.id_block.image_ids.is_some(), "snp.idBlock.imageIds"),
        (
            product.minimum_firmware.is_some(),
            "snp.products.minimumFirmware",
        ),
        (!product.mitigations.is_empty(), "snp.products.mitigations"),
        (
            product.minimum_crl_number.is_some(),
            "snp.products.minimumCRLNumber",
        ),
    ] {
        if demanded {
            fields.push(field);
        }
    }
    fields
}
