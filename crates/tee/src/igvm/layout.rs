//! The structures of an IGVM file as they lie in it, for readers and writers
//! (IGVM specification, crate `igvm_defs` 0.5, names without `IGVM_VHS_`).
//!
//! All integers are little-endian. Offsets into the file count from its first
//! byte; an offset of zero stands for no data.

use std::fmt;
use std::mem::{offset_of, size_of};
use std::ops::RangeInclusive;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of every file.
pub const MAGIC: [u8; 4] = *b"IGVM";
/// `format_version` of files with [`FixedHeader`] alone.
pub const FORMAT_VERSION_1: u32 = 1;
/// `format_version` of files with [`FixedHeaderExtension`].
pub const FORMAT_VERSION_2: u32 = 2;
/// Variable headers start at multiples of this; the bytes between are zero.
pub const HEADER_ALIGNMENT: usize = 8;
/// `platform_version` of every platform type that is known.
pub const PLATFORM_VERSION: u16 = 1;
/// Bytes of a 2 MiB page.
pub const LARGE_PAGE_SIZE: u64 = 2 << 20;

/// Bit of [`PageData::flags`]: a page of 2 MiB.
pub const PAGE_DATA_IS_2MB_PAGE: u32 = 1;
/// Bit of [`PageData::flags`]: the content is not measured.
pub const PAGE_DATA_UNMEASURED: u32 = 1 << 1;
/// Bit of [`PageData::flags`]: the page is visible to the host.
pub const PAGE_DATA_SHARED: u32 = 1 << 2;
/// Bit of [`RequiredMemory::flags`]: VTL2 can protect the memory.
pub const REQUIRED_MEMORY_VTL2_PROTECTABLE: u32 = 1;

/// Type of a variable header.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HeaderType(pub u32);

/// Defines the constants and names of [`HeaderType`].
macro_rules! header_types {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl HeaderType {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// The specification's name, without `IGVM_VHT_`.
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

header_types! {
    /// [`SupportedPlatform`].
    SUPPORTED_PLATFORM = 0x1;
    /// [`GuestPolicy`].
    GUEST_POLICY = 0x101;
    /// [`RelocatableRegion`].
    RELOCATABLE_REGION = 0x102;
    /// [`PageTableRelocation`].
    PAGE_TABLE_RELOCATION_REGION = 0x103;
    /// [`CorimData`]: a CoRIM document.
    CORIM_DOCUMENT = 0x104;
    /// [`CorimData`]: the signature of a CoRIM document.
    CORIM_SIGNATURE = 0x105;
    /// [`CcaPolicy`].
    CCA_POLICY = 0x106;
    /// Text of any length.
    VERSION_STRING = 0x107;
    /// [`ParameterArea`].
    PARAMETER_AREA = 0x301;
    /// [`PageData`].
    PAGE_DATA = 0x302;
    /// [`ParameterInsert`].
    PARAMETER_INSERT = 0x303;
    /// [`VpContext`].
    VP_CONTEXT = 0x304;
    /// [`RequiredMemory`].
    REQUIRED_MEMORY = 0x305;
    /// [`Parameter`]: the number of virtual CPUs, 4 bytes.
    VP_COUNT_PARAMETER = 0x307;
    /// [`Parameter`]: the ACPI table SRAT.
    SRAT = 0x308;
    /// [`Parameter`]: the ACPI table MADT.
    MADT = 0x309;
    /// [`Parameter`]: the guest's MMIO ranges.
    MMIO_RANGES = 0x30a;
    /// [`SnpIdBlock`].
    SNP_ID_BLOCK = 0x30b;
    /// [`Parameter`]: the guest's memory.
    MEMORY_MAP = 0x30c;
    /// [`ErrorRange`].
    ERROR_RANGE = 0x30d;
    /// [`Parameter`]: a command line and its NUL.
    COMMAND_LINE = 0x30e;
    /// [`Parameter`]: the ACPI table SLIT.
    SLIT = 0x30f;
    /// [`Parameter`]: the ACPI table PPTT.
    PPTT = 0x310;
    /// [`VbsMeasurement`].
    VBS_MEASUREMENT = 0x311;
    /// [`Parameter`]: a flattened device tree.
    DEVICE_TREE = 0x312;
    /// [`Parameter`]: whether memory is shared at first, 4 bytes.
    ENVIRONMENT_INFO_PARAMETER = 0x313;
}

impl HeaderType {
    /// Types of platform headers, which come first.
    pub const PLATFORM_RANGE: RangeInclusive<u32> = 0x1..=0x100;
    /// Types of initialization headers, which come second.
    pub const INITIALIZATION_RANGE: RangeInclusive<u32> = 0x101..=0x200;
    /// Types of directives, which come last.
    pub const DIRECTIVE_RANGE: RangeInclusive<u32> = 0x301..=0x400;
    /// Set where a loader that does not know the type may ignore the header.
    pub const OPTIONAL_BIT: u32 = 1 << 31;

    /// Whether a loader that does not know the type may ignore the header.
    pub const fn is_optional(self) -> bool {
        self.0 & Self::OPTIONAL_BIT != 0
    }

    /// The type without the bit that makes it optional.
    #[must_use]
    pub const fn required(self) -> Self {
        Self(self.0 & !Self::OPTIONAL_BIT)
    }
}

impl fmt::Display for HeaderType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.required().name() {
            Some(name) => write!(f, "{name} ({:#x})", self.0),
            None => write!(f, "of unknown type {:#x}", self.0),
        }
    }
}

