#![allow(clippy::cast_possible_truncation)] // small numbers

use object::{Object as _, ObjectSection as _};
use proptest::prelude::*;

use super::*;

/// A small PE32+ image: the given sections at 0x1000, 0x2000, and so on, one
/// file block of headers.
pub(crate) fn pe_image(nx: bool, sections: &[(&str, &[u8])]) -> Bytes {
    const HEADERS: u32 = 0x400;
    let mut out = vec![0; 0x40];
    out[..2].copy_from_slice(b"MZ");
    out[0x3c] = 0x40;
    out.extend(b"PE\0\0");
    out.extend(0x8664_u16.to_le_bytes());
    out.extend((sections.len() as u16).to_le_bytes());
    out.extend([0; 12]);
    out.extend(240_u16.to_le_bytes());
    out.extend(0x22e_u16.to_le_bytes());
    let optional = out.len();
    out.resize(optional + 240, 0);
    out[optional..optional + 2].copy_from_slice(&0x20b_u16.to_le_bytes());
    let mut put = |offset: usize, value: u32| {
        out[optional + offset..optional + offset + 4].copy_from_slice(&value.to_le_bytes());
    };
    put(32, 0x1000);
    put(36, 0x200);
    put(60, HEADERS);
    put(64, 0xdead_beef);
    put(68, 0xa | if nx { u32::from(NX_COMPAT) << 16 } else { 0 });
    put(108, 16);
    let mut raw = HEADERS;
    for (index, (name, content)) in sections.iter().enumerate() {
        let mut padded = name.as_bytes().to_vec();
        padded.resize(8, 0);
        out.extend(padded);
        let raw_size = (content.len() as u32).next_multiple_of(0x200);
        let address = 0x1000 * (index as u32 + 1);
        for number in [
            content.len() as u32,
            address,
            raw_size,
            raw,
            0,
            0,
            0,
            READ_DATA,
        ] {
            out.extend(number.to_le_bytes());
        }
        raw += raw_size;
    }
    out.resize(HEADERS as usize, 0);
    for (_, content) in sections {
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(0x200), 0);
    }
    out.into()
}

pub(crate) const STUB_SBAT: &[u8] =
    b"sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md\nstub,1,x\n\0\0";

pub(crate) fn stub() -> Bytes {
    pe_image(
        true,
        &[
            (".text", &[0x90; 700]),
            (".sbat", STUB_SBAT),
            (".sdmagic", b"stub"),
        ],
    )
}

fn encode(stub: &Bytes, kernel: &Bytes) -> Result<Bytes, EncodeUkiError> {
    let initrd = Rope::from(vec![3; 1500]);
    let parts = UkiParts {
        stub,
        kernel,
        initrd: &initrd,
        cmdline: "console=ttyS0",
        uname: "6.12",
    };
    encode_uki(&parts).map(|rope| rope.to_bytes())
}

fn kernel() -> Bytes {
    pe_image(true, &[(".text", &[0xcc; 900])])
}

#[test]
fn an_independent_reader_sees_every_section() {
    let kernel = kernel();
    let uki = encode(&stub(), &kernel).unwrap();
    let file = object::File::parse(uki.as_ref()).unwrap();
    let content = |name: &str| {
        let section = file.section_by_name(name).unwrap();
        let len = section.size() as usize;
        section.data().unwrap()[..len].to_vec()
    };
    assert_eq!(content(".cmdline"), b"console=ttyS0");
    assert_eq!(content(".uname"), b"6.12");
    assert_eq!(content(".linux"), kernel);
    assert_eq!(content(".initrd"), vec![3; 1500]);
    assert_eq!(content(".text"), [0x90; 700]);
    let sbat = String::from_utf8(content(".sbat")).unwrap();
    assert_eq!(
        sbat.lines().collect::<Vec<_>>(),
        [SBAT_HEADER, "stub,1,x", SBAT_UKI]
    );
    assert_eq!(uki.len() % 0x200, 0);

    let pe = PeImage::parse(&uki).unwrap();
    let headers = &uki[pe.pe_offset..];
    let end = pe.sections.last().unwrap();
    let image_size = (end.virtual_address + end.virtual_size).next_multiple_of(0x1000);
    assert_eq!(
        crate::pe::u32_at(headers, field::SIZE_OF_IMAGE),
        Some(image_size)
    );
    assert_eq!(crate::pe::u32_at(headers, field::CHECKSUM), Some(0));
    assert!(
        pe.sections
            .windows(2)
            .all(|pair| pair[0].virtual_address < pair[1].virtual_address)
    );
}

