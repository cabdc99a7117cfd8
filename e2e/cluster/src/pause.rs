//! The sandbox image, as an archive that containerd imports (OCI image layout).

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Packs a static program into an image that is called `name`.
pub(crate) fn archive(program: &[u8], name: &str) -> Result<Vec<u8>> {
    let layer = tar_of(&[("pause", program, 0o755)])?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    })
    .to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", config.as_bytes()),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    })
    .to_string();
    let mut entry = descriptor(MANIFEST, manifest.as_bytes());
    entry["annotations"] = json!({"io.containerd.image.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    tar_of(&[
        ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644),
        ("index.json", index.as_bytes(), 0o644),
        (&blob_path(&layer), &layer, 0o644),
        (&blob_path(config.as_bytes()), config.as_bytes(), 0o644),
        (&blob_path(manifest.as_bytes()), manifest.as_bytes(), 0o644),
    ])
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn hash(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hash(content))
}

fn blob_path(content: &[u8]) -> String {
    format!("blobs/sha256/{}", hash(content))
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(content), "size": content.len()})
}

fn tar_of(files: &[(&str, &[u8], u32)]) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content, mode) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(content.len()).context("a file is too large")?);
        header.set_mode(*mode);
        builder
            .append_data(&mut header, path, *content)
            .with_context(|| format!("pack {path}"))?;
    }
    builder.into_inner().context("finish the archive")
}
