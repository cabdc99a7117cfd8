//! Deterministic cpio archives in the `newc` format (Linux
//! `Documentation/driver-api/early-userspace/buffer-format.rst`), and a reader.
//!
//! Entries appear in the order they were added, with modification time 0 and
//! inode numbers counted from 1.

use bytes::Bytes;

use crate::rope::Rope;
use crate::tarball::Owner;

const MAGIC: &[u8; 6] = b"070701";
const HEADER_LEN: usize = 110;
const TRAILER: &[u8] = b"TRAILER!!!";
/// The archive's length is a multiple of this.
const ARCHIVE_ALIGNMENT: u64 = 512;
/// Longest name, and longest target of a symbolic link, that the kernel unpacks:
/// it skips longer ones without a word (PATH_MAX, and a NUL).
const MAX_NAME_LEN: usize = 4095;

const S_IFMT: u32 = 0o170_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// Writes an archive.
///
/// Paths have no leading slash. Modes are permission bits (with set-id and
/// sticky bits).
#[derive(Debug, Default)]
pub struct NewcBuilder {
    out: Rope,
    entries: u32,
}

/// A file that the format cannot hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeNewcError {
    /// Longer than 4 GiB.
    #[error("{path} is too large for a cpio archive")]
    TooLarge {
        /// Path of the file.
        path: String,
    },
    /// A path, or the target of a symbolic link, that the kernel would skip.
    #[error("{path}: the path or the link's target is longer than {MAX_NAME_LEN} bytes")]
    TooLong {
        /// The path.
        path: String,
    },
}

/// What an entry's header says.
#[derive(Clone, Copy)]
struct Header {
    inode: u32,
    mode: u32,
    owner: Owner,
    links: u32,
}

impl NewcBuilder {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory.
    pub fn directory(
        &mut self,
        path: impl AsRef<[u8]>,
        mode: u32,
        owner: Owner,
    ) -> Result<&mut Self, EncodeNewcError> {
        let header = self.next(S_IFDIR | mode, owner, 2);
        self.entry(path.as_ref(), header, Bytes::new())
    }

    /// Adds a regular file.
    pub fn file(
        &mut self,
        path: impl AsRef<[u8]>,
        mode: u32,
        owner: Owner,
        content: Bytes,
    ) -> Result<&mut Self, EncodeNewcError> {
        self.linked_file(&[path], mode, owner, content)
    }

    /// Adds a regular file under several names, in this order. The content goes
    /// with the last one, as GNU cpio writes it.
    pub fn linked_file(
        &mut self,
        paths: &[impl AsRef<[u8]>],
        mode: u32,
        owner: Owner,
        content: Bytes,
    ) -> Result<&mut Self, EncodeNewcError> {
        let links = u32::try_from(paths.len()).unwrap_or(u32::MAX);
        let header = self.next(S_IFREG | mode, owner, links);
        if let Some((last, others)) = paths.split_last() {
            for path in others {
                self.entry(path.as_ref(), header, Bytes::new())?;
            }
            self.entry(last.as_ref(), header, content)?;
        }
        Ok(self)
    }