#[test]
fn what_is_written_is_read() {
    let parsed = parse_uki(&encode(&stub(), &kernel()).unwrap()).unwrap();
    assert_eq!(
        parsed.section(CMDLINE).unwrap(),
        b"console=ttyS0".as_slice()
    );
    assert_eq!(parsed.section(LINUX).unwrap(), &kernel());
}

#[test]
fn no_execute_needs_both() {
    let flag = |stub_nx, kernel_nx| {
        let stub = pe_image(stub_nx, &[(".text", b"x"), (".sbat", STUB_SBAT)]);
        let uki = encode(&stub, &pe_image(kernel_nx, &[(".text", b"x")])).unwrap();
        PeImage::parse(&uki).unwrap().dll_characteristics & NX_COMPAT != 0
    };
    assert_eq!(
        [
            flag(true, true),
            flag(true, false),
            flag(false, true),
            flag(false, false)
        ],
        [true, false, false, false]
    );
}

#[test]
fn unusable_parts_are_refused() {
    let unusable = |sections: &[(&str, &[u8])]| encode(&pe_image(true, sections), &kernel());
    assert!(matches!(
        unusable(&[(".text", b"x")]),
        Err(EncodeUkiError::UnusableStub(_))
    ));
    assert!(matches!(
        unusable(&[(".sbat", STUB_SBAT), (".linux", b"x")]),
        Err(EncodeUkiError::UnusableStub(_))
    ));
    assert!(matches!(
        unusable(&[(".sbat", b"no\n")]),
        Err(EncodeUkiError::MalformedSbat("stub"))
    ));
    let mut full = STUB_SBAT[..STUB_SBAT.len() - 2].to_vec();
    full.resize(0x200, b'x');
    assert!(matches!(
        unusable(&[(".sbat", &full)]),
        Err(EncodeUkiError::SbatRoom { .. })
    ));
    let many: Vec<(&str, &[u8])> = [(".sbat", STUB_SBAT)]
        .into_iter()
        .chain([(".x", b"".as_slice()); 14])
        .collect();
    assert!(matches!(
        unusable(&many),
        Err(EncodeUkiError::UnusableStub(_))
    ));
    let elf = Bytes::from_static(b"\x7fELF");
    assert!(matches!(
        encode(&stub(), &elf),
        Err(EncodeUkiError::Kernel(_))
    ));
    assert!(matches!(
        encode(&elf, &kernel()),
        Err(EncodeUkiError::Stub(_))
    ));
}

#[test]
fn a_reader_refuses_what_the_stub_could_read_differently() {
    let complete: Vec<(&str, &[u8])> = SECTIONS.map(|name| (name, b"x".as_slice())).to_vec();
    parse_uki(&pe_image(true, &complete)).unwrap();
    let with = |name: &'static str| [complete.as_slice(), &[(name, b"y".as_slice())]].concat();
    assert_eq!(
        parse_uki(&pe_image(true, &with(".initrd"))).unwrap_err(),
        ParseUkiError::Duplicate(".initrd")
    );
    assert_eq!(
        parse_uki(&pe_image(true, &with(".ucode"))).unwrap_err(),
        ParseUkiError::Foreign(".ucode")
    );
    assert_eq!(
        parse_uki(&pe_image(true, &complete[..4])).unwrap_err(),
        ParseUkiError::Missing(".initrd")
    );
}

proptest! {
    #[test]
    fn any_bytes_give_a_value_or_an_error(at in 0..0x400_usize, with: Vec<u8>, cut in 0..0x1000_usize) {
        let mut bytes = encode(&stub(), &kernel()).unwrap().to_vec();
        let end = bytes.len().min(at + with.len());
        bytes.splice(at..end, with);
        bytes.truncate(bytes.len().max(cut));
        let bytes = Bytes::from(bytes);
        let _ = parse_uki(&bytes);
        let _ = encode(&bytes, &kernel());
        let _ = encode(&stub(), &bytes);
    }
}
