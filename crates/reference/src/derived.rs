//! What a document for another verifier says, so that two of them can be compared, or
//! one with what it would be if it were derived now.
//!
//! It is read as it was written, whoever wrote it, and believed by nobody: no signature
//! is verified here.

use std::collections::{BTreeMap, BTreeSet};

use assay_crds::v1alpha1::TeeType;
use assay_tee::LaunchDigest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::corim::{self, ReadCorimError};
use crate::diff::{Difference, Side};
use crate::rvps::{self, ReferenceValue};

/// The value that holds launch digests, by Trustee's name.
const LAUNCH_MEASUREMENT: &str = "snp_launch_measurement";

/// A document's launch digests and everything else that it demands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DerivedValues {
    /// Launch digests, each with what the document tells it apart by.
    pub digests: BTreeSet<(LaunchDigest, String)>,
    /// Demands by name. Where several values are accepted, or demanded by several
    /// entries, they are a list in order.
    pub values: BTreeMap<String, Value>,
}

/// A document cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum ReadDerivedError {
    /// A launch digest is none.
    #[error("{LAUNCH_MEASUREMENT} holds {got}, which is no hexadecimal SHA-384")]
    Digest {
        /// What it holds.
        got: String,
    },
    /// A value is there twice, which Trustee would take for one of them.
    #[error("{name} is there twice; leave one")]
    Twice {
        /// Its name.
        name: String,
    },
    /// The message's payload cannot be read.
    #[error("payload is not base64 of a JSON object")]
    Payload,
    /// The CoRIM cannot be read.
    #[error("cannot read the CoRIM")]
    Corim(#[from] ReadCorimError),
}

impl DerivedValues {
    /// What Trustee's stored reference values say. The expiration counts, too.
    ///
    /// # Errors
    /// See [`ReadDerivedError`].
    pub fn of_rvps(values: &[ReferenceValue]) -> Result<Self, ReadDerivedError> {
        let mut read = Self::default();
        for ReferenceValue {
            name,
            expiration,
            value,
            ..
        } in values
        {
            read.add(name, value.clone())?;
            let expiration = expiration.to_string().into();
            read.values.insert(format!("{name}.expiration"), expiration);
        }
        Ok(read)
    }

    /// What a message of [`rvps::message`] registers.
    ///
    /// # Errors
    /// See [`ReadDerivedError`].
    pub fn of_rvps_message(message: &Value) -> Result<Self, ReadDerivedError> {
        let payload = message.get("payload").and_then(Value::as_str);
        let payload = payload.and_then(|payload| STANDARD.decode(payload).ok());
        let payload = payload.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let payload: Map<String, Value> = payload.ok_or(ReadDerivedError::Payload)?;
        let mut read = Self::default();
        for (name, value) in payload {
            read.add(&name, value)?;
        }
        Ok(read)
    }

    /// What a CoRIM says, signed or not.
    ///
    /// # Errors
    /// See [`ReadDerivedError`].
    pub fn of_corim(bytes: &[u8]) -> Result<Self, ReadDerivedError> {
        Ok(corim::read(bytes)?)
    }

    /// Without when it ends, to compare with what has no end.
    #[must_use]
    pub fn without_validity(mut self) -> Self {
        self.values.retain(|name, _| !is_validity(name));
        self
    }

    /// Whether it says when it ends.
    pub fn has_validity(&self) -> bool {
        self.values.keys().any(|name| is_validity(name))
    }

    fn add(&mut self, name: &str, value: Value) -> Result<(), ReadDerivedError> {
        let twice = || ReadDerivedError::Twice {
            name: name.to_owned(),
        };
        if name == LAUNCH_MEASUREMENT {
            let digests = match value {
                Value::Array(digests) => digests,
                one => vec![one],
            };
            if !self.digests.is_empty() {
                return Err(twice());
            }
            for digest in digests {
                let read = digest.as_str().map(|hex| format!("sha384:{hex}").parse());
                let Some(Ok(read)) = read else {
                    let got = digest.to_string();
                    return Err(ReadDerivedError::Digest { got });
                };
                self.digests.insert((read, String::new()));
            }
            return Ok(());
        }
        match self.values.insert(name.to_owned(), in_order(value)) {
            None => Ok(()),
            Some(_) => Err(twice()),
        }
    }
}

fn is_validity(name: &str) -> bool {
    name.ends_with(".expiration") || name == corim::VALIDITY
}

/// A set of accepted values without an order of its own. Versions from one to another
/// are written so: that is how a minimum looks.
fn in_order(value: Value) -> Value {
    let Value::Array(mut items) = value else {
        return value;
    };
    items.sort_by_key(|item| (item.as_u64(), item.to_string()));
    items.dedup();
    let numbers: Option<Vec<u64>> = items.iter().map(Value::as_u64).collect();
    match numbers.as_deref() {
        Some([first, .., last]) if last.checked_sub(*first) == span(&items) => {
            format!("{first} to {last}").into()
        }
        _ => Value::Array(items),
    }
}

fn span(items: &[Value]) -> Option<u64> {
    u64::try_from(items.len()).ok()?.checked_sub(1)
}

/// Everything in which `a` and `b` differ; empty where they say the same.
pub fn differences(a: &DerivedValues, b: &DerivedValues) -> Vec<Difference> {
    let only = |these: &DerivedValues, those: &DerivedValues, accepted_by| {
        let digests = these.digests.difference(&those.digests);
        let digests = digests.map(|(digest, label)| Difference::LaunchDigest {
            accepted_by,
            tee: TeeType::Snp,
            digest: *digest,
            shapes: Some(label.clone())
                .filter(|label| !label.is_empty())
                .into_iter()
                .collect(),
        });
        digests.collect::<Vec<_>>()
    };
    let mut found = only(a, b, Side::A);
    found.extend(only(b, a, Side::B));
    let fields: BTreeSet<&String> = a.values.keys().chain(b.values.keys()).collect();
    for field in fields {
        let (in_a, in_b) = (a.values.get(field), b.values.get(field));
        if in_a != in_b {
            found.push(Difference::Value {
                field: field.clone(),
                a: in_a.cloned(),
                b: in_b.cloned(),
            });
        }
    }
    found
}

/// Whether a JSON document is one of [`rvps`].
pub fn is_rvps(document: &Value) -> bool {
    match document {
        Value::Array(items) => items
            .first()
            .is_some_and(|item| item.get("name").is_some() && item.get("expiration").is_some()),
        _ => rvps::is_message(document),
    }
}
