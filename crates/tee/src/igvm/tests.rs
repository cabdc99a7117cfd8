use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::*;
use crate::page_info::PAGE_SIZE;

/// A file in parts: headers as type and content, and data after them.
#[derive(Clone)]
struct Parts {
    version: u32,
    architecture: u32,
    page_size: u32,
    headers: Vec<(u32, Vec<u8>)>,
    padding: u8,
    data: Vec<u8>,
}

const SNP: u32 = 1;
const VBS: u32 = 2;
/// Positions of the headers of [`good`].
const POLICY: usize = 2;
const VERSION_STRING: usize = 3;
const AREA: usize = 4;
const VP_COUNT: usize = 5;
const PAGE: usize = 6;
const INSERT: usize = 7;
const CONTEXT: usize = 8;
const REQUIRED: usize = 9;
const HEADERS: usize = 10;
/// Where the data lie, behind headers that grow in some tests.
const DATA_OFFSET: u32 = 0x400;

fn header(
    header_type: HeaderType,
    content: &(impl IntoBytes + zerocopy::Immutable),
) -> (u32, Vec<u8>) {
    (header_type.0, content.as_bytes().to_vec())
}

fn platform(mask: u32, platform_type: PlatformType) -> layout::SupportedPlatform {
    layout::SupportedPlatform {
        compatibility_mask: mask.into(),
        highest_vtl: 0,
        platform_type: platform_type.into(),
        platform_version: 1.into(),
        shared_gpa_boundary: U64::ZERO,
    }
}

fn page_data(file_offset: u32) -> layout::PageData {
    layout::PageData {
        gpa: 0x2000.into(),
        compatibility_mask: (SNP | VBS).into(),
        file_offset: file_offset.into(),
        flags: U32::ZERO,
        data_type: U16::ZERO,
        reserved: U16::ZERO,
    }
}

fn vp_context(file_offset: u32) -> layout::VpContext {
    layout::VpContext {
        gpa: 0xffff_ffff_f000.into(),
        compatibility_mask: SNP.into(),
        file_offset: file_offset.into(),
        vp_index: 3.into(),
        reserved: U16::ZERO,
    }
}

/// A file for SEV-SNP and VBS with one header of most kinds, whose data are a
/// page of 0x11 and a save area.
fn good() -> Parts {
    Parts {
        version: 1,
        architecture: 0,
        page_size: 4096,
        headers: vec![
            header(
                HeaderType::SUPPORTED_PLATFORM,
                &platform(SNP, PlatformType::SevSnp),
            ),
            header(
                HeaderType::SUPPORTED_PLATFORM,
                &platform(VBS, PlatformType::VsmIsolation),
            ),
            header(
                HeaderType::GUEST_POLICY,
                &layout::GuestPolicy {
                    policy: 0x3_0000.into(),
                    compatibility_mask: SNP.into(),
                    reserved: U32::ZERO,
                },
            ),
            (HeaderType::VERSION_STRING.0, b"1.2".to_vec()),
            header(
                HeaderType::PARAMETER_AREA,
                &layout::ParameterArea {
                    number_of_bytes: 0x2000.into(),
                    parameter_area_index: 7.into(),
                    file_offset: U32::ZERO,
                },
            ),
            header(
                HeaderType::VP_COUNT_PARAMETER,
                &layout::Parameter {
                    parameter_area_index: 7.into(),
                    byte_offset: 0x1ffc.into(),
                },
            ),
            header(HeaderType::PAGE_DATA, &page_data(DATA_OFFSET)),
            header(
                HeaderType::PARAMETER_INSERT,
                &layout::ParameterInsert {
                    gpa: 0x8000.into(),
                    compatibility_mask: SNP.into(),
                    parameter_area_index: 7.into(),
                },
            ),
            header(HeaderType::VP_CONTEXT, &vp_context(DATA_OFFSET + 4096)),
            header(
                HeaderType::REQUIRED_MEMORY,
                &layout::RequiredMemory {
                    gpa: 0x10_0000.into(),
                    compatibility_mask: SNP.into(),
                    number_of_bytes: 0x1000.into(),
                    flags: layout::REQUIRED_MEMORY_VTL2_PROTECTABLE.into(),
                    reserved: U32::ZERO,
                },
            ),
        ],
        padding: 0,
        data: [[0x11; PAGE_SIZE], [0; PAGE_SIZE]].concat(),
    }
}

