//! A software bill of materials: SPDX 2.3 in JSON.
//!
//! Packages are those that the workload's image and the boot kit say they have.
//! There is no time of creation but the epoch, so that the same build gives the
//! same document.

use std::fmt::Write as _;

use assay_tee::Sha256Digest;
use assay_tee::canonical::{EncodeCanonicalError, encode_canonical};
use serde::Serialize;

use crate::artifact::Software;
use crate::manifest::Manifest;
use crate::packages::{Package, PackageKind};

const DOCUMENT: &str = "SPDXRef-DOCUMENT";
const ARTIFACT: &str = "SPDXRef-artifact";
const ROOTFS: &str = "SPDXRef-rootfs";
const BOOT_KIT: &str = "SPDXRef-bootKit";
const NO_ASSERTION: &str = "NOASSERTION";
/// SPDX wants a time, and any other would change with every build.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// The document, in canonical JSON (RFC 8785). `repository` and `digest` name
/// the artifact's OCI image.
///
/// # Errors
/// Never for these types; the encoder's error is passed on.
pub fn encode_sbom(
    manifest: &Manifest,
    software: &Software,
    repository: &str,
    digest: Sha256Digest,
) -> Result<Vec<u8>, EncodeCanonicalError> {
    let mut document = Builder::default();
    let inputs = &manifest.inputs;
    document.part(Element {
        id: ARTIFACT.to_owned(),
        name: repository.to_owned(),
        version: Some(digest.to_string()),
        checksums: vec![Checksum::of(digest)],
        purpose: "CONTAINER",
        ..Element::default()
    });
    for (id, image, purpose) in [
        (ROOTFS, &inputs.rootfs, "CONTAINER"),
        (BOOT_KIT, &inputs.boot_kit, "OPERATING-SYSTEM"),
    ] {
        document.part(Element {
            id: id.to_owned(),
            name: image.repository().to_owned(),
            version: Some(image.digest().to_string()),
            checksums: vec![Checksum::of(image.digest())],
            purpose,
            ..Element::default()
        });
    }
    document.relate(DOCUMENT, "DESCRIBES", ARTIFACT);
    document.relate(ARTIFACT, "CONTAINS", ROOTFS);
    document.relate(ARTIFACT, "GENERATED_FROM", BOOT_KIT);

    let kernel = manifest.uki.sections.iter().find(|it| it.name == ".linux");
    let kit = software.boot_kit.as_ref();
    let files = [
        (
            "agent",
            "assay-agent",
            Some(manifest.builder.version.clone()),
            Some(inputs.agent),
            "APPLICATION",
        ),
        (
            "kernel",
            "linux",
            Some(manifest.uki.uname.clone()),
            kernel.map(|section| section.sha256),
            "OPERATING-SYSTEM",
        ),
        (
            "stub",
            "systemd-stub",
            None,
            kit.map(|kit| kit.stub.sha256),
            "FIRMWARE",
        ),
        (
            "firmware",
            "ovmf",
            None,
            Some(manifest.firmware.sha256),
            "FIRMWARE",
        ),
    ];
    for (id, name, version, digest, purpose) in files {
        let id = format!("SPDXRef-{id}");
        document.relate(ARTIFACT, "CONTAINS", &id);
        document.part(Element {
            id,
            name: name.to_owned(),
            version,
            checksums: digest.map(Checksum::of).into_iter().collect(),
            purpose,
            ..Element::default()
        });
    }
    let distribution = software.distribution.as_deref();
    document.packages(ROOTFS, &software.packages, distribution);
    if let Some(kit) = kit {
        document.packages(BOOT_KIT, &kit.packages, None);
    }

    encode_canonical(&Document {
        spdx_version: "SPDX-2.3",
        data_license: "CC0-1.0",
        id: DOCUMENT,
        name: format!("{repository}@{digest}"),
        namespace: format!("https://assay.dev/spdx/{}", digest.to_hex()),
        creation_info: CreationInfo {
            created: CREATED,
            creators: [format!("Tool: assay-{}", manifest.builder.version)],
        },
        packages: document.elements,
        relationships: document.relationships,
    })
}

