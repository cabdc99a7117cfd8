//! A file tree in memory: what packages unpack to and layers are packed from.
//! Owners are always root and times always zero, so only names, permission
//! bits and content matter.

use anyhow::{Context, Result, bail};
use assay_image::oci::Layer;
use assay_image::tarball::{Owner, TarBuilder};
use object::elf::{DT_NEEDED, FileHeader64};
use object::endian::LittleEndian;
use object::read::elf::{Dyn as _, FileHeader as _};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

/// Where Debian's libraries are on amd64.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Directory { mode: u32 },
    File { mode: u32, content: Vec<u8> },
    Symlink { target: String },
}

/// Paths are relative, without a trailing slash. Directories that a path needs
/// are added when the tree is packed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// Adds what a tar archive holds. Hard links become copies; anything that
    /// is neither file, directory nor link is an error.
    pub(crate) fn extend_from_tar(&mut self, archive: impl Read) -> Result<()> {
        for entry in tar::Archive::new(archive)
            .entries()
            .context("read the archive")?
        {
            let mut entry = entry.context("read an entry of the archive")?;
            let path = entry.path().context("read the path of an entry")?;
            let path = merged(
                path.to_str()
                    .context("a path in the archive is not UTF-8")?,
            );
            if path.is_empty() {
                continue;
            }
            // Set-id bits mean nothing where nobody may gain privileges.
            let mode = entry.header().mode().context("read the mode of an entry")? & 0o777;
            let link = entry.link_name().context("read the target of a link")?;
            let link = link.as_deref().and_then(Path::to_str).map(str::to_owned);
            let node = match (entry.header().entry_type(), link) {
                (tar::EntryType::Directory, _) => Node::Directory { mode },
                (tar::EntryType::Regular | tar::EntryType::GNUSparse, _) => {
                    let mut content = Vec::new();
                    entry
                        .read_to_end(&mut content)
                        .with_context(|| format!("unpack {path}"))?;
                    Node::File { mode, content }
                }
                (tar::EntryType::Symlink, Some(target)) => Node::Symlink { target },
                (tar::EntryType::Link, Some(target)) => self
                    .nodes
                    .get(&merged(&target))
                    .with_context(|| format!("{path} links to {target}, which is not there"))?
                    .clone(),
                (kind, _) => bail!("{path} is of the unexpected kind {kind:?}"),
            };
            self.nodes.insert(path, node);
        }
        Ok(())
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> &mut Self {
        self.nodes.insert(
            path.to_owned(),
            Node::File {
                mode,
                content: content.into(),
            },
        );
        self
    }

    pub(crate) fn directory(&mut self, path: &str, mode: u32) -> &mut Self {
        self.nodes.insert(path.to_owned(), Node::Directory { mode });
        self
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.nodes.insert(
            path.to_owned(),
            Node::Symlink {
                target: target.to_owned(),
            },
        );
        self
    }

    pub(crate) fn paths(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    /// A file's content, following links.
    pub(crate) fn read(&self, path: &str) -> Result<&[u8]> {
        let path = self.resolve(path)?;
        match self.nodes.get(&path) {
            Some(Node::File { content, .. }) => Ok(content),
            _ => bail!("{path} is not a file"),
        }
    }

    /// Copies a path from another tree with the links on its way, under the
    /// same name.
    pub(crate) fn take(&mut self, from: &Self, path: &str) -> Result<()> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            let node = from
                .nodes
                .get(&path)
                .with_context(|| format!("there is no {path}"))?;
            self.nodes.insert(path.clone(), node.clone());
            let Node::Symlink { target } = node else {
                return Ok(());
            };
            path = beside(&path, target);
        }
        bail!("too many links at {path}")
    }

    /// Copies every path that `wanted` accepts. Links are copied as they are.
    pub(crate) fn take_all(&mut self, from: &Self, wanted: impl Fn(&str) -> bool) {
        for (path, node) in from.nodes.iter().filter(|(path, _)| wanted(path)) {
            self.nodes.insert(path.clone(), node.clone());
        }
    }

    /// Copies a program together with its dynamic loader and every library that
    /// it or its libraries name.
    pub(crate) fn take_program(&mut self, from: &Self, path: &str) -> Result<()> {
        self.take(from, path)?;
        let mut waiting = vec![path.to_owned()];
        let mut seen = BTreeSet::new();
        while let Some(path) = waiting.pop() {
            for library in needed_libraries(from.read(&path)?)
                .with_context(|| format!("read the libraries of {path}"))?
            {
                if seen.insert(library.clone()) {
                    let library = format!("{LIBRARIES}/{library}");
                    self.take(from, &library)
                        .with_context(|| format!("{path} needs it"))?;
                    waiting.push(library);
                }
            }
        }
        // The loader is named by a path of the ABI, not as a library.
        self.take(from, "usr/lib64/ld-linux-x86-64.so.2")?;
        for (link, target) in [("lib", "usr/lib"), ("lib64", "usr/lib64")] {
            self.symlink(link, target);
        }
        Ok(())
    }

    /// Packs the tree.
    pub(crate) fn to_tar(&self) -> assay_image::rope::Rope {
        let mut all: BTreeMap<&str, Option<&Node>> = BTreeMap::new();
        for (path, node) in &self.nodes {
            for (at, _) in path.match_indices('/') {
                all.entry(&path[..at]).or_insert(None);
            }
            all.insert(path, Some(node));
        }
        let mut tar = TarBuilder::new();
        for (path, node) in all {
            match node {
                None => tar.directory(path, 0o755, Owner::ROOT),
                Some(Node::Directory { mode }) => tar.directory(path, *mode, Owner::ROOT),
                Some(Node::File { mode, content }) => {
                    tar.file(path, *mode, Owner::ROOT, content.clone())
                }
                Some(Node::Symlink { target }) => tar.symlink(path, target, Owner::ROOT),
            };
        }
        tar.finish()
    }

    /// The tree as a layer.
    pub(crate) fn to_layer(&self) -> Layer {
        Layer::tar(self.to_tar())
    }

    /// Writes the tree below `dir`, for programs that want it on disk.
    pub(crate) fn write_to(&self, dir: &Path) -> Result<()> {
        let write = |node: &Node, path: &Path| -> std::io::Result<()> {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            let mode = match node {
                Node::Symlink { target } => return symlink(target, path),
                Node::Directory { mode } => {
                    fs::create_dir_all(path)?;
                    mode
                }
                Node::File { mode, content } => {
                    fs::write(path, content)?;
                    mode
                }
            };
            fs::set_permissions(path, fs::Permissions::from_mode(*mode))
        };
        for (path, node) in &self.nodes {
            let path = dir.join(path);
            write(node, &path).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }

    /// The path that `path` ends at when its links are followed.
    fn resolve(&self, path: &str) -> Result<String> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            match self.nodes.get(&path) {
                Some(Node::Symlink { target }) => path = beside(&path, target),
                Some(_) => return Ok(path),
                None => bail!("there is no {path}"),
            }
        }
        bail!("too many links at {path}")
    }
}