    /// Adds a symbolic link.
    pub fn symlink(
        &mut self,
        path: impl AsRef<[u8]>,
        mode: u32,
        owner: Owner,
        target: Bytes,
    ) -> Result<&mut Self, EncodeNewcError> {
        let path = path.as_ref();
        if target.len() > MAX_NAME_LEN {
            return Err(EncodeNewcError::TooLong { path: lossy(path) });
        }
        let header = self.next(S_IFLNK | mode, owner, 1);
        self.entry(path, header, target)
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Rope {
        let header = Header {
            inode: 0,
            mode: 0,
            owner: Owner::ROOT,
            links: 1,
        };
        self.header(header, 0, TRAILER);
        self.out.pad_to(ARCHIVE_ALIGNMENT);
        self.out
    }

    /// A header for the next inode.
    fn next(&mut self, mode: u32, owner: Owner, links: u32) -> Header {
        self.entries += 1;
        Header {
            inode: self.entries,
            mode,
            owner,
            links,
        }
    }

    fn entry(
        &mut self,
        path: &[u8],
        header: Header,
        content: Bytes,
    ) -> Result<&mut Self, EncodeNewcError> {
        if path.len() > MAX_NAME_LEN {
            return Err(EncodeNewcError::TooLong { path: lossy(path) });
        }
        let too_large = |_| EncodeNewcError::TooLarge { path: lossy(path) };
        let len = u32::try_from(content.len()).map_err(too_large)?;
        self.header(header, len, path);
        self.out.push(content);
        self.out.pad_to(4);
        Ok(self)
    }

    fn header(&mut self, header: Header, len: u32, name: &[u8]) {
        let Header {
            inode,
            mode,
            owner: Owner { uid, gid },
            links,
        } = header;
        let name_len = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor
        // rdevminor namesize check
        let fields = [
            inode, mode, uid, gid, links, 0, len, 0, 0, 0, 0, name_len, 0,
        ];
        let mut out = MAGIC.to_vec();
        for field in fields {
            out.extend(format!("{field:08X}").into_bytes());
        }
        out.extend_from_slice(name);
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        self.out.push(out);
    }
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// An entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewcEntry {
    /// Path without leading slash.
    pub path: Bytes,
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub owner: Owner,
    /// Number of names that the entry's inode says it has.
    pub links: u32,
    /// Content of a file, target of a symbolic link, empty for a directory.
    pub content: Bytes,
}

impl NewcEntry {
    /// Whether this is a regular file.
    pub fn is_file(&self) -> bool {
        self.mode & S_IFMT == S_IFREG
    }

