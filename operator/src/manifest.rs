//! Child objects as they are wanted, and whether the API server has them so.

use std::collections::BTreeMap;

use assay_tee::Sha256Digest;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;
use kube::core::discovery::ApiResource;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde_json::{Map, Value};

/// Label of every object that the operator makes; its watches select by it.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY_LABEL`].
pub const MANAGED_BY: &str = "assay-operator";
/// Annotation with the digest of what was applied last. A field that is no
/// longer wanted leaves no trace in a comparison with what is there; this does.
pub const APPLIED_ANNOTATION: &str = "assay.dev/applied";

/// Maps that, where they are wanted, hold nothing else: one more entry decides
/// which pods take traffic, where they run, or what they get.
const CLOSED: [&str; 4] = ["limits", "nodeSelector", "requests", "selector"];
/// Fields that are there only where they are wanted: they change where a pod runs
/// and what runs in it. Others are left alone, because the API server fills many,
/// and clusters have customs.
const RESERVED: [&str; 7] = [
    "args",
    "envFrom",
    "hostNetwork",
    "initContainers",
    "nodeSelector",
    "serviceAccount",
    "serviceAccountName",
];
/// Fields that the API server leaves out where they are false.
const OMITTED_WHEN_FALSE: [&str; 2] = ["paused", "publishNotReadyAddresses"];

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

impl Manifest {
    /// The JSON merge patch that makes `seen` what is wanted; none when it is so
    /// already. Of an object that was just applied this is what others put there
    /// and server-side apply does not take away.
    pub fn difference(&self, seen: &Value) -> Option<Value> {
        difference(seen, &self.body, false)
    }
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
    if current.is_some_and(|current| difference(&current, &body, false).is_none()) {
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

/// The JSON merge patch that makes `seen` what `wanted` says. What `wanted` does
/// not say does not matter, unless it is in a [`CLOSED`] map or [`RESERVED`]. Lists
/// must agree in length: in most of them, such as containers or a Role's rules, a
/// foreign entry is a change. One that does not is replaced as a whole.
fn difference(seen: &Value, wanted: &Value, closed: bool) -> Option<Value> {
    match (seen, wanted) {
        (Value::Object(seen), Value::Object(wanted)) => {
            let lacking = wanted.iter().filter_map(|(name, value)| {
                let closed = closed || CLOSED.contains(&name.as_str());
                let lacks = match seen.get(name) {
                    Some(seen) => difference(seen, value, closed)?,
                    None if may_be_omitted(name, value) => return None,
                    None => value.clone(),
                };
                Some((name.clone(), lacks))
            });
            let foreign = seen
                .keys()
                .filter(|name| closed || RESERVED.contains(&name.as_str()))
                .filter(|name| !wanted.contains_key(*name))
                .map(|name| (name.clone(), Value::Null));
            let patch: Map<String, Value> = lacking.chain(foreign).collect();
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        (Value::Array(seen), Value::Array(entries)) => {
            let agree = seen.len() == entries.len()
                && seen
                    .iter()
                    .zip(entries)
                    .all(|(seen, wanted)| difference(seen, wanted, closed).is_none());
            (!agree).then(|| wanted.clone())
        }
        (seen, wanted) => (seen != wanted).then(|| wanted.clone()),
    }
}

/// Whether the API server may leave the field out.
fn may_be_omitted(name: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value && OMITTED_WHEN_FALSE.contains(&name),
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

    /// What `seen` becomes by a JSON merge patch (RFC 7396).
    fn merged(seen: &Value, patch: &Value) -> Value {
        let (Value::Object(seen), Value::Object(patch)) = (seen, patch) else {
            return patch.clone();
        };
        let mut merged = seen.clone();
        for (name, change) in patch {
            match change {
                Value::Null => merged.remove(name),
                change => {
                    let before = seen.get(name).unwrap_or(&Value::Null);
                    merged.insert(name.clone(), self::merged(before, change))
                }
            };
        }
        Value::Object(merged)
    }

    #[test]
    fn what_the_api_server_fills_in_is_no_drift() {
        let wanted = json!({"spec": {"rules": [{"verbs": ["get"]}], "paused": false}, "x": {}});
        for seen in [
            json!({"spec": {"rules": [{"verbs": ["get"], "more": 1}]}, "status": {}}),
            json!({"spec": {"rules": [{"verbs": ["get"]}], "paused": false, "revision": 2}}),
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"rules": [{"verbs": ["get"]}]}}),
            // As a Job's, which the API server makes up.
            json!({"spec": {"rules": [{"verbs": ["get"]}], "selector": {"matchLabels": {}}}}),
        ] {
            assert_eq!(difference(&seen, &wanted, false), None, "{seen}");
        }
        let automount = json!({"automountServiceAccountToken": false});
        assert!(
            difference(&json!({}), &automount, false).is_some(),
            "a false whose default is true is never left out"
        );
    }

    #[test]
    fn foreign_entries_are_drift_and_taken_out() {
        let wanted = json!({
            "paused": false,
            "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80}],
            "containers": [{
                "name": "launcher",
                "env": [{"name": "POD"}],
                "resources": {"limits": {"memory": "1Gi"}},
            }],
        });
        let good = json!({
            "clusterIP": "10.0.0.1",
            "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "nodePort": 0}],
            "containers": [{
                "name": "launcher",
                "env": [{"name": "POD"}],
                "resources": {"limits": {"memory": "1Gi"}},
                "terminationMessagePath": "/dev/termination-log",
            }],
        });
        assert_eq!(difference(&good, &wanted, false), None);
        for (pointer, foreign) in [
            ("/paused", json!(true)),
            ("/selector/extra", json!("x")),
            ("/nodeSelector", json!({"disk": "ssd"})),
            ("/initContainers", json!([{"name": "foreign"}])),
            ("/hostNetwork", json!(true)),
            ("/ports/1", json!({"name": "more", "port": 81})),
            ("/containers/1", json!({"name": "sidecar"})),
            ("/containers/0/env/1", json!({"name": "A", "value": "b"})),
            ("/containers/0/args", json!(["--insecure"])),
            ("/containers/0/resources/limits/cpu", json!("1")),
        ] {
            let mut seen = good.clone();
            let (parent, field) = pointer.rsplit_once('/').unwrap();
            match seen.pointer_mut(parent).unwrap() {
                Value::Array(entries) => entries.push(foreign),
                parent => parent[field] = foreign,
            }
            let patch = difference(&seen, &wanted, false).unwrap_or_else(|| panic!("{pointer}"));
            let repaired = merged(&seen, &patch);
            assert_eq!(difference(&repaired, &wanted, false), None, "{pointer}");
            assert!(
                repaired.pointer(pointer).is_none_or(|left| left == false),
                "{pointer}: {repaired}"
            );
            assert_eq!(repaired["clusterIP"], "10.0.0.1", "{pointer}");
        }
    }
}
