//! What OVMF does with a kernel that it is handed: read from the bytes of the driver
//! that hands kernels to the boot manager (edk2 `OvmfPkg/QemuKernelLoaderFsDxe`).
//!
//! Every build of OVMF has that driver under the same file name. A build that
//! verifies kernels links code into it that looks for the entries of the measured
//! hashes table, so it holds their GUIDs; other builds link code that says yes to
//! everything, and the metadata at the end of the image says the same of both.
//! Present GUIDs are no proof that they are used: that takes trust in who built the
//! firmware, whose digest is measured. Missing ones are proof that they are not.
//!
//! Formats: UEFI Platform Initialization 1.8, volume 3, sections 2.2 and 3.2.

use std::io::{self, Read as _};

use assay_tee::guid::Guid;
use assay_tee::hashes_table::ENTRY_GUIDS;
use lzma_rust2::LzmaReader;
use memchr::memmem;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use crate::igvm::IGVM_DATA_HOB;

/// Name of the driver's file, of all builds of OVMF since 2020.
const DRIVER: Guid = Guid::new(0x8060_40ca_dad9_4978_a3b4_2d2a_b0c8_a48f);
/// File systems of volumes: the second version, and the same with large files.
const FILE_SYSTEMS: [Guid; 2] = [
    Guid::new(0x8c8c_e578_8a3d_4f1c_9935_8961_85c3_2dd3),
    Guid::new(0x5473_c07a_3dcb_4dca_bd6f_1e96_89e7_349a),
];
/// What a section says that holds others compressed with LZMA.
const LZMA: Guid = Guid::new(0xee4e_5898_3914_4259_9d6e_dc7b_d794_03cf);

/// Volumes begin at pages of an image.
const VOLUME_ALIGNMENT: usize = 4096;
/// Most bytes of the content of all compressed sections. OVMF has 16 MiB.
const MAX_UNCOMPRESSED: u64 = 64 << 20;
/// Most memory that uncompressing may take besides the content, in KiB.
const MAX_LZMA_MEMORY_KIB: u32 = 96 << 10;
/// Volumes within volumes. OVMF has one within another.
const MAX_DEPTH: u8 = 4;

/// EFI_FV_FILETYPE_FIRMWARE_VOLUME_IMAGE.
const FILE_OF_VOLUMES: u8 = 0x0b;
/// FFS_ATTRIB_LARGE_FILE.
const LARGE_FILE: u8 = 0x01;
/// EFI_SECTION_GUID_DEFINED.
const SECTION_GUIDED: u8 = 0x02;
/// EFI_SECTION_FIRMWARE_VOLUME_IMAGE.
const SECTION_VOLUME: u8 = 0x17;

/// EFI_FIRMWARE_VOLUME_HEADER without its block map.
#[repr(C)]
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
struct VolumeHeader {
    zero_vector: [u8; 16],
    file_system: [u8; 16],
    length: U64,
    signature: [u8; 4],
    attributes: U32,
    header_length: U16,
    checksum: U16,
    extended_header: U16,
    _rsvd_0x36: u8,
    revision: u8,
}
const _: () = assert!(size_of::<VolumeHeader>() == 0x38);
const _: () = assert!(core::mem::offset_of!(VolumeHeader, extended_header) == 0x34);

/// EFI_FIRMWARE_VOLUME_EXT_HEADER.
#[repr(C)]
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
struct ExtendedHeader {
    name: [u8; 16],
    size: U32,
}
const _: () = assert!(size_of::<ExtendedHeader>() == 0x14);

/// EFI_FFS_FILE_HEADER.
#[repr(C)]
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
struct FileHeader {
    name: [u8; 16],
    checksum: U16,
    kind: u8,
    attributes: u8,
    size: [u8; 3],
    state: u8,
}
const _: () = assert!(size_of::<FileHeader>() == 0x18);

/// EFI_COMMON_SECTION_HEADER.
#[repr(C)]
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
struct SectionHeader {
    size: [u8; 3],
    kind: u8,
}
const _: () = assert!(size_of::<SectionHeader>() == 4);

/// What EFI_GUID_DEFINED_SECTION has after the common header.
#[repr(C)]
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
struct GuidedHeader {
    name: [u8; 16],
    data_offset: U16,
    attributes: U16,
}
const _: () = assert!(size_of::<GuidedHeader>() == 0x14);