impl Parts {
    fn fixed_length(&self) -> u32 {
        if self.version == 2 { 32 } else { 24 }
    }

    fn headers_length(&self) -> u32 {
        let padded = |content: &Vec<u8>| content.len().next_multiple_of(8) + 8;
        let length: usize = self
            .headers
            .iter()
            .map(|(_, content)| padded(content))
            .sum();
        u32::try_from(length).unwrap()
    }

    fn headers_end(&self) -> u32 {
        self.fixed_length() + self.headers_length()
    }

    fn build(&self) -> Vec<u8> {
        let total = DATA_OFFSET as usize + self.data.len();
        let mut fixed = FixedHeader {
            magic: MAGIC,
            format_version: self.version.into(),
            variable_header_offset: self.fixed_length().into(),
            variable_header_size: self.headers_length().into(),
            total_file_size: u32::try_from(total).unwrap().into(),
            checksum: U32::ZERO,
        };
        let mut rest = Vec::new();
        if self.version == 2 {
            rest.extend(self.architecture.to_le_bytes());
            rest.extend(self.page_size.to_le_bytes());
        }
        for (header_type, content) in &self.headers {
            rest.extend(header_type.to_le_bytes());
            rest.extend(u32::try_from(content.len()).unwrap().to_le_bytes());
            rest.extend(content);
            rest.resize(rest.len().next_multiple_of(8), self.padding);
        }
        fixed.checksum = crc32fast::hash(&[fixed.as_bytes(), &rest].concat()).into();
        let mut file = [fixed.as_bytes(), &rest].concat();
        file.resize(DATA_OFFSET as usize, 0);
        [file, self.data.clone()].concat()
    }

