//! Members of a layer's archive (POSIX pax, ustar, GNU tar and the seventh edition's
//! format).

use std::io::Read as _;

use bytes::Bytes;
use tar::EntryType;

use super::sparse::{SparseRecords, expand};
use super::{FlattenError, MAX_LAYER_LEN};
use crate::tarball::Owner;
use crate::tree::Metadata;

/// Prefix of an entry that removes the rest of its name from lower layers.
const WHITEOUT: &[u8] = b".wh.";
/// Name of an entry that hides its directory's content of lower layers.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Longest file name of Linux.
const MAX_NAME_LEN: usize = 255;
/// Longest path of Linux, for symbolic links' targets.
const MAX_TARGET_LEN: usize = 4095;
/// Largest `security.capability` (`struct vfs_ns_cap_data`, 24 bytes, and room).
const MAX_CAPABILITY_LEN: usize = 64;
/// What is read of a file with holes at a time.
const PIECE: usize = 64 * 1024;

/// pax record of the extended attribute that is kept.
pub(super) const PAX_CAPABILITY: &[u8] = b"SCHILY.xattr.security.capability";
/// pax records of numbers. One that is none would be read in two ways by two
/// readers.
const PAX_NUMBERS: [&[u8]; 3] = [b"uid", b"gid", b"size"];

/// An archive member, read but not applied.
pub(super) struct Member {
    /// The parent's path, without empty components and `.`.
    pub(super) parent: Vec<u8>,
    /// Last component; empty for the root directory.
    pub(super) name: Bytes,
    /// As the archive has it.
    pub(super) path: String,
    pub(super) metadata: Metadata,
    pub(super) kind: MemberKind,
}

pub(super) enum MemberKind {
    Directory,
    File(Bytes),
    Symlink(Bytes),
    /// To a path without empty components and `.`.
    HardLink(Vec<u8>),
    /// A device, a pipe or a socket, which a tree does not have.
    Device,
    Whiteout(Bytes),
    Opaque,
}

impl Member {
    /// Its whole path.
    pub(super) fn place(&self) -> Vec<u8> {
        if self.parent.is_empty() {
            return self.name.to_vec();
        }
        [&self.parent, b"/".as_slice(), &self.name].concat()
    }
}

/// A path's parent and last component.
pub(super) fn split_path(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (
            path.get(..slash).unwrap_or_default(),
            path.get(slash + 1..).unwrap_or_default(),
        ),
        None => (&[], path),
    }
}

/// A path without what leads nowhere.
fn plain_path(path: &[u8]) -> Vec<u8> {
    let components = path.split(|byte| *byte == b'/');
    let names: Vec<_> = components
        .filter(|component| !matches!(*component, b"" | b"."))
        .collect();
    names.join(&b'/')
}

