#![allow(clippy::cast_possible_truncation)] // small numbers

use object::{Object as _, ObjectSection as _};
use proptest::prelude::*;

use super::*;
use crate::newc::NewcBuilder;
use crate::tarball::Owner;

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

/// A BMP image of 2×2 pixels, 24 bits each.
pub(crate) fn splash() -> Bytes {
    let mut out = b"BM".to_vec();
    for number in [
        70_u32,
        0,
        54,
        40,
        2,
        2,
        1 | 24 << 16,
        0,
        16,
        2835,
        2835,
        0,
        0,
    ] {
        out.extend(number.to_le_bytes());
    }
    out.extend([0xff; 16]);
    out.into()
}

/// An archive of microcode with these files.
pub(crate) fn microcode(files: &[&str]) -> Bytes {
    let mut archive = NewcBuilder::new();
    for directory in ["kernel", "kernel/x86", "kernel/x86/microcode"] {
        archive.directory(directory, 0o755, Owner::ROOT).unwrap();
    }
    for file in files {
        let path = format!("kernel/x86/microcode/{file}");
        let content = Bytes::from_static(b"microcode");
        archive.file(path, 0o644, Owner::ROOT, content).unwrap();
    }
    archive.finish().to_bytes()
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
        optional: OptionalSections::default(),
    };
    encode_uki(&parts).map(|rope| rope.to_bytes())
}

fn encode_with(optional: OptionalSections) -> Result<Bytes, EncodeUkiError> {
    let parts = UkiParts {
        stub: &stub(),
        kernel: &kernel(),
        initrd: &Rope::from(vec![3; 1500]),
        cmdline: "console=ttyS0",
        uname: "6.12",
        optional,
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
        parse_uki(&pe_image(true, &with(".profile"))).unwrap_err(),
        ParseUkiError::Foreign(".profile")
    );
    assert_eq!(
        parse_uki(&pe_image(true, &complete[..4])).unwrap_err(),
        ParseUkiError::Missing(".initrd")
    );
}

/// A good section of each kind, and what each must not be.
#[test]
fn optional_sections_are_what_their_readers_expect() {
    let signer = crate::pcr_signature::tests::signer(&["", "enter-initrd"]);
    let key = signer.key.to_pem();
    let good = OptionalSections {
        os_release: Some("NAME=x\nID=x\n".into()),
        splash: Some(splash()),
        microcode: Some(microcode(&[".enuineIntel.align.0123", "GenuineIntel.bin"])),
        pcr_public_key: Some(key.clone().into()),
        pcr_signatures: Some(Bytes::from_static(b"{\"sha256\": []}")),
    };
    let uki = encode_with(good.clone()).unwrap();
    let read = parse_uki(&uki).unwrap();
    let names: Vec<_> = read.sections.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ALL_SECTIONS);
    assert_eq!(read.section(SPLASH), good.splash.as_ref());
    assert_eq!(read.section(PCRPKEY), good.pcr_public_key.as_ref());

    let beside = |path: &str| {
        let mut archive = NewcBuilder::new();
        let content = Bytes::from_static(b"x");
        archive.file(path, 0o755, Owner::ROOT, content).unwrap();
        archive.finish().to_bytes()
    };
    let linked = {
        let mut archive = NewcBuilder::new();
        let target = Bytes::from_static(b"/init");
        let path = "kernel/x86/microcode/AuthenticAMD.bin";
        archive.symlink(path, 0o777, Owner::ROOT, target).unwrap();
        archive.finish().to_bytes()
    };
    let two = [microcode(&["GenuineIntel.bin"]), beside("init")].concat();
    let rows: Vec<(&str, Bytes, &str)> = vec![
        (OSREL, "NAME=x\n".into(), "ID="),
        (OSREL, "ID=x\0\n".into(), "NUL"),
        (OSREL, Bytes::from_static(b"ID=\xff\n"), "UTF-8"),
        (SPLASH, Bytes::from_static(b"\x89PNG"), "no BMP"),
        (SPLASH, splash().slice(..12), "header"),
        (SPLASH, splash().slice(..69), "missing"),
        (UCODE, Bytes::from_static(b"\x1f\x8b"), "newc"),
        (UCODE, two.into(), "nothing after it"),
        (UCODE, beside("init"), "more than"),
        (UCODE, beside("kernel/x86/microcode/a/b"), "more than"),
        (UCODE, linked, "more than"),
        (UCODE, microcode(&["other.bin"]), "neither"),
        (PCRPKEY, "-----BEGIN".into(), "no public RSA key"),
        (PCRPKEY, key.replace('\n', "\r\n").into(), "PEM form"),
        (PCRSIG, Bytes::from_static(b"{}"), "JSON"),
    ];
    for (name, content, words) in rows {
        let mut bad = good.clone();
        let place = match name {
            OSREL => &mut bad.os_release,
            SPLASH => &mut bad.splash,
            UCODE => &mut bad.microcode,
            PCRPKEY => &mut bad.pcr_public_key,
            _ => &mut bad.pcr_signatures,
        };
        *place = Some(content.clone());
        let error = encode_with(bad).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(words), "{error}");
        // A reader is as strict as the writer.
        let mut sections: Vec<(&str, &[u8])> =
            SECTIONS.map(|name| (name, b"x".as_slice())).to_vec();
        sections.push((name, &content));
        let error = parse_uki(&pe_image(true, &sections)).unwrap_err();
        assert!(error.to_string().contains(words), "{name}: {error}");
    }
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
