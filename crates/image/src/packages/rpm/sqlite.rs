//! The table `Packages` of rpm's SQLite database
//! (SQLite's "Database File Format", sections 1.3, 1.6 and 2.1).

/// The schema's table is always here.
const SCHEMA_PAGE: u32 = 1;
/// The first page begins with the file's header.
const FILE_HEADER_LEN: usize = 100;
const INTERIOR_TABLE: u8 = 5;
const LEAF_TABLE: u8 = 13;

/// The column `blob` of every row; `None` for what is no such database.
pub(super) fn headers(file: &[u8]) -> Option<Vec<Vec<u8>>> {
    let database = Database::open(file)?;
    let schema = database.rows(SCHEMA_PAGE)?;
    // type, name, tbl_name, rootpage, sql
    let root = schema.iter().find_map(|row| {
        let columns = columns(row)?;
        let is_table = columns.first()?.1 == b"table" && columns.get(1)?.1 == b"Packages";
        let (kind, page) = columns.get(3)?;
        is_table.then(|| integer(*kind, page))?
    })?;
    let rows = database.rows(root)?;
    rows.iter()
        .map(|row| Some(columns(row)?.get(1)?.1.to_vec()))
        .collect()
}

struct Database<'a> {
    file: &'a [u8],
    page_len: usize,
    /// Bytes of a page that hold content.
    usable: usize,
}

/// What a walk may still read: each page once, and no more content than the file
/// has bytes.
struct Budget {
    pages: usize,
    bytes: usize,
}

impl<'a> Database<'a> {
    fn open(file: &'a [u8]) -> Option<Self> {
        if !file.starts_with(b"SQLite format 3\0") {
            return None;
        }
        let page_len = match u16_at(file, 16)? {
            1 => 65_536,
            len => usize::from(len),
        };
        let usable = page_len.checked_sub(usize::from(*file.get(20)?))?;
        (page_len.is_power_of_two() && usable >= 480).then_some(Self {
            file,
            page_len,
            usable,
        })
    }

    /// A page by its number, from 1.
    fn page(&self, number: u32, budget: &mut Budget) -> Option<&'a [u8]> {
        budget.pages = budget.pages.checked_sub(1)?;
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        let start = index.checked_mul(self.page_len)?;
        self.file.get(start..start.checked_add(self.page_len)?)
    }

    /// The records of the table whose tree begins at `root`, in order.
    fn rows(&self, root: u32) -> Option<Vec<Vec<u8>>> {
        let mut budget = Budget {
            pages: self.file.len() / self.page_len,
            bytes: self.file.len(),
        };
        let mut rows = Vec::new();
        let mut pending = vec![root];
        while let Some(number) = pending.pop() {
            let page = self.page(number, &mut budget)?;
            let header = if number == SCHEMA_PAGE {
                FILE_HEADER_LEN
            } else {
                0
            };
            let count = usize::from(u16_at(page, header + 3)?);
            let cells = |table: usize| {
                (0..count).map(move |index| Some(usize::from(u16_at(page, table + 2 * index)?)))
            };
            match *page.get(header)? {
                INTERIOR_TABLE => {
                    let last = u32_at(page, header + 8)?;
                    let children = cells(header + 12).map(|cell| u32_at(page, cell?));
                    let mut children = children.collect::<Option<Vec<_>>>()?;
                    children.push(last);
                    pending.extend(children.into_iter().rev());
                }
                LEAF_TABLE => {
                    for cell in cells(header + 8) {
                        rows.push(self.record(page.get(cell?..)?, &mut budget)?);
                    }
                }
                _ => return None,
            }
        }
        Some(rows)
    }

    /// The record of a leaf's cell, with what of it is on other pages.
    fn record(&self, cell: &[u8], budget: &mut Budget) -> Option<Vec<u8>> {
        let (len, rest) = varint(cell)?;
        let (_row, rest) = varint(rest)?;
        let len = usize::try_from(len).ok()?;
        budget.bytes = budget.bytes.checked_sub(len)?;
        let most = self.usable - 35;
        if len <= most {
            return Some(rest.get(..len)?.to_vec());
        }
        let least = (self.usable - 12) * 32 / 255 - 23;
        let here = least + (len - least) % (self.usable - 4);
        let here = if here <= most { here } else { least };
        let mut record = rest.get(..here)?.to_vec();
        let mut next = u32_at(rest, here)?;
        while record.len() < len {
            let page = self.page(next, budget)?;
            next = u32_at(page, 0)?;
            let take = (len - record.len()).min(self.usable - 4);
            record.extend(page.get(4..4 + take)?);
        }
        Some(record)
    }
}

/// Serial type and bytes of each column.
fn columns(record: &[u8]) -> Option<Vec<(u64, &[u8])>> {
    let (header_len, rest) = varint(record)?;
    let header_len = usize::try_from(header_len).ok()?;
    let mut types = record.get(record.len() - rest.len()..header_len)?;
    let mut body = record.get(header_len..)?;
    let mut columns = Vec::new();
    while !types.is_empty() {
        let (kind, rest) = varint(types)?;
        types = rest;
        let len = match kind {
            0 | 8 | 9 => 0,
            1..=4 => kind,
            5 => 6,
            6 | 7 => 8,
            10 | 11 => return None,
            _ => (kind - 12) / 2,
        };
        let (column, rest) = body.split_at_checked(usize::try_from(len).ok()?)?;
        body = rest;
        columns.push((kind, column));
    }
    Some(columns)
}

/// A column's number, where it is one that a page can have.
fn integer(kind: u64, bytes: &[u8]) -> Option<u32> {
    match kind {
        8 => Some(0),
        9 => Some(1),
        1..=6 => {
            let value = bytes
                .iter()
                .fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
            u32::try_from(value).ok()
        }
        _ => None,
    }
}

/// A number of seven bits a byte, most significant first; the ninth byte has eight.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().take(9).enumerate() {
        if index == 8 {
            return Some((value << 8 | u64::from(*byte), bytes.get(9..)?));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, bytes.get(index + 1..)?));
        }
    }
    None
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u16::from_be_bytes(*field))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_be_bytes(*field))
}
