//! IGVM files written by the `igvm` crate, which is no part of the parser or of
//! the measurement.

#![allow(dead_code, reason = "each test uses a part of it")]

use assay_tee::vmsa::{KVM_VMSA_GPA, Vmsa};
use igvm::snp_defs::SevVmsa;
use igvm::{IgvmDirectiveHeader, IgvmInitializationHeader, IgvmPlatformHeader, IgvmRevision};
use igvm_defs::{
    IGVM_VHS_PARAMETER, IGVM_VHS_PARAMETER_INSERT, IGVM_VHS_SUPPORTED_PLATFORM, IgvmPageDataFlags,
    IgvmPageDataType, IgvmPlatformType,
};
use zerocopy::{FromBytes as _, FromZeros as _, IntoBytes as _};

/// Mask of SEV-SNP in the files.
pub(crate) const SNP: u32 = 1;
/// Mask of the other platform in the files.
pub(crate) const OTHER: u32 = 2;

/// A file for SEV-SNP and another platform.
pub(crate) struct Builder {
    pub(crate) revision: IgvmRevision,
    pub(crate) snp: IgvmPlatformType,
    pub(crate) other: IgvmPlatformType,
    pub(crate) directives: Vec<IgvmDirectiveHeader>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            revision: IgvmRevision::V1,
            snp: IgvmPlatformType::SEV_SNP,
            other: IgvmPlatformType::TDX,
            directives: Vec::new(),
        }
    }
}

impl Builder {
    pub(crate) fn with(
        mut self,
        directives: impl IntoIterator<Item = IgvmDirectiveHeader>,
    ) -> Self {
        self.directives.extend(directives);
        self
    }

    pub(crate) fn initialization() -> Vec<IgvmInitializationHeader> {
        [(0x3_0000, SNP), (0, OTHER)]
            .map(
                |(policy, compatibility_mask)| IgvmInitializationHeader::GuestPolicy {
                    policy,
                    compatibility_mask,
                },
            )
            .into()
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let platform = |platform_type, compatibility_mask| {
            IgvmPlatformHeader::SupportedPlatform(IGVM_VHS_SUPPORTED_PLATFORM {
                compatibility_mask,
                highest_vtl: 0,
                platform_type,
                platform_version: 1,
                shared_gpa_boundary: 0,
            })
        };
        let file = igvm::IgvmFile::new(
            self.revision,
            vec![platform(self.snp, SNP), platform(self.other, OTHER)],
            Self::initialization(),
            self.directives.clone(),
        )
        .unwrap();
        let mut bytes = Vec::new();
        file.serialize(&mut bytes).unwrap();
        bytes
    }
}

pub(crate) fn page(
    gpa: u64,
    compatibility_mask: u32,
    flags: IgvmPageDataFlags,
    data_type: IgvmPageDataType,
    data: Vec<u8>,
) -> IgvmDirectiveHeader {
    IgvmDirectiveHeader::PageData {
        gpa,
        compatibility_mask,
        flags,
        data_type,
        data,
    }
}

pub(crate) fn normal(gpa: u64, data: Vec<u8>) -> IgvmDirectiveHeader {
    let flags = IgvmPageDataFlags::new();
    page(gpa, SNP | OTHER, flags, IgvmPageDataType::NORMAL, data)
}

pub(crate) fn area(index: u32, number_of_bytes: u64) -> IgvmDirectiveHeader {
    IgvmDirectiveHeader::ParameterArea {
        number_of_bytes,
        parameter_area_index: index,
        initial_data: Vec::new(),
    }
}

pub(crate) fn vp_count(index: u32) -> IgvmDirectiveHeader {
    IgvmDirectiveHeader::VpCount(IGVM_VHS_PARAMETER {
        parameter_area_index: index,
        byte_offset: 0,
    })
}

pub(crate) fn insert(index: u32, gpa: u64, compatibility_mask: u32) -> IgvmDirectiveHeader {
    IgvmDirectiveHeader::ParameterInsert(IGVM_VHS_PARAMETER_INSERT {
        gpa,
        compatibility_mask,
        parameter_area_index: index,
    })
}

pub(crate) fn context(vp_index: u16, vmsa: &Vmsa) -> IgvmDirectiveHeader {
    context_at(KVM_VMSA_GPA, vp_index, vmsa)
}

pub(crate) fn context_at(gpa: u64, vp_index: u16, vmsa: &Vmsa) -> IgvmDirectiveHeader {
    IgvmDirectiveHeader::SnpVpContext {
        gpa,
        compatibility_mask: SNP,
        vp_index,
        vmsa: Box::new(SevVmsa::read_from_bytes(vmsa.as_bytes()).unwrap()),
    }
}

/// A save area that starts at `rip` in 32-bit mode, and that KVM changes.
pub(crate) fn vmsa(rip: u64) -> Vmsa {
    let mut vmsa = Vmsa::new_zeroed();
    vmsa.efer = 0x1000.into();
    vmsa.cr0 = 0x31.into();
    vmsa.rip = rip.into();
    vmsa.sev_features = 1.into();
    vmsa
}

/// As [`vmsa`], with what KVM sets.
pub(crate) fn vmsa_of_kvm(rip: u64) -> Vmsa {
    let mut vmsa = vmsa(rip);
    vmsa.cr4 = 0x40.into();
    vmsa.rflags = 2.into();
    vmsa
}
