//! Documents about an artifact: its provenance, signed where there is a key, and
//! its bill of materials. They are beside the artifact and no part of it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use assay_image::artifact::Artifact;
use assay_image::oci::OciImage;
use assay_image::provenance::{UNNAMED_BUILDER, encode_provenance};
use assay_image::sbom::encode_sbom;
use assay_reference::{BUNDLE_MEDIA_TYPE, Bundle, PublicKey, SigningKey};
use assay_registry::{Referrer, Registry, Subject};
use zeroize::Zeroizing;

use crate::output_file;

/// Media type of an in-toto statement.
const IN_TOTO: &str = "application/vnd.in-toto+json";
/// Media type of SPDX in JSON.
const SPDX: &str = "application/spdx+json";

/// Options about who vouches for a build.
#[derive(Debug, clap::Args)]
pub(crate) struct ProvenanceArgs {
    /// Who builds, as a URI: `builder.id` of the provenance
    #[arg(long, value_name = "URI", default_value = UNNAMED_BUILDER)]
    builder_id: String,
    /// Sign the provenance with this key: ECDSA on P-256 or P-384, in PEM
    #[arg(long, value_name = "FILE", conflicts_with = "provenance_signature")]
    provenance_key: Option<PathBuf>,
    /// A signature of provenance.pae that was made elsewhere
    #[arg(long, value_name = "FILE", requires = "provenance_public_key")]
    provenance_signature: Option<PathBuf>,
    /// The public key that verifies it
    #[arg(long, value_name = "FILE", requires = "provenance_signature")]
    provenance_public_key: Option<PathBuf>,
}

/// How the provenance is signed.
enum Signer {
    Nobody,
    Key(SigningKey),
    Elsewhere { key: PublicKey, signature: Vec<u8> },
}

/// What documents are made with.
pub(super) struct Provenance {
    builder_id: String,
    signer: Signer,
}

impl ProvenanceArgs {
    /// Reads keys, before anything is built.
    pub(super) fn open(&self) -> Result<Provenance> {
        let read = |path: &PathBuf| {
            fs::read(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let signer = match (
            &self.provenance_key,
            &self.provenance_signature,
            &self.provenance_public_key,
        ) {
            (Some(path), ..) => {
                let text = fs::read_to_string(path).map(Zeroizing::new);
                let text = text.with_context(|| format!("cannot read {}", path.display()))?;
                let key = SigningKey::from_pem(&text);
                Signer::Key(key.with_context(|| path.display().to_string())?)
            }
            (None, Some(signature), Some(key)) => Signer::Elsewhere {
                key: PublicKey::read(&read(key)?).with_context(|| key.display().to_string())?,
                signature: read(signature)?,
            },
            _ => Signer::Nobody,
        };
        Ok(Provenance {
            builder_id: self.builder_id.clone(),
            signer,
        })
    }
}

impl Provenance {
    pub(super) fn documents(
        self,
        artifact: &Artifact,
        repository: &str,
        image: &OciImage,
    ) -> Result<Documents> {
        let Artifact {
            manifest, software, ..
        } = artifact;
        let digest = image.manifest_digest;
        let statement = encode_provenance(manifest, repository, digest, &self.builder_id)
            .context("cannot encode the provenance")?;
        let sbom = encode_sbom(manifest, software, repository, digest)
            .context("cannot encode the bill of materials")?;
        let bundle = match self.signer {
            Signer::Nobody => None,
            Signer::Key(key) => Some(Bundle::sign_payload(statement.clone(), &key)),
            Signer::Elsewhere { key, signature } => Some(
                Bundle::assemble_payload(statement.clone(), &key, &signature)
                    .context("--provenance-signature is not of this build")?,
            ),
        };
        let bundle = bundle
            .map(|bundle| bundle.encode().context("cannot encode the bundle"))
            .transpose()?;
        Ok(Documents {
            statement,
            bundle,
            sbom,
        })
    }
}

/// Documents about an artifact.
pub(super) struct Documents {
    statement: Vec<u8>,
    bundle: Option<Vec<u8>>,
    sbom: Vec<u8>,
}

impl Documents {
    /// Writes them beside the artifact's files.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        let pae = assay_reference::pre_authentication_encoding(IN_TOTO, &self.statement);
        let files = [
            ("provenance.json", Some(&self.statement)),
            ("provenance.pae", Some(&pae)),
            ("provenance.sigstore.json", self.bundle.as_ref()),
            ("sbom.spdx.json", Some(&self.sbom)),
        ];
        for (name, content) in files {
            if let Some(content) = content {
                output_file::write(&directory.join(name), &content.clone().into())?;
            }
        }
        Ok(())
    }

    /// Pushes them as referrers of the artifact. A signed statement goes as its
    /// bundle.
    pub(super) async fn push(
        self,
        registry: &Registry,
        repository: &str,
        image: &OciImage,
    ) -> Result<()> {
        let subject = Subject {
            repository,
            manifest: &image.manifest,
        };
        let provenance = match self.bundle {
            Some(bundle) => (BUNDLE_MEDIA_TYPE, bundle),
            None => (IN_TOTO, self.statement),
        };
        for (media_type, content) in [provenance, (SPDX, self.sbom)] {
            let referrer = Referrer {
                media_type,
                content: content.into(),
            };
            registry
                .push_referrer(subject, &referrer)
                .await
                .with_context(|| format!("cannot push {media_type}"))?;
        }
        Ok(())
    }
}
