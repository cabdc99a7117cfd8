//! An erofs image from a [`Tree`] (Linux `fs/erofs/erofs_fs.h`).
//!
//! Deliberately the simplest form that the format has: 4 KiB blocks, extended
//! inodes, flat plain data, no inline tails. Without compression the bytes follow
//! from the tree alone and do not depend on the version of any tool, and a guest
//! needs no decompressor to mount them. With it they depend on the codec's
//! version too, which `Cargo.lock` pins.
//!
//! File content is not copied: the image refers to the tree's bytes, and what is
//! compressed to bytes that somebody else keeps.

mod compress;
pub(crate) mod walk;

use std::collections::HashMap;

use bytes::Bytes;

use self::compress::{Features, Packed};
use crate::recipe::Compression;
use crate::rope::{Keep, Rope};
use crate::tree::{Content, Entries, Inode, InodeId, Tree};

/// Block size.
pub const BLOCK: u64 = 4096;
pub(crate) const BLOCK_LEN: usize = 4096;
const BLOCK_BITS: u8 = 12;

const SUPERBLOCK_OFFSET: usize = 1024;
/// `struct erofs_super_block`.
const SUPERBLOCK_LEN: usize = 128;
/// `feature_incompat` in it; `available_compr_algs` follows.
const INCOMPAT_OFFSET: usize = 80;
const MAGIC: u32 = 0xe0f5_e1e2;
/// EROFS_FEATURE_COMPAT_SB_CHKSUM and EROFS_FEATURE_COMPAT_MTIME.
const FEATURE_COMPAT: u32 = 3;
/// First block of the inodes.
const META_BLOCK: u32 = 1;

/// Unit of node numbers.
const SLOT: u64 = 32;
/// `struct erofs_inode_extended`.
const INODE_LEN: usize = 64;
/// `i_format`: extended inode, EROFS_INODE_FLAT_PLAIN.
const FORMAT_PLAIN: u16 = 1;
/// `i_format`: extended inode, EROFS_INODE_COMPRESSED_FULL.
const FORMAT_COMPRESSED: u16 = 1 | 1 << 1;

/// `struct erofs_dirent`.
const DIRENT_LEN: usize = 12;
/// `struct erofs_xattr_ibody_header`.
const XATTR_HEADER_LEN: usize = 12;
/// `struct erofs_xattr_entry`.
const XATTR_ENTRY_LEN: usize = 4;
/// What stands for the prefix of an extended attribute's name: EROFS_XATTR_INDEX_*.
const XATTR_PREFIXES: [(u8, &[u8]); 4] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (6, b"security."),
];

const S_IFDIR: u16 = 0o040_000;
const S_IFREG: u16 = 0o100_000;
const S_IFLNK: u16 = 0o120_000;

/// EROFS_FT_REG_FILE, EROFS_FT_DIR and EROFS_FT_SYMLINK.
const FT_REGULAR: u8 = 1;
const FT_DIRECTORY: u8 = 2;
const FT_SYMLINK: u8 = 7;

/// A tree that the format cannot hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeErofsError {
    /// A number does not fit its field.
    #[error("the tree is too large for erofs: {what}")]
    TooLarge {
        /// Which number.
        what: &'static str,
    },
    /// An extended attribute is of a kind that erofs has no place for.
    #[error("erofs has no place for the extended attribute {name}")]
    Attribute {
        /// Its name.
        name: String,
    },
    /// A codec fails, as it does without memory.
    #[error("cannot compress with {codec:?}: {reason}")]
    Compress {
        /// Which codec.
        codec: Compression,
        /// What it says.
        reason: String,
    },
    /// There is no room for what is compressed.
    #[error("cannot keep compressed content: {reason}")]
    Keep {
        /// Why.
        reason: String,
    },
}

fn narrow<T, U: TryFrom<T>>(value: T, what: &'static str) -> Result<U, EncodeErofsError> {
    U::try_from(value).map_err(|_| EncodeErofsError::TooLarge { what })
}

/// Writes a tree as an erofs image. Its length is a multiple of [`BLOCK`].
///
/// Every timestamp is zero. `uuid` is the file system's identifier. Compressed content
/// goes to `keep`, a part at a time.
pub fn encode_erofs(
    tree: &Tree,
    uuid: [u8; 16],
    compression: Compression,
    keep: &dyn Keep,
) -> Result<Rope, EncodeErofsError> {
    Layout::new(tree, compression, keep)?.emit(tree, uuid)
}

