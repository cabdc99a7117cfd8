//! What the members of a layer's archive do to a tree.

use bytes::Bytes;

use super::FlattenError;
use super::archive::{Archive, Entry, kind};
use crate::tarball::Owner;
use crate::tree::{ACCESS_LISTS, Attributes, Metadata};

/// Prefix of an entry that removes the rest of its name from lower layers.
const WHITEOUT: &[u8] = b".wh.";
/// Name of an entry that hides its directory's content of lower layers.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Longest file name of Linux.
const MAX_NAME_LEN: usize = 255;
/// Longest path of Linux, for symbolic links' targets.
const MAX_TARGET_LEN: usize = 4095;
/// Prefix of the pax records that are extended attributes.
pub(super) const PAX_ATTRIBUTE: &[u8] = b"SCHILY.xattr.";
/// Longest name of an extended attribute (xattr(7)).
const MAX_ATTRIBUTE_NAME_LEN: usize = 255;
/// Longest value of an extended attribute that erofs can say.
const MAX_ATTRIBUTE_LEN: usize = 65_535;

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
    let members = Archive::new(bytes).map(|entry| {
        let entry = entry.map_err(|source| FlattenError::Tar { layer, source })?;
        let path = String::from_utf8_lossy(&entry.path).into_owned();
        member(entry, &path).map_err(|problem| FlattenError::Entry {
            layer,
            path,
            problem,
        })
    });
    members.collect()
}

/// The extended attributes that a file keeps.
fn attributes(entry: &Entry) -> Result<Attributes, &'static str> {
    let mut kept = Attributes::new();
    for (key, value) in &entry.records {
        let Some(name) = key.strip_prefix(PAX_ATTRIBUTE).filter(|name| is_kept(name)) else {
            continue;
        };
        if name.len() > MAX_ATTRIBUTE_NAME_LEN || name.contains(&0) {
            return Err("has an extended attribute with a name that Linux does not take");
        }
        if value.len() > MAX_ATTRIBUTE_LEN {
            return Err("has an extended attribute of 64 KiB or more");
        }
        kept.insert(Bytes::copy_from_slice(name), Bytes::copy_from_slice(value));
    }
    Ok(kept)
}

/// Whether an extended attribute is the workload's. Those of overlayfs would change
/// what the guest's own overlay shows, and `trusted.` belongs to the host.
fn is_kept(name: &[u8]) -> bool {
    let below = |prefix: &[u8]| name.len() > prefix.len() && name.starts_with(prefix);
    let own = below(b"user.") && !below(b"user.overlay.");
    own || below(b"security.") || ACCESS_LISTS.contains(&name)
}

fn member(entry: Entry, path: &str) -> Result<Member, &'static str> {
    let attributes = attributes(&entry)?;
    let kind = match entry.kind {
        kind::DIRECTORY => MemberKind::Directory,
        kind::FILE | kind::FILE_V7 | kind::CONTIGUOUS | kind::GNU_SPARSE => {
            MemberKind::File(entry.content)
        }
        kind::SYMLINK if (1..=MAX_TARGET_LEN).contains(&entry.target.len()) => {
            MemberKind::Symlink(entry.target.into())
        }
        kind::SYMLINK => return Err("has an empty or oversized link target"),
        kind::HARD_LINK => MemberKind::HardLink(plain_path(&entry.target)),
        kind::CHARACTER_DEVICE | kind::BLOCK_DEVICE | kind::FIFO => MemberKind::Device,
        _ => return Err("is of a kind that is not known"),
    };
    let (Ok(uid), Ok(gid)) = (u32::try_from(entry.uid), u32::try_from(entry.gid)) else {
        return Err("has an owner outside 32 bits");
    };

    let mut components = entry.path.split(|byte| *byte == b'/');
    if components.clone().any(|component| component == b"..") {
        return Err("has \"..\" in its path");
    }
    if components.any(|component| component.len() > MAX_NAME_LEN) {
        return Err("has a name of more than 255 bytes");
    }
    if entry.path.contains(&0) {
        return Err("has a NUL in its name");
    }
    let plain = plain_path(&entry.path);
    let (parent, name) = split_path(&plain);
    let kind = match name.strip_prefix(WHITEOUT) {
        _ if name == OPAQUE => MemberKind::Opaque,
        Some(b"" | b"." | b"..") => return Err("is a whiteout of nothing"),
        Some(hidden) => MemberKind::Whiteout(Bytes::copy_from_slice(hidden)),
        None => kind,
    };
    Ok(Member {
        parent: parent.to_vec(),
        name: Bytes::copy_from_slice(name),
        path: path.to_owned(),
        metadata: Metadata {
            // The kind of a file may stand in the bits above.
            mode: u32::try_from(entry.mode & 0o7777).unwrap_or_default(),
            owner: Owner { uid, gid },
            attributes,
        },
        kind,
    })
}