/// The package URL of a package.
fn package_url(package: &Package, distribution: Option<&str>) -> String {
    let (kind, default) = match package.kind {
        PackageKind::Deb => ("deb", "debian"),
        PackageKind::Apk => ("apk", "alpine"),
    };
    let namespace = distribution.unwrap_or(default);
    let mut url = format!(
        "pkg:{kind}/{namespace}/{}@{}",
        percent_encoded(&package.name),
        percent_encoded(&package.version)
    );
    if let Some(architecture) = &package.architecture {
        let _ = write!(url, "?arch={}", percent_encoded(architecture));
    }
    url
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

#[derive(Default)]
struct Builder {
    elements: Vec<Element>,
    relationships: Vec<Relationship>,
}

impl Builder {
    fn part(&mut self, element: Element) {
        self.elements.push(element);
    }

    fn relate(&mut self, from: &str, how: &'static str, to: &str) {
        self.relationships.push(Relationship {
            from: from.to_owned(),
            how,
            to: to.to_owned(),
        });
    }

    /// Names do not make identifiers, as these have fewer characters.
    fn packages(&mut self, owner: &str, packages: &[Package], distribution: Option<&str>) {
        for (number, package) in (1..).zip(packages) {
            let id = format!("{owner}-{number}");
            self.relate(owner, "CONTAINS", &id);
            self.part(Element {
                id,
                name: package.name.clone(),
                version: Some(package.version.clone()),
                source_info: package
                    .source
                    .as_ref()
                    .map(|source| format!("built from the source package {source}")),
                license_comments: package
                    .license
                    .as_ref()
                    .map(|license| format!("the package says {license}")),
                external_refs: vec![ExternalRef {
                    category: "PACKAGE-MANAGER",
                    kind: "purl",
                    locator: package_url(package, distribution),
                }],
                purpose: "LIBRARY",
                ..Element::default()
            });
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    spdx_version: &'static str,
    data_license: &'static str,
    #[serde(rename = "SPDXID")]
    id: &'static str,
    name: String,
    #[serde(rename = "documentNamespace")]
    namespace: String,
    creation_info: CreationInfo,
    packages: Vec<Element>,
    relationships: Vec<Relationship>,
}

#[derive(Serialize)]
struct CreationInfo {
    created: &'static str,
    creators: [String; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Element {
    #[serde(rename = "SPDXID")]
    id: String,
    name: String,
    #[serde(rename = "versionInfo", skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    download_location: &'static str,
    files_analyzed: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    checksums: Vec<Checksum>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_info: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    license_comments: Option<String>,
    license_concluded: &'static str,
    license_declared: &'static str,
    copyright_text: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    external_refs: Vec<ExternalRef>,
    #[serde(rename = "primaryPackagePurpose")]
    purpose: &'static str,
}

impl Default for Element {
    fn default() -> Self {
        Self {
            id: String::new(),
            name: String::new(),
            version: None,
            download_location: NO_ASSERTION,
            files_analyzed: false,
            checksums: Vec::new(),
            source_info: None,
            license_comments: None,
            license_concluded: NO_ASSERTION,
            license_declared: NO_ASSERTION,
            copyright_text: NO_ASSERTION,
            external_refs: Vec::new(),
            purpose: "OTHER",
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Checksum {
    algorithm: &'static str,
    checksum_value: String,
}

impl Checksum {
    fn of(digest: Sha256Digest) -> Self {
        Self {
            algorithm: "SHA256",
            checksum_value: digest.to_hex(),
        }
    }
}

#[derive(Serialize)]
struct ExternalRef {
    #[serde(rename = "referenceCategory")]
    category: &'static str,
    #[serde(rename = "referenceType")]
    kind: &'static str,
    #[serde(rename = "referenceLocator")]
    locator: String,
}

#[derive(Serialize)]
struct Relationship {
    #[serde(rename = "spdxElementId")]
    from: String,
    #[serde(rename = "relationshipType")]
    how: &'static str,
    #[serde(rename = "relatedSpdxElement")]
    to: String,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::artifact::build;
    use crate::artifact::tests::inputs;

    fn package(name: &str, version: &str, kind: PackageKind) -> Package {
        Package {
            name: name.to_owned(),
            version: version.to_owned(),
            architecture: Some("amd64".to_owned()),
            source: None,
            license: None,
            kind,
        }
    }

    #[test]
    fn every_part_and_package_is_related_to_the_artifact() {
        let artifact = build(&inputs()).unwrap();
        let software = Software {
            packages: vec![
                package("libstdc++6", "1:14+x~1", PackageKind::Deb),
                package("musl", "1.2", PackageKind::Apk),
            ],
            ..artifact.software
        };
        let digest = Sha256Digest::of(b"artifact");
        let encode = || encode_sbom(&artifact.manifest, &software, "h/r", digest).unwrap();
        assert_eq!(encode(), encode());
        let document: Value = serde_json::from_slice(&encode()).unwrap();
        assert_eq!(document["spdxVersion"], "SPDX-2.3");
        let packages = document["packages"].as_array().unwrap();
        let ids: BTreeSet<_> = packages
            .iter()
            .map(|it| it["SPDXID"].as_str().unwrap())
            .collect();
        assert_eq!(ids.len(), packages.len());
        assert_eq!(packages.len(), 3 + 4 + 2);
        let mut reached: BTreeSet<&str> = [DOCUMENT].into();
        for relationship in document["relationships"].as_array().unwrap() {
            assert!(reached.contains(relationship["spdxElementId"].as_str().unwrap()));
            reached.insert(relationship["relatedSpdxElement"].as_str().unwrap());
        }
        assert!(ids.is_subset(&reached));
        let kernel = packages.iter().find(|it| it["name"] == "linux").unwrap();
        assert_eq!(kernel["versionInfo"], artifact.manifest.uki.uname);
        let url = &packages[7]["externalRefs"][0]["referenceLocator"];
        assert_eq!(url, "pkg:deb/debian/libstdc%2B%2B6@1%3A14%2Bx~1?arch=amd64");
    }
}
