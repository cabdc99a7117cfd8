//! Objects as people keep them in files: the YAML or JSON that they would give to
//! `kubectl apply`.
//!
//! Nobody but this module looks at them, so it does what the API server does:
//! types, unknown fields and the rules of the CRDs. A field that no type has is
//! an error, because a misspelt restriction would be none.

use std::fmt;
use std::sync::OnceLock;

use assay_crds::names::GROUP;
use assay_crds::v1alpha1::measured_image::LifecycleState;
use assay_crds::v1alpha1::{AttestationPolicy, ConfidentialDeployment, MeasuredImage, TeeType};
use assay_tee::LaunchDigest;
use kube::CustomResourceExt;
use kube::core::ObjectMeta;
use kube_cel::{CompiledSchema, Validator, compile_schema};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::policy::rows;
use crate::submission::is_name;

/// An object that the inventory is made of.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// Which guests there are to be.
    Deployment(Box<ConfidentialDeployment>),
    /// What they may run.
    Image(Box<MeasuredImage>),
    /// What they must show.
    Policy(Box<AttestationPolicy>),
}

impl Object {
    /// Kind, namespace and name.
    pub fn key(&self) -> ObjectKey {
        let (kind, metadata) = match self {
            Self::Deployment(object) => (Kind::Deployment, &object.metadata),
            Self::Image(object) => (Kind::Image, &object.metadata),
            Self::Policy(object) => (Kind::Policy, &object.metadata),
        };
        ObjectKey {
            kind,
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
        }
    }
}

/// What an object is known by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            namespace,
            name,
        } = self;
        write!(f, "{} {namespace}/{name}", kind.as_str())
    }
}

/// The kinds of the inventory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// ConfidentialDeployment.
    Deployment,
    /// MeasuredImage.
    Image,
    /// AttestationPolicy.
    Policy,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "ConfidentialDeployment",
            Self::Image => "MeasuredImage",
            Self::Policy => "AttestationPolicy",
        }
    }
}

/// What is accepted besides what the CRDs say.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules {
    /// Whether a policy for hardware may leave out `spec.snp.allowedChips`: any
    /// host with a processor of the vendor may then run a guest.
    pub any_chip: bool,
}

/// Why a file is no part of the inventory.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not YAML.
    #[error("not YAML")]
    Yaml(#[source] Box<serde_saphyr::Error>),
    /// A document is no object.
    #[error("document {number}: {field} is missing; every document is a Kubernetes object")]
    NoObject {
        /// Which document, from 1.
        number: usize,
        /// What is missing.
        field: &'static str,
    },
    /// It is of our group, and of no kind or version that the inventory has.
    #[error(
        "document {number}: {kind} of {version} is not read here; only ConfidentialDeployment, \
         MeasuredImage and AttestationPolicy of {GROUP}/v1alpha1 are"
    )]
    Kind {
        /// Which document, from 1.
        number: usize,
        /// Its kind.
        kind: String,
        /// Its version.
        version: String,
    },
    /// A field is wrong.
    #[error("{object}: {field}: {message}")]
    Field {
        /// The object.
        object: String,
        /// The field.
        field: String,
        /// What is wrong with it, and the remedy.
        message: String,
    },
}

/// Reads the objects of one file. Objects of other API groups, which a directory
/// for `kubectl apply` also holds, are left out.
///
/// # Errors
/// The first thing that is wrong with an object of ours.
pub fn parse_manifest(text: &str, rules: Rules) -> Result<Vec<Object>, ManifestError> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)
        .map_err(|source| ManifestError::Yaml(Box::new(source)))?;
    let mut objects = Vec::new();
    for (number, document) in (1..).zip(documents) {
        read_document(document, number, &mut objects)?;
    }
    for object in &objects {
        check(object, rules)?;
    }
    Ok(objects)
}

/// The objects of one document, by its place in the file, from 1. Nothing is asked
/// of them but what the API server would ask.
///
/// # Errors
/// The first thing that is wrong with an object of ours.
pub fn parse_document(document: Value, number: usize) -> Result<Vec<Object>, ManifestError> {
    let mut objects = Vec::new();
    read_document(document, number, &mut objects)?;
    Ok(objects)
}

fn read_document(
    document: Value,
    number: usize,
    objects: &mut Vec<Object>,
) -> Result<(), ManifestError> {
    let text = |field| {
        let text = document.get(field).and_then(Value::as_str);
        text.map(str::to_owned)
            .ok_or(ManifestError::NoObject { number, field })
    };
    let (version, kind) = (text("apiVersion")?, text("kind")?);
    if version == "v1" && kind == "List" {
        let mut document = document;
        let items = document.get_mut("items").map(Value::take);
        let Some(Value::Array(items)) = items else {
            let field = "items";
            return Err(ManifestError::NoObject { number, field });
        };
        return items
            .into_iter()
            .try_for_each(|item| read_document(item, number, objects));
    }
    let Some((GROUP, revision)) = version.split_once('/') else {
        return Ok(());
    };
    let object = match (revision, kind.as_str()) {
        ("v1alpha1", "ConfidentialDeployment") => {
            Object::Deployment(read(&document, Kind::Deployment)?)
        }
        ("v1alpha1", "MeasuredImage") => Object::Image(read(&document, Kind::Image)?),
        ("v1alpha1", "AttestationPolicy") => Object::Policy(read(&document, Kind::Policy)?),
        _ => {
            return Err(ManifestError::Kind {
                number,
                kind,
                version,
            });
        }
    };
    objects.push(object);
    Ok(())
}

