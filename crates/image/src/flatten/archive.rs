//! Reading tar archives: POSIX pax and ustar, GNU tar's format, and the seventh
//! edition's. Where readers disagree, Go's `archive/tar` is followed, which is what
//! container runtimes read layers with, or the archive is refused.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::MAX_LAYER_LEN;
use super::sparse::{self, Holes};

const BLOCK: usize = 512;
/// Longest header of records or of a name that is read, as for Go.
const MAX_META_LEN: usize = 1 << 20;

const POSIX_MAGIC: &[u8] = b"ustar\x0000";

/// Kinds of members, by the header's `typeflag`.
pub(super) mod kind {
    pub(in super::super) const FILE_V7: u8 = 0;
    pub(in super::super) const FILE: u8 = b'0';
    pub(in super::super) const HARD_LINK: u8 = b'1';
    pub(in super::super) const SYMLINK: u8 = b'2';
    pub(in super::super) const CHARACTER_DEVICE: u8 = b'3';
    pub(in super::super) const BLOCK_DEVICE: u8 = b'4';
    pub(in super::super) const DIRECTORY: u8 = b'5';
    pub(in super::super) const FIFO: u8 = b'6';
    pub(in super::super) const CONTIGUOUS: u8 = b'7';
    pub(in super::super) const GNU_SPARSE: u8 = b'S';
    pub(super) const PAX: u8 = b'x';
    pub(super) const PAX_GLOBAL: u8 = b'g';
    pub(super) const GNU_LONG_NAME: u8 = b'L';
    pub(super) const GNU_LONG_LINK: u8 = b'K';
}

/// Bytes are no archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at byte {at}: {problem}")]
pub struct ReadArchiveError {
    /// Where the header begins that is wrong, or that what is wrong belongs to.
    pub at: usize,
    /// What is wrong.
    pub problem: &'static str,
}

/// A member as the archive has it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) kind: u8,
    pub(super) path: Vec<u8>,
    /// What a link leads to.
    pub(super) target: Vec<u8>,
    pub(super) mode: u64,
    pub(super) uid: u64,
    pub(super) gid: u64,
    /// The content, with holes filled.
    pub(super) content: Bytes,
    /// pax records of this member; of several of one key the last.
    pub(super) records: Records,
}

pub(super) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// The members of an archive. After an error there are no more.
pub(super) struct Archive<'a> {
    bytes: &'a Bytes,
    at: usize,
    is_over: bool,
}

impl<'a> Archive<'a> {
    pub(super) fn new(bytes: &'a Bytes) -> Self {
        Self {
            bytes,
            at: 0,
            is_over: false,
        }
    }
}

impl Iterator for Archive<'_> {
    type Item = Result<Entry, ReadArchiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let start = self.at;
        let next = self.read().transpose();
        self.is_over = !matches!(next, Some(Ok(_)));
        next.map(|result| result.map_err(|problem| ReadArchiveError { at: start, problem }))
    }
}

/// What stands before a member.
#[derive(Default)]
struct Before {
    records: Option<Records>,
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
}

