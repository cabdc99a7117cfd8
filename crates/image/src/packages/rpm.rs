//! rpm's database: three formats of file, each of which holds the headers of the
//! packages (rpm `docs/manual/format.md`, `lib/backend`).

mod hash;
mod ndb;
mod sqlite;

use bytes::Bytes;

use super::{Package, PackageKind};
use crate::tree::{InodeId, Tree};

/// Where the database is: as rpm has it, and as distributions with an immutable
/// `/usr` moved it.
const DIRECTORIES: [&str; 3] = ["usr/lib/sysimage/rpm", "var/lib/rpm", "usr/share/rpm"];
/// rpm's formats by the name of the file, and what the format is called.
const FORMATS: [(&str, &str, ReadHeaders); 3] = [
    ("rpmdb.sqlite", "an SQLite database", sqlite::headers),
    ("Packages.db", "an ndb database", ndb::headers),
    ("Packages", "a Berkeley DB hash database", hash::headers),
];
/// SQLite's log of changes that are not yet in the file.
const SQLITE_LOG: &str = "rpmdb.sqlite-wal";

/// Most bytes of paths that are listed of one package.
const MAX_PATHS_LEN: usize = 64 << 20;

type ReadHeaders = fn(&[u8]) -> Option<Vec<Vec<u8>>>;

/// What rpm's databases hold.
#[derive(Debug, Default)]
pub(super) struct Databases {
    /// A header for each package.
    pub(super) headers: Vec<Header>,
    /// Databases that are there and cannot be read, one sentence each.
    pub(super) unread: Vec<String>,
}

impl Databases {
    pub(super) fn read(tree: &Tree) -> Self {
        let mut found = Self::default();
        let mut seen: Vec<InodeId> = Vec::new();
        for directory in DIRECTORIES {
            for (name, format, read) in FORMATS {
                let path = format!("{directory}/{name}");
                let Ok(Some(id)) = tree.lookup(path.as_bytes()) else {
                    continue;
                };
                // One directory is often a link to another.
                if seen.contains(&id) {
                    continue;
                }
                seen.push(id);
                let Ok(Some(content)) = tree.file(path.as_bytes()) else {
                    continue;
                };
                found.add(&path, format, read, content);
                let log = format!("{directory}/{SQLITE_LOG}");
                let log = tree.file(log.as_bytes()).ok().flatten();
                if name == "rpmdb.sqlite" && log.is_some_and(|log| !log.is_empty()) {
                    found.unread.push(format!(
                        "{directory}/{SQLITE_LOG} has changes of the database that are not in \
                         {name}, and are not read"
                    ));
                }
            }
        }
        found
    }

    fn add(&mut self, path: &str, format: &str, read: ReadHeaders, content: &Bytes) {
        let blobs = read(content);
        let headers: Option<Vec<_>> =
            blobs.and_then(|blobs| blobs.into_iter().map(Header::parse).collect());
        match headers {
            Some(headers) => self.headers.extend(headers),
            None => self
                .unread
                .push(format!("{path} cannot be read as {format} of rpm")),
        }
    }
}

/// The header of a package: tagged values.
#[derive(Debug)]
pub(super) struct Header {
    blob: Vec<u8>,
    /// Number of bytes before the values.
    index_end: usize,
}

/// Tags of rpm `include/rpm/rpmtag.h`.
mod tag {
    pub(super) const NAME: u32 = 1000;
    pub(super) const VERSION: u32 = 1001;
    pub(super) const RELEASE: u32 = 1002;
    pub(super) const EPOCH: u32 = 1003;
    pub(super) const LICENSE: u32 = 1014;
    pub(super) const ARCH: u32 = 1022;
    pub(super) const SOURCE_RPM: u32 = 1044;
    pub(super) const DIR_INDEXES: u32 = 1116;
    pub(super) const BASE_NAMES: u32 = 1117;
    pub(super) const DIR_NAMES: u32 = 1118;
}

