//! Schemas of digests and identities. Their rules name the remedy, which a pattern
//! cannot.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $max:literal, $pattern:literal, $message:literal) => {
        $(#[$doc])*
        pub struct $name;

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string",
                    "maxLength": $max,
                    "x-kubernetes-validations": [{
                        "rule": concat!("self.matches('^", $pattern, "$')"),
                        "message": $message,
                    }],
                })
            }
        }
    };
}

text! {
    /// The schema of [`assay_tee::Sha256Digest`].
    Sha256Text, 71, "sha256:[0-9a-f]{64}",
    "must be sha256:<64 lower-case hex digits>: copy the digest from a record, or hash the value itself"
}

text! {
    /// The schema of [`assay_tee::Sha384Digest`].
    Sha384Text, 103, "sha384:[0-9a-f]{96}",
    "must be sha384:<96 lower-case hex digits>: copy the digest from a record, or hash the key as the ABI lays it out"
}

text! {
    /// The schema of FAMILY_ID and IMAGE_ID.
    IdBlockIdText, 32, "[0-9a-f]{32}",
    "must be 32 lower-case hex digits: write the 16 bytes of the ID block in their order"
}