    /// Whether this is a directory.
    pub fn is_directory(&self) -> bool {
        self.mode & S_IFMT == S_IFDIR
    }
}

/// Bytes are not an archive as [`NewcBuilder`] writes them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a newc cpio archive: {problem} at byte {offset}")]
pub struct ParseNewcError {
    /// What is wrong.
    problem: &'static str,
    /// Where.
    offset: usize,
}

/// Parses one archive. Nothing but zeros may follow its trailer: the kernel
/// would unpack a second archive over the first.
pub fn parse_newc(bytes: &Bytes) -> Result<Vec<NewcEntry>, ParseNewcError> {
    let mut entries = Vec::new();
    let mut offset = 0_usize;
    loop {
        let error = |problem| ParseNewcError { problem, offset };
        let header = bytes
            .get(offset..offset.saturating_add(HEADER_LEN))
            .ok_or_else(|| error("truncated header"))?;
        if !header.starts_with(MAGIC) {
            return Err(error("bad magic"));
        }
        let field = |index: usize| {
            let digits = header.get(6 + 8 * index..14 + 8 * index)?;
            if !digits.iter().all(u8::is_ascii_hexdigit) {
                return None;
            }
            u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        };
        let number = |index| field(index).ok_or_else(|| error("a field is no number"));
        let len = number(6)? as usize;
        let name_len = number(11)? as usize;
        let mode = number(1)?;
        let owner = Owner {
            uid: number(2)?,
            gid: number(3)?,
        };
        let links = number(4)?;
        let name_start = offset + HEADER_LEN;
        let span = |start: usize, len: usize| {
            let end = start.checked_add(len).filter(|end| *end <= bytes.len())?;
            Some(bytes.slice(start..end))
        };
        let name = span(name_start, name_len).ok_or_else(|| error("truncated name"))?;
        // The kernel takes a name for what precedes its first NUL.
        let end = name.iter().position(|byte| *byte == 0);
        let path = match end {
            Some(end) if end + 1 == name_len => name.slice(..end),
            _ => return Err(error("name does not end at its NUL")),
        };
        let content_start = (name_start + name_len).next_multiple_of(4);
        if path == TRAILER {
            let rest = bytes.get(content_start..).unwrap_or_default();
            if rest.iter().any(|byte| *byte != 0) {
                return Err(error("data after the trailer"));
            }
            return Ok(entries);
        }
        let content = span(content_start, len).ok_or_else(|| error("truncated content"))?;
        entries.push(NewcEntry {
            path,
            mode,
            owner,
            links,
            content,
        });
        offset = (content_start + len).next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWNER: Owner = Owner {
        uid: 4_000_000_000,
        gid: 7,
    };

    fn example() -> Bytes {
        let mut builder = NewcBuilder::new();
        builder.directory("etc", 0o755, Owner::ROOT).unwrap();
        builder
            .file("etc/x", 0o644, OWNER, Bytes::from_static(b"hello"))
            .unwrap();
        builder
            .file("init", 0o755, Owner::ROOT, Bytes::from_static(b"\x7fELF"))
            .unwrap();
        let names = [b"one".as_slice(), b"tw\xff"];
        let content = Bytes::from_static(b"both");
        builder
            .linked_file(&names, 0o4755, Owner::ROOT, content)
            .unwrap();
        builder
            .symlink("up", 0o777, OWNER, Bytes::from_static(b"../x"))
            .unwrap();
        builder.finish().to_bytes()
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = example();
        assert_eq!(bytes.len() % 512, 0);
        let entries = parse_newc(&bytes).unwrap();
        let summary: Vec<_> = entries
            .iter()
            .map(|entry| {
                let NewcEntry { mode, owner, .. } = entry;
                let content = entry.content.as_ref();
                (entry.path.as_ref(), *mode, *owner, entry.links, content)
            })
            .collect();
        assert_eq!(
            summary,
            [
                (b"etc".as_slice(), 0o040_755, Owner::ROOT, 2, b"".as_slice()),
                (b"etc/x", 0o100_644, OWNER, 1, b"hello"),
                (b"init", 0o100_755, Owner::ROOT, 1, b"\x7fELF"),
                (b"one", 0o104_755, Owner::ROOT, 2, b""),
                (b"tw\xff", 0o104_755, Owner::ROOT, 2, b"both"),
                (b"up", 0o120_777, OWNER, 1, b"../x"),
            ]
        );
    }

    #[test]
    fn the_bytes_are_pinned() {
        let expected = concat!(
            "070701",
            "00000001",
            "000041ED",
            "00000000",
            "00000000",
            "00000002",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000004",
            "00000000",
            "etc\0\0\0",
        );
        assert!(example().starts_with(expected.as_bytes()));
    }

    #[test]
    fn what_the_kernel_would_skip_is_refused() {
        let long = "x".repeat(4096);
        let mut builder = NewcBuilder::new();
        let empty = Bytes::new();
        assert!(matches!(
            builder.file(&long, 0o644, Owner::ROOT, empty).unwrap_err(),
            EncodeNewcError::TooLong { .. }
        ));
        assert!(matches!(
            builder
                .symlink("link", 0o777, Owner::ROOT, long.into())
                .unwrap_err(),
            EncodeNewcError::TooLong { path } if path == "link"
        ));
    }

    #[test]
    fn a_name_with_a_nul_inside_or_none_at_all_is_refused() {
        let mut inside = example().to_vec();
        let at = inside.windows(5).position(|name| name == b"etc/x").unwrap();
        inside[at + 3] = 0;
        let mut nameless = example().to_vec();
        nameless[94..102].copy_from_slice(b"00000000");
        for bytes in [inside, nameless] {
            assert_eq!(
                parse_newc(&bytes.into()).unwrap_err().problem,
                "name does not end at its NUL"
            );
        }
    }

    #[test]
    fn a_second_archive_is_refused() {
        let twice = [example(), example()].concat();
        assert_eq!(
            parse_newc(&twice.into()).unwrap_err().problem,
            "data after the trailer"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_value_or_an_error(at in 0..600_usize, with: Vec<u8>) {
            let mut bytes = example().to_vec();
            let at = at.min(bytes.len());
            bytes.splice(at..bytes.len().min(at + with.len()), with);
            let _ = parse_newc(&bytes.into());
        }
    }
}