impl fmt::Debug for HeaderType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Defines a structure with its size and the offsets of its fields, counted
/// without gaps.
macro_rules! layout {
    ($(#[$doc:meta])* $name:ident, $size:literal {
        $($(#[$field_doc:meta])* $field:ident @ $offset:literal: $type:ty,)*
    }) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
            Unaligned,
        )]
        #[repr(C)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        const _: () = assert!(size_of::<$name>() == $size);
        $(const _: () = assert!(offset_of!($name, $field) == $offset);)*
    };
}

layout! {
    /// Start of every file.
    FixedHeader, 24 {
        /// [`MAGIC`].
        magic @ 0: [u8; 4],
        /// [`FORMAT_VERSION_1`] or [`FORMAT_VERSION_2`].
        format_version @ 4: U32,
        /// Offset of the first variable header, a multiple of 8.
        variable_header_offset @ 8: U32,
        /// Bytes of all variable headers.
        variable_header_size @ 12: U32,
        /// Bytes of the file.
        total_file_size @ 16: U32,
        /// CRC-32 of the fixed header, with this field zero, and the variable
        /// headers. File data are not covered.
        checksum @ 20: U32,
    }
}

layout! {
    /// What follows [`FixedHeader`] in version 2, part of the fixed header.
    FixedHeaderExtension, 8 {
        /// 0 for x86-64, 1 for AArch64.
        architecture @ 0: U32,
        /// Bytes of a page.
        page_size @ 4: U32,
    }
}

layout! {
    /// Start of every variable header.
    VariableHeader, 8 {
        /// A [`HeaderType`].
        header_type @ 0: U32,
        /// Bytes that follow, without padding.
        length @ 4: U32,
    }
}

layout! {
    /// A platform that the file can be loaded on.
    SupportedPlatform, 16 {
        /// The bit that stands for the platform in other headers.
        compatibility_mask @ 0: U32,
        /// Highest VTL that the guest uses.
        highest_vtl @ 4: u8,
        /// A [`PlatformType`](super::PlatformType).
        platform_type @ 5: u8,
        /// [`PLATFORM_VERSION`].
        platform_version @ 6: U16,
        /// Address above which memory is shared with the host, or zero.
        shared_gpa_boundary @ 8: U64,
    }
}

layout! {
    /// The guest policy of SEV-SNP or TDX.
    GuestPolicy, 16 {
        /// The policy in the platform's form.
        policy @ 0: U64,
        /// Platforms that it is for.
        compatibility_mask @ 8: U32,
        /// Zero.
        reserved @ 12: U32,
    }
}

layout! {
    /// The policy of an Arm CCA realm.
    CcaPolicy, 32 {
        /// Platforms that it is for.
        compatibility_mask @ 0: U32,
        /// Zero.
        reserved @ 4: U32,
        /// Attributes that must be clear.
        attributes_required_zeroes @ 8: U64,
        /// Attributes that must be set.
        attributes_required_ones @ 16: U64,
        /// Algorithm of the initial measurement.
        hash_algorithm @ 24: u8,
        /// Policy of live firmware activation.
        lfa_policy @ 25: u8,
        /// Zero.
        reserved2 @ 26: [u8; 6],
    }
}