impl Archive<'_> {
    /// The next member.
    fn read(&mut self) -> Result<Option<Entry>, &'static str> {
        let mut before = Before::default();
        loop {
            let Some(header) = self.header()? else {
                return match before {
                    Before {
                        records: None,
                        name: None,
                        target: None,
                    } => Ok(None),
                    _ => Err("records or a name, and no member after them"),
                };
            };
            match header.kind() {
                kind::PAX_GLOBAL => drop(self.meta(&header)?),
                kind::PAX => {
                    let records = parse_records(&self.meta(&header)?);
                    let records = records.ok_or("pax records that are malformed")?;
                    if before.records.replace(records).is_some() {
                        return Err("two headers of pax records for one member");
                    }
                }
                kind::GNU_LONG_NAME => before.name = Some(until_nul(&self.meta(&header)?).to_vec()),
                kind::GNU_LONG_LINK => {
                    before.target = Some(until_nul(&self.meta(&header)?).to_vec());
                }
                _ => return self.member(&header, before).map(Some),
            }
        }
    }

    /// The next header; `None` at the end.
    fn header(&mut self) -> Result<Option<Header>, &'static str> {
        // Not every archive has an end of two blocks.
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let block = self.block()?;
        if block.iter().all(|byte| *byte == 0) {
            let second = self.bytes.get(self.at..self.at + BLOCK);
            return match second {
                Some(second) if second.iter().any(|byte| *byte != 0) => {
                    Err("a block of zeros, and members after it")
                }
                _ => Ok(None),
            };
        }
        let header = Header(block);
        header.check()?;
        Ok(Some(header))
    }

    fn block(&mut self) -> Result<[u8; BLOCK], &'static str> {
        let block = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk);
        let block = *block.ok_or("the archive ends within a block")?;
        self.at += BLOCK;
        Ok(block)
    }

    /// `len` bytes that follow, and what fills their last block.
    fn content(&mut self, len: usize) -> Result<Bytes, &'static str> {
        let end = self.at.checked_add(len);
        let end = end.filter(|end| *end <= self.bytes.len());
        let end = end.ok_or("content that ends after the archive")?;
        let content = self.bytes.slice(self.at..end);
        // The last block of an archive is not always filled.
        self.at = end.next_multiple_of(BLOCK).min(self.bytes.len());
        Ok(content)
    }

    /// The content of a header that is about the next member.
    fn meta(&mut self, header: &Header) -> Result<Bytes, &'static str> {
        match usize::try_from(header.number(124, 12)?) {
            Ok(len) if len <= MAX_META_LEN => self.content(len),
            _ => Err("records or a name of more than 1 MiB"),
        }
    }

    fn member(&mut self, header: &Header, before: Before) -> Result<Entry, &'static str> {
        let records = before.records.unwrap_or_default();
        // An empty value takes back what an earlier one said.
        let record = |key: &[u8]| records.get(key).filter(|value| !value.is_empty());
        let number = |key: &[u8], at, len| match records.get(key) {
            Some(value) => {
                sparse::number(value).ok_or("a pax record uid, gid or size that is no number")
            }
            None => header.number(at, len),
        };
        let path = record(b"path").cloned().or(before.name);
        let path = path.unwrap_or_else(|| header.path());
        let target = record(b"linkpath").cloned().or(before.target);
        let target = target.unwrap_or_else(|| until_nul(header.field(157, 100)).to_vec());
        let (uid, gid) = (number(b"uid", 108, 8)?, number(b"gid", 116, 8)?);
        let size = number(b"size", 124, 12)?;
        let entry_kind = match header.kind() {
            // The seventh edition had no other sign of a directory.
            kind::FILE_V7 if path.ends_with(b"/") => kind::DIRECTORY,
            kind => kind,
        };
        // Links, directories and devices have no content, whatever they say.
        let has_none = (kind::HARD_LINK..=kind::FIFO).contains(&entry_kind);
        let holes = if entry_kind == kind::GNU_SPARSE {
            Some(self.gnu_holes(header)?)
        } else {
            Holes::of_records(&records)?
        };
        let size = if has_none { 0 } else { size };
        let size = usize::try_from(size).map_err(|_| "content that ends after the archive")?;
        let stored = self.content(size)?;
        let content = match holes.filter(|_| !has_none) {
            Some(holes) if holes.len() > MAX_LAYER_LEN => {
                return Err("a file with holes of more than 8 GiB");
            }
            Some(holes) => holes.fill(&stored)?,
            None => stored,
        };
        Ok(Entry {
            kind: entry_kind,
            path: record(b"GNU.sparse.name").cloned().unwrap_or(path),
            target,
            mode: header.number(100, 8)?,
            uid,
            gid,
            content,
            records,
        })
    }

    /// Where pieces of a file go, from its header and the blocks that go on with it
    /// (GNU tar's manual, "Basic Tar Format").
    fn gnu_holes(&mut self, header: &Header) -> Result<Holes, &'static str> {
        let mut map = Vec::new();
        let mut pieces = |block: &[u8; BLOCK], start: usize, count: usize| {
            for index in 0..count {
                let at = start + 24 * index;
                let header = Header(*block);
                if header.field(at, 1) == b"\0" {
                    break;
                }
                map.push(header.number(at, 12)?);
                map.push(header.number(at + 12, 12)?);
            }
            Ok::<_, &'static str>(())
        };
        pieces(&header.0, 386, 4)?;
        let mut goes_on = header.field(482, 1) != b"\0";
        while goes_on {
            let block = self.block()?;
            pieces(&block, 0, 21)?;
            goes_on = block.get(504) != Some(&0);
        }
        Ok(Holes::new(header.number(483, 12)?, map))
    }
}

