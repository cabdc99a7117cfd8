//! What one statement accepts and another does not.

use std::collections::{BTreeMap, BTreeSet};

use assay_crds::v1alpha1::TeeType;
use assay_tee::LaunchDigest;
use serde::Serialize;
use serde_json::Value;

use crate::statement::{Image, Policy, Predicate, Row, Validity};

/// A difference between A and B.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(
    tag = "kind",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Difference {
    /// A launch digest that only one of them accepts.
    LaunchDigest {
        /// `A` or `B`.
        accepted_by: Side,
        /// The TEE.
        tee: TeeType,
        /// The launch digest.
        digest: LaunchDigest,
        /// Image and launch shape: all that have the digest.
        shapes: Vec<String>,
    },
    /// A demand, lifecycle or validity that differs.
    Value {
        /// The member: `policy.snp.products[Genoa].minimumTCB.snp`.
        field: String,
        /// What A has, if anything.
        a: Option<Value>,
        /// What B has, if anything.
        b: Option<Value>,
    },
}

/// One of the two that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Side {
    /// The first.
    A,
    /// The second.
    B,
}

type Accepted = BTreeMap<(TeeType, LaunchDigest), BTreeSet<String>>;

/// What is compared.
#[derive(Debug, Clone, Copy)]
pub struct Accepts<'a> {
    /// The images.
    pub images: &'a [Image],
    /// What else evidence must show, where that is known.
    pub policy: Option<&'a Policy>,
    /// When it may be relied on; compared where both have it.
    pub validity: Option<Validity>,
}

impl<'a> From<&'a Predicate> for Accepts<'a> {
    fn from(predicate: &'a Predicate) -> Self {
        Self {
            images: &predicate.images,
            policy: Some(&predicate.policy),
            validity: Some(predicate.validity),
        }
    }
}

/// Everything in which `a` and `b` differ; empty where they accept the same.
/// Neither the order of lists nor the names of files and policies count.
///
/// # Errors
/// Never for values of these types; the encoder's error is passed on.
pub fn differences(a: Accepts<'_>, b: Accepts<'_>) -> Result<Vec<Difference>, DiffError> {
    let (in_a, in_b) = (accepted(a), accepted(b));
    let mut found = only(&in_a, &in_b, Side::A);
    found.extend(only(&in_b, &in_a, Side::B));
    let (mut values_a, mut values_b) = (values(a)?, values(b)?);
    if let (Some(a), Some(b)) = (a.validity, b.validity) {
        insert(&a, "validity", &mut values_a)?;
        insert(&b, "validity", &mut values_b)?;
    }
    let fields: BTreeSet<String> = values_a.keys().chain(values_b.keys()).cloned().collect();
    for field in fields {
        let (a, b) = (values_a.remove(&field), values_b.remove(&field));
        if a != b {
            found.push(Difference::Value { field, a, b });
        }
    }
    Ok(found)
}

/// A demand has no JSON form.
#[derive(Debug, thiserror::Error)]
#[error("write the demands as JSON to compare them")]
pub struct DiffError(#[source] serde_json::Error);

fn accepted(side: Accepts<'_>) -> Accepted {
    let mut accepted = Accepted::new();
    for image in side.images {
        for row in image.accepted() {
            if side
                .policy
                .is_none_or(|policy| policy.tees.contains(&row.tee))
            {
                accepted
                    .entry((row.tee, row.digest))
                    .or_default()
                    .insert(format!("{}: {}", image.name, shape(row)));
            }
        }
    }
    accepted
}

fn shape(row: &Row) -> String {
    format!(
        "{}, {} vCPUs, features {}, {}",
        row.cpu_model, row.vcpus, row.guest_features, row.firmware
    )
}

fn only(these: &Accepted, those: &Accepted, side: Side) -> Vec<Difference> {
    these
        .iter()
        .filter(|(key, _)| !those.contains_key(key))
        .map(|((tee, digest), shapes)| Difference::LaunchDigest {
            accepted_by: side,
            tee: *tee,
            digest: *digest,
            shapes: shapes.iter().cloned().collect(),
        })
        .collect()
}

fn values(side: Accepts<'_>) -> Result<BTreeMap<String, Value>, DiffError> {
    let mut values = BTreeMap::new();
    for image in side.images {
        insert(
            &image.state,
            &format!("images[{}].state", image.name),
            &mut values,
        )?;
    }
    if let Some(policy) = side.policy {
        insert(&policy.to_spec(), "policy", &mut values)?;
    }
    Ok(values)
}

fn insert<T: Serialize>(
    value: &T,
    path: &str,
    into: &mut BTreeMap<String, Value>,
) -> Result<(), DiffError> {
    flatten(serde_json::to_value(value).map_err(DiffError)?, path, into);
    Ok(())
}

/// Leaves by path. Lists are sets: their members are named by what tells them
/// apart.
fn flatten(value: Value, path: &str, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                flatten(value, &format!("{path}.{name}"), into);
            }
        }
        Value::Array(items) => {
            for item in items {
                let name = ["name", "type"]
                    .iter()
                    .find_map(|key| item.get(key)?.as_str());
                if let Some(name) = name {
                    let path = format!("{path}[{name}]");
                    flatten(item, &path, into);
                } else {
                    let name = item
                        .as_str()
                        .map_or_else(|| item.to_string(), str::to_owned);
                    into.insert(format!("{path}[{name}]"), item);
                }
            }
        }
        leaf => {
            into.insert(path.to_owned(), leaf);
        }
    }
}
