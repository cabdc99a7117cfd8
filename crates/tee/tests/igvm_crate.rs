//! What the `igvm` crate writes is read as it was put in, and nothing that
//! anyone writes makes the parser panic.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failed assumption fails the test"
)]

use assay_tee::igvm::{
    Architecture, Directive, FormatVersion, IgvmFile, Initialization, ParameterKind, VpState,
    parse_igvm,
};
use igvm::snp_defs::SevVmsa;
use igvm::{Arch, IgvmDirectiveHeader, IgvmInitializationHeader, IgvmPlatformHeader, IgvmRevision};
use igvm_defs::{
    IGVM_VHS_PARAMETER, IGVM_VHS_PARAMETER_INSERT, IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY,
    IGVM_VHS_SNP_ID_BLOCK_SIGNATURE, IGVM_VHS_SUPPORTED_PLATFORM, IgvmNativeVpContextX64,
    IgvmPageDataFlags, IgvmPageDataType, IgvmPlatformType,
};
use proptest::prelude::*;
use zerocopy::{FromBytes as _, IntoBytes as _};

/// Masks of the platforms, which every file has.
const SNP: u32 = 1;
const NATIVE: u32 = 4;
const TDX: u32 = 0x8000_0000;
const PAGE: u64 = 4096;

fn platforms() -> Vec<IgvmPlatformHeader> {
    [
        (IgvmPlatformType::SEV_SNP, SNP),
        (IgvmPlatformType::NATIVE, NATIVE),
        (IgvmPlatformType::TDX, TDX),
    ]
    .map(|(platform_type, compatibility_mask)| {
        IgvmPlatformHeader::SupportedPlatform(IGVM_VHS_SUPPORTED_PLATFORM {
            compatibility_mask,
            highest_vtl: 0,
            platform_type,
            platform_version: 1,
            shared_gpa_boundary: 0,
        })
    })
    .into()
}

fn masks() -> impl Strategy<Value = u32> {
    prop::sample::select(vec![SNP, NATIVE, TDX, SNP | TDX, SNP | NATIVE | TDX])
}

fn initialization() -> impl Strategy<Value = IgvmInitializationHeader> {
    let policy = (any::<u64>(), masks()).prop_map(|(policy, compatibility_mask)| {
        IgvmInitializationHeader::GuestPolicy {
            policy,
            compatibility_mask,
        }
    });
    let corim = (
        prop::sample::select(vec![SNP, NATIVE, TDX]),
        prop::collection::vec(any::<u8>(), 1..100),
    )
        .prop_map(
            |(compatibility_mask, document)| IgvmInitializationHeader::CorimDocument {
                compatibility_mask,
                document,
            },
        );
    prop_oneof![policy, corim]
}

