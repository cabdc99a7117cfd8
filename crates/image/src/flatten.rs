//! OCI layers to one tree (image-spec 1.1, `layer.md`).
//!
//! Modification times, device nodes and the extended attributes of overlayfs and of
//! the host's root are dropped: none of them may change what a guest is measured as,
//! and a guest makes its own devices.

mod archive;
mod member;
mod sparse;

use std::collections::BTreeSet;
use std::io::{self, Write};

use assay_tee::Sha256Digest;
use bytes::Bytes;
use flate2::read::MultiGzDecoder;

use self::archive::ReadArchiveError;
use self::member::{Member, MemberKind, read_members};
use crate::oci::LayerCompression;
use crate::tree::{Content, Entries, Inode, InodeId, Metadata, ResolveError, Tree};

/// Most bytes that one layer may have once uncompressed. A few kilobytes can
/// claim to be terabytes.
const MAX_LAYER_LEN: u64 = 8 << 30;
/// Bytes that are uncompressed at a time.
const UNCOMPRESS_PIECE: usize = 64 * 1024;
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
        source: ReadArchiveError,
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
    /// A hard link to nothing that is kept.
    #[error(
        "layer {layer}: entry {path:?} is a hard link to {target:?}, which is no file of this \
         layer before it, or of a lower one that the layer keeps"
    )]
    HardLink {
        /// Position, from 0.
        layer: usize,
        /// Path of the entry.
        path: String,
        /// What it is a link to.
        target: String,
    },
    /// An entry's place cannot be found.
    #[error("layer {layer}: cannot place entry {path:?}")]
    Place {
        /// Position, from 0.
        layer: usize,
        /// Path of the entry.
        path: String,
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

/// Makes the directory that a process starts in, where the image lacks it, as
/// container runtimes do.
///
/// # Errors
/// When something else is there.
pub fn prepare_working_directory(tree: &mut Tree, path: &str) -> Result<(), ResolveError> {
    tree.resolve_or_create(path.as_bytes()).map(drop)
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

/// Applies one layer. Whiteouts hide lower layers only, wherever they stand in
/// the archive, so they all go first.
fn apply(tree: &mut Tree, layer: usize, bytes: &Bytes) -> Result<(), FlattenError> {
    let members = read_members(layer, bytes)?;
    let place = |member: &Member| {
        let path = member.path.clone();
        |source| FlattenError::Place {
            layer,
            path,
            source,
        }
    };
    let replaced = replaced_directories(tree, &members);
    for member in &members {
        let hide = match &member.kind {
            MemberKind::Whiteout(name) => Some(name),
            MemberKind::Opaque => None,
            _ => continue,
        };
        // Of lower layers there is nothing in a directory that takes the place of a
        // link, and what the link leads to is not meant.
        if prefixes(&member.parent).any(|path| replaced.contains(path)) {
            continue;
        }
        let found = tree.lookup(&member.parent).map_err(place(member))?;
        if let Some(entries) = found.and_then(|directory| tree.entries_mut(directory)) {
            match hide {
                Some(name) => drop(entries.remove(name)),
                None => entries.clear(),
            }
        }
    }
    let mut devices = BTreeSet::new();
    for member in members {
        let place = place(&member);
        place_member(tree, layer, member, &mut devices).map_err(|error| match error {
            PlaceError::Resolve(source) => place(source),
            PlaceError::Entry(error) => error,
        })?;
    }
    Ok(())
}

/// Paths of directories of a layer where lower ones have something else.
fn replaced_directories(tree: &Tree, members: &[Member]) -> BTreeSet<Vec<u8>> {
    let directories = members.iter().filter(|member| {
        let parent = tree.lookup(&member.parent).ok().flatten();
        let there = parent.and_then(|parent| tree.child(parent, &member.name));
        matches!(member.kind, MemberKind::Directory)
            && there.is_some_and(|id| tree.entries(id).is_none())
    });
    directories.map(Member::place).collect()
}

/// A path and all above it.
fn prefixes(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    let above = slashes.filter_map(|(at, _)| path.get(..at));
    above.chain([path])
}

/// Why a member has no place.
enum PlaceError {
    Resolve(ResolveError),
    Entry(FlattenError),
}

impl From<ResolveError> for PlaceError {
    fn from(error: ResolveError) -> Self {
        Self::Resolve(error)
    }
}

/// `devices` are the paths of what the layer has and a tree does not.
fn place_member(
    tree: &mut Tree,
    layer: usize,
    member: Member,
    devices: &mut BTreeSet<Vec<u8>>,
) -> Result<(), PlaceError> {
    if member.name.is_empty() {
        return match member.kind {
            MemberKind::Directory => {
                tree.inode_mut(Tree::ROOT).metadata = member.metadata;
                Ok(())
            }
            MemberKind::Whiteout(_) | MemberKind::Opaque => Ok(()),
            _ => Err(PlaceError::Entry(FlattenError::Entry {
                layer,
                path: member.path,
                problem: "would replace the root directory",
            })),
        };
    }
    let is_device = match &member.kind {
        MemberKind::Device => true,
        MemberKind::HardLink(target) => devices.contains(target),
        _ => false,
    };
    if is_device {
        // It takes the place of what has its name.
        let parent = tree.resolve_or_create(&member.parent)?;
        if let Some(entries) = tree.entries_mut(parent) {
            entries.remove(&member.name);
        }
        devices.insert(member.place());
        return Ok(());
    }
    let content = match member.kind {
        MemberKind::Whiteout(_) | MemberKind::Opaque | MemberKind::Device => return Ok(()),
        MemberKind::HardLink(target) => {
            let id = hard_link_target(tree, &target)?.ok_or_else(|| {
                PlaceError::Entry(FlattenError::HardLink {
                    layer,
                    path: member.path,
                    target: String::from_utf8_lossy(&target).into_owned(),
                })
            })?;
            let parent = tree.resolve_or_create(&member.parent)?;
            if let Some(entries) = tree.entries_mut(parent) {
                entries.insert(member.name, id);
            }
            return Ok(());
        }
        MemberKind::Directory => Content::Directory(Entries::new()),
        MemberKind::File(content) => Content::File(content),
        MemberKind::Symlink(target) => Content::Symlink(target),
    };
    let parent = tree.resolve_or_create(&member.parent)?;
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
    let (parent, name) = member::split_path(path);
    let Some(directory) = tree.lookup(parent)? else {
        return Ok(None);
    };
    Ok(tree
        .child(directory, name)
        .filter(|id| tree.entries(*id).is_none()))
}

#[cfg(test)]
mod tests;