/// As many as Linux follows.
const MAX_LINKS: usize = 40;

/// The relative path of an entry, with the directories that Debian merged into
/// `usr` in their place.
fn merged(path: &str) -> String {
    let path = path.trim_start_matches("./").trim_matches('/');
    match path.split('/').next() {
        Some("bin" | "sbin" | "lib" | "lib64") => format!("usr/{path}"),
        _ => path.to_owned(),
    }
}

/// The path that a link at `path` to `target` names.
fn beside(path: &str, target: &str) -> String {
    let mut parts: Vec<&str> = if target.starts_with('/') {
        Vec::new()
    } else {
        path.split('/').collect()
    };
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    merged(&parts.join("/"))
}

/// The names of an ELF file's `DT_NEEDED` entries.
fn needed_libraries(content: &[u8]) -> Result<Vec<String>> {
    let header = FileHeader64::<LittleEndian>::parse(content).context("read the ELF header")?;
    let endian = header.endian().context("read the byte order")?;
    let sections = header
        .sections(endian, content)
        .context("read the sections")?;
    let Some((dynamic, link)) = sections
        .dynamic(endian, content)
        .context("read the dynamic section")?
    else {
        return Ok(Vec::new());
    };
    let strings = sections
        .strings(endian, content, link)
        .context("read the strings")?;
    dynamic
        .iter()
        .filter(|entry| entry.tag(endian) == DT_NEEDED)
        .map(|entry| {
            let name = entry
                .string(endian, strings)
                .context("read a library's name")?;
            Ok(String::from_utf8_lossy(name).into_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(build: impl FnOnce(&mut TarBuilder)) -> Vec<u8> {
        let mut tar = TarBuilder::new();
        build(&mut tar);
        tar.finish().to_bytes().to_vec()
    }

    #[test]
    fn unpacking_merges_usr_and_resolves_links() {
        let archive = packed(|tar| {
            tar.directory("./lib", 0o755, Owner::ROOT)
                .file("./lib/a.so.1.2", 0o4755, Owner::ROOT, b"a".to_vec())
                .symlink("./lib/a.so.1", "a.so.1.2", Owner::ROOT)
                .symlink("./usr/a", "/lib/a.so.1", Owner::ROOT)
                .hard_link("./usr/b", "lib/a.so.1.2");
        });
        let mut tree = Tree::default();
        tree.extend_from_tar(archive.as_slice()).unwrap();
        assert_eq!(tree.read("usr/a").unwrap(), b"a");
        assert_eq!(tree.read("usr/b").unwrap(), b"a");
        assert_eq!(
            tree.nodes["usr/lib/a.so.1.2"],
            Node::File {
                mode: 0o755,
                content: b"a".to_vec()
            }
        );

        let mut copy = Tree::default();
        copy.take(&tree, "usr/a").unwrap();
        let paths: Vec<_> = copy.paths().collect();
        assert_eq!(paths, ["usr/a", "usr/lib/a.so.1", "usr/lib/a.so.1.2"]);
        assert!(copy.take(&tree, "usr/c").is_err());
    }

    #[test]
    fn a_loop_of_links_is_an_error() {
        let mut tree = Tree::default();
        tree.symlink("a", "b").symlink("b", "a");
        assert!(tree.read("a").is_err());
        assert!(Tree::default().take(&tree, "a").is_err());
    }

    #[test]
    fn packing_adds_parents_first_and_is_the_same_every_time() {
        let mut tree = Tree::default();
        tree.file("a/b/c", 0o644, b"1".to_vec())
            .directory("a/b", 0o700);
        let mut again = Tree::default();
        again
            .extend_from_tar(tree.to_tar().to_bytes().as_ref())
            .unwrap();
        let paths: Vec<_> = again.paths().collect();
        assert_eq!(paths, ["a", "a/b", "a/b/c"]);
        assert_eq!(again.nodes["a/b"], Node::Directory { mode: 0o700 });
        assert_eq!(tree.to_tar().to_bytes(), again.to_tar().to_bytes());
    }

    #[test]
    fn an_own_program_names_no_library_it_does_not_need() {
        let own = fs::read("/proc/self/exe").unwrap();
        // Static, as everything that this workspace builds.
        assert_eq!(needed_libraries(&own).unwrap(), Vec::<String>::new());
        assert!(needed_libraries(b"no ELF file").is_err());
    }
}