/// Directives that do not refer to each other.
fn directive() -> impl Strategy<Value = IgvmDirectiveHeader> {
    let data_type = prop::sample::select(vec![
        IgvmPageDataType::NORMAL,
        IgvmPageDataType::SECRETS,
        IgvmPageDataType::CPUID_DATA,
        IgvmPageDataType::CPUID_XF,
    ]);
    let page = (
        any::<u32>(),
        masks(),
        any::<[bool; 2]>(),
        data_type,
        prop::collection::vec(any::<u8>(), 0..50),
    )
        .prop_map(
            |(page, compatibility_mask, [unmeasured, shared], data_type, data)| {
                IgvmDirectiveHeader::PageData {
                    gpa: u64::from(page) * PAGE,
                    compatibility_mask,
                    flags: IgvmPageDataFlags::new()
                        .with_unmeasured(unmeasured)
                        .with_shared(shared),
                    data_type,
                    data,
                }
            },
        );
    let vmsa = (any::<u32>(), any::<u16>(), any::<u64>()).prop_map(|(page, vp_index, rip)| {
        let mut vmsa = SevVmsa::read_from_bytes(&[0; 4096]).unwrap();
        vmsa.rip = rip;
        IgvmDirectiveHeader::SnpVpContext {
            gpa: u64::from(page) * PAGE,
            compatibility_mask: SNP,
            vp_index,
            vmsa: Box::new(vmsa),
        }
    });
    let native = (any::<u16>(), any::<u64>()).prop_map(|(vp_index, rip)| {
        let zeros = [0; size_of::<IgvmNativeVpContextX64>()];
        let mut context = IgvmNativeVpContextX64::read_from_bytes(&zeros).unwrap();
        context.rip = rip;
        context.gdtr_limit = vp_index;
        context.efer = !rip;
        IgvmDirectiveHeader::X64NativeVpContext {
            compatibility_mask: NATIVE,
            vp_index,
            context: Box::new(context),
        }
    });
    let required = (any::<u32>(), masks(), 0_u32..99, any::<bool>()).prop_map(
        |(page, compatibility_mask, pages, vtl2_protectable)| IgvmDirectiveHeader::RequiredMemory {
            gpa: u64::from(page) * PAGE,
            compatibility_mask,
            number_of_bytes: pages * 4096,
            vtl2_protectable,
        },
    );
    let errors = (any::<u32>(), masks(), 0_u32..9).prop_map(|(page, compatibility_mask, pages)| {
        IgvmDirectiveHeader::ErrorRange {
            gpa: u64::from(page) * PAGE,
            compatibility_mask,
            size_bytes: pages * 4096,
        }
    });
    let id_block = (any::<u8>(), any::<u32>()).prop_map(|(byte, svn)| {
        let signature = |byte| IGVM_VHS_SNP_ID_BLOCK_SIGNATURE {
            r_comp: [byte; 72],
            s_comp: [!byte; 72],
        };
        let key = |byte| IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY {
            curve: 2,
            reserved: 0,
            qx: [byte; 72],
            qy: [!byte; 72],
        };
        IgvmDirectiveHeader::SnpIdBlock {
            compatibility_mask: SNP,
            author_key_enabled: byte & 1,
            reserved: [0; 3],
            ld: [byte; 48],
            family_id: [byte ^ 1; 16],
            image_id: [byte ^ 2; 16],
            version: 1,
            guest_svn: svn,
            id_key_algorithm: 1,
            author_key_algorithm: 3,
            id_key_signature: Box::new(signature(byte ^ 3)),
            id_public_key: Box::new(key(byte ^ 4)),
            author_key_signature: Box::new(signature(byte ^ 5)),
            author_public_key: Box::new(key(byte ^ 6)),
        }
    });
    prop_oneof![
        4 => page,
        1 => vmsa,
        1 => native,
        1 => required,
        1 => errors,
        1 => id_block,
    ]
}

type Parameter = (fn(IGVM_VHS_PARAMETER) -> IgvmDirectiveHeader, ParameterKind);

const PARAMETERS: [Parameter; 10] = [
    (IgvmDirectiveHeader::VpCount, ParameterKind::VpCount),
    (
        IgvmDirectiveHeader::EnvironmentInfo,
        ParameterKind::EnvironmentInfo,
    ),
    (IgvmDirectiveHeader::Srat, ParameterKind::Srat),
    (IgvmDirectiveHeader::Madt, ParameterKind::Madt),
    (IgvmDirectiveHeader::Slit, ParameterKind::Slit),
    (IgvmDirectiveHeader::Pptt, ParameterKind::Pptt),
    (IgvmDirectiveHeader::MmioRanges, ParameterKind::MmioRanges),
    (IgvmDirectiveHeader::MemoryMap, ParameterKind::MemoryMap),
    (IgvmDirectiveHeader::CommandLine, ParameterKind::CommandLine),
    (IgvmDirectiveHeader::DeviceTree, ParameterKind::DeviceTree),
];

