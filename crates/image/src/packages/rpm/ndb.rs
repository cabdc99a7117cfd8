//! rpm's own database format (rpm `lib/backend/ndb/rpmpkg.c`).

const MAGIC: &[u8] = b"RpmP";
const SLOT_MAGIC: &[u8] = b"Slot";
const BLOB_MAGIC: &[u8] = b"BlbS";
const VERSION: u32 = 0;
const SLOTS_PAGE_LEN: usize = 4096;
const SLOT_LEN: usize = 16;
/// The file's header has the place of two slots.
const HEADER_SLOTS: usize = 2;
/// Blobs begin at multiples of this.
const BLOCK_LEN: usize = 16;
/// Magic, package, generation, length.
const BLOB_HEADER_LEN: usize = 16;

/// The blob of every slot in use; `None` for what is no such database.
pub(super) fn headers(file: &[u8]) -> Option<Vec<Vec<u8>>> {
    if !file.starts_with(MAGIC) || u32_at(file, 4)? != VERSION {
        return None;
    }
    let slots_len = usize::try_from(u32_at(file, 12)?).ok()?;
    let slots = file.get(..slots_len.checked_mul(SLOTS_PAGE_LEN)?)?;
    let mut found = Vec::new();
    // Blobs have no bytes in common.
    let mut room = file.len();
    for slot in slots.chunks_exact(SLOT_LEN).skip(HEADER_SLOTS) {
        let (package, block) = (u32_at(slot, 4)?, u32_at(slot, 8)?);
        if !slot.starts_with(SLOT_MAGIC) {
            return None;
        }
        // A free slot names no package.
        if package == 0 || block == 0 {
            continue;
        }
        let start = usize::try_from(block).ok()?.checked_mul(BLOCK_LEN)?;
        let blob = file.get(start..)?;
        if !blob.starts_with(BLOB_MAGIC) || u32_at(blob, 4)? != package {
            return None;
        }
        let len = usize::try_from(u32_at(blob, 12)?).ok()?;
        room = room.checked_sub(len)?;
        let end = BLOB_HEADER_LEN.checked_add(len)?;
        found.push(blob.get(BLOB_HEADER_LEN..end)?.to_vec());
    }
    Some(found)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_le_bytes(*field))
}
