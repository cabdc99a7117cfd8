//! Unified kernel images (UAPI group, *Unified Kernel Image*): a PE executable
//! made of systemd-stub with kernel, initrd and command line as sections.
//!
//! The bytes are those that `ukify` 262 writes for the same parts. What is optional
//! is left out unless somebody asks for it: of `.osrel`, `.pcrpkey` and `.pcrsig`
//! the stub makes cpio archives of its own, which it appends to the initrd.

use bytes::Bytes;

use crate::newc::{NewcEntry, parse_newc};
use crate::pcr_signature::{PcrKey, PcrSignatures};
use crate::pe::{
    NX_COMPAT, ParsePeError, PeImage, PeSection, READ_CODE, READ_DATA, SECTION_HEADER_LEN, field,
};
use crate::rope::Rope;

/// The sections that each of our UKIs has, in file order. `.sbat` is the stub's own.
pub const SECTIONS: [&str; 5] = [SBAT, CMDLINE, UNAME, LINUX, INITRD];

/// Those and the optional ones, in file order.
const ALL_SECTIONS: [&str; 10] = [
    SBAT, OSREL, CMDLINE, UNAME, SPLASH, PCRPKEY, LINUX, INITRD, UCODE, PCRSIG,
];

/// SBAT revocation data.
pub const SBAT: &str = ".sbat";
/// What the image says that it is: os-release(5).
pub const OSREL: &str = ".osrel";
/// The command line.
pub const CMDLINE: &str = ".cmdline";
/// The kernel's release.
pub const UNAME: &str = ".uname";
/// A picture to show while the kernel boots.
pub const SPLASH: &str = ".splash";
/// The public key that expected PCR values are signed with.
pub const PCRPKEY: &str = ".pcrpkey";
/// The kernel.
pub const LINUX: &str = ".linux";
/// The initrd.
pub const INITRD: &str = ".initrd";
/// An initrd with processor microcode, which the kernel must find first.
pub const UCODE: &str = ".ucode";
/// Signatures of expected PCR values. The only section that is not measured.
pub const PCRSIG: &str = ".pcrsig";

/// Sections that the stub acts on and that our UKIs never have.
const FOREIGN: [&str; 5] = [".dtb", ".dtbauto", ".hwids", ".efifw", ".profile"];

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
    /// What only some UKIs have.
    pub optional: OptionalSections,
}

/// Sections that a UKI has where somebody asks for them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OptionalSections {
    /// [`OSREL`].
    pub os_release: Option<Bytes>,
    /// [`SPLASH`]: a BMP image.
    pub splash: Option<Bytes>,
    /// [`UCODE`]: a cpio archive with files in `kernel/x86/microcode` alone.
    pub microcode: Option<Bytes>,
    /// [`PCRPKEY`]: PEM.
    pub pcr_public_key: Option<Bytes>,
    /// [`PCRSIG`]: JSON.
    pub pcr_signatures: Option<Bytes>,
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
    /// An optional section is not what its readers expect.
    #[error("section {name}: {problem}")]
    Content {
        /// The section.
        name: &'static str,
        /// What is wrong.
        problem: &'static str,
    },
}

/// Writes a UKI.
pub fn encode_uki(parts: &UkiParts<'_>) -> Result<Rope, EncodeUkiError> {
    let stub = PeImage::parse(parts.stub).map_err(EncodeUkiError::Stub)?;
    let kernel = PeImage::parse(parts.kernel).map_err(EncodeUkiError::Kernel)?;
    check_stub(&stub)?;
    let sbat = merge_sbat(parts, &stub, &kernel)?;

    let added = added_sections(parts)?;
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

/// What follows the stub's own sections, in file order: name, content, and the
/// characteristics of the section.
fn added_sections(parts: &UkiParts<'_>) -> Result<Vec<(&'static str, Rope, u32)>, EncodeUkiError> {
    let optional = &parts.optional;
    let text = |text: &str| Some(Rope::from(text.as_bytes().to_vec()));
    let file = |name: &'static str, content: &Option<Bytes>| {
        let content = content.clone();
        if let Some(content) = &content {
            check_content(name, content)
                .map_err(|problem| EncodeUkiError::Content { name, problem })?;
        }
        Ok((name, content.map(Rope::from), READ_DATA))
    };
    let all = [
        file(OSREL, &optional.os_release)?,
        (CMDLINE, text(parts.cmdline), READ_DATA),
        (UNAME, text(parts.uname), READ_DATA),
        file(SPLASH, &optional.splash)?,
        file(PCRPKEY, &optional.pcr_public_key)?,
        (LINUX, Some(parts.kernel.clone().into()), READ_CODE),
        (INITRD, Some(parts.initrd.clone()), READ_DATA),
        file(UCODE, &optional.microcode)?,
        file(PCRSIG, &optional.pcr_signatures)?,
    ];
    let present = all
        .into_iter()
        .filter_map(|(name, content, kind)| Some((name, content?, kind)));
    Ok(present.collect())
}