/// Number of bytes before the index: how many entries and bytes of values there are.
const INTRO_LEN: usize = 8;
/// Tag, type, offset and count.
const ENTRY_LEN: usize = 16;
const TYPE_INT32: u32 = 4;
const TYPE_STRING: u32 = 6;
const TYPE_STRING_ARRAY: u32 = 8;
/// Longest path of Linux.
const MAX_PATH_LEN: usize = 4096;

impl Header {
    fn parse(mut blob: Vec<u8>) -> Option<Self> {
        let entries = usize_at(&blob, 0)?;
        let values = usize_at(&blob, 4)?;
        let index_end = entries.checked_mul(ENTRY_LEN)?.checked_add(INTRO_LEN)?;
        let end = index_end.checked_add(values)?;
        if end > blob.len() {
            return None;
        }
        blob.truncate(end);
        Some(Self { blob, index_end })
    }

    /// The package; `None` where the header is of none, such as a public key.
    pub(super) fn package(&self) -> Option<Package> {
        let name = self.string(tag::NAME)?;
        if name == "gpg-pubkey" {
            return None;
        }
        let version = self.string(tag::VERSION)?;
        let release = self.string(tag::RELEASE)?;
        let epoch = self.numbers(tag::EPOCH).and_then(|mut all| all.next());
        Some(Package {
            name,
            version: match epoch {
                Some(epoch) => format!("{epoch}:{version}-{release}"),
                None => format!("{version}-{release}"),
            },
            architecture: self.string(tag::ARCH),
            source: self.string(tag::SOURCE_RPM),
            license: self.string(tag::LICENSE),
            path: None,
            kind: PackageKind::Rpm,
        })
    }

    /// Paths of the package's files; `None` where they are more than anybody has.
    pub(super) fn files(&self) -> Option<Vec<String>> {
        let Some(names) = self.strings(tag::BASE_NAMES) else {
            return Some(Vec::new());
        };
        let directories: Vec<&[u8]> = self.strings(tag::DIR_NAMES)?.collect();
        let mut room = MAX_PATHS_LEN;
        let mut files = Vec::new();
        for (name, directory) in names.zip(self.numbers(tag::DIR_INDEXES)?) {
            let directory = directories.get(usize::try_from(directory).ok()?)?;
            if directory.len() > MAX_PATH_LEN {
                return None;
            }
            let path = [*directory, name].concat();
            room = room.checked_sub(path.len())?;
            files.push(String::from_utf8_lossy(&path).into_owned());
        }
        Some(files)
    }

    /// How many values a tag has, and the bytes that begin with them.
    fn value(&self, tag: u32, kind: u32) -> Option<(usize, &[u8])> {
        let index = self.blob.get(INTRO_LEN..self.index_end)?;
        let (entries, _) = index.as_chunks::<ENTRY_LEN>();
        let is_wanted = |entry: &&[u8; ENTRY_LEN]| {
            u32_at(*entry, 0) == Some(tag) && u32_at(*entry, 4) == Some(kind)
        };
        let entry = entries.iter().find(is_wanted)?;
        let start = self.index_end.checked_add(usize_at(entry, 8)?)?;
        Some((usize_at(entry, 12)?, self.blob.get(start..)?))
    }

    fn string(&self, tag: u32) -> Option<String> {
        let (_, bytes) = self.value(tag, TYPE_STRING)?;
        let text = bytes.split(|byte| *byte == 0).next()?;
        (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
    }

    fn strings(&self, tag: u32) -> Option<impl Iterator<Item = &[u8]>> {
        let (count, bytes) = self.value(tag, TYPE_STRING_ARRAY)?;
        Some(bytes.split(|byte| *byte == 0).take(count))
    }

    fn numbers(&self, tag: u32) -> Option<impl Iterator<Item = u32>> {
        let (count, bytes) = self.value(tag, TYPE_INT32)?;
        let (numbers, _) = bytes.as_chunks::<4>();
        Some(numbers.iter().take(count).map(|it| u32::from_be_bytes(*it)))
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_be_bytes(*field))
}

fn usize_at(bytes: &[u8], offset: usize) -> Option<usize> {
    usize::try_from(u32_at(bytes, offset)?).ok()
}

#[cfg(test)]
mod tests;
