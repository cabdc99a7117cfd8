//! What is in an image as [`super::encode_erofs`] writes it: enough to say which
//! file differs, and in what.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use super::{
    BLOCK_LEN, DIRENT_LEN, FORMAT_COMPRESSED, FORMAT_PLAIN, INODE_LEN, META_BLOCK, S_IFDIR, SLOT,
    XATTR_HEADER_LEN, compress,
};

/// File type in a mode.
const S_IFMT: u16 = 0o170_000;

/// A name in an image, and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Walked {
    /// Type and permission bits.
    pub(crate) mode: u16,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Number of names.
    pub(crate) links: u32,
    /// Bytes of the content.
    pub(crate) size: u64,
    /// Whether `content` is compressed.
    pub(crate) compressed: bool,
    /// Where the content is stored, in bytes from the image's start.
    pub(crate) content: Range<usize>,
    /// The extended attributes as they are stored.
    pub(crate) attributes: Range<usize>,
}

impl Walked {
    pub(crate) fn is_directory(&self) -> bool {
        self.mode & S_IFMT == S_IFDIR
    }
}

/// Every path of an image, the root being empty. `None` where the image is not as
/// we write it.
pub(crate) fn walk(image: &[u8]) -> Option<BTreeMap<Vec<u8>, Walked>> {
    let mut found = BTreeMap::new();
    let mut seen = HashSet::new();
    let mut pending = vec![(Vec::new(), 0_u64)];
    while let Some((path, nid)) = pending.pop() {
        let inode = inode(image, nid)?;
        if inode.is_directory() {
            // A directory that holds itself would never end.
            if !seen.insert(nid) {
                return None;
            }
            for (name, child) in directory(image.get(inode.content.clone())?)? {
                let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
                pending.push(([&path, separator, name].concat(), child));
            }
        }
        if found.insert(path, inode).is_some() {
            return None;
        }
    }
    Some(found)
}

fn inode(image: &[u8], nid: u64) -> Option<Walked> {
    let start = usize::try_from(nid.checked_mul(SLOT)?).ok()?;
    let start = start.checked_add(usize::try_from(META_BLOCK).ok()? * BLOCK_LEN)?;
    let inode = image.get(start..start.checked_add(INODE_LEN)?)?;
    let u16_at = |at: usize| Some(u16::from_le_bytes(*inode.get(at..)?.first_chunk()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(*inode.get(at..)?.first_chunk()?));
    let size = u64::from_le_bytes(*inode.get(8..)?.first_chunk()?);
    let attributes = match u16_at(2)? {
        0 => 0,
        count => XATTR_HEADER_LEN + 4 * (usize::from(count) - 1),
    };
    let end = start + INODE_LEN;
    let attributes = end..end.checked_add(attributes)?;
    let blocks = |first: u32, len: usize| {
        let first = usize::try_from(first).ok()?.checked_mul(BLOCK_LEN)?;
        Some(first..first.checked_add(len)?)
    };
    let (compressed, content) = match u16_at(0)? {
        FORMAT_PLAIN => (false, blocks(u32_at(16)?, usize::try_from(size).ok()?)?),
        FORMAT_COMPRESSED => {
            let first = compress::first_block(image, attributes.end)?;
            let len = usize::try_from(u32_at(16)?).ok()?.checked_mul(BLOCK_LEN)?;
            (true, blocks(first, len)?)
        }
        _ => return None,
    };
    image.get(content.clone())?;
    image.get(attributes.clone())?;
    Some(Walked {
        mode: u16_at(4)?,
        uid: u32_at(24)?,
        gid: u32_at(28)?,
        links: u32_at(44)?,
        size,
        compressed,
        content,
        attributes,
    })
}

/// Names and node numbers of a directory's entries, without `.` and `..`.
fn directory(content: &[u8]) -> Option<Vec<(&[u8], u64)>> {
    let mut found = Vec::new();
    for block in content.chunks(BLOCK_LEN) {
        let name_at = |index: usize| {
            let entry = block.get(index.checked_mul(DIRENT_LEN)?..)?;
            Some(usize::from(u16::from_le_bytes(
                *entry.get(8..)?.first_chunk()?,
            )))
        };
        let count = name_at(0)? / DIRENT_LEN;
        for index in 0..count {
            let start = name_at(index)?;
            let end = if index + 1 < count {
                name_at(index + 1)?
            } else {
                block.len()
            };
            let name = block.get(start..end)?;
            let len = name
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(name.len());
            let name = name.get(..len)?;
            let entry = block.get(index * DIRENT_LEN..)?;
            if !matches!(name, b"." | b"..") {
                found.push((name, u64::from_le_bytes(*entry.first_chunk()?)));
            }
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::erofs::encode_erofs;
    use crate::erofs::tests::rich_tree;
    use crate::recipe::Compression;
    use crate::rope::InMemory;
    use crate::tree::{Content, Tree};

    #[test]
    fn what_was_written_is_found() {
        let tree = rich_tree();
        for compression in [Compression::None, Compression::Zstd] {
            let image = encode_erofs(&tree, [7; 16], compression, &InMemory)
                .unwrap()
                .to_bytes();
            let found = walk(&image).unwrap();
            let mut pending = vec![(Vec::new(), Tree::ROOT)];
            let mut count = 0;
            while let Some((path, id)) = pending.pop() {
                count += 1;
                let inode = tree.inode(id);
                let walked = &found[&path];
                let name = String::from_utf8_lossy(&path).into_owned();
                assert_eq!(
                    u32::from(walked.mode & 0o7777),
                    inode.metadata.mode,
                    "{name}"
                );
                assert_eq!(walked.uid, inode.metadata.owner.uid, "{name}");
                assert_eq!(
                    walked.attributes.is_empty(),
                    inode.metadata.attributes.is_empty()
                );
                match &inode.content {
                    Content::Directory(entries) => {
                        for (name, child) in entries {
                            let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
                            pending.push(([&path, separator, name].concat(), *child));
                        }
                    }
                    Content::File(content) | Content::Symlink(content) => {
                        assert_eq!(walked.size, content.len() as u64, "{name}");
                        if !walked.compressed {
                            assert_eq!(image[walked.content.clone()], content[..], "{name}");
                        }
                    }
                }
            }
            assert_eq!(count, found.len());
        }
    }

    #[test]
    fn damaged_images_end_the_walk() {
        let image = encode_erofs(&rich_tree(), [7; 16], Compression::Lz4hc, &InMemory);
        let image = image.unwrap().to_bytes();
        for cut in (0..image.len()).step_by(509) {
            let _ = walk(&image[..cut]);
        }
        for at in 4096..8192.min(image.len()) {
            let mut bytes = image.to_vec();
            bytes[at] ^= 0xff;
            let _ = walk(&Bytes::from(bytes));
        }
        assert_eq!(walk(&[]), None);
    }
}