    /// Changes bytes of a header's content.
    fn patch(&mut self, header: usize, at: usize, bytes: &[u8]) {
        self.headers[header].1[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// The problem of a file with one change, and the position of its header.
fn problem(change: impl FnOnce(&mut Parts)) -> (usize, HeaderProblem) {
    let mut parts = good();
    change(&mut parts);
    match parse_igvm(&parts.build()) {
        Err(ParseIgvmError::Header { index, problem, .. }) => (index, problem),
        other => panic!("expected a problem with a header, got {other:?}"),
    }
}

#[test]
fn headers_are_read_with_what_they_refer_to() {
    let bytes = good().build();
    let file = parse_igvm(&bytes).unwrap();
    assert_eq!(file.version, FormatVersion::V1);
    let platforms: Vec<_> = file
        .platforms
        .iter()
        .map(|platform| (platform.platform_type, platform.compatibility_mask))
        .collect();
    assert_eq!(
        platforms,
        [
            (PlatformType::SevSnp, SNP),
            (PlatformType::VsmIsolation, VBS)
        ]
    );
    assert!(matches!(
        file.initialization.as_slice(),
        [Initialization::GuestPolicy(policy), Initialization::VersionString("1.2")]
            if policy.policy.get() == 0x3_0000
    ));
    let [area, count, page, insert, context, required] = file.directives.as_slice() else {
        panic!("{:?}", file.directives);
    };
    assert_eq!(
        *area,
        Directive::ParameterArea(ParameterArea {
            index: 7,
            number_of_bytes: 0x2000,
            initial_data: None
        })
    );
    assert_eq!(
        *count,
        Directive::Parameter(Parameter {
            kind: ParameterKind::VpCount,
            area: 7,
            byte_offset: 0x1ffc
        })
    );
    assert_eq!(
        *page,
        Directive::PageData(PageData {
            gpa: 0x2000,
            compatibility_mask: SNP | VBS,
            flags: PageDataFlags::default(),
            data_type: PageDataType::Normal,
            contents: Some(&[0x11; PAGE_SIZE])
        })
    );
    assert_eq!(
        *insert,
        Directive::ParameterInsert(ParameterInsert {
            gpa: 0x8000,
            compatibility_mask: SNP,
            area: 7,
            number_of_bytes: 0x2000
        })
    );
    assert!(matches!(
        context,
        Directive::VpContext(VpContext { vp_index: 3, state: VpState::Vmsa(vmsa), .. })
            if vmsa.as_bytes() == [0; PAGE_SIZE]
    ));
    assert!(matches!(
        required,
        Directive::RequiredMemory(RequiredMemory {
            vtl2_protectable: true,
            ..
        })
    ));
    assert_eq!(file.directives_for(VBS).count(), 3, "areas are for all");
    assert_eq!(file.check_overlaps(SNP), Ok(()));
}

#[test]
fn version_2_names_architecture_and_page_size() {
    let file = |architecture, page_size| {
        let mut parts = Parts {
            version: 2,
            architecture,
            page_size,
            ..good()
        };
        parts.headers.truncate(INSERT);
        parts.headers.remove(PAGE);
        parts.headers.remove(0);
        parts.headers.remove(POLICY - 1);
        parts.build()
    };
    let bytes = file(1, 4096);
    let parsed = parse_igvm(&bytes).unwrap();
    assert_eq!(parsed.version.architecture(), Architecture::Aarch64);
    let problem = |architecture, page_size| match parse_igvm(&file(architecture, page_size)) {
        Err(ParseIgvmError::FixedHeader { problem }) => problem,
        other => panic!("expected a problem with the fixed header, got {other:?}"),
    };
    assert_eq!(problem(2, 4096), FixedHeaderProblem::Architecture(2));
    assert_eq!(problem(0, 65536), FixedHeaderProblem::PageSize(65536));
    let mut elsewhere = Parts {
        version: 2,
        architecture: 1,
        ..good()
    };
    elsewhere.headers.truncate(1);
    assert!(matches!(
        parse_igvm(&elsewhere.build()),
        Err(ParseIgvmError::Header {
            problem: HeaderProblem::PlatformArchitecture(PlatformType::SevSnp),
            ..
        })
    ));
}

#[test]
fn damaged_fixed_headers_are_refused() {
    let good = good().build();
    let changed = |at: usize, value: u32| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        parse_igvm(&bytes).unwrap_err()
    };
    let fixed = |problem| ParseIgvmError::FixedHeader { problem };
    assert_eq!(changed(0, 0), fixed(FixedHeaderProblem::Magic));
    assert_eq!(changed(4, 3), fixed(FixedHeaderProblem::Version(3)));
    for (at, value) in [(8, 25), (8, 0), (8, u32::MAX), (12, u32::MAX)] {
        assert!(
            matches!(
                changed(at, value),
                ParseIgvmError::FixedHeader {
                    problem: FixedHeaderProblem::VariableHeaders { .. }
                }
            ),
            "{value:#x} at {at}"
        );
    }
    assert!(matches!(
        changed(16, 1),
        ParseIgvmError::FixedHeader {
            problem: FixedHeaderProblem::TotalSize { total: 1, .. }
        }
    ));
    assert!(matches!(
        changed(20, 1),
        ParseIgvmError::Checksum { stored: 1, .. }
    ));
    assert_eq!(
        parse_igvm(&good[..20]),
        Err(fixed(FixedHeaderProblem::Truncated(20)))
    );
    let mut data = good.clone();
    *data.last_mut().unwrap() ^= 1;
    assert!(parse_igvm(&data).is_ok(), "the checksum covers no data");
}

#[test]
fn headers_out_of_place_are_refused() {
    assert_eq!(
        problem(|parts| parts.headers.swap(VERSION_STRING, AREA)),
        (AREA, HeaderProblem::Order)
    );
    let ignored = HeaderType::OPTIONAL_BIT | 0x3ff;
    let mut parts = good();
    parts.headers.insert(0, (ignored, b"anything".to_vec()));
    parts.headers.remove(PAGE + 1);
    parts.headers.remove(CONTEXT);
    let bytes = parts.build();
    let file = parse_igvm(&bytes).unwrap();
    assert_eq!(
        file.optional,
        [OptionalHeader {
            header_type: HeaderType(ignored),
            data: b"anything"
        }]
    );
    let unknown = (HEADERS, HeaderProblem::Unknown);
    for header_type in [0, 0x2, 0x108, 0x306, 0x314, 0x401] {
        assert_eq!(
            problem(|parts| parts.headers.push((header_type, Vec::new()))),
            unknown,
            "{header_type:#x}"
        );
    }
    assert_eq!(
        problem(|parts| parts.headers[PAGE].0 |= HeaderType::OPTIONAL_BIT),
        (PAGE, HeaderProblem::OptionalKnown)
    );
    assert_eq!(
        problem(|parts| parts.padding = 1),
        (VERSION_STRING, HeaderProblem::Padding)
    );
    assert_eq!(
        problem(|parts| parts.headers.insert(POLICY, (0x107, b"again".to_vec()))),
        (VERSION_STRING + 1, HeaderProblem::Duplicate)
    );
    assert_eq!(
        problem(|parts| parts.headers[VERSION_STRING].1 = vec![0xff]),
        (VERSION_STRING, HeaderProblem::Utf8)
    );
    assert_eq!(
        problem(|parts| {
            parts.headers[POLICY].1.pop();
        }),
        (POLICY, HeaderProblem::Length { got: 15, need: 16 })
    );
    let mut none = good();
    none.headers.clear();
    assert_eq!(parse_igvm(&none.build()), Err(ParseIgvmError::NoPlatform));
}

#[test]
fn platforms_and_masks_are_unambiguous() {
    assert_eq!(
        problem(|parts| parts.patch(1, 0, &[1])),
        (1, HeaderProblem::PlatformMask(1))
    );
    assert_eq!(
        problem(|parts| parts.patch(1, 0, &[6])),
        (1, HeaderProblem::PlatformMask(6))
    );
    assert_eq!(
        problem(|parts| parts.patch(1, 5, &[2])),
        (1, HeaderProblem::DuplicatePlatform(PlatformType::SevSnp))
    );
    assert_eq!(
        problem(|parts| parts.patch(0, 6, &[2])),
        (0, HeaderProblem::PlatformVersion(2))
    );
    for mask in [0, 4, 5] {
        assert_eq!(
            problem(|parts| parts.patch(PAGE, 8, &[mask])),
            (
                PAGE,
                HeaderProblem::Mask {
                    mask: mask.into(),
                    platforms: 3
                }
            )
        );
    }
    assert_eq!(
        problem(|parts| parts.patch(CONTEXT, 8, &[3])),
        (CONTEXT, HeaderProblem::NoCommonState),
        "a save area is nothing to VBS"
    );
    assert_eq!(
        problem(|parts| parts.patch(0, 5, &[3])),
        (CONTEXT, HeaderProblem::NoCommonState),
        "TDX has no initial state"
    );
}

#[test]
fn fields_are_aligned_and_reserved_bits_zero() {
    let misaligned = |field, value| HeaderProblem::Misaligned { field, value };
    for (header, at, bytes, expected) in [
        (PAGE, 0, &[1][..], misaligned("gpa", 0x2001)),
        (PAGE, 16, &[1], misaligned("gpa", 0x2000)),
        (PAGE, 16, &[8], HeaderProblem::Reserved("flags")),
        (PAGE, 22, &[1], HeaderProblem::Reserved("reserved")),
        (
            PAGE,
            20,
            &[4],
            HeaderProblem::Value {
                field: "data_type",
                value: 4,
            },
        ),
        (
            PAGE,
            0,
            &[0, 0xf0, 255, 255, 255, 255, 255, 255],
            HeaderProblem::WrapsAround,
        ),
        (INSERT, 0, &[1], misaligned("gpa", 0x8001)),
        (AREA, 0, &[1], misaligned("number_of_bytes", 0x2001)),
        (AREA, 3, &[0x10], HeaderProblem::AreasTooLarge),
        (CONTEXT, 0, &[1], misaligned("gpa", 0xffff_ffff_f001)),
        (CONTEXT, 18, &[1], HeaderProblem::Reserved("reserved")),
        (REQUIRED, 0, &[1], misaligned("gpa", 0x10_0001)),
        (REQUIRED, 12, &[1], misaligned("number_of_bytes", 0x1001)),
        (REQUIRED, 16, &[2], HeaderProblem::Reserved("flags")),
        (POLICY, 12, &[1], HeaderProblem::Reserved("reserved")),
    ] {
        assert_eq!(
            problem(|parts| parts.patch(header, at, bytes)),
            (header, expected)
        );
    }
}

#[test]
fn references_stay_inside_the_files_data() {
    let headers_end = good().headers_end();
    let outside = |offset, length| HeaderProblem::FileData { offset, length };
    for offset in [1, headers_end - 1, DATA_OFFSET + 4097, u32::MAX] {
        assert_eq!(
            problem(|parts| parts.patch(PAGE, 12, &offset.to_le_bytes())),
            (PAGE, outside(offset, 4096)),
            "{offset:#x}"
        );
    }
    assert_eq!(
        problem(|parts| parts.patch(CONTEXT, 12, &[0; 4])),
        (CONTEXT, outside(0, 4096))
    );
    assert_eq!(
        problem(|parts| parts.patch(VP_COUNT, 4, &0x1ffd_u32.to_le_bytes())),
        (
            VP_COUNT,
            HeaderProblem::OutsideArea {
                length: 4,
                offset: 0x1ffd,
                area: 0x2000
            }
        )
    );
}

#[test]
fn parameter_areas_are_declared_once_and_inserted_once() {
    assert_eq!(
        problem(|parts| parts.headers.insert(PAGE, parts.headers[AREA].clone())),
        (PAGE, HeaderProblem::DuplicateArea(7))
    );
    assert_eq!(
        problem(|parts| parts.patch(INSERT, 12, &[8])),
        (INSERT, HeaderProblem::NoArea(8))
    );
    for again in [INSERT, VP_COUNT] {
        assert_eq!(
            problem(|parts| parts.headers.push(parts.headers[again].clone())),
            (HEADERS, HeaderProblem::NoArea(7))
        );
    }
}

#[test]
fn states_have_the_form_of_their_platform() {
    let state = |platform: PlatformType, state: &[u8]| {
        let mut parts = good();
        parts.patch(0, 5, &[platform.into()]);
        parts.headers[CONTEXT].1[..8].fill(0);
        parts.data.truncate(PAGE_SIZE);
        parts.data.extend(state);
        parts.data.resize(2 * PAGE_SIZE, 0);
        parts.build()
    };
    let form = |bytes: &[u8]| {
        let file = parse_igvm(bytes)?;
        let context = file
            .directives
            .iter()
            .find_map(|directive| match directive {
                Directive::VpContext(context) => Some(format!("{:?}", context.state)),
                _ => None,
            });
        Ok::<_, ParseIgvmError>(context.unwrap())
    };
    assert!(
        form(&state(PlatformType::Sev, &[]))
            .unwrap()
            .starts_with("Native")
    );
    assert!(
        form(&state(PlatformType::SevEs, &[]))
            .unwrap()
            .starts_with("Vmsa")
    );
    assert!(matches!(
        form(&state(PlatformType::Native, &[1; 300])),
        Err(ParseIgvmError::Header {
            problem: HeaderProblem::StateTail,
            ..
        })
    ));

    let vbs = |count: u32| {
        let mut parts = good();
        parts.patch(CONTEXT, 8, &[2]);
        parts.data.truncate(PAGE_SIZE);
        parts.data.extend(count.to_le_bytes());
        parts.data.extend([5; 64]);
        parts.build()
    };
    let bytes = vbs(2);
    let file = parse_igvm(&bytes).unwrap();
    assert!(file.directives.iter().any(|directive| matches!(
        directive,
        Directive::VpContext(VpContext { state: VpState::Vbs([_, register]), .. })
            if register.vtl == 5
    )));
    for count in [3, u32::MAX] {
        assert!(matches!(
            parse_igvm(&vbs(count)),
            Err(ParseIgvmError::Header {
                problem: HeaderProblem::FileData { .. },
                ..
            })
        ));
    }
}

#[test]
fn overlaps_are_found_for_each_platform() {
    let mut parts = good();
    parts.patch(INSERT, 0, &0x1000_u64.to_le_bytes());
    let bytes = parts.build();
    let file = parse_igvm(&bytes).unwrap();
    assert_eq!(
        file.check_overlaps(SNP),
        Err(OverlapError {
            first: 0x1000,
            second: 0x2000
        })
    );
    assert_eq!(file.check_overlaps(VBS), Ok(()), "the area is for SEV-SNP");
}
