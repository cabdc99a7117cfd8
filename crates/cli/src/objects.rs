//! Objects as people keep them for `kubectl apply`: a file, the files of a
//! directory, or standard input. What the API server would refuse is refused; what
//! is of other kinds is left out and told.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use assay_broker::manifests::{Object, parse_document};
use assay_crds::v1alpha1::{AttestationPolicy, ConfidentialDeployment, MeasuredImage};
use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;

/// Namespace of objects that name none, as for a kubectl without a context.
const DEFAULT_NAMESPACE: &str = "default";
/// Kustomize's own files, which are no objects.
const KUSTOMIZATIONS: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub(crate) deployments: Vec<ConfidentialDeployment>,
    pub(crate) images: Vec<MeasuredImage>,
    pub(crate) policies: Vec<AttestationPolicy>,
    pub(crate) secrets: Vec<Secret>,
    /// What has no meaning here, in words.
    pub(crate) left_out: BTreeSet<String>,
    seen: BTreeSet<String>,
}

impl Objects {
    /// Reads a file, the files of a directory without those below it, or standard
    /// input where `path` is `-`.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let mut objects = Self::default();
        if path == Path::new("-") {
            let mut text = String::new();
            let read = std::io::stdin().read_to_string(&mut text);
            read.context("cannot read standard input")?;
            objects.add_text(&text).context("standard input")?;
            return Ok(objects);
        }
        for file in files(path)? {
            let text = fs::read_to_string(&file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            let added = objects.add_text(&text);
            added.with_context(|| file.display().to_string())?;
        }
        if path.is_dir() {
            let ignored = KUSTOMIZATIONS.iter().find(|name| path.join(name).exists());
            objects
                .left_out
                .extend(ignored.map(|name| (*name).to_owned()));
        }
        Ok(objects)
    }

