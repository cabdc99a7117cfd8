//! Bytes of an IGVM file (IGVM specification, version 1).

use std::collections::BTreeMap;

use assay_tee::guid::Guid;
use assay_tee::igvm::PlatformType;
use assay_tee::igvm::layout::{
    self, FORMAT_VERSION_1, FixedHeader, HEADER_ALIGNMENT, HeaderType, MAGIC, PLATFORM_VERSION,
    PageData, Parameter, ParameterInsert, SupportedPlatform, VariableHeader, VpContext,
};
use assay_tee::page_info::{PAGE_SIZE, PAGE_SIZE_U64};
use assay_tee::vmsa::{KVM_VMSA_GPA, Vmsa};
use assay_tee::{GuestPolicy, VcpuCount};
use bytes::Bytes;
use zerocopy::{Immutable, IntoBytes};

use super::{EncodeIgvmError, NATIVE, Page, SNP};
use crate::rope::Rope;

/// Name of the HOBs that lead edk2 to what an IGVM file holds for it.
pub(crate) const IGVM_DATA_HOB: Guid = Guid::new(0x3dd1_77ff_b632_4e25_bef3_0650_63d5_5fc4);

/// The only parameter area.
const AREA: u32 = 0;

/// What a file says.
pub(super) struct File {
    pub(super) policy: GuestPolicy,
    pub(super) parameters: Option<ParameterArea>,
    /// By guest physical address.
    pub(super) pages: BTreeMap<u64, Page>,
    pub(super) save_areas: SaveAreas,
}

/// The initial state of every virtual CPU.
pub(super) struct SaveAreas {
    /// Of the boot processor.
    pub(super) boot: Vmsa,
    /// Of every application processor, where there is one.
    pub(super) application: Option<Vmsa>,
    /// Number of virtual CPUs.
    pub(super) vcpus: VcpuCount,
}

/// Memory that the loader fills.
pub(super) struct ParameterArea {
    pub(super) gpa: u64,
    pub(super) size: u64,
    pub(super) memory_map_offset: Option<u32>,
    pub(super) vp_count_offset: Option<u32>,
}

/// Data that firmware finds in the file, of type "kernel", each with address and
/// length: GUID extension HOBs and the end of the list (UEFI PI specification,
/// volume 3, §5; edk2 `OvmfPkg/Include/Guid/IgvmDataHob.h`).
pub(super) fn hob_list(kernels: &[(u64, u64)]) -> Bytes {
    const GUID_EXTENSION: u16 = 4;
    const END_OF_LIST: u16 = 0xffff;
    const KERNEL: u32 = 0x201;
    let header = |kind: u16, len: u16| {
        let mut header = Vec::new();
        header.extend(kind.to_le_bytes());
        header.extend(len.to_le_bytes());
        header.extend(0_u32.to_le_bytes());
        header
    };
    let mut list = Vec::new();
    for (gpa, len) in kernels {
        list.extend(header(GUID_EXTENSION, 48));
        list.extend(IGVM_DATA_HOB.as_bytes());
        list.extend(gpa.to_le_bytes());
        list.extend(len.to_le_bytes());
        list.extend(KERNEL.to_le_bytes());
        list.extend(0_u32.to_le_bytes()); // no flags
    }
    list.extend(header(END_OF_LIST, 8));
    list.into()
}

/// Writes a file.
pub(super) fn encode_file(file: &File) -> Result<Rope, EncodeIgvmError> {
    let mut headers = Headers::default();
    for (compatibility_mask, platform) in
        [(SNP, PlatformType::SevSnp), (NATIVE, PlatformType::Native)]
    {
        let platform = SupportedPlatform {
            compatibility_mask: compatibility_mask.into(),
            highest_vtl: 0,
            platform_type: platform.into(),
            platform_version: PLATFORM_VERSION.into(),
            shared_gpa_boundary: 0.into(),
        };
        headers.push(HeaderType::SUPPORTED_PLATFORM, &platform)?;
    }
    let policy = layout::GuestPolicy {
        policy: file.policy.0.into(),
        compatibility_mask: SNP.into(),
        reserved: 0.into(),
    };
    headers.push(HeaderType::GUEST_POLICY, &policy)?;
    if let Some(area) = &file.parameters {
        push_parameters(&mut headers, area)?;
    }

    // Offsets count from the start of the file, whose headers have a length that
    // does not depend on them.
    let vcpus = file.save_areas.vcpus.get();
    let contexts = usize::try_from(vcpus).map_err(|_| EncodeIgvmError::TooLarge)?;
    let data_start = size_of::<FixedHeader>()
        + headers.bytes.len()
        + file.pages.len() * Headers::space::<PageData>()
        + contexts * Headers::space::<VpContext>();
    let mut data = Data::new(data_start)?;
    for (gpa, page) in &file.pages {
        let file_offset = match &page.content {
            Some(content) => data.push(content.clone())?,
            None => 0,
        };
        let page = PageData {
            gpa: (*gpa).into(),
            compatibility_mask: page.platforms.into(),
            file_offset: file_offset.into(),
            flags: 0.into(),
            data_type: (page.data_type as u16).into(),
            reserved: 0.into(),
        };
        headers.push(HeaderType::PAGE_DATA, &page)?;
    }
    let mut push = |vmsa: &Vmsa| data.push(Bytes::copy_from_slice(vmsa.as_bytes()));
    let boot = push(&file.save_areas.boot)?;
    // Application processors share one page of the file.
    let application = file.save_areas.application.as_ref().map(push).transpose()?;
    for index in 0..vcpus {
        let offset = match application {
            Some(application) if index > 0 => application,
            _ => boot,
        };
        let context = VpContext {
            gpa: KVM_VMSA_GPA.into(),
            compatibility_mask: SNP.into(),
            file_offset: offset.into(),
            vp_index: u16::try_from(index)
                .map_err(|_| EncodeIgvmError::TooLarge)?
                .into(),
            reserved: 0.into(),
        };
        headers.push(HeaderType::VP_CONTEXT, &context)?;
    }
    assemble(&headers, &data)
}