fn read<K>(document: &Value, kind: Kind) -> Result<Box<K>, ManifestError>
where
    K: CustomResourceExt + DeserializeOwned + kube::Resource<DynamicType = ()>,
{
    let name = |pointer| {
        let text = document.pointer(pointer).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let key = ObjectKey {
        kind,
        namespace: name("/metadata/namespace"),
        name: name("/metadata/name"),
    };
    let failed = |field: &str, message: String| ManifestError::Field {
        object: key.to_string(),
        field: field.to_owned(),
        message,
    };
    let mut ignored = Vec::new();
    let mut note = |path: serde_ignored::Path<'_>| {
        // Optional values are steps of their own there.
        let path = path.to_string().replace(".?", "");
        // Kept in the type, and read above.
        if !["apiVersion", "kind"].contains(&path.as_str()) {
            ignored.push(path);
        }
    };
    let fields = serde_ignored::Deserializer::new(document, &mut note);
    let object: K = serde_path_to_error::deserialize(fields)
        .map_err(|error| failed(&error.path().to_string(), error.inner().to_string()))?;
    if let Some(field) = ignored.first() {
        let message = "is no field of this kind; correct or remove it".to_owned();
        return Err(failed(field, message));
    }
    check_names(object.meta()).map_err(|(field, message)| failed(field, message))?;
    let checked = Validator::new().validate_compiled(schema::<K>(kind), document, None);
    if let Err(errors) = checked
        && let Some(error) = errors.as_slice().first()
    {
        return Err(failed(&error.field_path, error.message.clone()));
    }
    Ok(Box::new(object))
}

fn check_names(metadata: &ObjectMeta) -> Result<(), (&'static str, String)> {
    for (field, name) in [
        ("metadata.namespace", &metadata.namespace),
        ("metadata.name", &metadata.name),
    ] {
        match name {
            None => return Err((field, "is missing; state it".to_owned())),
            Some(name) if !is_name(name) => {
                return Err((
                    field,
                    format!("{name:?} is not a name (RFC 1123); change it"),
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The rules of the kind's CRD.
fn schema<K: CustomResourceExt>(kind: Kind) -> &'static CompiledSchema {
    static SCHEMAS: [OnceLock<CompiledSchema>; 3] = [const { OnceLock::new() }; 3];
    let index = match kind {
        Kind::Deployment => 0,
        Kind::Image => 1,
        Kind::Policy => 2,
    };
    SCHEMAS[index].get_or_init(|| {
        let crd = K::crd();
        let schema = crd.spec.versions.first().and_then(|version| {
            let schema = version.schema.as_ref()?.open_api_v3_schema.as_ref()?;
            serde_json::to_value(schema).ok()
        });
        // A schema that is none has no rules, which a test would notice.
        compile_schema(&schema.unwrap_or_default())
    })
}

/// What a person must supply who has no operator to do it.
fn check(object: &Object, rules: Rules) -> Result<(), ManifestError> {
    let failed = |field: String, message: &str| ManifestError::Field {
        object: object.key().to_string(),
        field,
        message: message.to_owned(),
    };
    match object {
        Object::Deployment(_) => Ok(()),
        Object::Image(image) => {
            for (index, row) in rows(image).iter().enumerate() {
                if row.digest.parse::<LaunchDigest>().is_err() {
                    let field = format!("status.launchDigests[{index}].digest");
                    return Err(failed(field, "is not sha384:<96 hex digits>; correct it"));
                }
            }
            if rows(image).is_empty() && image.spec.lifecycle.state != LifecycleState::Revoked {
                let message = "is missing: no guest of the image would be accepted. Here nobody \
                               measures the image; write the rows yourself, or copy them from an \
                               object whose operator you trust";
                return Err(failed("status.launchDigests".to_owned(), message));
            }
            Ok(())
        }
        Object::Policy(policy) => {
            let hardware = policy.spec.tees.contains(&TeeType::Snp);
            if hardware && policy.spec.snp.allowed_chips.is_none() && !rules.any_chip {
                let message = "is missing: no API server says which pods exist, so the chip alone \
                               says whose host a guest runs on. List the chips of your hosts, or \
                               set inventory.anyChip in the broker's configuration";
                return Err(failed("spec.snp.allowedChips".to_owned(), message));
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests;
