//! The C API of the `igvm` crate, as the static library that QEMU links with.
//!
//! The crate's package has the functions but neither their headers nor a file
//! for pkg-config. The headers here declare what QEMU uses of them; the tests
//! hold their constants and layouts against the crate's.

pub use igvm::c_api::*;

/// `igvm/igvm.h`: functions and results.
pub const FUNCTIONS_HEADER: &str = include_str!("../include/igvm/igvm.h");
/// `igvm/igvm_defs.h`: the format.
pub const FORMAT_HEADER: &str = include_str!("../include/igvm/igvm_defs.h");

#[cfg(test)]
mod tests {
    use super::*;
    use igvm_defs::*;

    /// The value of every `#define NAME VALUE` of both headers.
    fn constants() -> Vec<(&'static str, i64)> {
        [FUNCTIONS_HEADER, FORMAT_HEADER]
            .iter()
            .flat_map(|header| header.lines())
            .filter_map(|line| line.strip_prefix("#define ")?.split_once(' '))
            .map(|(name, value)| {
                let value = value.trim_matches(['(', ')']);
                let number = match value.strip_prefix("0x") {
                    Some(digits) => i64::from_str_radix(digits, 16),
                    None => value.parse(),
                };
                (name, number.unwrap_or_else(|_| panic!("{name} is {value}")))
            })
            .collect()
    }

    #[test]
    fn constants_are_the_crate_s() {
        let types = [
            (
                "SUPPORTED_PLATFORM",
                IgvmVariableHeaderType::IGVM_VHT_SUPPORTED_PLATFORM,
            ),
            (
                "GUEST_POLICY",
                IgvmVariableHeaderType::IGVM_VHT_GUEST_POLICY,
            ),
            (
                "PARAMETER_AREA",
                IgvmVariableHeaderType::IGVM_VHT_PARAMETER_AREA,
            ),
            ("PAGE_DATA", IgvmVariableHeaderType::IGVM_VHT_PAGE_DATA),
            (
                "PARAMETER_INSERT",
                IgvmVariableHeaderType::IGVM_VHT_PARAMETER_INSERT,
            ),
            ("VP_CONTEXT", IgvmVariableHeaderType::IGVM_VHT_VP_CONTEXT),
            (
                "REQUIRED_MEMORY",
                IgvmVariableHeaderType::IGVM_VHT_REQUIRED_MEMORY,
            ),
            (
                "VP_COUNT_PARAMETER",
                IgvmVariableHeaderType::IGVM_VHT_VP_COUNT_PARAMETER,
            ),
            ("MADT", IgvmVariableHeaderType::IGVM_VHT_MADT),
            (
                "SNP_ID_BLOCK",
                IgvmVariableHeaderType::IGVM_VHT_SNP_ID_BLOCK,
            ),
            ("MEMORY_MAP", IgvmVariableHeaderType::IGVM_VHT_MEMORY_MAP),
            (
                "ENVIRONMENT_INFO_PARAMETER",
                IgvmVariableHeaderType::IGVM_VHT_ENVIRONMENT_INFO_PARAMETER,
            ),
        ];
        let types = types.map(|(name, kind)| (format!("IGVM_VHT_{name}"), i64::from(kind.0)));
        let platforms = [
            ("NATIVE", IgvmPlatformType::NATIVE),
            ("VSM_ISOLATION", IgvmPlatformType::VSM_ISOLATION),
            ("SEV_SNP", IgvmPlatformType::SEV_SNP),
            ("TDX", IgvmPlatformType::TDX),
            ("SEV", IgvmPlatformType::SEV),
            ("SEV_ES", IgvmPlatformType::SEV_ES),
        ]
        .map(|(name, kind)| (format!("IGVM_PLATFORM_TYPE_{name}"), i64::from(kind.0)));
        let pages = [
            ("NORMAL", IgvmPageDataType::NORMAL),
            ("SECRETS", IgvmPageDataType::SECRETS),
            ("CPUID_DATA", IgvmPageDataType::CPUID_DATA),
            ("CPUID_XF", IgvmPageDataType::CPUID_XF),
        ]
        .map(|(name, kind)| (format!("IGVM_PAGE_DATA_TYPE_{name}"), i64::from(kind.0)));
        let memory = [
            ("MEMORY", MemoryMapEntryType::MEMORY),
            ("PLATFORM_RESERVED", MemoryMapEntryType::PLATFORM_RESERVED),
            ("PERSISTENT", MemoryMapEntryType::PERSISTENT),
        ]
        .map(|(name, kind)| {
            (
                format!("IGVM_MEMORY_MAP_ENTRY_TYPE_{name}"),
                i64::from(kind.0),
            )
        });
        let results = [
            ("OK", IgvmResult::IGVMAPI_OK),
            ("INVALID_PARAMETER", IgvmResult::IGVMAPI_INVALID_PARAMETER),
            ("NO_DATA", IgvmResult::IGVMAPI_NO_DATA),
            ("INVALID_FILE", IgvmResult::IGVMAPI_INVALID_FILE),
            ("INVALID_HANDLE", IgvmResult::IGVMAPI_INVALID_HANDLE),
        ]
        .map(|(name, result)| (format!("IGVMAPI_{name}"), i64::from(result.0)));
        let sections = [
            ("PLATFORM", IgvmHeaderSection::HEADER_SECTION_PLATFORM),
            (
                "INITIALIZATION",
                IgvmHeaderSection::HEADER_SECTION_INITIALIZATION,
            ),
            ("DIRECTIVE", IgvmHeaderSection::HEADER_SECTION_DIRECTIVE),
        ]
        .map(|(name, section)| (format!("IGVM_HEADER_SECTION_{name}"), i64::from(section.0)));
        let mut expected: Vec<(String, i64)> = Vec::new();
        for table in [&types[..], &platforms, &pages, &memory, &results, &sections] {
            expected.extend_from_slice(table);
        }
        expected.sort();
        let mut found: Vec<(String, i64)> = constants()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        found.sort();
        assert_eq!(found, expected);
    }

