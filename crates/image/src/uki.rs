//! Unified kernel images (UAPI group, *Unified Kernel Image*): a PE executable
//! made of systemd-stub with kernel, initrd and command line as sections.
//!
//! The bytes are those that `ukify` 262 writes for the same parts. `.osrel` is
//! left out on purpose: with it the stub appends cpio archives of its own to
//! the initrd.

use bytes::Bytes;

use crate::pe::{
    NX_COMPAT, ParsePeError, PeImage, PeSection, READ_CODE, READ_DATA, SECTION_HEADER_LEN, field,
};
use crate::rope::Rope;

/// The sections of our UKIs, in file order. `.sbat` is the stub's own.
pub const SECTIONS: [&str; 5] = [SBAT, CMDLINE, UNAME, LINUX, INITRD];

/// SBAT revocation data.
pub const SBAT: &str = ".sbat";
/// The command line.
pub const CMDLINE: &str = ".cmdline";
/// The kernel's release.
pub const UNAME: &str = ".uname";
/// The kernel.
pub const LINUX: &str = ".linux";
/// The initrd.
pub const INITRD: &str = ".initrd";

/// Sections that the stub acts on and that our UKIs never have.
const FOREIGN: [&str; 10] = [
    ".osrel", ".dtb", ".dtbauto", ".hwids", ".splash", ".pcrpkey", ".pcrsig", ".efifw", ".ucode",
    ".profile",
];

const SBAT_HEADER: &str =
    "sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md";
const SBAT_UKI: &str =
    "uki,1,UKI,uki,1,https://uapi-group.org/specifications/specs/unified_kernel_image/";

/// What a UKI is made of.
#[derive(Debug, Clone)]
pub struct UkiParts<'a> {
    /// systemd-stub.
    pub stub: &'a Bytes,
    /// The kernel, with an EFI stub.
    pub kernel: &'a Bytes,
    /// The initrd.
    pub initrd: &'a Rope,
    /// The command line.
    pub cmdline: &'a str,
    /// The kernel's release.
    pub uname: &'a str,
}

