//! The attribute certificate table of a PE image (PE/COFF specification, "The
//! Attribute Certificate Table"; UEFI 2.10, §32.2.4).

use std::borrow::Cow;

use crate::pe::{PeImage, field, u16_at, u32_at};

use super::message::{Message, parse};
use super::{ParseSignaturesError, SignImageError, VerifySignatureError};

/// Bytes before the content of an entry: dwLength, wRevision, wCertificateType.
const HEADER_LEN: usize = 8;
/// Where entries begin is a multiple of this.
const ALIGNMENT: usize = 8;
/// WIN_CERT_REVISION_2_0.
const REVISION: u16 = 0x200;
/// WIN_CERT_TYPE_PKCS_SIGNED_DATA.
const PKCS_SIGNED_DATA: u16 = 2;

/// An entry of the table.
pub(super) struct Entry<'a> {
    revision: u16,
    kind: u16,
    content: &'a [u8],
}

impl<'a> Entry<'a> {
    pub(super) fn content(&self) -> &'a [u8] {
        self.content
    }

    pub(super) fn message(&self) -> Result<Message<'a>, VerifySignatureError> {
        if (self.revision, self.kind) != (REVISION, PKCS_SIGNED_DATA) {
            return Err(VerifySignatureError::Kind {
                kind: self.kind,
                revision: self.revision,
            });
        }
        parse(self.content).map_err(VerifySignatureError::Message)
    }
}

/// The image up to where a table may begin.
pub(super) fn aligned(image: &[u8]) -> Cow<'_, [u8]> {
    if image.len().is_multiple_of(ALIGNMENT) {
        return image.into();
    }
    let mut padded = image.to_vec();
    padded.resize(image.len().next_multiple_of(ALIGNMENT), 0);
    padded.into()
}

/// The entries of an image's table, none where it has no table.
pub(super) fn parse_entries(image: &[u8]) -> Result<Vec<Entry<'_>>, ParseSignaturesError> {
    let headers = PeImage::parse(image).map_err(ParseSignaturesError::Pe)?;
    let Some(range) = headers.certificates else {
        return Ok(Vec::new());
    };
    if range.end != image.len() {
        return Err(ParseSignaturesError::TableNotLast);
    }
    let mut rest = image.get(range).ok_or(ParseSignaturesError::TableNotLast)?;
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let index = entries.len();
        let (entry, after) = split_entry(rest).ok_or(ParseSignaturesError::Entry { index })?;
        entries.push(entry);
        rest = after;
    }
    Ok(entries)
}

fn split_entry(table: &[u8]) -> Option<(Entry<'_>, &[u8])> {
    let len = usize::try_from(u32_at(table, 0)?).ok()?;
    let entry = Entry {
        revision: u16_at(table, 4)?,
        kind: u16_at(table, 6)?,
        content: table.get(HEADER_LEN..len)?,
    };
    let next = len.checked_next_multiple_of(ALIGNMENT)?;
    Some((entry, table.get(next..)?))
}

/// The image with an entry more at the end of its table.
pub(super) fn append_entry(image: &[u8], message: &[u8]) -> Result<Vec<u8>, SignImageError> {
    let headers = PeImage::parse(image).map_err(SignImageError::Pe)?;
    let at = |offset: usize| headers.pe_offset + offset;
    // A directory that is counted has a place in the optional header.
    let directories = u32_at(image, at(field::NUMBER_OF_DIRECTORIES)).unwrap_or(0);
    let directory = at(field::CERTIFICATE_TABLE);
    if directories <= 4 || directory + 8 > headers.section_table {
        return Err(SignImageError::NoDirectory);
    }
    let start = match headers.certificates {
        Some(range) if range.end == image.len() => range.start,
        Some(_) => return Err(SignImageError::TableNotLast),
        None => image.len(),
    };

    let number = |value: usize| u32::try_from(value).map_err(|_| SignImageError::TooLarge);
    let mut out = image.to_vec();
    out.extend(number(HEADER_LEN + message.len())?.to_le_bytes());
    out.extend(REVISION.to_le_bytes());
    out.extend(PKCS_SIGNED_DATA.to_le_bytes());
    out.extend(message);
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    let entry = [number(start)?, number(out.len() - start)?];
    let sizes = entry.map(u32::to_le_bytes).concat();
    let checksum = at(field::CHECKSUM);
    let mut patch = |offset: usize, bytes: &[u8]| {
        let place = out.get_mut(offset..offset + bytes.len());
        place.map(|place| place.copy_from_slice(bytes))
    };
    let patched = patch(directory, &sizes).and(patch(checksum, &[0; 4]));
    patched.ok_or(SignImageError::NoDirectory)?;
    let sum = image_checksum(&out).ok_or(SignImageError::TooLarge)?;
    if let Some(place) = out.get_mut(checksum..checksum + 4) {
        place.copy_from_slice(&sum.to_le_bytes());
    }
    Ok(out)
}

/// CheckSum of an image in which that field is zero: 16-bit words added with
/// their carries, and the length.
pub(super) fn image_checksum(image: &[u8]) -> Option<u32> {
    let words = image.chunks(2).map(|word| match *word {
        [low, high] => u64::from(u16::from_le_bytes([low, high])),
        [low] => u64::from(low),
        _ => 0,
    });
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u32::try_from(sum)
        .ok()?
        .checked_add(u32::try_from(image.len()).ok()?)
}
