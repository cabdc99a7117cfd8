//! Reference values for Trustee: the Reference Value Provider Service's stored
//! form (`rvps/src/reference_value.rs`) under the names that its default policy
//! for CPUs asks for (`ear_default_policy_cpu.rego`).
//!
//! The file is not signed, and says less than the statement: what it leaves out
//! is returned beside it.

use assay_crds::v1alpha1::attestation_policy::{
    GuestRestriction, Permission, PlatformProperty, Product,
};
use assay_tee::canonical::encode_canonical;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::statement::Statement;
pub use crate::tcb::DeriveError;
use crate::tcb::{hardware_rows, never_expressed, product};

/// Version of stored values and of messages.
const VERSION: &str = "0.1.0";

/// A reference value as Trustee stores it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceValue {
    /// Version of this form.
    pub version: String,
    /// What the policy asks for it by.
    pub name: String,
    /// When Trustee forgets it.
    pub expiration: Timestamp,
    /// The accepted values, or the one value.
    pub value: Value,
}

/// Reference values, and what they do not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Derived<T> {
    /// The values.
    pub values: T,
    /// Fields of the statement that they leave out.
    pub left_out: Vec<&'static str>,
}

/// The values of a statement for one product. Trustee knows sets where the
/// policy has a minimum, so the set holds every version from the minimum on.
///
/// # Errors
/// See [`DeriveError`].
pub fn derive(
    statement: &Statement,
    chosen: Option<Product>,
) -> Result<Derived<Vec<ReferenceValue>>, DeriveError> {
    let policy = &statement.predicate.policy;
    let product = product(policy, chosen)?;
    let digests: Vec<String> = hardware_rows(statement)?
        .into_iter()
        .map(|row| row.digest.to_hex())
        .collect();
    let tcb = product.minimum_tcb;
    let from = |minimum: u8| json!((minimum..=u8::MAX).collect::<Vec<u8>>());
    let mut values = vec![
        ("snp_launch_measurement", json!(digests)),
        ("snp_bootloader", from(tcb.boot_loader)),
        ("snp_tee_svn", from(tcb.tee)),
        ("snp_snp_svn", from(tcb.snp)),
        ("snp_microcode", from(tcb.microcode)),
    ];
    let mut left_out = never_expressed(policy, product);
    let rules = &policy.snp.guest_policy;
    if rules.smt == Permission::Forbidden {
        values.push(("snp_smt_allowed", json!(false)));
    }
    for restriction in &rules.required {
        match restriction {
            GuestRestriction::SingleSocket => values.push(("snp_single_socket", json!(true))),
            GuestRestriction::Aes256Xts
            | GuestRestriction::RaplDisabled
            | GuestRestriction::CiphertextHiding
            | GuestRestriction::PageSwapDisabled => left_out.push("snp.guestPolicy.required"),
        }
    }
    if let Some(abi) = rules.minimum_abi {
        values.push(("snp_guest_abi_major", json!(abi.major)));
        values.push(("snp_guest_abi_minor", json!(abi.minor)));
    }
    if rules.cxl == Permission::Forbidden {
        left_out.push("snp.guestPolicy.cxl");
    }
    let platform = &policy.snp.platform;
    for (properties, on, field) in [
        (&platform.required, true, "snp.platform.required"),
        (&platform.forbidden, false, "snp.platform.forbidden"),
    ] {
        for property in properties {
            match property {
                PlatformProperty::Smt => values.push(("snp_smt_enabled", json!(on))),
                PlatformProperty::Tsme => values.push(("snp_tsme_enabled", json!(on))),
                PlatformProperty::Ecc
                | PlatformProperty::RaplDisabled
                | PlatformProperty::CiphertextHiding
                | PlatformProperty::Tio => left_out.push(field),
            }
        }
    }
    left_out.extend(["snp.platform.aliasCheck", "snp.vmpls", "snp.tcbAgainst"]);
    if tcb.fmc.is_some() {
        left_out.push("snp.products.minimumTCB.fmc");
    }
    let id_block = &policy.snp.id_block;
    if id_block.id_key_digests.is_some() {
        left_out.push("snp.idBlock.idKeyDigests");
    }
    if id_block.author_key_digests.is_some() {
        left_out.push("snp.idBlock.authorKeyDigests");
    }
    if id_block.minimum_guest_svn.is_some() {
        left_out.push("snp.idBlock.minimumGuestSvn");
    }
    left_out.sort_unstable();
    left_out.dedup();
    values.sort_by_key(|(name, _)| *name);
    let expiration = statement.predicate.validity.not_after;
    Ok(Derived {
        values: values
            .into_iter()
            .map(|(name, value)| ReferenceValue {
                version: VERSION.to_owned(),
                name: name.to_owned(),
                expiration,
                value,
            })
            .collect(),
        left_out,
    })
}

/// The message that registers the values through Trustee's API, with its sample
/// extractor. Trustee sets the expiration itself then.
///
/// # Errors
/// Never for values of this type; the encoder's error is passed on.
pub fn message(values: &[ReferenceValue]) -> Result<Value, DeriveError> {
    let payload: Map<String, Value> = values
        .iter()
        .map(|value| (value.name.clone(), value.value.clone()))
        .collect();
    let payload =
        encode_canonical(&payload).map_err(|error| DeriveError::Encode(error.to_string()))?;
    Ok(json!({
        "version": VERSION,
        "type": "sample",
        "payload": STANDARD.encode(payload),
    }))
}

/// Whether `document` is a message as [`message`] writes it.
pub(crate) fn is_message(document: &Value) -> bool {
    document.get("type").and_then(Value::as_str) == Some("sample")
        && document.get("payload").is_some()
}
