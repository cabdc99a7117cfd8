//! Whether somebody who is trusted vouches for an artifact's provenance.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use assay_image::manifest::Manifest;
use assay_image::provenance::encode_provenance;
use assay_reference::{BUNDLE_MEDIA_TYPE, Bundle, PublicKey};
use assay_tee::Sha256Digest;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::registry::Client;

/// Who vouches.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Vouched {
    /// `builder.id` of the statement.
    pub(super) builder: String,
    /// Bundles that say so.
    pub(super) bundles: usize,
}

/// The keys that were given.
pub(super) fn keys(paths: &[PathBuf]) -> Result<Vec<PublicKey>> {
    let read = |path: &PathBuf| {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        PublicKey::read(&bytes).with_context(|| path.display().to_string())
    };
    paths.iter().map(read).collect()
}

/// The bundle beside an artifact's files.
pub(super) fn in_directory(directory: &Path) -> Result<Vec<Bytes>> {
    let path = directory.join("provenance.sigstore.json");
    let bundle = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(vec![bundle.into()])
}

/// The bundles that a registry has about an artifact.
pub(super) fn in_registry(
    client: &Client,
    repository: &str,
    digest: Sha256Digest,
) -> Result<Vec<Bytes>> {
    client.runtime.block_on(async {
        let listed = client
            .registry
            .referrers(repository, digest, BUNDLE_MEDIA_TYPE)
            .await?;
        let mut bundles = Vec::new();
        for referrer in listed {
            let pulled = client
                .registry
                .pull(&format!("{repository}@{referrer}"))
                .await?;
            bundles.extend(pulled.layers);
        }
        Ok(bundles)
    })
}

/// The parts of a statement that the artifact does not say.
#[derive(Deserialize)]
struct Said {
    subject: [Subject; 1],
    predicate: Predicate,
}

#[derive(Deserialize)]
struct Subject {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Predicate {
    run_details: RunDetails,
}

#[derive(Deserialize)]
struct RunDetails {
    builder: Builder,
}

#[derive(Deserialize)]
struct Builder {
    id: String,
}

/// Checks that one of `keys` signed a statement that says of the artifact what its
/// manifest says. Bundles of others are nobody's concern.
pub(super) fn verify(
    bundles: &[Bytes],
    keys: &[PublicKey],
    manifest: &Manifest,
    digest: Sha256Digest,
) -> Result<Vouched> {
    let mut vouched: Option<Vouched> = None;
    for bundle in bundles {
        let Ok(bundle) = Bundle::parse(bundle) else {
            continue;
        };
        let Ok(payload) = bundle.verify_payload(keys) else {
            continue;
        };
        let said: Said =
            serde_json::from_slice(payload).context("what was signed is no provenance")?;
        let [subject] = said.subject;
        let builder = said.predicate.run_details.builder.id;
        let expected = encode_provenance(manifest, &subject.name, digest, &builder)
            .context("cannot tell what the provenance ought to be")?;
        ensure!(
            payload == expected,
            "what was signed is not the provenance of this artifact"
        );
        match &mut vouched {
            Some(vouched) => vouched.bundles += 1,
            None => {
                vouched = Some(Vouched {
                    builder,
                    bundles: 1,
                });
            }
        }
    }
    match vouched {
        Some(vouched) => Ok(vouched),
        None => bail!(
            "none of {} bundles is signed by a key that was given with --provenance-key",
            bundles.len()
        ),
    }
}