/// An area, parameters in it, and its place in the guest.
fn area() -> impl Strategy<Value = Vec<IgvmDirectiveHeader>> {
    let parameters = prop::collection::vec((0..PARAMETERS.len(), 0_u32..4000), 0..5);
    let data = prop::collection::vec(any::<u8>(), 0..50);
    (1_u64..4, data, parameters, any::<u32>(), masks()).prop_map(
        |(pages, initial_data, parameters, page, compatibility_mask)| {
            let mut directives = vec![IgvmDirectiveHeader::ParameterArea {
                number_of_bytes: pages * PAGE,
                parameter_area_index: 0,
                initial_data,
            }];
            directives.extend(parameters.into_iter().map(|(kind, byte_offset)| {
                PARAMETERS[kind].0(IGVM_VHS_PARAMETER {
                    parameter_area_index: 0,
                    byte_offset,
                })
            }));
            directives.push(IgvmDirectiveHeader::ParameterInsert(
                IGVM_VHS_PARAMETER_INSERT {
                    gpa: u64::from(page) * PAGE,
                    compatibility_mask,
                    parameter_area_index: 0,
                },
            ));
            directives
        },
    )
}

fn revision() -> impl Strategy<Value = IgvmRevision> {
    prop_oneof![
        Just(IgvmRevision::V1),
        Just(IgvmRevision::V2 {
            arch: Arch::X64,
            page_size: 4096
        })
    ]
}

/// Headers in groups whose areas are numbered one after another.
fn headers() -> impl Strategy<
    Value = (
        IgvmRevision,
        Vec<IgvmInitializationHeader>,
        Vec<IgvmDirectiveHeader>,
    ),
> {
    let group = prop_oneof![2 => directive().prop_map(|one| vec![one]), 1 => area()];
    (
        revision(),
        prop::collection::vec(initialization(), 0..4),
        prop::collection::vec(group, 0..8),
    )
        .prop_map(|(revision, mut initialization, groups)| {
            let mut documents = 0;
            initialization.retain(|header| match header {
                IgvmInitializationHeader::CorimDocument {
                    compatibility_mask, ..
                } => {
                    let first = documents & compatibility_mask == 0;
                    documents |= compatibility_mask;
                    first
                }
                _ => true,
            });
            let mut directives = Vec::new();
            for (index, group) in (0..).zip(groups) {
                for mut directive in group {
                    number_area(&mut directive, index);
                    directives.push(directive);
                }
            }
            (revision, initialization, directives)
        })
}

fn number_area(directive: &mut IgvmDirectiveHeader, index: u32) {
    match directive {
        IgvmDirectiveHeader::ParameterArea {
            parameter_area_index,
            ..
        } => *parameter_area_index = index,
        IgvmDirectiveHeader::ParameterInsert(insert) => insert.parameter_area_index = index,
        IgvmDirectiveHeader::VpCount(parameter)
        | IgvmDirectiveHeader::EnvironmentInfo(parameter)
        | IgvmDirectiveHeader::Srat(parameter)
        | IgvmDirectiveHeader::Madt(parameter)
        | IgvmDirectiveHeader::Slit(parameter)
        | IgvmDirectiveHeader::Pptt(parameter)
        | IgvmDirectiveHeader::MmioRanges(parameter)
        | IgvmDirectiveHeader::MemoryMap(parameter)
        | IgvmDirectiveHeader::CommandLine(parameter)
        | IgvmDirectiveHeader::DeviceTree(parameter) => parameter.parameter_area_index = index,
        _ => {}
    }
}

fn write(
    revision: IgvmRevision,
    initialization: &[IgvmInitializationHeader],
    directives: &[IgvmDirectiveHeader],
) -> Vec<u8> {
    let file = igvm::IgvmFile::new(
        revision,
        platforms(),
        initialization.to_vec(),
        directives.to_vec(),
    );
    let mut bytes = Vec::new();
    file.unwrap().serialize(&mut bytes).unwrap();
    bytes
}

/// Fills `data` up to `length`; nothing stays nothing.
fn padded(data: &[u8], length: u64) -> Option<Vec<u8>> {
    let mut data = data.to_vec();
    (!data.is_empty()).then(|| {
        data.resize(usize::try_from(length).unwrap(), 0);
        data
    })
}

