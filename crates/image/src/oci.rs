//! OCI images (image-spec 1.1): assembling them deterministically, and the parts
//! of manifest, index and configuration that a pull has to understand.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write as _};

use assay_tee::Sha256Digest;
use assay_tee::canonical::{EncodeCanonicalError, encode_canonical};
use bytes::Bytes;
use flate2::{Compression, GzBuilder};
use serde::{Deserialize, Serialize};

use crate::rope::Rope;

/// Media types of OCI and of Docker's schema 2, which registries mix.
pub mod media_type {
    /// An OCI image manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// An OCI image index.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// An OCI image configuration.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// An uncompressed layer.
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// A gzip-compressed layer.
    pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// A zstd-compressed layer.
    pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// Docker's image manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker's manifest list.
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker's gzip-compressed layer.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    /// Docker's uncompressed layer.
    pub const DOCKER_LAYER_TAR: &str = "application/vnd.docker.image.rootfs.diff.tar";
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerCompression {
    /// A plain tar archive.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

impl LayerCompression {
    /// The compression that a layer's media type names, if it is a layer that
    /// this crate can read.
    pub fn from_media_type(media_type: &str) -> Option<Self> {
        match media_type {
            media_type::LAYER | media_type::DOCKER_LAYER_TAR => Some(Self::None),
            media_type::LAYER_GZIP | media_type::DOCKER_LAYER => Some(Self::Gzip),
            media_type::LAYER_ZSTD => Some(Self::Zstd),
            _ => None,
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::None => media_type::LAYER,
            Self::Gzip => media_type::LAYER_GZIP,
            Self::Zstd => media_type::LAYER_ZSTD,
        }
    }
}

/// Content with its digest.
#[derive(Debug, Clone)]
pub struct Blob {
    content: Rope,
    digest: Sha256Digest,
}

impl Blob {
    /// Hashes `content`.
    pub fn new(content: impl Into<Rope>) -> Self {
        let content = content.into();
        let digest = content.sha256();
        Self { content, digest }
    }

    /// The bytes.
    pub fn content(&self) -> &Rope {
        &self.content
    }

    /// SHA-256 of the bytes.
    pub fn digest(&self) -> Sha256Digest {
        self.digest
    }

    /// Number of bytes.
    pub fn size(&self) -> u64 {
        self.content.len()
    }
}

/// A layer that is ready to be part of an image.
#[derive(Debug, Clone)]
pub struct Layer {
    blob: Blob,
    compression: LayerCompression,
    diff_id: Sha256Digest,
}

impl Layer {
    /// An uncompressed layer from a tar archive.
    pub fn tar(tar: impl Into<Rope>) -> Self {
        let blob = Blob::new(tar);
        Self {
            diff_id: blob.digest(),
            blob,
            compression: LayerCompression::None,
        }
    }

    /// A gzip-compressed layer from a tar archive. The bytes are those of this
    /// build's compressor: do not use it where a digest has to stay the same
    /// across versions.
    ///
    /// # Errors
    /// Those of the compressor.
    pub fn gzip(tar: &Rope) -> io::Result<Self> {
        let mut encoder = GzBuilder::new().write(Vec::new(), Compression::new(6));
        for chunk in tar.chunks() {
            encoder.write_all(chunk)?;
        }
        Ok(Self {
            blob: Blob::new(encoder.finish()?),
            compression: LayerCompression::Gzip,
            diff_id: tar.sha256(),
        })
    }

    /// The layer as it is stored.
    pub fn blob(&self) -> &Blob {
        &self.blob
    }
}

/// `config` of an image configuration: how to run a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// User, by name or number, optionally with `:group`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Environment as `NAME=value`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// First part of the command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Second part of the command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Signal that asks the process to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Directories that the process writes to. Nothing is said of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<BTreeMap<String, serde_json::Value>>,
}

/// An image configuration. Fields that nothing here needs are not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// CPU architecture by Go's name, such as `amd64`.
    pub architecture: String,
    /// Operating system by Go's name, such as `linux`.
    pub os: String,
    /// How to run a container.
    #[serde(default, deserialize_with = "null_is_default")]
    pub config: RunConfig,
    /// The layers' uncompressed digests.
    pub rootfs: RootFsDiffs,
}

