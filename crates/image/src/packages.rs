//! Which packages a file system says that it consists of: the databases of dpkg,
//! apk and rpm, what distroless images keep of them, and what the files of some
//! languages say of themselves. It is what the image says of itself, and nobody
//! has verified it.

mod language;
mod rpm;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use self::rpm::Databases;
use crate::tree::{Content, InodeId, Tree};

pub use self::language::language_packages;

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
    /// rpm's.
    Rpm,
    /// A distribution of the Python package index.
    Python,
    /// A package of npm.
    Npm,
    /// A module that a Go program was built from, or Go's standard library.
    Go,
    /// A crate that a Rust program was built from.
    Cargo,
}

/// A package that a file system says it has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version; of rpm's packages `epoch:version-release`, the epoch where
    /// there is one.
    pub version: String,
    /// Its architecture, where it is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// The source package, where it has another name; of rpm's packages the name
    /// of its file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The licence, where it is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// The file that says so, where it is not a database of packages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Whose format.
    pub kind: PackageKind,
}

/// A distribution, by os-release(5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Distribution {
    /// `ID`, such as `debian`.
    pub id: String,
    /// `VERSION_ID`, such as `13`, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// The packages that databases of `tree` name, sorted, each once.
pub fn installed_packages(tree: &Tree) -> Vec<Package> {
    let mut found: Vec<_> = owners(tree).map(|(package, _)| package).collect();
    found.sort();
    found.dedup();
    found
}

/// Databases that are there and cannot be read, one sentence each.
pub fn unread_databases(tree: &Tree) -> Vec<String> {
    Databases::read(tree).unread
}

/// The packages that the files at `paths` came from, sorted, each once. Where a
/// database has no list of a package's files, as of packages that were only
/// unpacked, it counts as one of them.
pub fn package_origins(tree: &Tree, paths: &[String]) -> Vec<Package> {
    // By inode, as lists name `/lib` what is in `/usr/lib`.
    let lookup = |path: &str| tree.lookup(path.as_bytes()).ok().flatten();
    let taken: BTreeSet<InodeId> = paths.iter().filter_map(|path| lookup(path)).collect();
    let is_origin = |files: Option<Vec<String>>| {
        files.is_none_or(|files| {
            let mut found = files.iter().filter_map(|path| lookup(path));
            found.any(|id| taken.contains(&id))
        })
    };
    let mut found: Vec<_> = owners(tree)
        .filter_map(|(package, files)| is_origin(files(&package)).then_some(package))
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Paths of a package's files, where the database lists them.
type Files<'a> = Box<dyn Fn(&Package) -> Option<Vec<String>> + 'a>;

/// Every package of every database, and how to tell its files.
fn owners(tree: &Tree) -> impl Iterator<Item = (Package, Files<'_>)> {
    let status = text(tree, DPKG_STATUS).into_iter();
    let status = status.chain(directory(tree, DPKG_STATUS_DIRECTORY));
    let deb = status.flat_map(move |text| {
        let found: Vec<_> = stanzas(&text).filter_map(parse_deb_control).collect();
        let files = move |package: &Package| dpkg_files(tree, package);
        found
            .into_iter()
            .map(move |package| (package, Box::new(files) as Files<'_>))
    });
    let installed = APK_INSTALLED.iter().find_map(|path| text(tree, path));
    let apk = installed.into_iter().flat_map(|text| {
        let found: Vec<_> = stanzas(&text)
            .filter_map(|stanza| {
                let files = apk_files(stanza);
                let files = move |_: &Package| Some(files.clone());
                Some((parse_apk(stanza)?, Box::new(files) as Files<'_>))
            })
            .collect();
        found
    });
    let rpm = Databases::read(tree).headers.into_iter();
    let rpm = rpm.filter_map(|header| {
        let package = header.package()?;
        let files = move |_: &Package| header.files();
        Some((package, Box::new(files) as Files<'_>))
    });
    deb.chain(apk).chain(rpm)
}

/// The files of a package, where dpkg has a list.
fn dpkg_files(tree: &Tree, package: &Package) -> Option<Vec<String>> {
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

/// The files that a stanza of apk's database lists: `F:` names a directory, `R:` a
/// file in it.
fn apk_files(stanza: &str) -> Vec<String> {
    let mut directory = "";
    let mut files = Vec::new();
    for line in stanza.lines() {
        if let Some(path) = line.strip_prefix("F:") {
            directory = path;
        } else if let Some(name) = line.strip_prefix("R:") {
            files.push(format!("{directory}/{name}"));
        }
    }
    files
}

/// The distribution that os-release(5) names.
pub fn distribution(tree: &Tree) -> Option<Distribution> {
    let release = ["etc/os-release", "usr/lib/os-release"]
        .iter()
        .find_map(|path| text(tree, path))?;
    let value = |key: &str| {
        let value = release.lines().find_map(|line| line.strip_prefix(key))?;
        let value = value.trim_matches(['"', '\'']);
        let plain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        (!value.is_empty() && value.bytes().all(plain)).then(|| value.to_owned())
    };
    Some(Distribution {
        id: value("ID=")?,
        version: value("VERSION_ID="),
    })
}

fn text(tree: &Tree, path: &str) -> Option<String> {
    let content = tree.file(path.as_bytes()).ok()??;
    Some(String::from_utf8_lossy(content).into_owned())
}

/// Texts of a directory's files.
fn directory(tree: &Tree, path: &str) -> Vec<String> {
    let entries = tree.lookup(path.as_bytes()).ok().flatten();
    let entries = entries.and_then(|id| tree.entries(id));
    let mut found = Vec::new();
    for id in entries.into_iter().flat_map(|entries| entries.values()) {
        if let Content::File(content) = &tree.inode(*id).content {
            found.push(String::from_utf8_lossy(content).into_owned());
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
        path: None,
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
        path: None,
        kind: PackageKind::Apk,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::flatten::{StoredLayer, flatten};
    use crate::oci::LayerCompression;
    use crate::tarball::{Owner, TarBuilder};

    pub(super) fn tree(files: &[(&str, &[u8])]) -> Tree {
        let mut tar = TarBuilder::new();
        for (path, content) in files {
            tar.file(path, 0o644, Owner::ROOT, content.to_vec());
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
            ("var/lib/dpkg/status", status.as_bytes()),
            ("var/lib/dpkg/status.d/base", base.as_bytes()),
            ("lib/apk/db/installed", apk.as_bytes()),
            ("etc/os-release", b"NAME=x\nID=debian\n"),
            ("usr/lib/z.so", b""),
            ("lib/ld", b""),
            (
                "var/lib/dpkg/info/zlib1g:amd64.list",
                b"/.\n/usr/lib/z.so\n",
            ),
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
        let debian = distribution(&tree).unwrap();
        assert_eq!((debian.id.as_str(), debian.version), ("debian", None));
        // Of base-files there is no list.
        for (path, expected) in [
            ("usr/lib/z.so", ["base-files", "zlib1g"].as_slice()),
            ("lib/ld", &["base-files", "musl"]),
            ("etc/os-release", &["base-files"]),
        ] {
            let origins = package_origins(&tree, &[path.to_owned()]);
            let names: Vec<_> = origins.iter().map(|it| it.name.as_str()).collect();
            assert_eq!(names, expected, "{path}");
        }
    }

    #[test]
    fn an_image_without_a_database_has_no_packages() {
        let tree = tree(&[("etc/os-release", b"ID=a b\n"), ("app", b"x")]);
        assert_eq!(installed_packages(&tree), []);
        assert_eq!(distribution(&tree), None);
    }
}
