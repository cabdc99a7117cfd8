//! The initramfs: the guest agent as `/init`, its measured configuration, the
//! kernel modules and, where no disk carries them, the workload's files; and
//! nothing else.

use std::collections::{BTreeMap, HashMap};

use assay_tee::GuestConfig;
use assay_tee::canonical::{EncodeCanonicalError, encode_canonical};
use assay_tee::guest_config::{GUEST_CONFIG_PATH, INITRAMFS_ROOT};
use bytes::Bytes;

use crate::newc::{EncodeNewcError, NewcBuilder};
use crate::rope::Rope;
use crate::tarball::Owner;
use crate::tree::{ACCESS_LISTS, CAPABILITY, Content, InodeId, Tree};

/// Path of the guest agent, which the kernel starts.
pub const AGENT_PATH: &str = "/init";

/// Directories that the agent mounts on.
const MOUNT_POINTS: [(&str, u32); 6] = [
    ("dev", 0o755),
    ("newroot", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
];

/// An initramfs that cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum EncodeInitramfsError {
    /// The configuration has no JSON form.
    #[error("cannot encode guest.json")]
    Config(#[source] EncodeCanonicalError),
    /// The archive cannot hold a file.
    #[error("cannot write the initramfs")]
    Archive(#[source] EncodeNewcError),
    /// A file has capabilities or an access list, which a cpio archive cannot hold.
    #[error(
        "layout: {path:?} has the extended attribute {attribute}, which an initramfs cannot hold; \
         use the layout DmVerity, or remove it from the image (setcap -r, setfacl -b)"
    )]
    Attribute {
        /// Its name.
        attribute: String,
        /// Path in the image.
        path: String,
    },
}

/// Where a module of the boot kit lies in the initramfs.
pub fn module_path(release: &str, path: &str) -> String {
    format!("/lib/modules/{release}/{path}")
}

/// Writes the initramfs. `modules` are paths from [`module_path`] with content,
/// `rootfs` is what goes to [`INITRAMFS_ROOT`].
pub fn encode_initramfs(
    agent: &Bytes,
    config: &GuestConfig,
    modules: &[(String, Bytes)],
    rootfs: Option<&Tree>,
) -> Result<Rope, EncodeInitramfsError> {
    let config = encode_canonical(config).map_err(EncodeInitramfsError::Config)?;
    // Sorted, so that a directory precedes what is in it.
    let mut entries: BTreeMap<&str, (u32, Option<Bytes>)> = BTreeMap::new();
    entries.insert(relative(AGENT_PATH), (0o755, Some(agent.clone())));
    entries.insert(relative(GUEST_CONFIG_PATH), (0o444, Some(config.into())));
    for (path, content) in modules {
        entries.insert(relative(path), (0o444, Some(content.clone())));
    }
    let files: Vec<&str> = entries.keys().copied().collect();
    for path in files {
        for (slash, _) in path.match_indices('/') {
            if let Some(parent) = path.get(..slash) {
                entries.entry(parent).or_insert((0o755, None));
            }
        }
    }
    for (path, mode) in MOUNT_POINTS {
        entries.insert(path, (mode, None));
    }

    let mut archive = NewcBuilder::new();
    for (path, (mode, content)) in entries {
        match content {
            Some(content) => archive.file(path, mode, Owner::ROOT, content),
            None => archive.directory(path, mode, Owner::ROOT),
        }
        .map_err(EncodeInitramfsError::Archive)?;
    }
    if let Some(tree) = rootfs {
        append_tree(&mut archive, tree)?;
    }
    Ok(archive.finish())
}

/// Adds a tree below [`INITRAMFS_ROOT`]: the directories, each before what is in
/// it, then everything else, all names of a file together. A symbolic link with
/// several names becomes several links, as cpio has no other.
fn append_tree(archive: &mut NewcBuilder, tree: &Tree) -> Result<(), EncodeInitramfsError> {
    let mut order = Vec::new();
    let mut names: HashMap<InodeId, Vec<Vec<u8>>> = HashMap::new();
    let mut pending = vec![(relative(INITRAMFS_ROOT).as_bytes().to_vec(), Tree::ROOT)];
    while let Some((path, id)) = pending.pop() {
        let inode = tree.inode(id);
        let (mode, owner) = (inode.metadata.mode, inode.metadata.owner);
        let decides = |name: &Bytes| name == CAPABILITY || ACCESS_LISTS.contains(&name.as_ref());
        if let Some(attribute) = inode.metadata.attributes.keys().find(|name| decides(name)) {
            let inside = path.get(INITRAMFS_ROOT.len() - 1..).unwrap_or_default();
            return Err(EncodeInitramfsError::Attribute {
                attribute: String::from_utf8_lossy(attribute).into_owned(),
                path: String::from_utf8_lossy(inside).into_owned(),
            });
        }
        if let Content::Directory(entries) = &inode.content {
            archive
                .directory(&path, mode, owner)
                .map_err(EncodeInitramfsError::Archive)?;
            // The stack is emptied from its end.
            for (name, child) in entries.iter().rev() {
                pending.push(([&path, b"/".as_slice(), name].concat(), *child));
            }
            continue;
        }
        let known = names.entry(id).or_default();
        if known.is_empty() {
            order.push(id);
        }
        known.push(path);
    }
    for id in order {
        let inode = tree.inode(id);
        let (mode, owner) = (inode.metadata.mode, inode.metadata.owner);
        let paths = names.remove(&id).unwrap_or_default();
        match &inode.content {
            Content::File(content) => archive
                .linked_file(&paths, mode, owner, content.clone())
                .map(drop),
            Content::Symlink(target) => paths
                .iter()
                .try_for_each(|path| archive.symlink(path, mode, owner, target.clone()).map(drop)),
            Content::Directory(_) => Ok(()),
        }
        .map_err(EncodeInitramfsError::Archive)?;
    }
    Ok(())
}

fn relative(path: &str) -> &str {
    path.trim_start_matches('/')
}

#[cfg(test)]
mod tests;