/// How an image says that its files are compressed; `None` for a superblock that
/// [`encode_erofs`] does not write.
pub(crate) fn parse_compression(image: &[u8]) -> Option<Compression> {
    let superblock = image.get(SUPERBLOCK_OFFSET..)?;
    let incompat = superblock.get(INCOMPAT_OFFSET..)?.first_chunk()?;
    let algorithms = superblock.get(INCOMPAT_OFFSET + 4..)?.first_chunk()?;
    Features::parse(
        u32::from_le_bytes(*incompat),
        u16::from_le_bytes(*algorithms),
    )
}

/// Where one inode goes.
struct Placed {
    id: InodeId,
    /// The directory that holds it; only directories need it.
    parent: InodeId,
    links: u32,
    /// Slot of the inode: its node number.
    nid: u64,
    size: u64,
    /// First block of the content; 0 when it is empty.
    block: u32,
    /// The content of a compressed file.
    packed: Option<Packed>,
}

impl Placed {
    fn blocks(&self) -> u64 {
        match &self.packed {
            Some(packed) => u64::from(packed.blocks),
            None => self.size.div_ceil(BLOCK),
        }
    }
}

/// Where everything goes: inodes in the order in which a depth-first walk meets
/// them, their content in the same order.
struct Layout {
    placed: Vec<Placed>,
    index: HashMap<InodeId, usize>,
    /// Bytes of the inode area.
    meta_len: u64,
    blocks: u32,
    compression: Compression,
}

impl Layout {
    fn new(
        tree: &Tree,
        compression: Compression,
        keep: &dyn Keep,
    ) -> Result<Self, EncodeErofsError> {
        let mut layout = Self {
            placed: Vec::new(),
            index: HashMap::new(),
            meta_len: 0,
            blocks: 0,
            compression,
        };
        layout.collect(tree)?;
        layout.pack(tree, keep)?;
        layout.place_inodes(tree)?;
        layout.place_content()?;
        Ok(layout)
    }

    /// Finds every inode and counts its names. A stack, for a hostile image can
    /// nest directories deeper than any call stack.
    fn collect(&mut self, tree: &Tree) -> Result<(), EncodeErofsError> {
        let mut pending = vec![(Tree::ROOT, Tree::ROOT)];
        while let Some((id, parent)) = pending.pop() {
            if let Some(known) = self.index.get(&id) {
                if let Some(placed) = self.placed.get_mut(*known) {
                    placed.links = placed.links.saturating_add(1);
                }
                continue;
            }
            let (links, size) = match &tree.inode(id).content {
                Content::Directory(entries) => {
                    let children = entries.values().rev();
                    pending.extend(children.map(|child| (*child, id)));
                    let subdirectories = entries
                        .values()
                        .filter(|child| tree.entries(**child).is_some())
                        .count();
                    (
                        narrow(subdirectories + 2, "links of a directory")?,
                        directory_size(entries),
                    )
                }
                Content::File(content) => (1, content.len() as u64),
                Content::Symlink(target) => (1, target.len() as u64),
            };
            self.index.insert(id, self.placed.len());
            self.placed.push(Placed {
                id,
                parent,
                links,
                nid: 0,
                size,
                block: 0,
                packed: None,
            });
        }
        Ok(())
    }

    fn pack(&mut self, tree: &Tree, keep: &dyn Keep) -> Result<(), EncodeErofsError> {
        let (mut files, mut contents) = (Vec::new(), Vec::new());
        for placed in &mut self.placed {
            if let Content::File(content) = &tree.inode(placed.id).content {
                files.push(placed);
                contents.push(content);
            }
        }
        let packed = compress::pack(&contents, self.compression, keep)?;
        for (placed, packed) in files.into_iter().zip(packed) {
            placed.packed = packed;
        }
        Ok(())
    }

    fn place_inodes(&mut self, tree: &Tree) -> Result<(), EncodeErofsError> {
        let mut offset = 0_u64;
        for placed in &mut self.placed {
            let len = (INODE_LEN + xattr_len(tree.inode(placed.id))?) as u64;
            // An inode and its attributes stay within one block, where one is enough.
            if offset % BLOCK + len > BLOCK {
                offset = offset.next_multiple_of(BLOCK);
            }
            placed.nid = offset / SLOT;
            offset += len;
            if placed.packed.is_some() {
                offset += compress::map_len(offset, placed.size);
            }
            offset = offset.next_multiple_of(SLOT);
        }
        self.meta_len = offset;
        Ok(())
    }

    fn place_content(&mut self) -> Result<(), EncodeErofsError> {
        let mut block = u64::from(META_BLOCK) + self.meta_len.div_ceil(BLOCK);
        for placed in &mut self.placed {
            if placed.size > 0 {
                placed.block = narrow(block, "blocks")?;
                block += placed.blocks();
            }
        }
        self.blocks = narrow(block, "blocks")?;
        Ok(())
    }

