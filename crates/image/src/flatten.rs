//! OCI layers to one tree (image-spec 1.1, `layer.md`).
//!
//! Modification times, device nodes and extended attributes other than
//! `security.capability` are dropped: none of them may change what a guest is
//! measured as, and a guest makes its own devices.

use std::borrow::Cow;
use std::io::{self, Read as _, Write};

use assay_tee::Sha256Digest;
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use tar::EntryType;

use crate::oci::LayerCompression;
use crate::tarball::Owner;
use crate::tree::{Content, Entries, Inode, InodeId, Metadata, ResolveError, Tree};

/// Most bytes that one layer may have once uncompressed. A few kilobytes can
/// claim to be terabytes.
const MAX_LAYER_LEN: u64 = 8 << 30;
/// Bytes that are uncompressed at a time.
const UNCOMPRESS_PIECE: usize = 64 * 1024;
/// Longest file name of Linux.
const MAX_NAME_LEN: usize = 255;
/// Longest path of Linux, for symbolic links' targets.
const MAX_TARGET_LEN: usize = 4095;
/// Largest `security.capability` (`struct vfs_ns_cap_data`, 24 bytes, and room).
const MAX_CAPABILITY_LEN: usize = 64;

/// Prefix of an entry that removes the rest of its name from lower layers.
const WHITEOUT: &[u8] = b".wh.";
/// Name of an entry that hides its directory's content of lower layers.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// pax record of the extended attribute that is kept.
const PAX_CAPABILITY: &[u8] = b"SCHILY.xattr.security.capability";
/// Prefix of pax records of files with holes, which are stored differently.
const PAX_SPARSE: &[u8] = b"GNU.sparse.";

/// Directories that a guest mounts over, and the mode to make them with. What an
/// image has in the first four is of its build, not of its content.
const MOUNT_POINTS: [(&str, u32, bool); 5] = [
    ("proc", 0o555, true),
    ("sys", 0o555, true),
    ("dev", 0o755, true),
    ("run", 0o755, true),
    ("tmp", 0o1777, false),
];