pub(super) fn read_members(layer: usize, bytes: &Bytes) -> Result<Vec<Member>, FlattenError> {
    let tar_error = |source| FlattenError::Tar { layer, source };
    let mut archive = tar::Archive::new(bytes.as_ref());
    let mut members = Vec::new();
    for entry in archive.entries().map_err(tar_error)? {
        let mut entry = entry.map_err(tar_error)?;
        let mut raw_path = entry.path_bytes().into_owned();
        let entry_error = |path: &[u8], problem| FlattenError::Entry {
            layer,
            path: String::from_utf8_lossy(path).into_owned(),
            problem,
        };

        let mut capability = None;
        let mut sparse = SparseRecords::default();
        if let Some(extensions) = entry.pax_extensions().map_err(tar_error)? {
            for extension in extensions {
                let extension = extension.map_err(tar_error)?;
                let (key, value) = (extension.key_bytes(), extension.value_bytes());
                if key == PAX_CAPABILITY {
                    if value.len() > MAX_CAPABILITY_LEN {
                        return Err(entry_error(&raw_path, "has oversized file capabilities"));
                    }
                    capability = Some(Bytes::copy_from_slice(value));
                } else if PAX_NUMBERS.contains(&key) {
                    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
                        let problem = "has a pax record uid, gid or size that is no number";
                        return Err(entry_error(&raw_path, problem));
                    }
                } else {
                    sparse.add(key, value);
                }
            }
        }
        if let Some(name) = sparse.name() {
            raw_path = name.to_vec();
        }
        let entry_error = |problem| entry_error(&raw_path, problem);

        let link = |entry: &tar::Entry<'_, &[u8]>| {
            entry
                .link_name_bytes()
                .map(std::borrow::Cow::into_owned)
                .unwrap_or_default()
        };
        let kind = match entry.header().entry_type() {
            // The seventh edition had no other sign of a directory.
            EntryType::Regular
                if entry.header().as_bytes().get(156) == Some(&0) && raw_path.ends_with(b"/") =>
            {
                MemberKind::Directory
            }
            EntryType::Directory => MemberKind::Directory,
            EntryType::Regular | EntryType::Continuous => {
                let start = usize::try_from(entry.raw_file_position()).ok();
                let len = usize::try_from(entry.size()).ok();
                let end = start
                    .zip(len)
                    .and_then(|(start, len)| start.checked_add(len));
                let content = match (start, end) {
                    (Some(start), Some(end)) if end <= bytes.len() => bytes.slice(start..end),
                    _ => return Err(entry_error("ends after the archive")),
                };
                MemberKind::File(if sparse.is_any() {
                    expand(&sparse, &content).map_err(entry_error)?
                } else {
                    content
                })
            }
            EntryType::GNUSparse => {
                if entry.size() > MAX_LAYER_LEN {
                    return Err(entry_error("is a sparse file of more than 8 GiB"));
                }
                let len = usize::try_from(entry.size()).unwrap_or(usize::MAX);
                MemberKind::File(read_sparse(&mut entry, len).map_err(tar_error)?)
            }
            EntryType::Symlink => match link(&entry) {
                target if (1..=MAX_TARGET_LEN).contains(&target.len()) => {
                    MemberKind::Symlink(target.into())
                }
                _ => return Err(entry_error("has an empty or oversized link target")),
            },
            EntryType::Link => MemberKind::HardLink(plain_path(&link(&entry))),
            EntryType::Char | EntryType::Block | EntryType::Fifo => MemberKind::Device,
            EntryType::XGlobalHeader => continue,
            _ => return Err(entry_error("is of a kind that is not known")),
        };

        let metadata = match kind {
            MemberKind::Device => Metadata::root(0),
            _ => {
                let header = entry.header();
                let number = |value: std::io::Result<u64>| u32::try_from(value.ok()?).ok();
                let (Some(uid), Some(gid)) = (number(header.uid()), number(header.gid())) else {
                    return Err(entry_error("has an owner outside 32 bits"));
                };
                Metadata {
                    mode: header.mode().map_err(tar_error)? & 0o7777,
                    owner: Owner { uid, gid },
                    capability,
                }
            }
        };

        let mut components = raw_path.split(|byte| *byte == b'/');
        if components.clone().any(|component| component == b"..") {
            return Err(entry_error("has \"..\" in its path"));
        }
        if components.any(|component| component.len() > MAX_NAME_LEN) {
            return Err(entry_error("has a name of more than 255 bytes"));
        }
        if raw_path.contains(&0) {
            return Err(entry_error("has a NUL in its name"));
        }
        let plain = plain_path(&raw_path);
        let (parent, name) = split_path(&plain);
        let kind = match name.strip_prefix(WHITEOUT) {
            _ if name == OPAQUE => MemberKind::Opaque,
            Some(b"" | b"." | b"..") => return Err(entry_error("is a whiteout of nothing")),
            Some(hidden) => MemberKind::Whiteout(Bytes::copy_from_slice(hidden)),
            None => kind,
        };
        members.push(Member {
            parent: parent.to_vec(),
            name: Bytes::copy_from_slice(name),
            path: String::from_utf8_lossy(&raw_path).into_owned(),
            metadata,
            kind,
        });
    }
    Ok(members)
}

/// A file with holes. Memory that is never written stays the system's.
fn read_sparse(entry: &mut impl std::io::Read, len: usize) -> std::io::Result<Bytes> {
    let mut content = vec![0; len];
    for piece in content.chunks_mut(PIECE) {
        let mut read = Vec::with_capacity(piece.len());
        let wanted = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        entry.take(wanted).read_to_end(&mut read)?;
        if read.len() != piece.len() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if read.iter().any(|byte| *byte != 0) {
            piece.copy_from_slice(&read);
        }
    }
    Ok(content.into())
}
