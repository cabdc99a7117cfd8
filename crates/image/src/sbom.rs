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
use crate::packages::{Distribution, Package, PackageKind};

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
            comment: (id == ROOTFS && !software.unread.is_empty())
                .then(|| software.unread.join("; ")),
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
    let distribution = software.distribution.as_ref();
    document.packages(ROOTFS, &software.packages, distribution);
    if let Some(kit) = kit {
        document.packages(BOOT_KIT, &kit.packages, kit.distribution.as_ref());
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

/// The package URL of a package (purl-spec, "PURL types"). `distro` and `upstream`
/// are the qualifiers by which scanners of vulnerabilities find advisories.
fn package_url(package: &Package, distribution: Option<&Distribution>) -> String {
    let id = distribution.map(|it| it.id.as_str());
    let (kind, namespace) = match package.kind {
        PackageKind::Deb => ("deb", Some(id.unwrap_or("debian"))),
        PackageKind::Apk => ("apk", Some(id.unwrap_or("alpine"))),
        // The vendor's name, where the distribution has another.
        PackageKind::Rpm => ("rpm", id.map(|id| if id == "rhel" { "redhat" } else { id })),
        PackageKind::Python => ("pypi", None),
        PackageKind::Npm => ("npm", None),
        PackageKind::Go => ("golang", None),
        PackageKind::Cargo => ("cargo", None),
    };
    let name = match package.kind {
        PackageKind::Python => package.name.to_lowercase().replace('_', "-"),
        PackageKind::Go => package.name.to_lowercase(),
        _ => package.name.clone(),
    };
    let name: Vec<_> = name.split('/').map(percent_encoded).collect();
    let (epoch, version) = match package.version.split_once(':') {
        Some((epoch, version)) if package.kind == PackageKind::Rpm => (Some(epoch), version),
        _ => (None, package.version.as_str()),
    };
    let mut url = format!("pkg:{kind}/");
    if let Some(namespace) = namespace {
        let _ = write!(url, "{}/", percent_encoded(namespace));
    }
    url.push_str(&name.join("/"));
    // A program's own module has no version where nobody gave it one.
    if version != "(devel)" {
        let _ = write!(url, "@{}", percent_encoded(version));
    }
    let is_installed = namespace.is_some() || package.kind == PackageKind::Rpm;
    let distro = distribution.filter(|_| is_installed).map(|it| {
        let version = it.version.as_deref();
        version.map_or_else(|| it.id.clone(), |version| format!("{}-{version}", it.id))
    });
    let qualifiers = [
        ("arch", package.architecture.as_deref()),
        ("distro", distro.as_deref()),
        ("epoch", epoch),
        ("upstream", package.source.as_deref()),
    ];
    let given = qualifiers
        .iter()
        .filter_map(|(key, value)| Some((key, (*value)?)));
    for ((key, value), separator) in given.zip(std::iter::once('?').chain(std::iter::repeat('&'))) {
        let _ = write!(url, "{separator}{key}={}", percent_encoded(value));
    }
    url
}

/// Where a package comes from, as far as it is said.
fn source_info(package: &Package) -> Option<String> {
    let source = package.source.as_ref();
    let source = source.map(|source| format!("built from the source package {source}"));
    let path = package.path.as_ref().map(|path| format!("{path} says so"));
    let said: Vec<_> = source.into_iter().chain(path).collect();
    (!said.is_empty()).then(|| said.join("; "))
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
    fn packages(&mut self, owner: &str, packages: &[Package], distribution: Option<&Distribution>) {
        for (number, package) in (1..).zip(packages) {
            let id = format!("{owner}-{number}");
            self.relate(owner, "CONTAINS", &id);
            self.part(Element {
                id,
                name: package.name.clone(),
                version: Some(package.version.clone()),
                source_info: source_info(package),
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
    comment: Option<String>,
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
            comment: None,
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
            path: None,
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

    #[test]
    fn package_urls_are_those_of_the_specification() {
        let distribution = |id: &str, version: Option<&str>| Distribution {
            id: id.to_owned(),
            version: version.map(str::to_owned),
        };
        let rhel = distribution("rhel", Some("9.4"));
        let from = |source: &str, package| Package {
            source: Some(source.to_owned()),
            ..package
        };
        let plain = |name, version, kind| Package {
            architecture: None,
            ..package(name, version, kind)
        };
        let rows = [
            (
                from(
                    "bash-5.1.src.rpm",
                    package("bash", "2:5.1-9.el9", PackageKind::Rpm),
                ),
                Some(&rhel),
                "pkg:rpm/redhat/bash@5.1-9.el9?arch=amd64&distro=rhel-9.4&epoch=2\
                 &upstream=bash-5.1.src.rpm",
            ),
            (
                plain("bash", "5.1-9.el9", PackageKind::Rpm),
                None,
                "pkg:rpm/bash@5.1-9.el9",
            ),
            (
                package("libc6", "2.41-1", PackageKind::Deb),
                Some(&distribution("debian", None)),
                "pkg:deb/debian/libc6@2.41-1?arch=amd64&distro=debian",
            ),
            (
                plain("Flask_X", "3.0", PackageKind::Python),
                Some(&rhel),
                "pkg:pypi/flask-x@3.0",
            ),
            (
                plain("@a/b", "2.0.0", PackageKind::Npm),
                None,
                "pkg:npm/%40a/b@2.0.0",
            ),
            (
                plain("example.org/Web/v2", "v2.0.0+incompatible", PackageKind::Go),
                None,
                "pkg:golang/example.org/web/v2@v2.0.0%2Bincompatible",
            ),
            (
                plain("example.org/web", "(devel)", PackageKind::Go),
                None,
                "pkg:golang/example.org/web",
            ),
            (
                plain("serde", "1.0.1", PackageKind::Cargo),
                None,
                "pkg:cargo/serde@1.0.1",
            ),
        ];
        for (package, distribution, expected) in rows {
            assert_eq!(package_url(&package, distribution), expected);
        }
    }

    #[test]
    fn what_could_not_be_read_and_who_says_so_is_told() {
        let artifact = build(&inputs()).unwrap();
        let module = Package {
            path: Some("/bin/web".to_owned()),
            ..package("example.org/b", "v1.0.0", PackageKind::Go)
        };
        let software = Software {
            packages: vec![module],
            unread: vec!["x cannot be read".to_owned()],
            ..artifact.software
        };
        let digest = Sha256Digest::of(b"artifact");
        let document = encode_sbom(&artifact.manifest, &software, "h/r", digest).unwrap();
        let document: Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(document["packages"][1]["comment"], "x cannot be read");
        assert_eq!(document["packages"][2].get("comment"), None);
        assert_eq!(document["packages"][7]["sourceInfo"], "/bin/web says so");
    }
}
