//! Why bytes are no IGVM file.

use super::MAX_PARAMETER_BYTES;
use super::PlatformType;
use super::layout::HeaderType;

/// Bytes are no IGVM file that loaders agree about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseIgvmError {
    /// The fixed header does not add up.
    #[error("IGVM file: {problem}")]
    FixedHeader {
        /// What does not add up.
        problem: FixedHeaderProblem,
    },
    /// The headers were changed after they were written.
    #[error(
        "IGVM file: the headers have the CRC-32 {computed:#010x}, and the file says \
         {stored:#010x}: it is damaged, or was edited without updating the checksum; use the file \
         as it was built"
    )]
    Checksum {
        /// In the file.
        stored: u32,
        /// Of the file.
        computed: u32,
    },
    /// A variable header does not add up.
    #[error("IGVM file: header {index} at offset {offset:#x}, {header_type}, {problem}")]
    Header {
        /// Position among the variable headers, from zero.
        index: usize,
        /// Offset in the file.
        offset: usize,
        /// The header's type.
        header_type: HeaderType,
        /// What does not add up.
        problem: HeaderProblem,
    },
    /// The headers end in the middle of one.
    #[error("IGVM file: header {index} at offset {offset:#x} does not fit the variable headers")]
    Truncated {
        /// Position among the variable headers, from zero.
        index: usize,
        /// Offset in the file.
        offset: usize,
    },
    /// The file names no platform.
    #[error("IGVM file: it names no platform, so no loader can load it")]
    NoPlatform,
}

/// What is wrong with a fixed header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FixedHeaderProblem {
    /// The file is shorter than the header.
    #[error("{0} bytes are too few for the fixed header")]
    Truncated(usize),
    /// The magic number is missing.
    #[error("it does not start with IGVM; give the .igvm file itself")]
    Magic,
    /// The version is not 1 or 2.
    #[error("format version {0} is unknown, expected 1 or 2")]
    Version(u32),
    /// The architecture is neither x86-64 nor AArch64.
    #[error("architecture {0} is unknown, expected 0 (x86-64) or 1 (AArch64)")]
    Architecture(u32),
    /// Pages are not of 4 KiB.
    #[error("pages of {0} bytes are not supported, expected 4096")]
    PageSize(u32),
    /// The file has another length than it says.
    #[error("it says it has {total} bytes, and has {len}; use the complete file")]
    TotalSize {
        /// In the header.
        total: u32,
        /// Of the file.
        len: usize,
    },
    /// The variable headers lie outside the file, or in the fixed header.
    #[error("variable headers at offset {offset:#x} of {size:#x} bytes are impossible")]
    VariableHeaders {
        /// Offset of the headers.
        offset: u32,
        /// Bytes of the headers.
        size: u32,
    },
}

/// What is wrong with a variable header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderProblem {
    /// The length is not that of the type.
    #[error("has {got} bytes, and needs {need}")]
    Length {
        /// Of the header.
        got: usize,
        /// Of the type.
        need: usize,
    },
    /// The bytes up to the next header are not zero.
    #[error("is followed by padding that is not zero")]
    Padding,
    /// The type is unknown and must be understood.
    #[error("is not known here and not optional; measure the file with a newer version")]
    Unknown,
    /// Loaders that know the type disagree about whether they follow it.
    #[error("is marked optional though its type is known, so loaders may or may not follow it")]
    OptionalKnown,
    /// A header of an earlier section comes after one of a later section.
    #[error("comes too late: platforms come first, then initialization, then directives")]
    Order,
    /// The mask has no bit, or bits of no platform.
    #[error("has the compatibility mask {mask:#x}, but platforms have {platforms:#x}")]
    Mask {
        /// The header's mask.
        mask: u32,
        /// All platforms' masks.
        platforms: u32,
    },
    /// A platform's mask is not one bit that no other platform has.
    #[error("has the compatibility mask {0:#x}, which is not one bit of its own")]
    PlatformMask(u32),
    /// A type of platform occurs twice.
    #[error("repeats {0}, so loaders may choose either")]
    DuplicatePlatform(PlatformType),
    /// The platform's version is not 1.
    #[error("has version {0} of the platform, expected 1")]
    PlatformVersion(u16),
    /// The platform does not exist on the file's architecture.
    #[error("names {0}, which the file's architecture does not have")]
    PlatformArchitecture(PlatformType),
    /// Bits that must be zero are set.
    #[error("has reserved bits set in {0}")]
    Reserved(&'static str),
    /// A field is no multiple of what it must be.
    #[error("has {field} {value:#x}, which is not aligned")]
    Misaligned {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A range leaves the address space.
    #[error("reaches beyond the address space")]
    WrapsAround,
    /// A field has a value without meaning.
    #[error("has {field} {value:#x}, which is unknown")]
    Value {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// What it refers to lies outside the file's data.
    #[error("refers to {length:#x} bytes at offset {offset:#x}, outside the file's data")]
    FileData {
        /// Offset in the file.
        offset: u32,
        /// Bytes.
        length: u64,
    },
    /// Two areas have the same number.
    #[error("declares parameter area {0} again")]
    DuplicateArea(u32),
    /// There is no such area, or it is in the guest already.
    #[error("refers to parameter area {0}, which is not declared before it or inserted already")]
    NoArea(u32),
    /// All areas together are larger than any file's.
    #[error("makes the parameter areas larger than {MAX_PARAMETER_BYTES:#x} bytes")]
    AreasTooLarge,
    /// A parameter does not fit its area.
    #[error("does not fit its parameter area: {length} bytes at {offset:#x} of {area:#x}")]
    OutsideArea {
        /// Fewest bytes of the parameter.
        length: u64,
        /// Offset in the area.
        offset: u32,
        /// Bytes of the area.
        area: u64,
    },
    /// The platforms of a context have different forms of it, or none.
    #[error("is for platforms that have no common form of a virtual CPU's state")]
    NoCommonState,
    /// Registers are followed by bytes that are not zero.
    #[error("has a state with bytes behind the registers that are not zero")]
    StateTail,
    /// Text is not UTF-8.
    #[error("is not UTF-8")]
    Utf8,
    /// A header that may occur once occurs again.
    #[error("occurs twice")]
    Duplicate,
}