/// Checks that an optional section is what its readers expect, and no more than it
/// says. Other sections pass.
fn check_content(name: &str, content: &Bytes) -> Result<(), &'static str> {
    match name {
        OSREL => check_os_release(content),
        SPLASH => check_splash(content),
        UCODE => check_microcode(content),
        PCRPKEY => match PcrKey::from_pem(content) {
            Ok(key) if key.to_pem().as_bytes() == content.as_ref() => Ok(()),
            Ok(_) => Err("is not the one PEM form of its key"),
            Err(_) => Err("is no public RSA key in PEM"),
        },
        PCRSIG => PcrSignatures::parse(content)
            .map(drop)
            .map_err(|_| "is no JSON as `systemd-measure sign` writes it"),
        _ => Ok(()),
    }
}

fn check_os_release(content: &[u8]) -> Result<(), &'static str> {
    let text = std::str::from_utf8(content).map_err(|_| "is not UTF-8")?;
    if text.contains('\0') {
        return Err("has a NUL, at which readers stop");
    }
    let names_itself = text.lines().any(|line| line.starts_with("ID="));
    names_itself.then_some(()).ok_or("has no line with ID=")
}

/// BITMAPFILEHEADER and BITMAPINFOHEADER, as far as the stub looks.
fn check_splash(content: &[u8]) -> Result<(), &'static str> {
    const HEADERS_LEN: u32 = 54;
    if !content.starts_with(b"BM") {
        return Err("is no BMP image");
    }
    let number = |at| crate::pe::u32_at(content, at).ok_or("ends in its header");
    let (len, pixels) = (number(2)?, number(10)?);
    let sensible = HEADERS_LEN <= pixels && pixels < len && len as usize <= content.len();
    sensible
        .then_some(())
        .ok_or("is a BMP image of which a part is missing")
}

/// An archive of microcode, and of nothing else: what it held would become part of
/// the guest.
fn check_microcode(content: &Bytes) -> Result<(), &'static str> {
    const DIRECTORIES: [&[u8]; 4] = [b".", b"kernel", b"kernel/x86", b"kernel/x86/microcode"];
    let entries = parse_newc(content)
        .map_err(|_| "is no uncompressed cpio archive (newc) with nothing after it")?;
    let file_name = |entry: &NewcEntry| {
        let name = entry.path.strip_prefix(b"kernel/x86/microcode/")?;
        (entry.is_file() && entry.links == 1 && !name.contains(&b'/')).then(|| name.to_vec())
    };
    let expected = |entry: &NewcEntry| {
        let directory = DIRECTORIES.contains(&entry.path.as_ref());
        directory && entry.is_directory() || file_name(entry).is_some()
    };
    if !entries.iter().all(expected) {
        return Err("has more than plain files in kernel/x86/microcode");
    }
    let names: Vec<_> = entries.iter().filter_map(file_name).collect();
    let known =
        |name: &Vec<u8>| matches!(name.as_slice(), b"AuthenticAMD.bin" | b"GenuineIntel.bin");
    names
        .iter()
        .any(known)
        .then_some(())
        .ok_or("has neither kernel/x86/microcode/AuthenticAMD.bin nor GenuineIntel.bin there")
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
            && (ALL_SECTIONS.contains(&section.name.as_str())
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
    /// Name and content of [`SECTIONS`] and the optional ones, in file order.
    pub sections: Vec<(&'static str, Bytes)>,
}

impl UkiContent {
    /// Content of a section of ours.
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
    /// A section that the stub acts on, such as a profile.
    #[error("the UKI has section {0}, which our images never have")]
    Foreign(&'static str),
    /// An optional section is not what its readers expect.
    #[error("the UKI's section {name} {problem}")]
    Content {
        /// The section.
        name: &'static str,
        /// What is wrong.
        problem: &'static str,
    },
}

/// Reads a UKI, strictly: exactly our sections, each once. Whether signatures are of
/// its PCR values is for [`crate::pcr_signature::verify_pcr_signatures`].
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
    for name in ALL_SECTIONS {
        match count(name) {
            0 if !SECTIONS.contains(&name) => continue,
            0 | 1 => {}
            _ => return Err(ParseUkiError::Duplicate(name)),
        }
        let content = pe
            .section(name)
            .and_then(|section| section.content(image))
            .ok_or(ParseUkiError::Missing(name))?;
        check_content(name, &content)
            .map_err(|problem| ParseUkiError::Content { name, problem })?;
        sections.push((name, content));
    }
    Ok(UkiContent { sections })
}

#[cfg(test)]
mod oracle_tests;
#[cfg(test)]
pub(crate) mod tests;