layout! {
    /// A range that the loader may move.
    RelocatableRegion, 48 {
        /// Platforms that it is for.
        compatibility_mask @ 0: U32,
        /// Virtual CPU whose registers move with the region.
        vp_index @ 4: U16,
        /// VTL whose registers move with the region.
        vtl @ 6: u8,
        /// Bit 0: VTL2; bit 1: move the instruction pointer; bit 2: move GDTR.
        flags @ 7: u8,
        /// Alignment of the new address.
        relocation_alignment @ 8: U64,
        /// Address in the file.
        relocation_region_gpa @ 16: U64,
        /// Bytes of the region.
        relocation_region_size @ 24: U64,
        /// Lowest new address.
        minimum_relocation_gpa @ 32: U64,
        /// Highest new address.
        maximum_relocation_gpa @ 40: U64,
    }
}

layout! {
    /// Page tables that the loader corrects when it moves regions.
    PageTableRelocation, 32 {
        /// Platforms that it is for.
        compatibility_mask @ 0: U32,
        /// Virtual CPU whose page tables they are.
        vp_index @ 4: U16,
        /// VTL whose page tables they are.
        vtl @ 6: u8,
        /// Zero.
        reserved @ 7: u8,
        /// Address of the first table.
        gpa @ 8: U64,
        /// Bytes for tables.
        size @ 16: U64,
        /// Bytes in use.
        used_size @ 24: U64,
    }
}

layout! {
    /// A CoRIM document or its signature in the file's data.
    CorimData, 16 {
        /// Platforms that it is for.
        compatibility_mask @ 0: U32,
        /// Offset of the document.
        file_offset @ 4: U32,
        /// Bytes of the document.
        size_bytes @ 8: U32,
        /// Zero.
        reserved @ 12: U32,
    }
}

layout! {
    /// Memory that parameters are written to before it enters the guest.
    ParameterArea, 16 {
        /// Bytes, whole pages.
        number_of_bytes @ 0: U64,
        /// The area's number.
        parameter_area_index @ 8: U32,
        /// Offset of the first content, or zero.
        file_offset @ 12: U32,
    }
}

layout! {
    /// A page of the guest.
    PageData, 24 {
        /// Guest physical address.
        gpa @ 0: U64,
        /// Platforms that it is for.
        compatibility_mask @ 8: U32,
        /// Offset of the content, or zero for a page of zeros.
        file_offset @ 12: U32,
        /// `PAGE_DATA_…` bits.
        flags @ 16: U32,
        /// A [`PageDataType`](super::PageDataType).
        data_type @ 20: U16,
        /// Zero.
        reserved @ 22: U16,
    }
}

layout! {
    /// Puts a parameter area into the guest.
    ParameterInsert, 16 {
        /// Guest physical address.
        gpa @ 0: U64,
        /// Platforms that it is for.
        compatibility_mask @ 8: U32,
        /// The area's number.
        parameter_area_index @ 12: U32,
    }
}

layout! {
    /// Where the loader writes something of its own.
    Parameter, 8 {
        /// The area's number.
        parameter_area_index @ 0: U32,
        /// Offset in the area.
        byte_offset @ 4: U32,
    }
}

layout! {
    /// The initial state of a virtual CPU.
    VpContext, 20 {
        /// Address of the save area for SEV-ES and SEV-SNP, otherwise zero.
        gpa @ 0: U64,
        /// Platforms that it is for.
        compatibility_mask @ 8: U32,
        /// Offset of the state, one page.
        file_offset @ 12: U32,
        /// Index of the virtual CPU.
        vp_index @ 16: U16,
        /// Zero.
        reserved @ 18: U16,
    }
}

layout! {
    /// Memory that the guest cannot do without.
    RequiredMemory, 24 {
        /// Guest physical address.
        gpa @ 0: U64,
        /// Platforms that it is for.
        compatibility_mask @ 8: U32,
        /// Bytes, whole pages.
        number_of_bytes @ 12: U32,
        /// `REQUIRED_MEMORY_…` bits.
        flags @ 16: U32,
        /// Zero.
        reserved @ 20: U32,
    }
}

layout! {
    /// Memory in which the guest reports errors to the host.
    ErrorRange, 16 {
        /// Guest physical address.
        gpa @ 0: U64,
        /// Platforms that it is for.
        compatibility_mask @ 8: U32,
        /// Bytes, whole pages.
        size_bytes @ 12: U32,
    }
}

layout! {
    /// An ECDSA signature as SEV-SNP has it, cut to the bytes in use.
    SnpSignature, 144 {
        /// R, little-endian.
        r_comp @ 0: [u8; 72],
        /// S, little-endian.
        s_comp @ 72: [u8; 72],
    }
}