fn push_parameters(headers: &mut Headers, area: &ParameterArea) -> Result<(), EncodeIgvmError> {
    let memory = layout::ParameterArea {
        number_of_bytes: area.size.into(),
        parameter_area_index: AREA.into(),
        file_offset: 0.into(),
    };
    headers.push(HeaderType::PARAMETER_AREA, &memory)?;
    for (kind, offset) in [
        (HeaderType::MEMORY_MAP, area.memory_map_offset),
        (HeaderType::VP_COUNT_PARAMETER, area.vp_count_offset),
    ] {
        let Some(offset) = offset else { continue };
        let parameter = Parameter {
            parameter_area_index: AREA.into(),
            byte_offset: offset.into(),
        };
        headers.push(kind, &parameter)?;
    }
    let insert = ParameterInsert {
        gpa: area.gpa.into(),
        compatibility_mask: (SNP | NATIVE).into(),
        parameter_area_index: AREA.into(),
    };
    headers.push(HeaderType::PARAMETER_INSERT, &insert)
}

/// Variable headers.
#[derive(Default)]
struct Headers {
    bytes: Vec<u8>,
}

impl Headers {
    /// Bytes that a header takes.
    const fn space<T>() -> usize {
        (size_of::<VariableHeader>() + size_of::<T>()).next_multiple_of(HEADER_ALIGNMENT)
    }

    fn push<T: IntoBytes + Immutable>(
        &mut self,
        header_type: HeaderType,
        body: &T,
    ) -> Result<(), EncodeIgvmError> {
        let header = VariableHeader {
            header_type: header_type.0.into(),
            length: length(size_of::<T>())?.into(),
        };
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(body.as_bytes());
        let end = self.bytes.len().next_multiple_of(HEADER_ALIGNMENT);
        self.bytes.resize(end, 0);
        Ok(())
    }
}

/// What headers refer to, by whole pages.
struct Data {
    start: usize,
    bytes: Rope,
}

impl Data {
    fn new(start: usize) -> Result<Self, EncodeIgvmError> {
        length(start)?;
        let bytes = Rope::new();
        Ok(Self { start, bytes })
    }

    /// Appends a page; the answer is its offset in the file.
    fn push(&mut self, page: Bytes) -> Result<u32, EncodeIgvmError> {
        let at = usize::try_from(self.bytes.len()).map_err(|_| EncodeIgvmError::TooLarge)?;
        let offset = length(self.start.saturating_add(at))?;
        debug_assert!(page.len() <= PAGE_SIZE, "one page at a time");
        self.bytes.push(page);
        self.bytes.pad_to(PAGE_SIZE_U64);
        Ok(offset)
    }
}

fn length(value: usize) -> Result<u32, EncodeIgvmError> {
    u32::try_from(value).map_err(|_| EncodeIgvmError::TooLarge)
}

fn assemble(headers: &Headers, data: &Data) -> Result<Rope, EncodeIgvmError> {
    let data_len = usize::try_from(data.bytes.len()).map_err(|_| EncodeIgvmError::TooLarge)?;
    let mut fixed = FixedHeader {
        magic: MAGIC,
        format_version: FORMAT_VERSION_1.into(),
        variable_header_offset: length(size_of::<FixedHeader>())?.into(),
        variable_header_size: length(headers.bytes.len())?.into(),
        total_file_size: length(data.start.saturating_add(data_len))?.into(),
        checksum: 0.into(),
    };
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(fixed.as_bytes());
    checksum.update(&headers.bytes);
    fixed.checksum = checksum.finalize().into();
    let mut out = Rope::new();
    out.push(fixed.as_bytes().to_vec());
    out.push(headers.bytes.clone());
    out.append(&data.bytes);
    Ok(out)
}