/// Layers that cannot be flattened.
#[derive(Debug, thiserror::Error)]
pub enum FlattenError {
    /// A layer cannot be uncompressed.
    #[error("layer {layer}: cannot uncompress")]
    Uncompress {
        /// Position, from 0.
        layer: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An uncompressed layer cannot be written.
    #[error("layer {layer}: cannot write what it uncompresses to")]
    Write {
        /// Position, from 0.
        layer: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A layer is larger than [`MAX_LAYER_LEN`].
    #[error("layer {layer}: more than {MAX_LAYER_LEN} bytes uncompressed")]
    TooLarge {
        /// Position, from 0.
        layer: usize,
    },
    /// A layer's content is not what the configuration says.
    #[error("layer {layer}: uncompressed digest is {actual}, the configuration says {expected}")]
    DiffId {
        /// Position, from 0.
        layer: usize,
        /// `rootfs.diff_ids` of the configuration.
        expected: Sha256Digest,
        /// Digest of the bytes.
        actual: Sha256Digest,
    },
    /// The configuration and the manifest name different numbers of layers.
    #[error("the configuration names {expected} layers, the manifest {actual}")]
    LayerCount {
        /// Number of diff_ids.
        expected: usize,
        /// Number of layers.
        actual: usize,
    },
    /// A layer is not a tar archive.
    #[error("layer {layer}: cannot read the tar archive")]
    Tar {
        /// Position, from 0.
        layer: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An entry cannot be part of a tree.
    #[error("layer {layer}: entry {path:?} {problem}")]
    Entry {
        /// Position, from 0.
        layer: usize,
        /// Path of the entry.
        path: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// An entry's place cannot be found.
    #[error("layer {layer}: cannot place an entry")]
    Place {
        /// Position, from 0.
        layer: usize,
        /// Why.
        #[source]
        source: ResolveError,
    },
}

/// A layer as it is stored.
#[derive(Debug, Clone)]
pub struct StoredLayer {
    /// The bytes.
    pub bytes: Bytes,
    /// How they are compressed.
    pub compression: LayerCompression,
}

/// Applies layers, lowest first, each checked against its uncompressed digest.
pub fn flatten(layers: &[StoredLayer], diff_ids: &[Sha256Digest]) -> Result<Tree, FlattenError> {
    if layers.len() != diff_ids.len() {
        return Err(FlattenError::LayerCount {
            expected: diff_ids.len(),
            actual: layers.len(),
        });
    }
    let mut tree = Tree::new();
    for (index, (stored, expected)) in layers.iter().zip(diff_ids).enumerate() {
        let bytes = stored.uncompress(index)?;
        let actual = Sha256Digest::of(&bytes);
        if actual != *expected {
            return Err(FlattenError::DiffId {
                layer: index,
                expected: *expected,
                actual,
            });
        }
        apply(&mut tree, index, &bytes)?;
    }
    Ok(tree)
}

/// Prepares a workload's tree for being a guest's root: its root directory is
/// 0755 and root's, and directories that the guest mounts over exist and are
/// empty.
pub fn prepare_root(tree: &mut Tree) {
    tree.inode_mut(Tree::ROOT).metadata = Metadata::root(0o755);
    for (name, mode, empty) in MOUNT_POINTS {
        let id = tree.make_directory(Tree::ROOT, &Bytes::from_static(name.as_bytes()), mode);
        if empty && let Some(entries) = tree.entries_mut(id) {
            entries.clear();
        }
    }
}

impl StoredLayer {
    /// Writes the tar archive of the layer at position `layer` to `out`.
    ///
    /// # Errors
    /// When it cannot be uncompressed or written, or has more than 8 GiB.
    pub fn uncompress_to(&self, layer: usize, out: &mut impl Write) -> Result<(), FlattenError> {
        let uncompress_error = |source| FlattenError::Uncompress { layer, source };
        let stored = self.bytes.as_ref();
        let mut plain: Box<dyn io::Read + '_> = match self.compression {
            LayerCompression::None => Box::new(stored),
            LayerCompression::Gzip => Box::new(MultiGzDecoder::new(stored)),
            LayerCompression::Zstd => {
                Box::new(zstd::stream::read::Decoder::new(stored).map_err(uncompress_error)?)
            }
        };
        let mut piece = vec![0; UNCOMPRESS_PIECE];
        let mut length = 0_u64;
        loop {
            let piece = match plain.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(read) => piece.get(..read).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(uncompress_error(error)),
            };
            length = length.saturating_add(piece.len() as u64);
            if length > MAX_LAYER_LEN {
                return Err(FlattenError::TooLarge { layer });
            }
            out.write_all(piece)
                .map_err(|source| FlattenError::Write { layer, source })?;
        }
    }

    /// The tar archive, in memory.
    fn uncompress(&self, layer: usize) -> Result<Bytes, FlattenError> {
        if self.compression == LayerCompression::None {
            return Ok(self.bytes.clone());
        }
        let mut plain = Vec::new();
        self.uncompress_to(layer, &mut plain)?;
        plain.shrink_to_fit();
        Ok(plain.into())
    }
}

/// An archive member, read but not applied.
struct Member {
    /// Components of the parent's path.
    parent: Vec<u8>,
    /// Last component; empty for the root directory.
    name: Bytes,
    path: String,
    metadata: Metadata,
    kind: MemberKind,
}

enum MemberKind {
    Directory,
    File(Bytes),
    Symlink(Bytes),
    HardLink(Vec<u8>),
    Whiteout(Bytes),
    Opaque,
}

/// Applies one layer. Whiteouts hide lower layers only, wherever they stand in
/// the archive, so they all go first.
fn apply(tree: &mut Tree, layer: usize, bytes: &Bytes) -> Result<(), FlattenError> {
    let members = read_members(layer, bytes)?;
    let place = |source| FlattenError::Place { layer, source };
    for member in &members {
        let hide = match &member.kind {
            MemberKind::Whiteout(name) => Some(name),
            MemberKind::Opaque => None,
            _ => continue,
        };
        let Some(directory) = tree.lookup(&member.parent).map_err(place)? else {
            continue;
        };
        if let Some(entries) = tree.entries_mut(directory) {
            match hide {
                Some(name) => drop(entries.remove(name)),
                None => entries.clear(),
            }
        }
    }
    for member in members {
        place_member(tree, layer, member)?;
    }
    Ok(())
}

fn place_member(tree: &mut Tree, layer: usize, member: Member) -> Result<(), FlattenError> {
    let entry_error = |problem| FlattenError::Entry {
        layer,
        path: member.path.clone(),
        problem,
    };
    let place = |source| FlattenError::Place { layer, source };
    if member.name.is_empty() {
        return match member.kind {
            MemberKind::Directory => {
                tree.inode_mut(Tree::ROOT).metadata = member.metadata;
                Ok(())
            }
            MemberKind::Whiteout(_) | MemberKind::Opaque => Ok(()),
            _ => Err(entry_error("would replace the root directory")),
        };
    }
    let content = match member.kind {
        MemberKind::Whiteout(_) | MemberKind::Opaque => return Ok(()),
        MemberKind::HardLink(ref target) => {
            let id = hard_link_target(tree, target)
                .map_err(place)?
                .ok_or_else(|| entry_error("is a hard link to what is not there or no file"))?;
            let parent = tree.resolve_or_create(&member.parent).map_err(place)?;
            if let Some(entries) = tree.entries_mut(parent) {
                entries.insert(member.name, id);
            }
            return Ok(());
        }
        MemberKind::Directory => Content::Directory(Entries::new()),
        MemberKind::File(ref content) => Content::File(content.clone()),
        MemberKind::Symlink(ref target) => Content::Symlink(target.clone()),
    };
    let parent = tree.resolve_or_create(&member.parent).map_err(place)?;
    // A directory over a directory changes the metadata alone; anything else
    // replaces what had the name.
    if matches!(content, Content::Directory(_))
        && let Some(id) = tree.child(parent, &member.name)
        && tree.entries(id).is_some()
    {
        tree.inode_mut(id).metadata = member.metadata;
        return Ok(());
    }
    let id = tree.add(Inode {
        metadata: member.metadata,
        content,
    });
    if let Some(entries) = tree.entries_mut(parent) {
        entries.insert(member.name, id);
    }
    Ok(())
}

/// The file or symbolic link at `path`; only its parents are followed.
fn hard_link_target(tree: &Tree, path: &[u8]) -> Result<Option<InodeId>, ResolveError> {
    let (parent, name) = split_path(path);
    let Some(directory) = tree.lookup(parent)? else {
        return Ok(None);
    };
    Ok(tree
        .child(directory, name)
        .filter(|id| tree.entries(*id).is_none()))
}

fn split_path(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path
        .iter()
        .rposition(|byte| *byte != b'/')
        .map_or(0, |last| last + 1);
    let path = path.get(..end).unwrap_or_default();
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (
            path.get(..slash).unwrap_or_default(),
            path.get(slash + 1..).unwrap_or_default(),
        ),
        None => (&[], path),
    }
}

fn read_members(layer: usize, bytes: &Bytes) -> Result<Vec<Member>, FlattenError> {
    let tar_error = |source| FlattenError::Tar { layer, source };
    let mut archive = tar::Archive::new(bytes.as_ref());
    let mut members = Vec::new();
    for entry in archive.entries().map_err(tar_error)? {
        let mut entry = entry.map_err(tar_error)?;
        let raw_path = entry.path_bytes().into_owned();
        let path = String::from_utf8_lossy(&raw_path).into_owned();
        let entry_error = |problem| FlattenError::Entry {
            layer,
            path: path.clone(),
            problem,
        };

        let mut capability = None;
        if let Some(extensions) = entry.pax_extensions().map_err(tar_error)? {
            for extension in extensions {
                let extension = extension.map_err(tar_error)?;
                if extension.key_bytes() == PAX_CAPABILITY {
                    if extension.value_bytes().len() > MAX_CAPABILITY_LEN {
                        return Err(entry_error("has oversized file capabilities"));
                    }
                    capability = Some(Bytes::copy_from_slice(extension.value_bytes()));
                } else if extension.key_bytes().starts_with(PAX_SPARSE) {
                    return Err(entry_error(
                        "is a sparse file in pax format, which is not read",
                    ));
                }
            }
        }

        let link = || {
            entry
                .link_name_bytes()
                .map(Cow::into_owned)
                .unwrap_or_default()
        };
        let kind = match entry.header().entry_type() {
            EntryType::Directory => MemberKind::Directory,
            EntryType::Regular | EntryType::Continuous => {
                let start = usize::try_from(entry.raw_file_position()).ok();
                let len = usize::try_from(entry.size()).ok();
                let end = start
                    .zip(len)
                    .and_then(|(start, len)| start.checked_add(len));
                match (start, end) {
                    (Some(start), Some(end)) if end <= bytes.len() => {
                        MemberKind::File(bytes.slice(start..end))
                    }
                    _ => return Err(entry_error("ends after the archive")),
                }
            }
            EntryType::GNUSparse => {
                let mut content = Vec::new();
                (&mut entry)
                    .take(MAX_LAYER_LEN + 1)
                    .read_to_end(&mut content)
                    .map_err(tar_error)?;
                if content.len() as u64 > MAX_LAYER_LEN {
                    return Err(FlattenError::TooLarge { layer });
                }
                MemberKind::File(content.into())
            }
            EntryType::Symlink => match link() {
                target if (1..=MAX_TARGET_LEN).contains(&target.len()) => {
                    MemberKind::Symlink(target.into())
                }
                _ => return Err(entry_error("has an empty or oversized link target")),
            },
            EntryType::Link => MemberKind::HardLink(link()),
            EntryType::Char | EntryType::Block | EntryType::Fifo | EntryType::XGlobalHeader => {
                continue;
            }
            _ => return Err(entry_error("is of a kind that is not known")),
        };

        let header = entry.header();
        let number =
            |value: std::io::Result<u64>| value.ok().and_then(|value| u32::try_from(value).ok());
        let (Some(uid), Some(gid)) = (number(header.uid()), number(header.gid())) else {
            return Err(entry_error("has an owner outside 32 bits"));
        };
        let mode = header.mode().map_err(tar_error)? & 0o7777;
        let metadata = Metadata {
            mode,
            owner: Owner { uid, gid },
            capability,
        };

        let (parent, name) = split_path(&raw_path);
        let parent: Vec<u8> = parent.to_vec();
        if raw_path
            .split(|byte| *byte == b'/')
            .any(|component| component == b"..")
        {
            return Err(entry_error("leads out of its directory"));
        }
        if raw_path
            .split(|byte| *byte == b'/')
            .any(|component| component.len() > MAX_NAME_LEN)
        {
            return Err(entry_error("has a name of more than 255 bytes"));
        }
        if raw_path.contains(&0) {
            return Err(entry_error("has a NUL in its name"));
        }
        let (name, kind) = match name.strip_prefix(WHITEOUT) {
            _ if name == OPAQUE => (Bytes::from_static(OPAQUE), MemberKind::Opaque),
            Some(b"" | b"." | b"..") => return Err(entry_error("is a whiteout of nothing")),
            Some(hidden) => (
                Bytes::copy_from_slice(name),
                MemberKind::Whiteout(Bytes::copy_from_slice(hidden)),
            ),
            None if name == b"." => (Bytes::new(), kind),
            None => (Bytes::copy_from_slice(name), kind),
        };
        members.push(Member {
            parent,
            name,
            path,
            metadata,
            kind,
        });
    }
    Ok(members)
}

#[cfg(test)]
mod tests;