/// Parts that do not make a UKI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeUkiError {
    /// The stub is no PE image.
    #[error("cannot read the stub")]
    Stub(#[source] ParsePeError),
    /// The kernel is no PE image.
    #[error("cannot read the kernel: it must have an EFI stub")]
    Kernel(#[source] ParsePeError),
    /// The stub cannot be extended.
    #[error("the stub cannot be extended: {0}")]
    UnusableStub(&'static str),
    /// The merged SBAT data do not fit the stub's section.
    #[error(".sbat of {len} bytes does not fit the stub's {room}")]
    SbatRoom {
        /// Bytes to write.
        len: usize,
        /// Bytes that the section has.
        room: u32,
    },
    /// SBAT data are no text with the expected first line.
    #[error("the SBAT data of the {0} are malformed")]
    MalformedSbat(&'static str),
    /// A section is too large for the format.
    #[error("section {0} is too large")]
    TooLarge(&'static str),
}

/// Writes a UKI.
pub fn encode_uki(parts: &UkiParts<'_>) -> Result<Rope, EncodeUkiError> {
    let stub = PeImage::parse(parts.stub).map_err(EncodeUkiError::Stub)?;
    let kernel = PeImage::parse(parts.kernel).map_err(EncodeUkiError::Kernel)?;
    check_stub(&stub)?;
    let sbat = merge_sbat(parts, &stub, &kernel)?;

    let added: [(&'static str, Rope, u32); 4] = [
        (CMDLINE, parts.cmdline.as_bytes().to_vec().into(), READ_DATA),
        (UNAME, parts.uname.as_bytes().to_vec().into(), READ_DATA),
        (LINUX, parts.kernel.clone().into(), READ_CODE),
        (INITRD, parts.initrd.clone(), READ_DATA),
    ];
    let layout = Layout::new(&stub, parts.stub.len(), &added)?;

    let mut head = parts.stub.to_vec();
    replace_sbat(&mut head, &stub, &sbat)?;
    layout.write_headers(&mut head, &stub, &kernel)?;
    let mut out = Rope::from(head);
    let alignment = u64::from(stub.file_alignment);
    out.pad_to(alignment);
    for (_, content, _) in &added {
        out.append(content);
        out.pad_to(alignment);
    }
    Ok(out)
}

fn check_stub(stub: &PeImage) -> Result<(), EncodeUkiError> {
    let unusable = |why| Err(EncodeUkiError::UnusableStub(why));
    if stub.certificates.is_some() {
        return unusable("it is signed");
    }
    if stub.has_symbols {
        return unusable("it has a symbol table");
    }
    let aligned = |section: &PeSection| {
        section.raw_offset.is_multiple_of(stub.file_alignment)
            && section.raw_size.is_multiple_of(stub.file_alignment)
    };
    if !stub.sections.iter().all(aligned) {
        return unusable("a section is not aligned");
    }
    let taken = |section: &PeSection| {
        section.name != SBAT
            && (SECTIONS.contains(&section.name.as_str())
                || FOREIGN.contains(&section.name.as_str()))
    };
    if stub.sections.iter().any(taken) {
        return unusable("it is a complete UKI already");
    }
    Ok(())
}

/// A section header to be written.
struct NewSection {
    name: &'static str,
    virtual_size: u32,
    virtual_address: u32,
    raw_size: u32,
    raw_offset: u32,
    characteristics: u32,
}

/// Where the added sections go.
struct Layout {
    sections: Vec<NewSection>,
    initialized_data: u32,
    image_size: u32,
    headers_size: u32,
}

impl Layout {
    fn new(
        stub: &PeImage,
        stub_len: usize,
        added: &[(&'static str, Rope, u32)],
    ) -> Result<Self, EncodeUkiError> {
        let last = stub
            .sections
            .last()
            .ok_or(EncodeUkiError::UnusableStub("it has no sections"))?;
        let mut sections = Vec::with_capacity(added.len());
        let mut file_end = u32::try_from(stub_len).map_err(|_| EncodeUkiError::TooLarge("stub"))?;
        let mut memory_end = last.virtual_address.checked_add(last.virtual_size);
        let mut initialized_data = stub.size_of_initialized_data;
        for (name, content, characteristics) in added {
            let too_large = || EncodeUkiError::TooLarge(name);
            let virtual_size = u32::try_from(content.len()).map_err(|_| too_large())?;
            let up = |value: u32, alignment| {
                value
                    .checked_next_multiple_of(alignment)
                    .ok_or_else(too_large)
            };
            let virtual_address = up(memory_end.ok_or_else(too_large)?, stub.section_alignment)?;
            let raw_offset = up(file_end, stub.file_alignment)?;
            let raw_size = up(virtual_size, stub.file_alignment)?;
            file_end = raw_offset.checked_add(raw_size).ok_or_else(too_large)?;
            memory_end = virtual_address.checked_add(virtual_size);
            initialized_data = initialized_data.wrapping_add(virtual_size);
            sections.push(NewSection {
                name,
                virtual_size,
                virtual_address,
                raw_size,
                raw_offset,
                characteristics: *characteristics,
            });
        }
        let too_large = EncodeUkiError::TooLarge("image");
        let up = |value: u32, alignment| value.checked_next_multiple_of(alignment);
        let image_size = memory_end.and_then(|end| up(end, stub.section_alignment));
        let headers_size = up(stub.size_of_headers, stub.file_alignment);
        let (Some(image_size), Some(headers_size)) = (image_size, headers_size) else {
            return Err(too_large);
        };
        let headers = stub.sections.len() + sections.len();
        let table_end = stub.section_table + headers * SECTION_HEADER_LEN;
        if table_end as u64 > u64::from(headers_size) {
            return Err(EncodeUkiError::UnusableStub(
                "it has no room for section headers",
            ));
        }
        Ok(Self {
            sections,
            initialized_data,
            image_size,
            headers_size,
        })
    }

    fn write_headers(
        &self,
        image: &mut [u8],
        stub: &PeImage,
        kernel: &PeImage,
    ) -> Result<(), EncodeUkiError> {
        // Both must allow it, or firmware that enforces it could not start the
        // kernel.
        let characteristics = stub.dll_characteristics & (kernel.dll_characteristics | !NX_COMPAT);
        let count = u16::try_from(stub.sections.len() + self.sections.len())
            .map_err(|_| EncodeUkiError::UnusableStub("it has too many sections"))?;
        let mut table = Vec::new();
        for section in &self.sections {
            let mut name = [0; 8];
            name.iter_mut()
                .zip(section.name.bytes())
                .for_each(|(to, from)| *to = from);
            table.extend(name);
            let numbers = [
                section.virtual_size,
                section.virtual_address,
                section.raw_size,
                section.raw_offset,
            ];
            table.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            table.extend([0; 12]); // no relocations, no line numbers
            table.extend(section.characteristics.to_le_bytes());
        }
        let pe = stub.pe_offset;
        let table_end = stub.section_table + stub.sections.len() * SECTION_HEADER_LEN;
        let patches: [(usize, &[u8]); 7] = [
            (pe + field::NUMBER_OF_SECTIONS, &count.to_le_bytes()),
            (
                pe + field::SIZE_OF_INITIALIZED_DATA,
                &self.initialized_data.to_le_bytes(),
            ),
            (pe + field::SIZE_OF_IMAGE, &self.image_size.to_le_bytes()),
            (
                pe + field::SIZE_OF_HEADERS,
                &self.headers_size.to_le_bytes(),
            ),
            (pe + field::CHECKSUM, &[0; 4]),
            (
                pe + field::DLL_CHARACTERISTICS,
                &characteristics.to_le_bytes(),
            ),
            (table_end, &table),
        ];
        for (offset, bytes) in patches {
            patch(image, offset, bytes)?;
        }
        Ok(())
    }
}

fn patch(image: &mut [u8], offset: usize, bytes: &[u8]) -> Result<(), EncodeUkiError> {
    let end = offset.checked_add(bytes.len());
    end.and_then(|end| image.get_mut(offset..end))
        .ok_or(EncodeUkiError::UnusableStub(
            "a header lies outside the file",
        ))?
        .copy_from_slice(bytes);
    Ok(())
}

/// The SBAT data of stub, kernel and UKI format under one header line.
fn merge_sbat(
    parts: &UkiParts<'_>,
    stub: &PeImage,
    kernel: &PeImage,
) -> Result<Vec<u8>, EncodeUkiError> {
    let mut out = format!("{SBAT_HEADER}\n");
    let sources = [("stub", stub, parts.stub), ("kernel", kernel, parts.kernel)];
    for (name, image, bytes) in sources {
        let Some(section) = image.section(SBAT) else {
            continue;
        };
        let malformed = || EncodeUkiError::MalformedSbat(name);
        let content = section.content(bytes).ok_or_else(malformed)?;
        let text = std::str::from_utf8(&content).map_err(|_| malformed())?;
        let mut lines = text.trim_end_matches('\0').lines();
        if !lines.next().is_some_and(|first| first.starts_with("sbat,")) {
            return Err(malformed());
        }
        for line in lines {
            out.push_str(line);
            out.push('\n');
        }
    }
    out.push_str(SBAT_UKI);
    out.push('\n');
    Ok(out.into_bytes())
}

/// Puts merged SBAT data at the place of the stub's.
fn replace_sbat(image: &mut [u8], stub: &PeImage, sbat: &[u8]) -> Result<(), EncodeUkiError> {
    let index = stub
        .sections
        .iter()
        .position(|section| section.name == SBAT);
    let (index, section) = index
        .and_then(|index| Some((index, stub.sections.get(index)?)))
        .ok_or(EncodeUkiError::UnusableStub("it has no .sbat section"))?;
    let room = EncodeUkiError::SbatRoom {
        len: sbat.len(),
        room: section.raw_size,
    };
    let Ok(len) = u32::try_from(sbat.len()) else {
        return Err(room);
    };
    if len > section.raw_size {
        return Err(room);
    }
    let mut padded = sbat.to_vec();
    padded.resize(section.raw_size as usize, 0);
    patch(image, section.raw_offset as usize, &padded)?;
    let header = stub.section_table + index * SECTION_HEADER_LEN;
    patch(image, header + 8, &len.to_le_bytes())
}

/// The parts of a UKI that this crate wrote.
#[derive(Debug, Clone)]
pub struct UkiContent {
    /// Name and content of [`SECTIONS`], in that order.
    pub sections: Vec<(&'static str, Bytes)>,
}

impl UkiContent {
    /// Content of one of [`SECTIONS`].
    pub fn section(&self, name: &str) -> Option<&Bytes> {
        self.sections
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, content)| content)
    }
}

/// Bytes are not a UKI as this crate writes them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseUkiError {
    /// No PE image.
    #[error("cannot read the UKI")]
    Pe(#[source] ParsePeError),
    /// A section is missing or ends after the file.
    #[error("the UKI has no complete section {0}")]
    Missing(&'static str),
    /// A section is there twice: the stub and a reader could take different ones.
    #[error("the UKI has section {0} more than once")]
    Duplicate(&'static str),
    /// A section that the stub acts on, such as a second initrd.
    #[error("the UKI has section {0}, which our images never have")]
    Foreign(&'static str),
}

/// Reads a UKI, strictly: exactly our sections, each once.
pub fn parse_uki(image: &Bytes) -> Result<UkiContent, ParseUkiError> {
    let pe = PeImage::parse(image).map_err(ParseUkiError::Pe)?;
    let count = |name: &str| {
        pe.sections
            .iter()
            .filter(|section| section.name == name)
            .count()
    };
    if let Some(foreign) = FOREIGN.into_iter().find(|name| count(name) > 0) {
        return Err(ParseUkiError::Foreign(foreign));
    }
    let mut sections = Vec::new();
    for name in SECTIONS {
        if count(name) > 1 {
            return Err(ParseUkiError::Duplicate(name));
        }
        let content = pe
            .section(name)
            .and_then(|section| section.content(image))
            .ok_or(ParseUkiError::Missing(name))?;
        sections.push((name, content));
    }
    Ok(UkiContent { sections })
}

#[cfg(test)]
mod oracle_tests;
#[cfg(test)]
pub(crate) mod tests;
