//! Deterministic tar archives (POSIX ustar with pax extended headers).
//!
//! Entries appear in the order they were added, with modification time 0, no
//! user or group names and explicit owners, so that the bytes depend on nothing
//! but the content.

use bytes::Bytes;

use crate::rope::Rope;

const BLOCK: u64 = 512;

/// Numeric owner of an entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Owner {
    /// User 0, group 0.
    pub const ROOT: Self = Self { uid: 0, gid: 0 };
}

/// Writes a tar archive.
///
/// Paths are relative to the archive's root; a leading `/` is dropped. Modes are
/// permission bits (with set-id and sticky bits).
#[derive(Debug, Default)]
pub struct TarBuilder {
    out: Rope,
}

impl TarBuilder {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory.
    pub fn directory(&mut self, path: impl AsRef<[u8]>, mode: u32, owner: Owner) -> &mut Self {
        let mut path = relative(path.as_ref()).to_vec();
        path.push(b'/');
        self.entry(b'5', &path, b"", mode, owner, &Rope::new())
    }

    /// Adds a regular file.
    pub fn file(
        &mut self,
        path: impl AsRef<[u8]>,
        mode: u32,
        owner: Owner,
        content: impl Into<Rope>,
    ) -> &mut Self {
        self.entry(
            b'0',
            relative(path.as_ref()),
            b"",
            mode,
            owner,
            &content.into(),
        )
    }

    /// Adds a symbolic link.
    pub fn symlink(
        &mut self,
        path: impl AsRef<[u8]>,
        target: impl AsRef<[u8]>,
        owner: Owner,
    ) -> &mut Self {
        self.entry(
            b'2',
            relative(path.as_ref()),
            target.as_ref(),
            0o777,
            owner,
            &Rope::new(),
        )
    }

    /// Adds another name for a file that was added before.
    pub fn hard_link(&mut self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> &mut Self {
        let target = relative(target.as_ref());
        self.entry(
            b'1',
            relative(path.as_ref()),
            target,
            0o644,
            Owner::ROOT,
            &Rope::new(),
        )
    }

    /// Ends the archive with two zero blocks.
    pub fn finish(mut self) -> Rope {
        self.out.push_zeros(2 * BLOCK);
        self.out
    }

    fn entry(
        &mut self,
        kind: u8,
        path: &[u8],
        link: &[u8],
        mode: u32,
        owner: Owner,
        content: &Rope,
    ) -> &mut Self {
        let mut pax = Vec::new();
        let mut name = path;
        if path.len() > Header::NAME {
            push_pax_record(&mut pax, b"path", path);
            name = &path[..Header::NAME];
        }
        let mut link_name = link;
        if link.len() > Header::NAME {
            push_pax_record(&mut pax, b"linkpath", link);
            link_name = &link[..Header::NAME];
        }
        let numeric = [
            (b"uid".as_slice(), u64::from(owner.uid), Header::MAX_7),
            (b"gid", u64::from(owner.gid), Header::MAX_7),
            (b"size", content.len(), Header::MAX_11),
        ];
        for (key, value, max) in numeric {
            if value > max {
                push_pax_record(&mut pax, key, value.to_string().as_bytes());
            }
        }
        if !pax.is_empty() {
            self.header(&Header {
                kind: b'x',
                name: b"pax_header",
                link: b"",
                mode: 0o644,
                owner: Owner::ROOT,
                size: pax.len() as u64,
            });
            self.out.push(pax);
            self.out.pad_to(BLOCK);
        }
        self.header(&Header {
            kind,
            name,
            link: link_name,
            mode,
            owner,
            size: content.len(),
        });
        self.out.append(content);
        self.out.pad_to(BLOCK);
        self
    }

    fn header(&mut self, header: &Header<'_>) {
        self.out.push(header.encode());
    }
}

/// A ustar header whose name and link fit.
struct Header<'a> {
    kind: u8,
    name: &'a [u8],
    link: &'a [u8],
    mode: u32,
    owner: Owner,
    size: u64,
}