/// Some builders write `null` where there is nothing to say.
fn null_is_default<'de, D>(deserializer: D) -> Result<RunConfig, D::Error>
where
    D: serde::Deserializer<'de>,
{
    Option::<RunConfig>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// `rootfs` of an image configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFsDiffs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Digest of each uncompressed layer, lowest first.
    pub diff_ids: Vec<Sha256Digest>,
}

/// A reference from a manifest to a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type.
    pub media_type: String,
    /// Digest of the blob.
    pub digest: Sha256Digest,
    /// Number of bytes.
    pub size: u64,
}

/// An image manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    /// Always 2.
    pub schema_version: u32,
    /// Media type of the manifest itself; optional in OCI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The image configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// An image index: one image for several platforms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageIndex {
    /// Always 2.
    pub schema_version: u32,
    /// The manifests.
    pub manifests: Vec<IndexEntry>,
}

/// One manifest of an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IndexEntry {
    /// Media type of the manifest.
    pub media_type: String,
    /// Digest of the manifest.
    pub digest: Sha256Digest,
    /// Number of bytes.
    pub size: u64,
    /// The platform that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A platform by Go's names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// CPU architecture.
    pub architecture: String,
    /// Operating system.
    pub os: String,
    /// Variant of the architecture, such as `v3` of amd64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// linux/amd64, of no variant.
    pub fn linux_amd64() -> Self {
        Self {
            architecture: "amd64".to_owned(),
            os: "linux".to_owned(),
            variant: None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl ImageIndex {
    /// The manifest for linux/amd64, of several the one that asks least of the CPU.
    /// The only entry counts where it says no platform: the configuration will.
    pub fn linux_amd64(&self) -> Option<&IndexEntry> {
        let variant = |entry: &IndexEntry| {
            let platform = entry.platform.as_ref()?;
            let is_ours = platform.os == "linux" && platform.architecture == "amd64";
            is_ours.then(|| platform.variant.clone().unwrap_or_default())
        };
        let ours = self.manifests.iter().filter(|it| variant(it).is_some());
        ours.min_by_key(|it| variant(it))
            .or(match self.manifests.as_slice() {
                [only] if only.platform.is_none() => Some(only),
                _ => None,
            })
    }

    /// The platforms that there are manifests for, in words.
    pub fn platforms(&self) -> String {
        let named = self.manifests.iter().map(|entry| match &entry.platform {
            Some(platform) => platform.to_string(),
            None => "one without a platform".to_owned(),
        });
        let named: Vec<_> = named.filter(|it| it != "unknown/unknown").collect();
        if named.is_empty() {
            "nothing".to_owned()
        } else {
            named.join(", ")
        }
    }
}

/// What a registry answers to a request for a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestOrIndex {
    /// One image.
    Manifest(ImageManifest),
    /// Several.
    Index(ImageIndex),
}

/// Bytes are not a manifest or index that this crate reads.
#[derive(Debug, thiserror::Error)]
pub enum ParseManifestError {
    /// Not JSON of the expected form.
    #[error("manifest is not valid JSON of an image manifest or index")]
    Json(#[source] serde_json::Error),
    /// Not schema version 2.
    #[error(
        "manifest has schema version {0}, expected 2; push the image again with a tool of today"
    )]
    SchemaVersion(u32),
    /// Neither layers nor manifests, or both.
    #[error("manifest is neither an image manifest nor an image index")]
    Ambiguous,
}

