//! Packages of languages: what installed Python distributions and npm packages say
//! of themselves, and what Go and Rust programs say that they were built from.

use std::collections::BTreeSet;
use std::io::Read as _;

use flate2::read::ZlibDecoder;
use serde::Deserialize;

use super::{Package, PackageKind};
use crate::elf::section;
use crate::tree::{Content, InodeId, Tree};

/// Largest metadata of a package that is read.
const MAX_METADATA_LEN: usize = 4 << 20;
/// Largest list of crates in a program, as cargo-auditable's readers have it.
const MAX_CRATES_LEN: u64 = 8 << 20;

/// Section of Go programs, and what it begins with (Go `debug/buildinfo`).
const GO_SECTION: &[u8] = b".go.buildinfo";
const GO_MAGIC: &[u8] = b"\xff Go buildinf:";
/// Flag in byte 15: strings follow the header, as since Go 1.18.
const GO_INLINE: u8 = 2;
const GO_HEADER_LEN: usize = 32;
/// Bytes around the list of modules, by which it is found in memory.
const GO_SENTINEL_LEN: usize = 16;
/// Section of Rust programs that cargo-auditable built.
const CARGO_SECTION: &[u8] = b".dep-v0";

/// The packages that files of `tree` say they are or were built from, sorted, each
/// with the path that says so.
pub fn language_packages(tree: &Tree) -> Vec<Package> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    let mut pending: Vec<(String, InodeId)> = vec![(String::new(), Tree::ROOT)];
    while let Some((path, id)) = pending.pop() {
        match &tree.inode(id).content {
            Content::Directory(entries) => {
                for (name, child) in entries.iter().rev() {
                    let name = String::from_utf8_lossy(name);
                    pending.push((format!("{path}/{name}"), *child));
                }
            }
            // A file with several names is one.
            Content::File(content) if seen.insert(id) => {
                let start = found.len();
                read_file(&path, content, &mut found);
                for package in found.iter_mut().skip(start) {
                    package.path = Some(path.clone());
                }
            }
            Content::File(_) | Content::Symlink(_) => {}
        }
    }
    found.sort();
    found.dedup();
    found
}

fn read_file(path: &str, content: &[u8], found: &mut Vec<Package>) {
    let mut names = path.rsplit('/');
    let name = names.next().unwrap_or_default();
    let directory = names.next().unwrap_or_default();
    let is_python = match name {
        "METADATA" => directory.ends_with(".dist-info"),
        "PKG-INFO" => directory.ends_with(".egg-info"),
        _ => name.ends_with(".egg-info"),
    };
    if is_python && content.len() <= MAX_METADATA_LEN {
        found.extend(parse_python(&String::from_utf8_lossy(content)));
    } else if name == "package.json" && content.len() <= MAX_METADATA_LEN {
        let above = names.next();
        let scope = names.next();
        // node_modules/NAME/package.json or node_modules/@SCOPE/NAME/package.json
        if above == Some("node_modules")
            || above.is_some_and(|above| above.starts_with('@')) && scope == Some("node_modules")
        {
            found.extend(parse_npm(content));
        }
    } else if content.starts_with(b"\x7fELF") {
        if let Some(info) = section(content, GO_SECTION) {
            found.extend(parse_go(info).unwrap_or_default());
        }
        if let Some(crates) = section(content, CARGO_SECTION) {
            found.extend(parse_crates(crates).unwrap_or_default());
        }
    }
}

fn package(kind: PackageKind, name: &str, version: &str) -> Package {
    Package {
        name: name.to_owned(),
        version: version.to_owned(),
        architecture: None,
        source: None,
        license: None,
        path: None,
        kind,
    }
}

/// Python's core metadata: fields, an empty line, a description.
fn parse_python(text: &str) -> Option<Package> {
    let value = |key: &str| {
        let fields = text.lines().take_while(|line| !line.is_empty());
        let mut values = fields.filter_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        let value = values.next().map(str::trim);
        value.filter(|value| !value.is_empty() && *value != "UNKNOWN")
    };
    let license = value("License-Expression").or_else(|| value("License"));
    Some(Package {
        license: license.map(str::to_owned),
        ..package(PackageKind::Python, value("Name")?, value("Version")?)
    })
}

fn parse_npm(content: &[u8]) -> Option<Package> {
    #[derive(Deserialize)]
    struct Document {
        name: String,
        version: String,
        license: Option<serde_json::Value>,
    }
    let document: Document = serde_json::from_slice(content).ok()?;
    let license = document.license.as_ref();
    // Before SPDX's expressions, it was an object.
    let license = license.and_then(|it| it.as_str().or_else(|| it.get("type")?.as_str()));
    let is_there = !document.name.is_empty() && !document.version.is_empty();
    is_there.then(|| Package {
        license: license.map(str::to_owned),
        ..package(PackageKind::Npm, &document.name, &document.version)
    })
}

/// Go's build information: the version of Go, and lines of `mod` (the program's own
/// module), `dep` and `=>` (what was taken in place of the one before).
fn parse_go(info: &[u8]) -> Option<Vec<Package>> {
    if !info.starts_with(GO_MAGIC) || info.get(15)? & GO_INLINE == 0 {
        return None;
    }
    let (go, rest) = go_string(info.get(GO_HEADER_LEN..)?)?;
    let (list, _) = go_string(rest)?;
    let go = String::from_utf8_lossy(go);
    let mut found = Vec::new();
    // A development version has words of which the first is no version.
    if let Some(version) = go.split(' ').next().and_then(|it| it.strip_prefix("go")) {
        found.push(package(PackageKind::Go, "stdlib", version));
    }
    let list = list
        .len()
        .checked_sub(GO_SENTINEL_LEN)
        .and_then(|end| list.get(GO_SENTINEL_LEN..end));
    for line in String::from_utf8_lossy(list.unwrap_or_default()).lines() {
        let mut words = line.split('\t');
        let kind = words.next().unwrap_or_default();
        let (Some(name), Some(version)) = (words.next(), words.next()) else {
            continue;
        };
        match kind {
            "=>" => drop(found.pop()),
            "mod" | "dep" => {}
            _ => continue,
        }
        if !name.is_empty() {
            found.push(package(PackageKind::Go, name, version));
        }
    }
    Some(found)
}