impl Header<'_> {
    /// Longest name or link target; the prefix field is not used.
    const NAME: usize = 100;
    /// Largest number of seven octal digits.
    const MAX_7: u64 = 0o777_7777;
    /// Largest number of eleven octal digits.
    const MAX_11: u64 = 0o777_7777_7777;

    fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(512);
        let mut text = |bytes: &[u8], width: usize| {
            out.extend_from_slice(bytes);
            out.resize(out.len() + width - bytes.len(), 0);
        };
        // A value that does not fit is in the pax header, which overrides this.
        let octal = |value: u64, digits: usize, max: u64| {
            format!("{:0digits$o}\0", if value > max { 0 } else { value })
        };
        text(self.name, 100);
        text(
            octal(u64::from(self.mode & 0o7777), 7, Self::MAX_7).as_bytes(),
            8,
        );
        text(
            octal(u64::from(self.owner.uid), 7, Self::MAX_7).as_bytes(),
            8,
        );
        text(
            octal(u64::from(self.owner.gid), 7, Self::MAX_7).as_bytes(),
            8,
        );
        text(octal(self.size, 11, Self::MAX_11).as_bytes(), 12);
        text(octal(0, 11, Self::MAX_11).as_bytes(), 12);
        // The checksum counts its own field as spaces.
        text(b"        ", 8);
        text(&[self.kind], 1);
        text(self.link, 100);
        text(b"ustar\x0000", 8);
        text(b"", 32 + 32);
        text(b"0000000\0", 8);
        text(b"0000000\0", 8);
        text(b"", 155 + 12);
        let sum: u32 = out.iter().map(|byte| u32::from(*byte)).sum();
        out.splice(148..156, format!("{sum:06o}\0 ").into_bytes());
        out.into()
    }
}

/// Appends `LEN KEY=VALUE\n`, where LEN counts the whole record with itself.
fn push_pax_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    out.extend_from_slice(len.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn relative(path: &[u8]) -> &[u8] {
    let start = path
        .iter()
        .position(|byte| *byte != b'/')
        .unwrap_or(path.len());
    match path.get(start..) {
        None | Some([]) => b".",
        Some(rest) => rest,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use tar::EntryType::{Directory, Link, Regular, Symlink};

    use super::*;

    #[test]
    fn an_independent_reader_sees_what_was_written() {
        let long = "d/".repeat(80) + "file";
        let mut builder = TarBuilder::new();
        builder
            .directory("/", 0o755, Owner::ROOT)
            .directory("etc", 0o755, Owner::ROOT)
            .file(
                "etc/passwd",
                0o4755,
                Owner { uid: 65532, gid: 7 },
                b"root".to_vec(),
            )
            .file(
                &long,
                0o600,
                Owner {
                    uid: 4_000_000_000,
                    gid: 0,
                },
                Rope::new(),
            )
            .symlink("lib", "usr/lib", Owner::ROOT)
            .symlink("far", &long, Owner::ROOT)
            .hard_link("etc/same", "/etc/passwd");
        let bytes = builder.finish().to_bytes();
        assert_eq!(bytes.len() % 512, 0);

        let mut archive = tar::Archive::new(bytes.as_ref());
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            let header = entry.header();
            assert_eq!(header.mtime().unwrap(), 0);
            seen.push((
                entry.path().unwrap().display().to_string(),
                header.entry_type(),
                header.mode().unwrap(),
                entry
                    .link_name()
                    .unwrap()
                    .map(|link| link.display().to_string()),
                content,
            ));
        }
        let row = |path: &str, kind, mode, link: Option<&str>, content: &str| {
            (
                path.to_owned(),
                kind,
                mode,
                link.map(str::to_owned),
                content.to_owned(),
            )
        };
        assert_eq!(
            seen,
            [
                row("./", Directory, 0o755, None, ""),
                row("etc/", Directory, 0o755, None, ""),
                row("etc/passwd", Regular, 0o4755, None, "root"),
                row(&long, Regular, 0o600, None, ""),
                row("lib", Symlink, 0o777, Some("usr/lib"), ""),
                row("far", Symlink, 0o777, Some(&long), ""),
                row("etc/same", Link, 0o644, Some("etc/passwd"), ""),
            ]
        );
    }

    #[test]
    fn pax_records_count_themselves() {
        for value_len in [1, 85, 86, 87, 88, 89, 980, 990, 991, 992, 993] {
            let mut record = Vec::new();
            push_pax_record(&mut record, b"path", &vec![b'x'; value_len]);
            let text = String::from_utf8(record).unwrap();
            let (len, _) = text.split_once(' ').unwrap();
            assert_eq!(len.parse::<usize>().unwrap(), text.len());
        }
    }
}