fn is_same_initialization(written: &IgvmInitializationHeader, read: &Initialization<'_>) -> bool {
    match (written, read) {
        (
            IgvmInitializationHeader::GuestPolicy {
                policy,
                compatibility_mask,
            },
            Initialization::GuestPolicy(read),
        ) => (*policy, *compatibility_mask) == (read.policy.get(), read.compatibility_mask.get()),
        (
            IgvmInitializationHeader::CorimDocument {
                compatibility_mask,
                document,
            },
            Initialization::CorimDocument(read),
        ) => (*compatibility_mask, document.as_slice()) == (read.compatibility_mask, read.data),
        _ => false,
    }
}

fn is_same_directive(written: &IgvmDirectiveHeader, read: &Directive<'_>) -> bool {
    use IgvmDirectiveHeader as Written;
    match (written, read) {
        (
            Written::PageData {
                gpa,
                compatibility_mask,
                flags,
                data_type,
                data,
            },
            Directive::PageData(read),
        ) => {
            (*gpa, *compatibility_mask) == (read.gpa, read.compatibility_mask)
                && u32::from(*flags) == read.flags.bits()
                && data_type.0 == read.data_type as u16
                && padded(data, PAGE).as_deref() == read.contents
        }
        (
            Written::ParameterArea {
                number_of_bytes,
                parameter_area_index,
                initial_data,
            },
            Directive::ParameterArea(read),
        ) => {
            (*number_of_bytes, *parameter_area_index) == (read.number_of_bytes, read.index)
                && padded(initial_data, *number_of_bytes).as_deref() == read.initial_data
        }
        (Written::ParameterInsert(insert), Directive::ParameterInsert(read)) => {
            (insert.gpa, insert.compatibility_mask) == (read.gpa, read.compatibility_mask)
                && insert.parameter_area_index == read.area
        }
        (
            Written::SnpVpContext {
                gpa,
                compatibility_mask,
                vp_index,
                vmsa,
            },
            Directive::VpContext(read),
        ) => {
            (*gpa, *compatibility_mask, *vp_index)
                == (read.gpa, read.compatibility_mask, read.vp_index)
                && matches!(read.state, VpState::Vmsa(read)
                    if read.as_bytes() == vmsa.as_bytes() && read.rip.get() == vmsa.rip)
        }
        (
            Written::X64NativeVpContext {
                compatibility_mask,
                vp_index,
                context,
            },
            Directive::VpContext(read),
        ) => {
            (*compatibility_mask, *vp_index) == (read.compatibility_mask, read.vp_index)
                && matches!(read.state, VpState::Native(read)
                    if read.as_bytes() == context.as_bytes()
                        && (read.rip.get(), read.efer.get()) == (context.rip, context.efer)
                        && read.gdtr_limit.get() == context.gdtr_limit)
        }
        (
            Written::RequiredMemory {
                gpa,
                compatibility_mask,
                number_of_bytes,
                vtl2_protectable,
            },
            Directive::RequiredMemory(read),
        ) => {
            (*gpa, *compatibility_mask) == (read.gpa, read.compatibility_mask)
                && (*number_of_bytes, *vtl2_protectable)
                    == (read.number_of_bytes, read.vtl2_protectable)
        }
        (
            Written::ErrorRange {
                gpa,
                compatibility_mask,
                size_bytes,
            },
            Directive::ErrorRange(read),
        ) => {
            (*gpa, *compatibility_mask, *size_bytes)
                == (
                    read.gpa.get(),
                    read.compatibility_mask.get(),
                    read.size_bytes.get(),
                )
        }
        (
            Written::SnpIdBlock {
                ld,
                family_id,
                image_id,
                guest_svn,
                author_key_algorithm,
                id_key_signature,
                author_public_key,
                ..
            },
            Directive::SnpIdBlock(read),
        ) => {
            (ld, family_id, image_id) == (&read.ld, &read.family_id, &read.image_id)
                && (*guest_svn, *author_key_algorithm)
                    == (read.guest_svn.get(), read.author_key_algorithm.get())
                && id_key_signature.as_bytes() == read.id_key_signature.as_bytes()
                && author_public_key.as_bytes() == read.author_public_key.as_bytes()
        }
        (written, Directive::Parameter(read)) => {
            let (make, _) = PARAMETERS
                .into_iter()
                .find(|(_, kind)| *kind == read.kind)
                .unwrap();
            *written
                == make(IGVM_VHS_PARAMETER {
                    parameter_area_index: read.area,
                    byte_offset: read.byte_offset,
                })
        }
        _ => false,
    }
}

