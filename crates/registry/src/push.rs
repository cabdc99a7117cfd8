//! Pushing: blobs first, the manifest last, so that a push that ends early leaves
//! nothing that anybody could pull.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use assay_image::oci::{Blob, OciImage, media_type};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::{StatusCode, header};
use oci_spec::distribution::Reference;
use reqwest::{Body, Client, Response, Url};

use crate::auth::Operation;
use crate::error::RequestError;
use crate::progress::TransferProgress;
use crate::retry::retried;
use crate::{CONCURRENT_BLOBS, Registry, RegistryError, parse_reference};

/// How often one is told how far an upload is.
const TICK: Duration = Duration::from_millis(200);

impl Registry {
    /// Pushes an image to `reference` (`host/repository`, optionally `:tag`),
    /// skipping blobs that the registry has, and returns `host/repository@sha256:…`.
    ///
    /// # Errors
    /// When the registry refuses something, or keeps failing.
    pub async fn push(
        &self,
        reference: &str,
        image: &OciImage,
        progress: &dyn TransferProgress,
    ) -> Result<String, RegistryError> {
        self.push_blobs(reference, image, progress).await?;
        self.push_manifest(reference, image).await
    }

    /// The first part of [`Registry::push`]: everything but the manifest. Nobody can
    /// pull anything afterwards.
    ///
    /// # Errors
    /// As [`Registry::push`].
    pub async fn push_blobs(
        &self,
        reference: &str,
        image: &OciImage,
        progress: &dyn TransferProgress,
    ) -> Result<(), RegistryError> {
        let parsed = parse_target(reference)?;
        self.authenticate(&parsed, Operation::Push).await?;
        let blobs = || image.layers.iter().chain(std::iter::once(&image.config));
        progress.expect(blobs().map(Blob::size).sum());
        stream::iter(blobs())
            .map(|blob| self.push_blob(&parsed, blob, progress))
            .buffer_unordered(CONCURRENT_BLOBS)
            .try_collect()
            .await
    }

    /// The second part of [`Registry::push`], which makes it an image.
    ///
    /// # Errors
    /// As [`Registry::push`].
    pub async fn push_manifest(
        &self,
        reference: &str,
        image: &OciImage,
    ) -> Result<String, RegistryError> {
        let parsed = parse_target(reference)?;
        let digest = image.manifest_digest.to_string();
        // Without a tag the manifest is stored by its digest, which the
        // distribution API takes at the place of a tag.
        let tag = explicit_tag(reference).unwrap_or(&digest);
        let manifest = &image.manifest;
        self.put_manifest(&parsed, tag, manifest, media_type::MANIFEST)
            .await?;
        Ok(format!(
            "{}/{}@{digest}",
            parsed.registry(),
            parsed.repository()
        ))
    }

    pub(crate) async fn put_manifest(
        &self,
        repository: &Reference,
        tag: &str,
        content: &Bytes,
        media_type: &'static str,
    ) -> Result<(), RegistryError> {
        let url = self.transport.url(repository, &format!("manifests/{tag}"));
        let put = || async {
            let put = |client: &Client| {
                let put = client.put(&url).header(header::CONTENT_TYPE, media_type);
                put.body(content.clone())
            };
            let response = self
                .transport
                .send(repository, Operation::Push, &url, put)
                .await?;
            expect(&url, &response, StatusCode::CREATED)
        };
        retried(put)
            .await
            .map_err(|source| RegistryError::PushManifest {
                reference: format!(
                    "{}/{}:{tag}",
                    repository.registry(),
                    repository.repository()
                ),
                source,
            })
    }

    pub(crate) async fn push_blob(
        &self,
        reference: &Reference,
        blob: &Blob,
        progress: &dyn TransferProgress,
    ) -> Result<(), RegistryError> {
        let digest = blob.digest();
        let push = || async {
            if self.has_blob(reference, blob).await? {
                progress.advance(blob.size());
                return Ok(());
            }
            self.upload(reference, blob, progress).await
        };
        retried(push)
            .await
            .map_err(|source| RegistryError::PushBlob {
                reference: reference.to_string(),
                digest,
                source,
            })
    }

