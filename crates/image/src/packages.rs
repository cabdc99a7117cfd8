//! Which packages a file system says that it consists of: the databases of dpkg
//! and apk, and what distroless images keep of them. It is what the image says
//! of itself, and nobody has verified it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::tree::{Content, Tree};

/// dpkg's database.
const DPKG_STATUS: &str = "var/lib/dpkg/status";
/// One stanza a file, as images without dpkg keep it.
pub const DPKG_STATUS_DIRECTORY: &str = "var/lib/dpkg/status.d";
/// dpkg's lists of files, one a package.
const DPKG_LISTS: &str = "var/lib/dpkg/info";
/// apk's database, and where it will be.
const APK_INSTALLED: [&str; 2] = ["lib/apk/db/installed", "usr/lib/apk/db/installed"];

/// Whose package format it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PackageKind {
    /// Debian's.
    Deb,
    /// Alpine's.
    Apk,
}

/// A package that a file system says it has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its architecture, where it is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// The source package, where it has another name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The licence, where it is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// Whose format.
    pub kind: PackageKind,
}

/// The packages that `tree` says it consists of, sorted, each once.
pub fn installed_packages(tree: &Tree) -> Vec<Package> {
    let mut found = Vec::new();
    if let Some(text) = text(tree, DPKG_STATUS) {
        found.extend(stanzas(&text).filter_map(parse_deb_control));
    }
    for (_, content) in directory(tree, DPKG_STATUS_DIRECTORY) {
        found.extend(stanzas(&content).filter_map(parse_deb_control));
    }
    if let Some(text) = APK_INSTALLED.iter().find_map(|path| text(tree, path)) {
        found.extend(stanzas(&text).filter_map(parse_apk));
    }
    found.sort();
    found.dedup();
    found
}

/// The files of a package, where dpkg has a list.
pub fn package_files(tree: &Tree, package: &Package) -> Option<Vec<String>> {
    let names = [
        format!("{DPKG_LISTS}/{}.list", package.name),
        format!(
            "{DPKG_LISTS}/{}:{}.list",
            package.name,
            package.architecture.as_deref().unwrap_or_default()
        ),
    ];
    let list = names.iter().find_map(|path| text(tree, path))?;
    Some(list.lines().map(str::to_owned).collect())
}

/// The name of the distribution, `ID` of os-release(5).
pub fn distribution(tree: &Tree) -> Option<String> {
    let release = ["etc/os-release", "usr/lib/os-release"]
        .iter()
        .find_map(|path| text(tree, path))?;
    let id = release.lines().find_map(|line| line.strip_prefix("ID="))?;
    let id = id.trim_matches(['"', '\'']);
    let plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    (!id.is_empty() && id.bytes().all(plain)).then(|| id.to_owned())
}

fn text(tree: &Tree, path: &str) -> Option<String> {
    let content = tree.file(path.as_bytes()).ok()??;
    Some(String::from_utf8_lossy(content).into_owned())
}

/// Name and text of a directory's files.
fn directory(tree: &Tree, path: &str) -> Vec<(String, String)> {
    let entries = tree.lookup(path.as_bytes()).ok().flatten();
    let entries = entries.and_then(|id| tree.entries(id));
    let mut found = Vec::new();
    for (name, id) in entries.into_iter().flatten() {
        if let Content::File(content) = &tree.inode(*id).content {
            let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            found.push((lossy(name), lossy(content)));
        }
    }
    found
}

fn stanzas(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n\n")
        .filter(|stanza| !stanza.trim().is_empty())
}

/// A package from a stanza of deb-control(5); `None` where it is not installed
/// or has no name.
pub fn parse_deb_control(stanza: &str) -> Option<Package> {
    let fields: BTreeMap<&str, &str> = stanza
        .lines()
        .filter(|line| !line.starts_with([' ', '\t']))
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key, value.trim()))
        .collect();
    let value = |key: &str| {
        let value = fields.get(key).copied().filter(|value| !value.is_empty());
        value.map(str::to_owned)
    };
    // A distroless image keeps no state; dpkg has three words of it.
    let installed = fields
        .get("Status")
        .is_none_or(|status| status.split(' ').nth(2) == Some("installed"));
    let source = value("Source").map(|source| match source.split_once(' ') {
        Some((name, _)) => name.to_owned(),
        None => source,
    });
    Some(Package {
        name: value("Package").filter(|_| installed)?,
        version: value("Version")?,
        architecture: value("Architecture"),
        source,
        license: None,
        kind: PackageKind::Deb,
    })
}

/// A package from a stanza of apk's database.
fn parse_apk(stanza: &str) -> Option<Package> {
    let value = |key: &str| {
        let line = stanza.lines().find_map(|line| line.strip_prefix(key));
        line.filter(|value| !value.is_empty()).map(str::to_owned)
    };
    Some(Package {
        name: value("P:")?,
        version: value("V:")?,
        architecture: value("A:"),
        source: value("o:"),
        license: value("L:"),
        kind: PackageKind::Apk,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flatten::{StoredLayer, flatten};
    use crate::oci::LayerCompression;
    use crate::tarball::{Owner, TarBuilder};

    fn tree(files: &[(&str, &str)]) -> Tree {
        let mut tar = TarBuilder::new();
        for (path, content) in files {
            tar.file(path, 0o644, Owner::ROOT, content.as_bytes().to_vec());
        }
        let bytes = tar.finish().to_bytes();
        let id = assay_tee::Sha256Digest::of(&bytes);
        let layer = StoredLayer {
            bytes,
            compression: LayerCompression::None,
        };
        flatten(&[layer], &[id]).unwrap()
    }

    #[test]
    fn every_database_is_read() {
        let status = "Package: zlib1g\nStatus: install ok installed\nArchitecture: amd64\n\
                      Source: zlib (1.3)\nVersion: 1:1.3-1\nDescription: x\n Version: no\n\n\
                      Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n";
        let base = "Package: base-files\nVersion: 13\nArchitecture: amd64\n";
        let apk = "C:Q1x=\nP:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\no:musl\nF:lib\nR:ld\n\n";
        let tree = tree(&[
            ("var/lib/dpkg/status", status),
            ("var/lib/dpkg/status.d/base", base),
            ("lib/apk/db/installed", apk),
            ("etc/os-release", "NAME=x\nID=debian\n"),
            ("var/lib/dpkg/info/zlib1g:amd64.list", "/.\n/usr/lib/z.so\n"),
        ]);
        let found = installed_packages(&tree);
        let rows: Vec<_> = found
            .iter()
            .map(|package| format!("{} {}", package.name, package.version))
            .collect();
        assert_eq!(rows, ["base-files 13", "musl 1.2.5-r0", "zlib1g 1:1.3-1"]);
        let zlib = &found[2];
        assert_eq!(zlib.source.as_deref(), Some("zlib"));
        assert_eq!(found[1].license.as_deref(), Some("MIT"));
        assert_eq!(package_files(&tree, zlib).unwrap(), ["/.", "/usr/lib/z.so"]);
        assert_eq!(package_files(&tree, &found[0]), None);
        assert_eq!(distribution(&tree).as_deref(), Some("debian"));
    }

    #[test]
    fn an_image_without_a_database_has_no_packages() {
        let tree = tree(&[("etc/os-release", "ID=a b\n"), ("app", "x")]);
        assert_eq!(installed_packages(&tree), []);
        assert_eq!(distribution(&tree), None);
    }
}