/// A member's header.
struct Header([u8; BLOCK]);

impl Header {
    fn field(&self, at: usize, len: usize) -> &[u8] {
        self.0.get(at..at + len).unwrap_or_default()
    }

    fn kind(&self) -> u8 {
        self.0.get(156).copied().unwrap_or_default()
    }

    /// The path, of which ustar has the beginning in a field of its own.
    fn path(&self) -> Vec<u8> {
        let name = until_nul(self.field(0, 100));
        let prefix = until_nul(self.field(345, 155));
        if self.field(257, 8) == POSIX_MAGIC && !prefix.is_empty() {
            return [prefix, b"/", name].concat();
        }
        name.to_vec()
    }

    fn check(&self) -> Result<(), &'static str> {
        const SUM: std::ops::Range<usize> = 148..156;
        let bytes = self.0.iter().enumerate();
        let sum = bytes.fold(0, |sum, (at, byte)| {
            sum + u64::from(if SUM.contains(&at) { b' ' } else { *byte })
        });
        if self.number(SUM.start, SUM.len()) == Ok(sum) {
            Ok(())
        } else {
            Err("no header of a member: its checksum is wrong")
        }
    }

    /// A number in octal digits, or where it has no room for these, in binary.
    fn number(&self, at: usize, len: usize) -> Result<u64, &'static str> {
        const NONE: &str = "a header with a field that is no number";
        let field = self.field(at, len);
        if let Some((first, rest)) = field.split_first()
            && first & 0x80 != 0
        {
            // The next bit is the sign, and no field may be negative.
            if first & 0x40 != 0 {
                return Err(NONE);
            }
            return rest
                .iter()
                .try_fold(u64::from(first & 0x3f), |value, byte| {
                    let value = value.checked_mul(256).ok_or(NONE)?;
                    Ok(value | u64::from(*byte))
                });
        }
        let text = until_nul(field.trim_ascii_start()).trim_ascii();
        text.iter().try_fold(0_u64, |value, byte| {
            let digit = byte
                .checked_sub(b'0')
                .filter(|digit| *digit < 8)
                .ok_or(NONE)?;
            Ok(value.checked_mul(8).ok_or(NONE)? | u64::from(digit))
        })
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Records of `LENGTH KEY=VALUE` and a line's end, where the length is of all of
/// it: a value may hold any bytes.
fn parse_records(mut text: &[u8]) -> Option<Records> {
    let mut records = Records::new();
    while !text.is_empty() {
        let space = text.iter().position(|byte| *byte == b' ')?;
        let len = usize::try_from(sparse::number(text.get(..space)?)?).ok()?;
        let (record, rest) = text.split_at_checked(len)?;
        let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let (key, value) = (record.get(..equals)?.to_vec(), record.get(equals + 1..)?);
        // Format 0.0 of files with holes says these two again and again, in turn.
        match key.as_slice() {
            sparse::OFFSET | sparse::LENGTH => sparse::add(&mut records, value),
            _ => drop(records.insert(key, value.to_vec())),
        }
        text = rest;
    }
    Some(records)
}