fn check_same(
    file: &IgvmFile<'_>,
    initialization: &[IgvmInitializationHeader],
    directives: &[IgvmDirectiveHeader],
) {
    let masks: Vec<_> = file
        .platforms
        .iter()
        .map(|platform| {
            (
                u8::from(platform.platform_type),
                platform.compatibility_mask,
            )
        })
        .collect();
    assert_eq!(masks, [(2, SNP), (0, NATIVE), (3, TDX)]);
    assert_eq!(file.initialization.len(), initialization.len());
    for (written, read) in initialization.iter().zip(&file.initialization) {
        assert!(
            is_same_initialization(written, read),
            "{written:?} {read:?}"
        );
    }
    assert_eq!(file.directives.len(), directives.len());
    for (written, read) in directives.iter().zip(&file.directives) {
        assert!(is_same_directive(written, read), "{written:?} {read:?}");
        assert_eq!(written.compatibility_mask(), read.compatibility_mask());
    }
}

/// The checksum of the headers, so that changed headers are read further.
fn correct_checksum(bytes: &mut [u8]) {
    let word = |bytes: &[u8], at: usize| {
        let word = bytes.get(at..at + 4).unwrap_or(&[0; 4]);
        u32::from_le_bytes(word.try_into().unwrap()) as usize
    };
    let end = word(bytes, 8).saturating_add(word(bytes, 12));
    if bytes.len() >= 24 && end <= bytes.len() {
        bytes[20..24].fill(0);
        let checksum = crc32(&bytes[..end]);
        bytes[20..24].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// CRC-32 (IEEE 802.3), bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

proptest! {
    #[test]
    fn what_the_igvm_crate_writes_is_what_is_read(headers in headers()) {
        let (revision, initialization, mut directives) = headers;
        // The crate itself refuses to read files without data.
        directives.push(IgvmDirectiveHeader::PageData {
            gpa: 0,
            compatibility_mask: SNP,
            flags: IgvmPageDataFlags::new(),
            data_type: IgvmPageDataType::NORMAL,
            data: vec![1],
        });
        let bytes = write(revision, &initialization, &directives);
        let file = parse_igvm(&bytes).unwrap();
        check_same(&file, &initialization, &directives);
        prop_assert_eq!(file.version.architecture(), Architecture::X64);
        prop_assert_eq!(file.version == FormatVersion::V1, revision == IgvmRevision::V1);
    }

    /// Whatever is changed, the parser answers, and what it accepts it can
    /// describe.
    #[test]
    fn changed_files_never_panic(
        headers in headers(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (revision, initialization, directives) = headers;
        let mut bytes = write(revision, &initialization, &directives);
        let headers_end = bytes.len().min(1500);
        for (at, value) in changes {
            bytes[at.index(headers_end)] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        correct_checksum(&mut bytes);
        match parse_igvm(&bytes) {
            Ok(file) => {
                for platform in &file.platforms {
                    let _ = file.check_overlaps(platform.compatibility_mask);
                }
                let description = format!("{file:?}");
                prop_assert!(!description.is_empty());
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = [b"IGVM\x01\0\0\0\x18\0\0\0".as_slice(), &bytes].concat();
        let _ = parse_igvm(&bytes);
        correct_checksum(&mut bytes);
        let _ = parse_igvm(&bytes);
    }
}