/// What OVMF does with a kernel that it is handed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelLoader {
    /// Whether it compares kernel, initrd and command line of the host (QEMU's
    /// `-kernel`, `-initrd`, `-append`) with the measured hashes table. One that does
    /// not starts what the host pleases, and also starts the UKI of an IGVM file
    /// with a command line that the host hands over beside it.
    pub verifies_hashes: bool,
    /// Whether it takes a kernel from an IGVM file.
    pub reads_igvm: bool,
}

/// What firmware does with a kernel cannot be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadKernelLoaderError {
    /// A volume ends before something in it does, or begins before its header ends.
    #[error("the firmware volume at {offset:#x} is damaged: {what}; use an unmodified OVMF image")]
    Volume {
        /// Where in the image the outermost volume is.
        offset: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// Content of a volume cannot be uncompressed.
    #[error(
        "the firmware volume at {offset:#x} cannot be uncompressed ({kind}); use an unmodified \
         OVMF image"
    )]
    Uncompress {
        /// Where in the image the outermost volume is.
        offset: usize,
        /// The cause.
        kind: io::ErrorKind,
    },
    /// There is no such driver.
    #[error(
        "the firmware has no driver QemuKernelLoaderFsDxe, so what it does with a kernel cannot be \
         told; use an OVMF image of edk2"
    )]
    NoDriver,
}

/// Reads what an OVMF image does with a kernel. Where there are several drivers, each
/// must do what is said of it.
///
/// # Errors
/// See [`ReadKernelLoaderError`].
pub fn read_kernel_loader(firmware: &[u8]) -> Result<KernelLoader, ReadKernelLoaderError> {
    let mut drivers = Drivers {
        found: None,
        room: MAX_UNCOMPRESSED,
    };
    let mut at = 0;
    while let Some(rest) = firmware.get(at..).filter(|rest| !rest.is_empty()) {
        match volume_of(rest) {
            Some(volume) => {
                drivers
                    .add_volume(volume, MAX_DEPTH)
                    .map_err(|damage| damage.at(at))?;
                at += volume.len().next_multiple_of(VOLUME_ALIGNMENT);
            }
            None => at += VOLUME_ALIGNMENT,
        }
    }
    drivers.found.ok_or(ReadKernelLoaderError::NoDriver)
}

enum Damage {
    Layout(&'static str),
    Uncompress(io::ErrorKind),
}

impl Damage {
    const fn at(self, offset: usize) -> ReadKernelLoaderError {
        match self {
            Self::Layout(what) => ReadKernelLoaderError::Volume { offset, what },
            Self::Uncompress(kind) => ReadKernelLoaderError::Uncompress { offset, kind },
        }
    }
}

/// The volume that `bytes` begin with, if they do.
fn volume_of(bytes: &[u8]) -> Option<&[u8]> {
    let (header, _) = VolumeHeader::ref_from_prefix(bytes).ok()?;
    let length = usize::try_from(header.length.get()).ok()?;
    let is_volume = header.signature == *b"_FVH" && length >= size_of::<VolumeHeader>();
    bytes.get(..length).filter(|_| is_volume)
}

/// What is said of all drivers that were found.
struct Drivers {
    found: Option<KernelLoader>,
    /// Bytes that may still be uncompressed.
    room: u64,
}

impl Drivers {
    fn add(&mut self, driver: &[u8]) {
        let holds = |guid: &Guid| memmem::find(driver, guid.as_bytes()).is_some();
        let this = KernelLoader {
            verifies_hashes: ENTRY_GUIDS.iter().all(holds),
            reads_igvm: holds(&IGVM_DATA_HOB),
        };
        let others = self.found.unwrap_or(this);
        self.found = Some(KernelLoader {
            verifies_hashes: this.verifies_hashes && others.verifies_hashes,
            reads_igvm: this.reads_igvm && others.reads_igvm,
        });
    }