    fn nid(&self, id: InodeId) -> u64 {
        self.index
            .get(&id)
            .and_then(|index| self.placed.get(*index))
            .map_or(0, |placed| placed.nid)
    }

    fn emit(&self, tree: &Tree, uuid: [u8; 16]) -> Result<Rope, EncodeErofsError> {
        let mut out = Rope::new();
        out.push(self.superblock(uuid));

        let mut meta = Vec::new();
        for (number, placed) in (1_u64..).zip(&self.placed) {
            let offset: usize = narrow(placed.nid * SLOT, "inodes")?;
            meta.resize(offset, 0);
            encode_inode(
                &mut meta,
                placed,
                tree.inode(placed.id),
                narrow(number, "inodes")?,
            )?;
        }
        out.push(meta);
        out.pad_to(BLOCK);

        for placed in &self.placed {
            if let Some(packed) = &placed.packed {
                packed.emit(&mut out);
                continue;
            }
            match &tree.inode(placed.id).content {
                Content::Directory(entries) => {
                    out.push(self.directory(tree, placed, entries)?);
                }
                Content::File(content) | Content::Symlink(content) => out.push(content.clone()),
            }
            out.pad_to(BLOCK);
        }
        Ok(out)
    }

    /// The first block, with `struct erofs_super_block` in it.
    fn superblock(&self, uuid: [u8; 16]) -> Vec<u8> {
        let features = Features::of(self.compression);
        let encode = |checksum: u32| {
            let mut out = vec![0; SUPERBLOCK_OFFSET];
            out.extend(MAGIC.to_le_bytes());
            out.extend(checksum.to_le_bytes());
            out.extend(FEATURE_COMPAT.to_le_bytes());
            out.push(BLOCK_BITS);
            out.push(0); // sb_extslots
            out.extend(0_u16.to_le_bytes()); // root_nid: the walk starts there
            out.extend((self.placed.len() as u64).to_le_bytes());
            out.extend([0; 8 + 4]); // epoch, fixed_nsec
            out.extend(self.blocks.to_le_bytes());
            out.extend(META_BLOCK.to_le_bytes());
            out.extend(0_u32.to_le_bytes()); // xattr_blkaddr: none is shared
            out.extend(uuid);
            out.extend([0; 16]); // volume_name
            out.extend(features.incompat.to_le_bytes());
            out.extend(features.algorithms.to_le_bytes());
            out.resize(SUPERBLOCK_OFFSET + SUPERBLOCK_LEN, 0);
            out.extend(&features.configuration);
            out.resize(BLOCK_LEN, 0);
            out
        };
        let unsummed = encode(0);
        encode(crc32c(
            unsummed.get(SUPERBLOCK_OFFSET..).unwrap_or_default(),
        ))
    }

    /// A directory's blocks: each holds its entries and then their names.
    fn directory(
        &self,
        tree: &Tree,
        placed: &Placed,
        entries: &Entries,
    ) -> Result<Bytes, EncodeErofsError> {
        let mut out = Vec::new();
        for block in directory_blocks(entries) {
            out.resize(out.len().next_multiple_of(BLOCK_LEN), 0);
            let mut name_offset = block.len() * DIRENT_LEN;
            for entry in &block {
                let (id, kind) = match entry.target {
                    Target::Itself => (placed.id, FT_DIRECTORY),
                    Target::Parent => (placed.parent, FT_DIRECTORY),
                    Target::Child(id) => (
                        id,
                        match tree.inode(id).content {
                            Content::Directory(_) => FT_DIRECTORY,
                            Content::File(_) => FT_REGULAR,
                            Content::Symlink(_) => FT_SYMLINK,
                        },
                    ),
                };
                out.extend(self.nid(id).to_le_bytes());
                out.extend(narrow::<_, u16>(name_offset, "a directory block")?.to_le_bytes());
                out.extend([kind, 0]);
                name_offset += entry.name.len();
            }
            for entry in &block {
                out.extend_from_slice(entry.name);
            }
        }
        Ok(out.into())
    }
}

/// What an entry of a directory refers to.
enum Target {
    Itself,
    Parent,
    Child(InodeId),
}

struct Dirent<'a> {
    name: &'a [u8],
    target: Target,
}