/// Parses an image manifest or index, which are told apart by their members.
/// A document that has both is refused: two readers could take it for different
/// things.
pub fn parse_manifest(bytes: &[u8]) -> Result<ManifestOrIndex, ParseManifestError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kind {
        schema_version: u32,
        layers: Option<serde_json::Value>,
        manifests: Option<serde_json::Value>,
    }
    let kind: Kind = serde_json::from_slice(bytes).map_err(ParseManifestError::Json)?;
    if kind.schema_version != 2 {
        return Err(ParseManifestError::SchemaVersion(kind.schema_version));
    }
    match (kind.layers, kind.manifests) {
        (Some(_), None) => serde_json::from_slice(bytes).map(ManifestOrIndex::Manifest),
        (None, Some(_)) => serde_json::from_slice(bytes).map(ManifestOrIndex::Index),
        _ => return Err(ParseManifestError::Ambiguous),
    }
    .map_err(ParseManifestError::Json)
}

/// A complete image: manifest, configuration and layers.
#[derive(Debug, Clone)]
pub struct OciImage {
    /// The manifest's bytes.
    pub manifest: Bytes,
    /// Digest of the manifest: the image's identity.
    pub manifest_digest: Sha256Digest,
    /// The configuration.
    pub config: Blob,
    /// The layers, lowest first.
    pub layers: Vec<Blob>,
}

/// Options of an image besides its layers.
#[derive(Debug, Clone)]
pub struct ImageOptions {
    /// CPU architecture by Go's name.
    pub architecture: String,
    /// How to run a container.
    pub run: RunConfig,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
}

impl Default for ImageOptions {
    /// linux/amd64 with nothing to run.
    fn default() -> Self {
        Self {
            architecture: "amd64".to_owned(),
            run: RunConfig::default(),
            annotations: BTreeMap::new(),
        }
    }
}

