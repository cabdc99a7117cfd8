//! Canonical JSON (RFC 8785): the one byte form of a document that is hashed.

use serde::Serialize;

/// Encodes `value` as canonical JSON: sorted keys, no white space, one spelling
/// of every number and string (RFC 8785).
///
/// # Errors
/// When `value` has no JSON form, such as a map whose keys are not strings.
pub fn encode_canonical<T: Serialize>(value: &T) -> Result<Vec<u8>, EncodeCanonicalError> {
    serde_json_canonicalizer::to_vec(value).map_err(EncodeCanonicalError)
}

/// The value has no canonical JSON form.
#[derive(Debug, thiserror::Error)]
#[error("value has no canonical JSON form")]
pub struct EncodeCanonicalError(#[source] serde_json::Error);