    fn add_text(&mut self, text: &str) -> Result<()> {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(text).context("not YAML or JSON")?;
        for (number, document) in (1..).zip(documents) {
            // An empty document between two `---`.
            if !document.is_null() {
                self.add(document, number)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, mut document: Value, number: usize) -> Result<()> {
        let text = |field| document.get(field).and_then(Value::as_str);
        let kind = text("kind").unwrap_or_default().to_owned();
        let version = text("apiVersion").unwrap_or_default().to_owned();
        if (version.as_str(), kind.as_str()) == ("v1", "List") {
            let items = document.get_mut("items").map(Value::take);
            let Some(Value::Array(items)) = items else {
                bail!("document {number}: items of the List is missing");
            };
            return items
                .into_iter()
                .try_for_each(|item| self.add(item, number));
        }
        if let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata
                .entry("namespace")
                .or_insert_with(|| DEFAULT_NAMESPACE.into());
        }
        if (version.as_str(), kind.as_str()) == ("v1", "Secret") {
            let secret = serde_json::from_value(document);
            self.secrets
                .push(secret.with_context(|| format!("document {number}: Secret"))?);
            return Ok(());
        }
        let objects = parse_document(document, number)?;
        if objects.is_empty() {
            self.left_out.insert(kind);
        }
        for object in objects {
            let key = object.key().to_string();
            ensure!(
                self.seen.insert(key.clone()),
                "{key} is there twice; remove one"
            );
            match object {
                Object::Deployment(object) => self.deployments.push(*object),
                Object::Image(object) => self.images.push(*object),
                Object::Policy(object) => self.policies.push(*object),
            }
        }
        Ok(())
    }
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let cannot_list = || format!("cannot list {}", path.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(path).with_context(cannot_list)? {
        let file = entry.with_context(cannot_list)?.path();
        let name = file.file_name().and_then(|name| name.to_str());
        let extension = file.extension().and_then(|extension| extension.to_str());
        let wanted = matches!(extension, Some("yaml" | "yml" | "json"))
            && name.is_some_and(|name| !name.starts_with('.') && !KUSTOMIZATIONS.contains(&name));
        if wanted && file.is_file() {
            files.push(file);
        }
    }
    ensure!(
        !files.is_empty(),
        "{} has no .yaml, .yml or .json file",
        path.display()
    );
    files.sort();
    Ok(files)
}

/// `namespace/name`.
pub(crate) fn full_name(metadata: &kube::core::ObjectMeta) -> String {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}/{}", text(&metadata.namespace), text(&metadata.name))
}

/// The one object that is meant: the only one, or the one of that name.
pub(crate) fn choose<'a, T: kube::Resource>(
    kind: &str,
    objects: &'a [T],
    option: &str,
    name: Option<&str>,
) -> Result<&'a T> {
    let is_meant = |object: &&T| {
        name.is_none_or(|name| {
            object.meta().name.as_deref() == Some(name) || full_name(object.meta()) == name
        })
    };
    let meant: Vec<&T> = objects.iter().filter(is_meant).collect();
    let names: Vec<String> = objects.iter().map(|o| full_name(o.meta())).collect();
    let names = names.join(", ");
    match (meant.as_slice(), name) {
        ([object], _) => Ok(object),
        ([], _) if objects.is_empty() => bail!("there is no {kind}; give a file that holds one"),
        ([], name) => bail!(
            "there is no {kind} {}; there is {names}",
            name.unwrap_or_default()
        ),
        (_, None) => bail!("there are several: {names}; choose one {kind} with {option}"),
        (_, Some(_)) => bail!("there are several: {names}; give {option} as namespace/name"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quickstart() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/quickstart")
    }

    #[test]
    fn a_directory_for_kubectl_is_read() {
        let objects = Objects::load(&quickstart()).unwrap();
        let image = choose("MeasuredImage", &objects.images, "--name", None).unwrap();
        assert_eq!(full_name(&image.metadata), "quickstart/web-1");
        assert_eq!(objects.deployments.len(), 1);
        assert_eq!(objects.policies.len(), 1);
        assert_eq!(objects.secrets.len(), 1);
        let left_out: Vec<&str> = objects.left_out.iter().map(String::as_str).collect();
        assert_eq!(left_out, ["Namespace", "kustomization.yaml"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let image = fs::read_to_string(quickstart().join("image.yaml")).unwrap();
        let other = image.replace("web-1", "web-2");
        let added = |text: &str| {
            let mut objects = Objects::default();
            let added = objects.add_text(text).map_err(|error| format!("{error:#}"));
            added.map(|()| objects)
        };
        for (text, words) in [
            (format!("{image}---\n{image}"), "is there twice"),
            (image.replace("rootfs", "rootFs"), "spec.source.build"),
            (image.replace("type: Build", "type: OCI"), "spec.source"),
            (image.replace("kind: MeasuredImage", "kind: Image"), "Image"),
            ("a: [".to_owned(), "not YAML"),
            ("a: b".to_owned(), "apiVersion is missing"),
        ] {
            let error = added(&text).unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
        }
        let both = added(&format!("{image}---\n{other}")).unwrap().images;
        let chosen = |name| choose("MeasuredImage", &both, "--name", name);
        let several = chosen(None).unwrap_err().to_string();
        assert!(several.contains("quickstart/web-1, quickstart/web-2; choose"));
        let none = chosen(Some("web")).unwrap_err().to_string();
        assert!(none.starts_with("there is no MeasuredImage web; there is quickstart/web-1"));
        for name in ["web-2", "quickstart/web-2"] {
            let image = chosen(Some(name)).unwrap();
            assert_eq!(image.metadata.name.as_deref(), Some("web-2"));
        }
    }

    #[test]
    fn a_namespace_may_be_left_out() {
        let image = fs::read_to_string(quickstart().join("image.yaml")).unwrap();
        let mut objects = Objects::default();
        let text = image.replace("  namespace: quickstart\n", "");
        objects.add_text(&text).unwrap();
        assert_eq!(full_name(&objects.images[0].metadata), "default/web-1");
    }
}