impl OciImage {
    /// Assembles an image. There are no timestamps and no history: equal inputs
    /// have equal digests.
    ///
    /// # Errors
    /// Never for these types; the JSON encoder's error is passed on.
    pub fn assemble(options: ImageOptions, layers: &[Layer]) -> Result<Self, EncodeCanonicalError> {
        let config = Blob::new(encode_canonical(&ImageConfig {
            architecture: options.architecture,
            os: "linux".to_owned(),
            config: options.run,
            rootfs: RootFsDiffs {
                kind: "layers".to_owned(),
                diff_ids: layers.iter().map(|layer| layer.diff_id).collect(),
            },
        })?);
        let manifest: Bytes = encode_canonical(&ImageManifest {
            schema_version: 2,
            media_type: Some(media_type::MANIFEST.to_owned()),
            config: Descriptor {
                media_type: media_type::CONFIG.to_owned(),
                digest: config.digest(),
                size: config.size(),
            },
            layers: layers
                .iter()
                .map(|layer| Descriptor {
                    media_type: layer.compression.media_type().to_owned(),
                    digest: layer.blob.digest(),
                    size: layer.blob.size(),
                })
                .collect(),
            annotations: options.annotations,
        })?
        .into();
        Ok(Self {
            manifest_digest: Sha256Digest::of(&manifest),
            manifest,
            config,
            layers: layers.iter().map(|layer| layer.blob.clone()).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tarball::{Owner, TarBuilder};

    fn example() -> OciImage {
        let mut tar = TarBuilder::new();
        tar.file("hello", 0o644, Owner::ROOT, b"hello\n".to_vec());
        let options = ImageOptions {
            run: RunConfig {
                entrypoint: Some(vec!["/hello".to_owned()]),
                user: Some("65532".to_owned()),
                ..RunConfig::default()
            },
            ..ImageOptions::default()
        };
        OciImage::assemble(options, &[Layer::tar(tar.finish())]).unwrap()
    }

    #[test]
    fn digests_are_pinned() {
        // Changing this changes every published artifact: see CHANGELOG, MEASUREMENT.
        let image = example();
        assert_eq!(
            image.manifest_digest.to_string(),
            "sha256:42976aa40b9ac938fb07a531a938a77ed0e5d5c523e8a49c7a0343d8fae790be"
        );
        assert_eq!(
            String::from_utf8_lossy(&image.config.content().to_bytes()),
            format!(
                concat!(
                    r#"{{"architecture":"amd64","config":{{"Entrypoint":["/hello"],"User":"65532"}},"#,
                    r#""os":"linux","rootfs":{{"diff_ids":["{}"],"type":"layers"}}}}"#
                ),
                image.layers[0].digest()
            )
        );
    }

    #[test]
    fn a_manifest_reads_back() {
        let image = example();
        let ManifestOrIndex::Manifest(manifest) = parse_manifest(&image.manifest).unwrap() else {
            panic!("not a manifest");
        };
        assert_eq!(manifest.config.digest, image.config.digest());
        assert_eq!(manifest.layers[0].digest, image.layers[0].digest());
        assert_eq!(
            LayerCompression::from_media_type(&manifest.layers[0].media_type),
            Some(LayerCompression::None)
        );
    }

    #[test]
    fn gzip_keeps_the_uncompressed_digest() {
        let tar = TarBuilder::new().finish();
        let layer = Layer::gzip(&tar).unwrap();
        assert_eq!(layer.diff_id, tar.sha256());
        let mut decoder =
            flate2::read::GzDecoder::new(std::io::Cursor::new(layer.blob().content().to_bytes()));
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut decoder, &mut plain).unwrap();
        assert_eq!(plain, tar.to_bytes());
    }

    #[test]
    fn a_configuration_may_say_nothing_of_running() {
        for config in [r#""config":null,"#, ""] {
            let text = format!(
                r#"{{"architecture":"amd64","os":"linux",{config}"rootfs":{{"type":"layers","diff_ids":[]}}}}"#
            );
            let parsed: ImageConfig = serde_json::from_str(&text).unwrap();
            assert_eq!(parsed.config, RunConfig::default());
        }
    }

    #[test]
    fn the_image_that_asks_least_of_the_cpu_is_taken() {
        let entry = |number: u8, platform: Option<(&str, &str)>| IndexEntry {
            media_type: media_type::MANIFEST.to_owned(),
            digest: Sha256Digest::of(&[number]),
            size: 1,
            platform: platform.map(|(architecture, variant)| Platform {
                architecture: architecture.to_owned(),
                variant: (!variant.is_empty()).then(|| variant.to_owned()),
                ..Platform::linux_amd64()
            }),
            annotations: BTreeMap::new(),
        };
        let v3 = || entry(3, Some(("amd64", "v3")));
        let arm = || entry(8, Some(("arm64", "v8")));
        let rows = [
            (vec![arm(), v3(), entry(1, Some(("amd64", "")))], Some(1)),
            (vec![v3(), entry(2, Some(("amd64", "v2")))], Some(2)),
            (vec![v3()], Some(3)),
            (vec![entry(5, None)], Some(5)),
            (vec![entry(5, None), arm()], None),
            (vec![arm()], None),
            (vec![], None),
        ];
        for (manifests, expected) in rows {
            let index = ImageIndex {
                schema_version: 2,
                manifests,
            };
            let found = index.linux_amd64().map(|found| found.digest);
            assert_eq!(found, expected.map(|it: u8| Sha256Digest::of(&[it])));
        }
    }

    #[test]
    fn ambiguous_documents_are_refused() {
        for text in [
            "",
            "{}",
            r#"{"schemaVersion":2}"#,
            r#"{"schemaVersion":1,"layers":[]}"#,
        ] {
            assert!(parse_manifest(text.as_bytes()).is_err(), "{text}");
        }
        let both = r#"{"schemaVersion":2,"layers":[],"manifests":[]}"#;
        assert!(matches!(
            parse_manifest(both.as_bytes()),
            Err(ParseManifestError::Ambiguous)
        ));
    }
}
