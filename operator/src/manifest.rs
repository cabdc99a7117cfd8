//! Child objects as they are wanted, and whether the API server has them so.

use std::collections::BTreeMap;

use assay_tee::Sha256Digest;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;
use kube::core::discovery::ApiResource;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde_json::Value;

/// Label of every object that the operator makes; its watches select by it.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY_LABEL`].
pub const MANAGED_BY: &str = "assay-operator";
/// Annotation with the digest of what was applied last. A field that is no
/// longer wanted leaves no trace in a comparison with what is there; this does.
pub const APPLIED_ANNOTATION: &str = "assay.dev/applied";

/// A child object as it is wanted: only the fields that the operator decides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Manifest {
    /// The object's kind.
    pub resource: ApiResource,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// UID of the object that is to be changed; absent when none was seen.
    pub uid: Option<String>,
    /// UID of the owner.
    pub owner: String,
    /// The object.
    pub body: Value,
}

/// A child object that is to be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Orphan {
    /// The object's kind.
    pub resource: ApiResource,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: a younger object of the same name is left alone.
    pub uid: String,
}

impl Orphan {
    /// The deletion of `object`.
    pub fn of<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        Self {
            resource: ApiResource::erase::<K>(&()),
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
        }
    }
}

/// Metadata of a child of `owner`.
pub fn child_metadata<O: Resource<DynamicType = ()>>(
    owner: &O,
    name: String,
    labels: &[(&str, &str)],
) -> ObjectMeta {
    let mut all = BTreeMap::from([(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned())]);
    all.extend(
        labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
    );
    ObjectMeta {
        name: Some(name),
        namespace: owner.namespace(),
        labels: Some(all),
        owner_references: owner.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

/// Whether `object` is controlled by the object with UID `owner`.
pub fn is_controlled_by(object: &ObjectMeta, owner: &str) -> bool {
    let owners = object.owner_references.as_deref().unwrap_or_default();
    owners
        .iter()
        .any(|reference| reference.controller == Some(true) && reference.uid == owner)
}

/// The controlling owner of `object`, when it is of kind `K`.
pub fn owner_of<K: Resource<DynamicType = ()>>(object: &ObjectMeta) -> Option<&OwnerReference> {
    let owners = object.owner_references.as_deref()?;
    owners.iter().find(|owner| {
        owner.controller == Some(true)
            && owner.kind == K::kind(&())
            && owner.api_version == K::api_version(&())
    })
}

/// The write that turns `seen` into `wanted`; none when it is so already.
///
/// `volatile` names a field, by the JSON pointer of its parent and its name,
/// whose changes alone are no change of intent.
pub fn write_for<K>(
    wanted: &K,
    seen: Option<&K>,
    volatile: Option<(&str, &str)>,
) -> Option<Manifest>
where
    K: Resource<DynamicType = ()> + Serialize,
{
    let owner = wanted
        .meta()
        .owner_references
        .iter()
        .flatten()
        .find(|o| o.controller == Some(true));
    let mut body = serde_json::to_value(wanted).unwrap_or_default();
    let mut intent = body.clone();
    if let Some((parent, field)) = volatile
        && let Some(Value::Object(parent)) = intent.pointer_mut(parent)
    {
        parent.remove(field);
    }
    let digest = Sha256Digest::of(intent.to_string().as_bytes()).to_hex();
    let digest = digest.get(..16).unwrap_or_default();
    body["metadata"]["annotations"][APPLIED_ANNOTATION] = Value::from(digest);

    let current = seen.and_then(|seen| serde_json::to_value(seen).ok());
    if current.is_some_and(|current| contains(&current, &body)) {
        return None;
    }
    Some(Manifest {
        resource: ApiResource::erase::<K>(&()),
        namespace: wanted.namespace().unwrap_or_default(),
        name: wanted.name_any(),
        uid: seen.and_then(ResourceExt::uid),
        owner: owner.map(|owner| owner.uid.clone()).unwrap_or_default(),
        body,
    })
}

/// Whether `seen` has everything that `wanted` says; what `wanted` does not say
/// does not matter. Lists must agree in length: in most of them, such as a
/// Role's rules, a foreign entry is a change.
fn contains(seen: &Value, wanted: &Value) -> bool {
    match (seen, wanted) {
        (Value::Object(seen), Value::Object(wanted)) => wanted.iter().all(|(name, value)| {
            seen.get(name)
                .map_or_else(|| is_empty(value), |seen| contains(seen, value))
        }),
        (Value::Array(seen), Value::Array(wanted)) => {
            seen.len() == wanted.len()
                && seen
                    .iter()
                    .zip(wanted)
                    .all(|(seen, wanted)| contains(seen, wanted))
        }
        (seen, wanted) => seen == wanted,
    }
}

/// What the API server may leave out.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    fn config_map(data: &[(&str, &str)]) -> ConfigMap {
        let data = data
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        ConfigMap {
            data: Some(data),
            ..ConfigMap::default()
        }
    }

    fn applied(manifest: &Manifest) -> ConfigMap {
        serde_json::from_value(manifest.body.clone()).unwrap()
    }

    #[test]
    fn what_was_applied_is_not_applied_again() {
        let wanted = config_map(&[("a", "1")]);
        let seen = applied(&write_for(&wanted, None, None).unwrap());
        assert_eq!(write_for(&wanted, Some(&seen), None), None);
    }

    #[test]
    fn drift_and_withdrawn_fields_are_written() {
        let seen = applied(&write_for(&config_map(&[("a", "1"), ("b", "2")]), None, None).unwrap());
        assert!(
            write_for(&config_map(&[("a", "1")]), Some(&seen), None).is_some(),
            "withdrawn"
        );
        let mut drifted = seen.clone();
        drifted
            .data
            .as_mut()
            .unwrap()
            .insert("a".to_owned(), "x".to_owned());
        let wanted = config_map(&[("a", "1"), ("b", "2")]);
        assert!(write_for(&wanted, Some(&drifted), None).is_some(), "drift");
    }

    #[test]
    fn foreign_fields_are_no_drift_but_foreign_list_entries_are() {
        let wanted = json!({"spec": {"rules": [{"verbs": ["get"]}]}, "x": {}});
        assert!(contains(
            &json!({"spec": {"rules": [{"verbs": ["get"], "more": 1}]}, "status": {}}),
            &wanted
        ));
        assert!(!contains(
            &json!({"spec": {"rules": [{"verbs": ["get"]}, {"verbs": ["list"]}]}}),
            &wanted
        ));
        assert!(!contains(
            &json!({"spec": {"rules": [{"verbs": ["list"]}]}}),
            &wanted
        ));
    }
}
