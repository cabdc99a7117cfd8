//! Reading what reference values come from: objects as `kubectl get` prints
//! them, an artifact's manifest, statements and bundles.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use assay_crds::v1alpha1::{AttestationPolicy, MeasuredImage};
use assay_image::manifest::Manifest;
use assay_reference::derived::{DerivedValues, is_rvps};
use assay_reference::rvps::ReferenceValue;
use assay_reference::{Bundle, PublicKey, SigningKey, Statement, corim};
use serde_json::Value;
use zeroize::Zeroizing;

const API_VERSION: &str = "assay.dev/v1alpha1";

/// A document, by what it is.
pub(super) enum Document {
    Bundle(Bundle),
    Statement(Box<Statement>),
    Manifest(Box<Manifest>),
    Objects(Objects),
    /// Trustee's, as they are stored or registered.
    Rvps(DerivedValues),
    /// Veraison's, signed or not.
    Corim(DerivedValues),
}

/// Objects of a cluster.
#[derive(Default)]
pub(super) struct Objects {
    pub(super) images: Vec<MeasuredImage>,
    pub(super) policies: Vec<AttestationPolicy>,
}

/// Reads a file, or standard input where `path` is `-`.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin()
            .read_to_end(&mut bytes)
            .context("read standard input")?;
        return Ok(bytes);
    }
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// Reads a document and finds out what it is.
pub(super) fn document(path: &Path) -> Result<Document> {
    parse(&read(path)?).with_context(|| path.display().to_string())
}

fn parse(bytes: &[u8]) -> Result<Document> {
    if corim::is_corim(bytes) {
        return Ok(Document::Corim(DerivedValues::of_corim(bytes)?));
    }
    let text = str::from_utf8(bytes).context("not text; give YAML or JSON")?;
    let values: Vec<Value> =
        serde_saphyr::from_multiple(text).context("not YAML or JSON; give it as it was written")?;
    if let [value] = values.as_slice() {
        if is_rvps(value) {
            return Ok(Document::Rvps(match value {
                Value::Array(_) => {
                    let values: Vec<ReferenceValue> = serde_json::from_value(value.clone())
                        .context("not reference values as Trustee stores them")?;
                    DerivedValues::of_rvps(&values)?
                }
                message => DerivedValues::of_rvps_message(message)?,
            }));
        }
        if value.get("mediaType").is_some() {
            return Ok(Document::Bundle(Bundle::parse(bytes)?));
        }
        if value.get("_type").is_some() {
            return Ok(Document::Statement(Box::new(Statement::parse(bytes)?)));
        }
        if value.get("kind").is_none() && value.get("measurement").is_some() {
            let manifest: Manifest =
                serde_json::from_slice(bytes).context("not a manifest.json of `assay build`")?;
            ensure!(
                manifest.version == Manifest::VERSION,
                "version is {}, and this assay reads {}; build again",
                manifest.version,
                Manifest::VERSION
            );
            return Ok(Document::Manifest(Box::new(manifest)));
        }
    }
    let mut objects = Objects::default();
    for value in values {
        objects.add(value)?;
    }
    ensure!(
        !objects.images.is_empty() || !objects.policies.is_empty(),
        "no bundle, statement, manifest.json, MeasuredImage or AttestationPolicy is in it; give one"
    );
    Ok(Document::Objects(objects))
}

impl Objects {
    fn add(&mut self, value: Value) -> Result<()> {
        let kind = value.get("kind").and_then(Value::as_str).map(str::to_owned);
        match kind.as_deref() {
            Some("List") => {
                let Value::Object(mut list) = value else {
                    return Ok(());
                };
                let Some(Value::Array(items)) = list.remove("items") else {
                    bail!(
                        "items of the List is missing; give it as `kubectl get -o yaml` prints it"
                    );
                };
                for item in items {
                    self.add(item)?;
                }
            }
            Some("MeasuredImage") => self.images.push(object(value)?),
            Some("AttestationPolicy") => self.policies.push(object(value)?),
            Some(other) => bail!(
                "kind {other} says nothing of reference values; give MeasuredImages and one \
                 AttestationPolicy"
            ),
            // An empty document between two `---`.
            None if value.is_null() => {}
            None => {
                bail!("a document has no kind; give objects as `kubectl get -o yaml` prints them")
            }
        }
        Ok(())
    }
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> Result<T> {
    let name = value
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap_or("without a name")
        .to_owned();
    let version = value.get("apiVersion").and_then(Value::as_str);
    ensure!(
        version == Some(API_VERSION),
        "apiVersion of {name} is {version:?}, and this assay reads {API_VERSION}"
    );
    serde_json::from_value(value).with_context(|| format!("object {name}"))
}

pub(super) fn signing_key(path: &Path) -> Result<SigningKey> {
    let bytes = Zeroizing::new(read(path)?);
    // What is not text is no PEM: the key reader says so.
    let text = str::from_utf8(&bytes).unwrap_or_default();
    SigningKey::from_pem(text).with_context(|| format!("--key {}", path.display()))
}

pub(super) fn public_key(option: &str, path: &Path) -> Result<PublicKey> {
    let bytes = Zeroizing::new(read(path)?);
    PublicKey::read(&bytes).with_context(|| format!("{option} {}", path.display()))
}
