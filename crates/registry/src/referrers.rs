//! Documents about an image, beside it in the registry (image-spec 1.1,
//! `manifest.md`, "subject"; distribution-spec 1.1, "Referrers").
//!
//! A registry that does not list referrers by itself gets an index under the tag
//! that the specification names for it.

use assay_image::oci::{Blob, media_type};
use assay_tee::Sha256Digest;
use bytes::Bytes;
use http::{StatusCode, header};
use oci_spec::distribution::Reference;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::auth::Operation;
use crate::error::RequestError;
use crate::retry::retried;
use crate::transport::{failed, manifest_types};
use crate::{NoProgress, Registry, RegistryError, parse_reference};

/// Media type of an artifact's empty configuration.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const EMPTY_CONTENT: &[u8] = b"{}";

/// A document about an image.
#[derive(Debug, Clone)]
pub struct Referrer {
    /// What it is: `artifactType`, and the media type of its content.
    pub media_type: &'static str,
    /// The document.
    pub content: Bytes,
}

/// An image that documents are about.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// `host/repository`.
    pub repository: &'a str,
    /// The image's manifest.
    pub manifest: &'a Bytes,
}

/// The manifest of a document: the same for the same document and image.
fn manifest(referrer: &Referrer, subject: &Bytes) -> Bytes {
    let descriptor = |media_type: &str, content: &[u8]| {
        json!({
            "mediaType": media_type,
            "digest": Sha256Digest::of(content).to_string(),
            "size": content.len(),
        })
    };
    json!({
        "schemaVersion": 2,
        "mediaType": media_type::MANIFEST,
        "artifactType": referrer.media_type,
        "config": descriptor(EMPTY, EMPTY_CONTENT),
        "layers": [descriptor(referrer.media_type, &referrer.content)],
        "subject": descriptor(media_type::MANIFEST, subject),
    })
    .to_string()
    .into()
}

impl Registry {
    /// Pushes a document about an image that is in `subject.repository` already,
    /// and returns the digest of the document's manifest.
    pub async fn push_referrer(
        &self,
        subject: Subject<'_>,
        referrer: &Referrer,
    ) -> Result<Sha256Digest, RegistryError> {
        let parsed = parse_reference(subject.repository)?;
        self.authenticate(&parsed, Operation::Push).await?;
        for content in [Bytes::from_static(EMPTY_CONTENT), referrer.content.clone()] {
            let blob = Blob::new(content);
            self.push_blob(&parsed, &blob, &NoProgress).await?;
        }
        let manifest = manifest(referrer, subject.manifest);
        let digest = Sha256Digest::of(&manifest);
        self.put_manifest(
            &parsed,
            &digest.to_string(),
            &manifest,
            media_type::MANIFEST,
        )
        .await?;
        self.list_referrer(&parsed, subject, referrer, &manifest)
            .await?;
        Ok(digest)
    }

    /// Digests of the documents of a media type about an image.
    pub async fn referrers(
        &self,
        repository: &str,
        image: Sha256Digest,
        media_type: &str,
    ) -> Result<Vec<Sha256Digest>, RegistryError> {
        let parsed = parse_reference(repository)?;
        self.authenticate(&parsed, Operation::Pull).await?;
        let listed = self.listed(&parsed, image).await?;
        Ok(listed
            .iter()
            .filter(|entry| entry["artifactType"] == media_type)
            .filter_map(|entry| entry["digest"].as_str()?.parse().ok())
            .collect())
    }

    /// Where the registry does not list what names a subject, lists it.
    async fn list_referrer(
        &self,
        repository: &Reference,
        subject: Subject<'_>,
        referrer: &Referrer,
        manifest: &Bytes,
    ) -> Result<(), RegistryError> {
        let image = Sha256Digest::of(subject.manifest);
        let digest = Sha256Digest::of(manifest).to_string();
        let mut listed = self.listed(repository, image).await?;
        if listed.iter().any(|entry| entry["digest"] == digest) {
            return Ok(());
        }
        listed.push(json!({
            "mediaType": media_type::MANIFEST,
            "digest": digest,
            "size": manifest.len(),
            "artifactType": referrer.media_type,
        }));
        let index = json!({
            "schemaVersion": 2,
            "mediaType": media_type::INDEX,
            "manifests": listed,
        });
        self.put_manifest(
            repository,
            &tag(image),
            &index.to_string().into(),
            media_type::INDEX,
        )
        .await
    }

    /// What names an image as its subject: entries of an index.
    async fn listed(
        &self,
        repository: &Reference,
        image: Sha256Digest,
    ) -> Result<Vec<Value>, RegistryError> {
        let native = format!("referrers/{image}");
        let fallback = format!("manifests/{}", tag(image));
        let list = || async {
            for path in [&native, &fallback] {
                if let Some(entries) = self.index(repository, path).await? {
                    return Ok(entries);
                }
            }
            Ok(Vec::new())
        };
        retried(list)
            .await
            .map_err(|source| RegistryError::ListReferrers {
                reference: format!(
                    "{}/{}@{image}",
                    repository.registry(),
                    repository.repository()
                ),
                source,
            })
    }

    /// The entries of an index; `None` where there is none.
    async fn index(
        &self,
        repository: &Reference,
        path: &str,
    ) -> Result<Option<Vec<Value>>, RequestError> {
        #[derive(Deserialize)]
        struct Index {
            manifests: Vec<Value>,
        }
        let url = self.transport.url(repository, path);
        let get = |client: &reqwest::Client| {
            let get = client.get(&url);
            get.header(header::ACCEPT, manifest_types())
        };
        let response = self
            .transport
            .send(repository, Operation::Pull, &url, get)
            .await;
        let response = match response {
            Err(RequestError::Status { status, .. }) if status == StatusCode::NOT_FOUND => {
                return Ok(None);
            }
            response => response?,
        };
        let bytes = response.bytes().await.map_err(failed(&url))?;
        let index: Index = serde_json::from_slice(&bytes).map_err(|_| RequestError::Answer {
            url,
            what: "something else than an index",
        })?;
        Ok(Some(index.manifests))
    }
}

/// The tag of the index where the registry does not list referrers by itself.
fn tag(image: Sha256Digest) -> String {
    format!("sha256-{}", image.to_hex())
}