/// A string after its length, which has seven bits a byte, the least significant
/// first.
fn go_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut len = 0_usize;
    for (index, byte) in bytes.iter().enumerate().take(4) {
        len |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return bytes.get(index + 1..)?.split_at_checked(len);
        }
    }
    None
}

/// cargo-auditable's list.
fn parse_crates(compressed: &[u8]) -> Option<Vec<Package>> {
    #[derive(Deserialize)]
    struct Document {
        packages: Vec<Crate>,
    }
    #[derive(Deserialize)]
    struct Crate {
        name: String,
        version: String,
        #[serde(default)]
        kind: String,
    }
    let mut text = Vec::new();
    let mut decoder = ZlibDecoder::new(compressed).take(MAX_CRATES_LEN);
    decoder.read_to_end(&mut text).ok()?;
    let document: Document = serde_json::from_slice(&text).ok()?;
    // What only the build needed is not in the program.
    let crates = document.packages.iter().filter(|it| it.kind != "build");
    Some(
        crates
            .map(|it| package(PackageKind::Cargo, &it.name, &it.version))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::elf::elf_file;
    use crate::packages::tests::tree;

    fn go_info(version: &str, list: &str) -> Vec<u8> {
        let mut info = GO_MAGIC.to_vec();
        info.extend([8, GO_INLINE]);
        info.resize(GO_HEADER_LEN, 0);
        let list = format!("{0}{list}{0}", "0123456789abcdef");
        for text in [version, list.as_str()] {
            let len = text.len();
            info.push(0x80 | u8::try_from(len & 0x7f).unwrap());
            info.push(u8::try_from(len >> 7).unwrap());
            info.extend(text.as_bytes());
        }
        info
    }

    #[test]
    fn every_language_is_read_with_the_file_that_says_so() {
        let list = "path\texample.org/web\nmod\texample.org/web\t(devel)\t\n\
                    dep\tgolang.org/x/net\tv0.1.0\th1:x=\n=>\texample.org/net\tv0.2.0\th1:y=\n\
                    dep\texample.org/b\tv1.0.0\th1:z=\nbuild\t-compiler=gc\n";
        let go = elf_file(&[(".go.buildinfo", &go_info("go1.22.1 X:x", list))]);
        let mut crates = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        let text = r#"{"packages":[{"name":"serde","version":"1.0.1","source":"crates.io"},
            {"name":"cc","version":"1.0.0","source":"crates.io","kind":"build"}]}"#;
        crates.write_all(text.as_bytes()).unwrap();
        let rust = elf_file(&[(".text", b"x"), (".dep-v0", &crates.finish().unwrap())]);
        let python =
            b"Metadata-Version: 2.1\nName: Flask_X\nVersion: 3.0\nLicense: BSD\n\nName: no\n";
        let site = "usr/lib/python3/site-packages";
        let tree = tree(&[
            ("bin/web", &go),
            ("bin/tool", &rust),
            (&format!("{site}/flask_x-3.0.dist-info/METADATA"), python),
            (&format!("{site}/old.egg-info"), b"Name: old\nVersion: 1\n"),
            ("app/METADATA", b"Name: none\nVersion: 1\n"),
            (
                "app/node_modules/@a/b/package.json",
                br#"{"name":"@a/b","version":"2.0.0","license":{"type":"MIT"}}"#,
            ),
            (
                "app/node_modules/c/package.json",
                br#"{"name":"c","version":"1.0.0","license":"ISC"}"#,
            ),
            (
                "app/node_modules/c/lib/package.json",
                br#"{"name":"d","version":"1"}"#,
            ),
            ("app/node_modules/e/package.json", br#"{"type":"module"}"#),
        ]);
        let found = language_packages(&tree);
        let rows: Vec<_> = found
            .iter()
            .map(|it| {
                let license = it.license.as_deref().unwrap_or("-");
                let path = it.path.as_deref().unwrap();
                format!("{} {} {license} {path}", it.name, it.version)
            })
            .collect();
        let expected = [
            "@a/b 2.0.0 MIT /app/node_modules/@a/b/package.json",
            "Flask_X 3.0 BSD /usr/lib/python3/site-packages/flask_x-3.0.dist-info/METADATA",
            "c 1.0.0 ISC /app/node_modules/c/package.json",
            "example.org/b v1.0.0 - /bin/web",
            "example.org/net v0.2.0 - /bin/web",
            "example.org/web (devel) - /bin/web",
            "old 1 - /usr/lib/python3/site-packages/old.egg-info",
            "serde 1.0.1 - /bin/tool",
            "stdlib 1.22.1 - /bin/web",
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn damaged_programs_say_nothing() {
        let info = go_info("go1.22.1", "mod\texample.org/web\tv1.0.0\t\n");
        let whole = parse_go(&info).unwrap();
        assert_eq!(whole.len(), 2);
        for cut in 0..info.len() {
            assert!(parse_go(&info[..cut]).is_none(), "{cut}");
        }
        for bytes in [b"".as_slice(), b"x\x9c", &[0; 100]] {
            assert!(parse_crates(bytes).is_none());
        }
    }
}
