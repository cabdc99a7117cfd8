//! DSSE (Dead Simple Signing Envelope, protocol v1.0.2): what is signed.

use serde::{Deserialize, Serialize};

/// Payload type of in-toto statements.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// The bytes that are signed: `DSSEv1 LEN(type) type LEN(payload) payload`, each
/// separated by one space, the lengths in decimal.
pub fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!(
        "DSSEv1 {} {payload_type} {} ",
        payload_type.len(),
        payload.len()
    );
    [head.as_bytes(), payload].concat()
}

/// An envelope in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Envelope {
    /// The payload, base64.
    pub(crate) payload: String,
    /// Type of the payload.
    pub(crate) payload_type: String,
    /// The signatures.
    pub(crate) signatures: Vec<EnvelopeSignature>,
}

/// A signature of an envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EnvelopeSignature {
    /// The signature, base64 of DER.
    pub(crate) sig: String,
    /// A hint of the key. Decides nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) keyid: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the DSSE protocol's own text.
    #[test]
    fn the_encoding_is_that_of_the_protocol() {
        assert_eq!(
            pre_authentication_encoding("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn lengths_count_bytes() {
        assert_eq!(
            pre_authentication_encoding("é", b""),
            "DSSEv1 2 é 0 ".as_bytes()
        );
    }
}