/// The entries in order, with `.` and `..` among them, split so that entries and
/// names of each part fit a block.
fn directory_blocks(entries: &Entries) -> Vec<Vec<Dirent<'_>>> {
    let mut all: Vec<_> = entries
        .iter()
        .map(|(name, id)| Dirent {
            name,
            target: Target::Child(*id),
        })
        .chain([
            Dirent {
                name: b".",
                target: Target::Itself,
            },
            Dirent {
                name: b"..",
                target: Target::Parent,
            },
        ])
        .collect();
    all.sort_by(|a, b| a.name.cmp(b.name));
    let mut blocks: Vec<Vec<_>> = Vec::new();
    let mut used = BLOCK;
    for entry in all {
        let len = (DIRENT_LEN + entry.name.len()) as u64;
        match blocks.last_mut() {
            Some(block) if used + len <= BLOCK => {
                used += len;
                block.push(entry);
            }
            _ => {
                used = len;
                blocks.push(vec![entry]);
            }
        }
    }
    blocks
}

/// Size of a directory: whole blocks, and of the last what is used.
fn directory_size(entries: &Entries) -> u64 {
    let blocks = directory_blocks(entries);
    let last = blocks.last().map_or(0, |block| {
        block
            .iter()
            .map(|entry| (DIRENT_LEN + entry.name.len()) as u64)
            .sum()
    });
    (blocks.len() as u64).saturating_sub(1) * BLOCK + last
}

/// Bytes of the inode's extended attributes.
fn xattr_len(inode: &Inode) -> Result<usize, EncodeErofsError> {
    let attributes = &inode.metadata.attributes;
    if attributes.is_empty() {
        return Ok(0);
    }
    let mut len = XATTR_HEADER_LEN;
    for (name, value) in attributes {
        let (_, suffix) = split_xattr_name(name)?;
        len += (XATTR_ENTRY_LEN + suffix.len() + value.len()).next_multiple_of(4);
    }
    Ok(len)
}

/// The number of a name's prefix, and the rest of the name.
fn split_xattr_name(name: &[u8]) -> Result<(u8, &[u8]), EncodeErofsError> {
    let split = |(index, prefix): &(u8, &[u8])| Some((*index, name.strip_prefix(*prefix)?));
    let split = XATTR_PREFIXES.iter().find_map(split);
    split.ok_or_else(|| EncodeErofsError::Attribute {
        name: String::from_utf8_lossy(name).into_owned(),
    })
}

fn encode_inode(
    out: &mut Vec<u8>,
    placed: &Placed,
    inode: &Inode,
    number: u32,
) -> Result<(), EncodeErofsError> {
    let kind = match inode.content {
        Content::Directory(_) => S_IFDIR,
        Content::File(_) => S_IFREG,
        Content::Symlink(_) => S_IFLNK,
    };
    let mode = kind | narrow::<_, u16>(inode.metadata.mode & 0o7777, "a mode")?;
    let xattrs = xattr_len(inode)?;
    // Units of four bytes after the header, plus one; zero means none.
    let xattr_count = match xattrs {
        0 => 0,
        len => narrow(
            (len - XATTR_HEADER_LEN) / 4 + 1,
            "a file's extended attributes",
        )?,
    };
    let end = out.len() + INODE_LEN + xattrs;
    // `i_u`: where the blocks start, or how many there are.
    let (format, blocks) = match &placed.packed {
        Some(packed) => (FORMAT_COMPRESSED, packed.blocks),
        None => (FORMAT_PLAIN, placed.block),
    };
    out.extend(format.to_le_bytes());
    out.extend(u16::to_le_bytes(xattr_count));
    out.extend(mode.to_le_bytes());
    out.extend([0; 2]);
    out.extend(placed.size.to_le_bytes());
    out.extend(blocks.to_le_bytes());
    out.extend(number.to_le_bytes());
    out.extend(inode.metadata.owner.uid.to_le_bytes());
    out.extend(inode.metadata.owner.gid.to_le_bytes());
    out.extend([0; 8 + 4]); // mtime
    out.extend(placed.links.to_le_bytes());
    out.extend([0; 16]);
    if xattrs > 0 {
        out.extend([0; XATTR_HEADER_LEN]);
    }
    for (name, value) in &inode.metadata.attributes {
        let (prefix, suffix) = split_xattr_name(name)?;
        out.push(narrow(suffix.len(), "an extended attribute's name")?);
        out.push(prefix);
        out.extend(narrow::<_, u16>(value.len(), "an extended attribute")?.to_le_bytes());
        out.extend_from_slice(suffix);
        out.extend_from_slice(value);
        out.resize(out.len() + (end - out.len()) % 4, 0);
    }
    if let Some(packed) = &placed.packed {
        packed.encode_map(out, placed.block)?;
    }
    Ok(())
}

/// CRC-32C (Castagnoli) as the superblock uses it: no final inversion.
fn crc32c(bytes: &[u8]) -> u32 {
    const REVERSED_POLYNOMIAL: u32 = 0x82f6_3b78;
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { REVERSED_POLYNOMIAL } else { 0 }
        })
    })
}

#[cfg(test)]
pub(crate) mod tests;