layout! {
    /// An ECDSA public key as SEV-SNP has it, cut to the bytes in use.
    SnpPublicKey, 152 {
        /// The curve.
        curve @ 0: U32,
        /// Zero.
        reserved @ 4: U32,
        /// X, little-endian.
        qx @ 8: [u8; 72],
        /// Y, little-endian.
        qy @ 80: [u8; 72],
    }
}

layout! {
    /// The ID block of SEV-SNP and its authentication (SEV-SNP Firmware ABI,
    /// SNP_LAUNCH_FINISH).
    SnpIdBlock, 696 {
        /// Platforms that it is for.
        compatibility_mask @ 0: U32,
        /// 1 where the fields of the author key are in use.
        author_key_enabled @ 4: u8,
        /// Zero.
        reserved @ 5: [u8; 3],
        /// The launch digest that the guest must have.
        ld @ 8: [u8; 48],
        /// FAMILY_ID.
        family_id @ 56: [u8; 16],
        /// IMAGE_ID.
        image_id @ 72: [u8; 16],
        /// Version of the ID block.
        version @ 88: U32,
        /// GUEST_SVN.
        guest_svn @ 92: U32,
        /// Algorithm of the ID key.
        id_key_algorithm @ 96: U32,
        /// Algorithm of the author key.
        author_key_algorithm @ 100: U32,
        /// Signature of the ID block.
        id_key_signature @ 104: SnpSignature,
        /// The ID key.
        id_public_key @ 248: SnpPublicKey,
        /// Signature of the ID key.
        author_key_signature @ 400: SnpSignature,
        /// The author key.
        author_public_key @ 544: SnpPublicKey,
    }
}

layout! {
    /// The measurement of Hyper-V's VBS and its signature.
    VbsMeasurement, 864 {
        /// Platforms that it is for.
        compatibility_mask @ 0: U32,
        /// Version.
        version @ 4: U32,
        /// Product.
        product_id @ 8: U32,
        /// Module.
        module_id @ 12: U32,
        /// Security version.
        security_version @ 16: U32,
        /// Policy.
        policy_flags @ 20: U32,
        /// Algorithm of the digest: 1 for SHA-256.
        boot_digest_algo @ 24: U32,
        /// Algorithm of the signature: 1 for ECDSA on P-384.
        signing_algo @ 28: U32,
        /// The digest.
        boot_measurement_digest @ 32: [u8; 64],
        /// The signature.
        signature @ 96: [u8; 256],
        /// The key.
        public_key @ 352: [u8; 512],
    }
}

layout! {
    /// Initial registers of an x86-64 guest without measured registers.
    NativeVpContext, 232 {
        /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
        registers @ 0: [U64; 16],
        /// RIP.
        rip @ 128: U64,
        /// RFLAGS.
        rflags @ 136: U64,
        /// Base of the IDT.
        idtr_base @ 144: U64,
        /// Limit of the IDT.
        idtr_limit @ 152: U16,
        /// Zero.
        reserved @ 154: [U16; 2],
        /// Limit of the GDT.
        gdtr_limit @ 158: U16,
        /// Base of the GDT.
        gdtr_base @ 160: U64,
        /// Selector of CS.
        code_selector @ 168: U16,
        /// Attributes of CS.
        code_attributes @ 170: U16,
        /// Base of CS.
        code_base @ 172: U32,
        /// Limit of CS.
        code_limit @ 176: U32,
        /// Selector of the other segments.
        data_selector @ 180: U16,
        /// Attributes of the other segments.
        data_attributes @ 182: U16,
        /// Base of the other segments.
        data_base @ 184: U32,
        /// Limit of the other segments.
        data_limit @ 188: U32,
        /// Base of GS.
        gs_base @ 192: U64,
        /// CR0.
        cr0 @ 200: U64,
        /// CR3.
        cr3 @ 208: U64,
        /// CR4.
        cr4 @ 216: U64,
        /// EFER.
        efer @ 224: U64,
    }
}

layout! {
    /// One register of a context for Hyper-V's VBS.
    VbsRegister, 32 {
        /// VTL of the register.
        vtl @ 0: u8,
        /// Hyper-V's number of the register.
        register_name @ 1: U32,
        /// Zero.
        reserved @ 5: [u8; 11],
        /// The register's value.
        register_value @ 16: [u8; 16],
    }
}

layout! {
    /// Initial registers of an Arm CCA realm.
    CcaVpContext, 80 {
        /// X0 to X7.
        registers @ 0: [U64; 8],
        /// PC.
        pc @ 64: U64,
        /// Flags of the context.
        flags @ 72: U64,
    }
}