    /// The sizes that the header's assertions give the compiler.
    #[test]
    fn layouts_are_the_crate_s() {
        let sizes = [
            (
                "IGVM_VHS_VARIABLE_HEADER",
                size_of::<IGVM_VHS_VARIABLE_HEADER>(),
            ),
            (
                "IGVM_VHS_SUPPORTED_PLATFORM",
                size_of::<IGVM_VHS_SUPPORTED_PLATFORM>(),
            ),
            ("IGVM_VHS_GUEST_POLICY", size_of::<IGVM_VHS_GUEST_POLICY>()),
            (
                "IGVM_VHS_PARAMETER_AREA",
                size_of::<IGVM_VHS_PARAMETER_AREA>(),
            ),
            ("IGVM_VHS_PAGE_DATA", size_of::<IGVM_VHS_PAGE_DATA>()),
            (
                "IGVM_VHS_PARAMETER_INSERT",
                size_of::<IGVM_VHS_PARAMETER_INSERT>(),
            ),
            ("IGVM_VHS_PARAMETER", size_of::<IGVM_VHS_PARAMETER>()),
            ("IGVM_VHS_VP_CONTEXT", size_of::<IGVM_VHS_VP_CONTEXT>()),
            (
                "IGVM_VHS_REQUIRED_MEMORY",
                size_of::<IGVM_VHS_REQUIRED_MEMORY>(),
            ),
            (
                "IGVM_VHS_MEMORY_MAP_ENTRY",
                size_of::<IGVM_VHS_MEMORY_MAP_ENTRY>(),
            ),
            ("IGVM_VHS_SNP_ID_BLOCK", size_of::<IGVM_VHS_SNP_ID_BLOCK>()),
        ];
        for (name, size) in sizes {
            let assertion = format!("_Static_assert(sizeof({name}) == {size}, ");
            assert!(FORMAT_HEADER.contains(&assertion), "{assertion}");
        }
        assert_eq!(
            FORMAT_HEADER.matches("_Static_assert(").count(),
            sizes.len()
        );
    }
}