    fn add_volume(&mut self, volume: &[u8], depth: u8) -> Result<(), Damage> {
        let header = VolumeHeader::ref_from_prefix(volume);
        let (header, _) = header.map_err(|_| Damage::Layout("it has no header"))?;
        if !FILE_SYSTEMS.contains(&Guid::from_bytes(header.file_system)) {
            // Such as the variables'.
            return Ok(());
        }
        let mut at = usize::from(header.header_length.get());
        let extended = usize::from(header.extended_header.get());
        if extended != 0 {
            let bytes = volume.get(extended..).unwrap_or_default();
            let header = ExtendedHeader::ref_from_prefix(bytes);
            let (header, _) =
                header.map_err(|_| Damage::Layout("its extended header is cut off"))?;
            at = extended.saturating_add(to_usize(header.size.get()));
        }
        loop {
            // Files are aligned to 8 bytes from the start of their volume.
            at = at.saturating_add(7) & !7;
            let Some(rest) = volume.get(at..) else {
                return Err(Damage::Layout("a file reaches beyond its end"));
            };
            let Ok((header, _)) = FileHeader::ref_from_prefix(rest) else {
                return Ok(());
            };
            // What is not used is erased.
            if header.name == [0xff; 16] && header.size == [0xff; 3] {
                return Ok(());
            }
            at = at.saturating_add(self.add_file(header, rest, depth)?);
        }
    }

    /// Looks at the file that `rest` begins with; the answer is its length.
    fn add_file(&mut self, header: &FileHeader, rest: &[u8], depth: u8) -> Result<usize, Damage> {
        let mut start = size_of::<FileHeader>();
        let mut length = u24(header.size);
        if header.attributes & LARGE_FILE != 0 {
            let size = U64::ref_from_prefix(rest.get(start..).unwrap_or_default());
            let (size, _) = size.map_err(|_| Damage::Layout("a file's header is cut off"))?;
            length = usize::try_from(size.get()).unwrap_or(usize::MAX);
            start += size_of::<U64>();
        }
        let content = rest
            .get(start..length)
            .ok_or(Damage::Layout("a file has an impossible size"))?;
        if Guid::from_bytes(header.name) == DRIVER {
            self.add(content);
        } else if header.kind == FILE_OF_VOLUMES {
            self.add_sections(content, depth)?;
        }
        Ok(length)
    }

    fn add_sections(&mut self, mut rest: &[u8], depth: u8) -> Result<(), Damage> {
        let depth = depth
            .checked_sub(1)
            .ok_or(Damage::Layout("its volumes are nested too deeply"))?;
        while let Ok((header, _)) = SectionHeader::ref_from_prefix(rest) {
            let mut start = size_of::<SectionHeader>();
            let mut length = u24(header.size);
            if header.size == [0xff; 3] {
                let size = U32::ref_from_prefix(rest.get(start..).unwrap_or_default());
                let (size, _) = size.map_err(|_| Damage::Layout("a section is cut off"))?;
                length = to_usize(size.get());
                start += size_of::<U32>();
            }
            let section = rest.get(..length).filter(|_| length >= start);
            let section = section.ok_or(Damage::Layout("a section has an impossible size"))?;
            let content = section.get(start..).unwrap_or_default();
            match header.kind {
                SECTION_VOLUME => {
                    let volume = volume_of(content)
                        .ok_or(Damage::Layout("a volume within it is cut off"))?;
                    self.add_volume(volume, depth)?;
                }
                SECTION_GUIDED => {
                    let (guided, _) = GuidedHeader::ref_from_prefix(content)
                        .map_err(|_| Damage::Layout("a section's header is cut off"))?;
                    let data = section.get(usize::from(guided.data_offset.get())..);
                    if Guid::from_bytes(guided.name) == LZMA {
                        let plain = self.uncompress(data.unwrap_or_default())?;
                        self.add_sections(&plain, depth)?;
                    }
                }
                _ => {}
            }
            rest = rest
                .get(length.saturating_add(3) & !3..)
                .unwrap_or_default();
        }
        Ok(())
    }

    fn uncompress(&mut self, data: &[u8]) -> Result<Vec<u8>, Damage> {
        let failed = |error: io::Error| Damage::Uncompress(error.kind());
        let reader = LzmaReader::new_mem_limit(data, MAX_LZMA_MEMORY_KIB, None).map_err(failed)?;
        let mut plain = Vec::new();
        reader
            .take(self.room.saturating_add(1))
            .read_to_end(&mut plain)
            .map_err(failed)?;
        let left = self.room.checked_sub(plain.len() as u64);
        self.room = left.ok_or(Damage::Layout("its content is larger than 64 MiB"))?;
        Ok(plain)
    }
}

fn u24([a, b, c]: [u8; 3]) -> usize {
    to_usize(u32::from_le_bytes([a, b, c, 0]))
}

fn to_usize(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
pub(crate) mod tests;