    async fn has_blob(&self, reference: &Reference, blob: &Blob) -> Result<bool, RequestError> {
        let path = format!("blobs/{}", blob.digest());
        let url = self.transport.url(reference, &path);
        let head = |client: &Client| client.head(&url);
        match self
            .transport
            .send(reference, Operation::Push, &url, head)
            .await
        {
            Ok(_) => Ok(true),
            Err(RequestError::Status { status, .. }) if status == StatusCode::NOT_FOUND => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// One upload: where to (POST), then all of it (PUT).
    async fn upload(
        &self,
        reference: &Reference,
        blob: &Blob,
        progress: &dyn TransferProgress,
    ) -> Result<(), RequestError> {
        let url = self.transport.url(reference, "blobs/uploads/");
        // Some registries want to be told that there is nothing in it.
        let post = |client: &Client| client.post(&url).header(header::CONTENT_LENGTH, 0);
        let response = self
            .transport
            .send(reference, Operation::Push, &url, post)
            .await?;
        expect(&url, &response, StatusCode::ACCEPTED)?;
        let mut target = location(&url, &response)?;
        target
            .query_pairs_mut()
            .append_pair("digest", &blob.digest().to_string());

        let target = target.to_string();
        let sent = Arc::new(AtomicU64::new(0));
        let put = |client: &Client| {
            // From the start again, where the answer was that a token has ended.
            sent.store(0, Ordering::Relaxed);
            client
                .put(&target)
                .header(header::CONTENT_LENGTH, blob.size())
                .header(header::CONTENT_TYPE, "application/octet-stream")
                .body(counted(blob, &sent))
        };
        let send = self
            .transport
            .send(reference, Operation::Push, &target, put);
        let mut told = Told { progress, bytes: 0 };
        let mut send = pin!(send);
        let mut tick = tokio::time::interval(TICK);
        let response = loop {
            tokio::select! {
                response = &mut send => break response,
                _ = tick.tick() => told.reach(sent.load(Ordering::Relaxed)),
            }
        };
        let done = response.and_then(|response| expect(&target, &response, StatusCode::CREATED));
        told.reach(if done.is_ok() { blob.size() } else { 0 });
        done
    }
}

/// How much of an upload was told.
struct Told<'a> {
    progress: &'a dyn TransferProgress,
    bytes: u64,
}

impl Told<'_> {
    fn reach(&mut self, bytes: u64) {
        if bytes >= self.bytes {
            self.progress.advance(bytes - self.bytes);
        } else {
            self.progress.retreat(self.bytes - bytes);
        }
        self.bytes = bytes;
    }
}

/// A blob as the body of a request, counted as it is sent.
fn counted(blob: &Blob, sent: &Arc<AtomicU64>) -> Body {
    let chunks = blob.content().chunks().to_vec();
    let sent = Arc::clone(sent);
    Body::wrap_stream(stream::iter(chunks).map(move |chunk| {
        sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        Ok::<_, std::io::Error>(chunk)
    }))
}

fn expect(url: &str, response: &Response, status: StatusCode) -> Result<(), RequestError> {
    if response.status() == status {
        return Ok(());
    }
    Err(RequestError::Answer {
        url: url.to_owned(),
        what: "another success than the distribution specification has",
    })
}

/// Where an upload goes, which may be another host.
fn location(url: &str, response: &Response) -> Result<Url, RequestError> {
    let header = response.headers().get(header::LOCATION);
    header
        .and_then(|location| {
            let location = location.to_str().ok()?;
            Url::parse(url).ok()?.join(location).ok()
        })
        .ok_or_else(|| RequestError::Answer {
            url: url.to_owned(),
            what: "no location to upload to",
        })
}

fn parse_target(reference: &str) -> Result<Reference, RegistryError> {
    let parsed = parse_reference(reference)?;
    if parsed.digest().is_some() {
        return Err(RegistryError::PushToDigest {
            reference: reference.to_owned(),
        });
    }
    Ok(parsed)
}

/// The tag that is written in a reference without a digest; the parser invents
/// `latest` where there is none.
pub(crate) fn explicit_tag(reference: &str) -> Option<&str> {
    let last = reference.rsplit('/').next()?;
    last.split_once(':').map(|(_, tag)| tag)
}
