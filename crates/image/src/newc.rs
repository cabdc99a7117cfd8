//! Deterministic cpio archives in the `newc` format (Linux
//! `Documentation/driver-api/early-userspace/buffer-format.rst`), and a reader.
//!
//! Entries appear in the order they were added, owned by root, with
//! modification time 0 and inode numbers counted from 1.

use bytes::Bytes;

use crate::rope::Rope;

const MAGIC: &[u8; 6] = b"070701";
const HEADER_LEN: usize = 110;
const TRAILER: &str = "TRAILER!!!";
/// The archive's length is a multiple of this.
const ARCHIVE_ALIGNMENT: u64 = 512;

const S_IFMT: u32 = 0o170_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;

/// Writes an archive.
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
}

impl NewcBuilder {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory. Paths have no leading slash.
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<&mut Self, EncodeNewcError> {
        self.entry(path, S_IFDIR | mode, 2, Bytes::new())
    }

    /// Adds a regular file.
    pub fn file(
        &mut self,
        path: &str,
        mode: u32,
        content: Bytes,
    ) -> Result<&mut Self, EncodeNewcError> {
        self.entry(path, S_IFREG | mode, 1, content)
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Rope {
        self.header(0, 0, 1, 0, TRAILER);
        self.out.pad_to(ARCHIVE_ALIGNMENT);
        self.out
    }

    fn entry(
        &mut self,
        path: &str,
        mode: u32,
        links: u32,
        content: Bytes,
    ) -> Result<&mut Self, EncodeNewcError> {
        let too_large = |_| EncodeNewcError::TooLarge {
            path: path.to_owned(),
        };
        let len = u32::try_from(content.len()).map_err(too_large)?;
        self.entries += 1;
        self.header(self.entries, mode, links, len, path);
        self.out.push(content);
        self.out.pad_to(4);
        Ok(self)
    }

    fn header(&mut self, inode: u32, mode: u32, links: u32, len: u32, name: &str) {
        let name_len = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor
        // rdevminor namesize check
        let fields = [inode, mode, 0, 0, links, 0, len, 0, 0, 0, 0, name_len, 0];
        let mut header = MAGIC.to_vec();
        for field in fields {
            header.extend(format!("{field:08X}").into_bytes());
        }
        header.extend_from_slice(name.as_bytes());
        header.push(0);
        header.resize(header.len().next_multiple_of(4), 0);
        self.out.push(header);
    }
}

/// A regular file or directory of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewcEntry {
    /// Path without leading slash.
    pub path: String,
    /// Type and permission bits.
    pub mode: u32,
    /// Content; empty for a directory.
    pub content: Bytes,
}

impl NewcEntry {
    /// Whether this is a regular file.
    pub fn is_file(&self) -> bool {
        self.mode & S_IFMT == S_IFREG
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
        let name_start = offset + HEADER_LEN;
        let span = |start: usize, len: usize| {
            let end = start.checked_add(len).filter(|end| *end <= bytes.len())?;
            Some(bytes.slice(start..end))
        };
        let name = span(name_start, name_len).ok_or_else(|| error("truncated name"))?;
        let name = name
            .strip_suffix(b"\0")
            .ok_or_else(|| error("name without NUL"))?;
        let path = std::str::from_utf8(name)
            .map_err(|_| error("name is not UTF-8"))?
            .to_owned();
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
            content,
        });
        offset = (content_start + len).next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn example() -> Bytes {
        let mut builder = NewcBuilder::new();
        builder.directory("etc", 0o755).unwrap();
        builder
            .file("etc/x", 0o644, Bytes::from_static(b"hello"))
            .unwrap();
        builder
            .file("init", 0o755, Bytes::from_static(b"\x7fELF"))
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
            .map(|entry| (entry.path.as_str(), entry.mode, entry.content.as_ref()))
            .collect();
        assert_eq!(
            summary,
            [
                ("etc", 0o040_755, b"".as_slice()),
                ("etc/x", 0o100_644, b"hello"),
                ("init", 0o100_755, b"\x7fELF"),
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
