//! Digests as typed values, written `sha384:<hex>` and `sha256:<hex>`.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256, Sha384};

/// A string is not a digest of the expected algorithm.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a digest of the form {algorithm}:<{hex_len} lower-case hex digits>: {got:?}")]
pub struct ParseDigestError {
    algorithm: &'static str,
    hex_len: usize,
    got: String,
}

macro_rules! digest_type {
    ($(#[$doc:meta])* $name:ident, $algorithm:literal, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// Wraps the raw digest bytes.
            pub const fn new(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The raw digest bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// Lower-case hexadecimal without the algorithm's name.
            pub fn to_hex(&self) -> String {
                hex::encode(self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($algorithm, ":{}"), self.to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseDigestError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let error = || ParseDigestError {
                    algorithm: $algorithm,
                    hex_len: 2 * $len,
                    got: text.to_owned(),
                };
                let digits = text.strip_prefix(concat!($algorithm, ":")).ok_or_else(error)?;
                if digits.bytes().any(|b| b.is_ascii_uppercase()) {
                    return Err(error());
                }
                let mut bytes = [0; $len];
                hex::decode_to_slice(digits, &mut bytes).map_err(|_| error())?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(D::Error::custom)
            }
        }
    };
}

digest_type!(
    /// A launch digest: the MEASUREMENT field of an SNP attestation report
    /// (SEV-SNP ABI, ATTESTATION_REPORT, offset 0x90). Written `sha384:<hex>`.
    LaunchDigest,
    "sha384",
    48
);

digest_type!(
    /// A SHA-256 digest of bytes: an artifact's part, an OCI blob, a policy, or
    /// the instance data in HOST_DATA. Written `sha256:<hex>`.
    Sha256Digest,
    "sha256",
    32
);

digest_type!(
    /// A SHA-384 digest of bytes: the content of a measured page. Not a
    /// [`LaunchDigest`], though of the same form. Written `sha384:<hex>`.
    Sha384Digest,
    "sha384",
    48
);

impl Sha384Digest {
    /// Hashes `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha384::digest(bytes).into())
    }
}

impl Sha256Digest {
    /// Hashes `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips() {
        let digest = Sha256Digest::of(b"");
        assert_eq!(
            digest.to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }

    #[test]
    fn foreign_forms_are_refused() {
        let hex = "00".repeat(48);
        for text in [
            hex.clone(),
            format!("sha256:{hex}"),
            format!("sha384:{}", &hex[2..]),
            format!("sha384:{hex}00"),
            format!("SHA384:{hex}"),
            format!("sha384:{}", "AB".repeat(48)),
        ] {
            assert!(text.parse::<LaunchDigest>().is_err(), "{text}");
        }
    }
}
