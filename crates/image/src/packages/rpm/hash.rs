//! The values of rpm's Berkeley DB hash database, as little-endian machines write
//! it (Berkeley DB 5.3 `src/dbinc/db_page.h`).

const MAGIC: u32 = 0x0006_1561;
/// Bytes before a page's content.
const PAGE_HEADER_LEN: usize = 26;
const PAGE_HASH_UNSORTED: u8 = 2;
const PAGE_OVERFLOW: u8 = 7;
const PAGE_HASH: u8 = 13;
/// A value that is in its page.
const ITEM_HERE: u8 = 1;
/// A value that is on pages of its own.
const ITEM_ELSEWHERE: u8 = 3;
/// The shortest value that is a header; rpm also keeps a counter.
const MIN_LEN: usize = 9;

/// Every value that is long enough for a header; `None` for what is no such
/// database.
pub(super) fn headers(file: &[u8]) -> Option<Vec<Vec<u8>>> {
    let page_len = usize::try_from(u32_at(file, 20)?).ok()?;
    let is_size = page_len.is_power_of_two() && (512..=65_536).contains(&page_len);
    if u32_at(file, 12)? != MAGIC || !is_size {
        return None;
    }
    // Each page is part of one value at most.
    let mut budget = file.len() / page_len;
    let mut found = Vec::new();
    for page in file.chunks_exact(page_len).skip(1) {
        if !matches!(*page.get(25)?, PAGE_HASH | PAGE_HASH_UNSORTED) {
            continue;
        }
        let mut end = page_len;
        for index in 0..usize::from(u16_at(page, 20)?) {
            let start = usize::from(u16_at(page, PAGE_HEADER_LEN + 2 * index)?);
            let item = page.get(start..end)?;
            end = start;
            // Keys and values take turns.
            if index % 2 == 0 {
                continue;
            }
            let value = match *item.first()? {
                ITEM_HERE => item.get(1..)?.to_vec(),
                ITEM_ELSEWHERE => {
                    let len = usize::try_from(u32_at(item, 8)?).ok()?;
                    chain(file, page_len, u32_at(item, 4)?, len, &mut budget)?
                }
                _ => return None,
            };
            if value.len() >= MIN_LEN {
                found.push(value);
            }
        }
    }
    Some(found)
}

/// A value of `len` bytes on pages that name one another.
fn chain(
    file: &[u8],
    page_len: usize,
    first: u32,
    len: usize,
    budget: &mut usize,
) -> Option<Vec<u8>> {
    let mut value = Vec::new();
    let mut next = first;
    while value.len() < len {
        *budget = budget.checked_sub(1)?;
        let start = usize::try_from(next).ok()?.checked_mul(page_len)?;
        let page = file.get(start..start.checked_add(page_len)?)?;
        if *page.get(25)? != PAGE_OVERFLOW {
            return None;
        }
        let used = usize::from(u16_at(page, 22)?);
        value.extend(page.get(PAGE_HEADER_LEN..PAGE_HEADER_LEN + used)?);
        next = u32_at(page, 16)?;
    }
    (value.len() == len).then_some(value)
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u16::from_le_bytes(*field))
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_le_bytes(*field))
}
