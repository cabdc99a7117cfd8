#[path = "../../../measure/tests/support/synthetic_firmware.rs"]
pub(crate) mod synthetic_firmware;

use std::io::Write as _;

use proptest::prelude::*;
use synthetic_firmware::{
    HASH_GUIDS, IGVM_DATA_HOB as HOB, build_file, build_volume, kernel_loader,
};

use super::*;

/// What a distribution's images of firmware do: the AmdSev build, the generic one, and
/// the one for TDX.
#[test]
fn builds_of_ovmf_are_told_apart() {
    let Some(paths) = std::env::var_os("ASSAY_ORACLE_FIRMWARE") else {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED builds of OVMF: ASSAY_ORACLE_FIRMWARE is not set (cargo xtask programs)"
        );
        return;
    };
    let found: Vec<_> = std::env::split_paths(&paths)
        .map(|path| {
            let firmware = std::fs::read(&path).unwrap();
            let loader = read_kernel_loader(&firmware).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, loader.verifies_hashes, loader.reads_igvm)
        })
        .collect();
    let rows = [
        ("OVMF.amdsev.fd", true, true),
        ("OVMF.fd", false, true),
        ("OVMF.inteltdx.ms.fd", false, true),
    ];
    assert_eq!(found, rows.map(|(name, a, b)| (name.to_owned(), a, b)));
}

fn read(files: &[&[u8]]) -> Result<KernelLoader, ReadKernelLoaderError> {
    // As in an image: something else before it and behind.
    let volume = build_volume(files);
    read_kernel_loader(&[&[0xff; 8192][..], &volume, &[0xff; 4096]].concat())
}

fn sections(content: &[(u8, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, content) in content {
        out.resize(out.len().next_multiple_of(4), 0);
        let size = u32::try_from(content.len() + 4).unwrap().to_le_bytes();
        out.extend([size[0], size[1], size[2], *kind]);
        out.extend(*content);
    }
    out
}

fn volumes(content: &[u8]) -> Vec<u8> {
    build_file(Guid::new(7), FILE_OF_VOLUMES, content)
}

#[test]
fn a_driver_says_what_it_does_by_what_it_looks_for() {
    let everything = [HASH_GUIDS, &[HOB]].concat();
    let good = kernel_loader(&everything);
    let loader = |verifies_hashes, reads_igvm| {
        Ok(KernelLoader {
            verifies_hashes,
            reads_igvm,
        })
    };
    assert_eq!(read(&[&good]), loader(true, true));
    assert_eq!(read(&[&kernel_loader(&[HOB])]), loader(false, true));
    assert_eq!(read(&[&kernel_loader(HASH_GUIDS)]), loader(true, false));
    for missing in 0..HASH_GUIDS.len() {
        let mut some = everything.clone();
        some.remove(missing);
        assert_eq!(read(&[&kernel_loader(&some)]), loader(false, true));
    }
    // Each of several must.
    let bad = kernel_loader(&[HOB]);
    assert_eq!(read(&[&good, &bad]), loader(false, true));
    assert_eq!(read(&[&bad, &good]), loader(false, true));
    // Another driver does not count for it.
    let other = build_file(Guid::new(1), 0x07, &good);
    assert_eq!(read(&[&other, &bad]), loader(false, true));
    assert_eq!(read(&[&other]), Err(ReadKernelLoaderError::NoDriver));
    assert_eq!(
        read_kernel_loader(&vec![0; 40_000]),
        Err(ReadKernelLoaderError::NoDriver)
    );
    // A volume in a section of a file of another.
    let inner = build_volume(&[&good]);
    let nested = volumes(&sections(&[(0x19, b"raw"), (SECTION_VOLUME, &inner)]));
    assert_eq!(read(&[&other, &nested]), loader(true, true));
}

proptest! {
    /// Whatever the bytes are, there is an answer.
    #[test]
    fn changed_bytes_give_an_answer(
        changes in prop::collection::vec((0..0x120_usize, any::<u8>()), 1..8),
        length in 0..3_usize,
    ) {
        let inner = build_volume(&[&kernel_loader(&[HASH_GUIDS, &[HOB]].concat())]);
        let header = [LZMA.as_bytes().as_slice(), &[24, 0, 1, 0]].concat();
        let content = sections(&[(SECTION_VOLUME, &inner), (SECTION_GUIDED, &header)]);
        let mut image = build_volume(&[&volumes(&content)]);
        for (at, byte) in changes {
            image[at] = byte;
        }
        let _ = read_kernel_loader(&image);
        image.truncate(length * 0x60);
        let _ = read_kernel_loader(&image);
    }
}

#[test]
fn damage_is_refused() {
    let good = kernel_loader(HASH_GUIDS);
    let damaged = |files: &[&[u8]]| match read(files).unwrap_err() {
        ReadKernelLoaderError::Volume { offset, what } => {
            assert_eq!(offset, 8192);
            what
        }
        other => panic!("{other}"),
    };
    let mut long = build_file(Guid::new(1), 0x07, b"x");
    long[21] = 0xff;
    assert_eq!(damaged(&[&long, &good]), "a file has an impossible size");
    let mut short = build_file(Guid::new(1), 0x07, b"x");
    short[20] = 3;
    assert_eq!(damaged(&[&short, &good]), "a file has an impossible size");
    assert_eq!(
        damaged(&[&volumes(&[200, 0, 0, 0x19]), &good]),
        "a section has an impossible size"
    );
    assert_eq!(
        damaged(&[&volumes(&[3, 0, 0, 0x19]), &good]),
        "a section has an impossible size"
    );
    assert_eq!(
        damaged(&[&volumes(&sections(&[(SECTION_VOLUME, b"none")]))]),
        "a volume within it is cut off"
    );
    let mut nested = good.clone();
    for _ in 0..=MAX_DEPTH {
        nested = volumes(&sections(&[(SECTION_VOLUME, &build_volume(&[&nested]))]));
    }
    assert_eq!(damaged(&[&nested]), "its volumes are nested too deeply");

    let guided = |data: &[u8]| {
        let header = [LZMA.as_bytes().as_slice(), &[24, 0, 1, 0]].concat();
        volumes(&sections(&[(SECTION_GUIDED, &[&header, data].concat())]))
    };
    assert!(matches!(
        read(&[&guided(b"no LZMA at all")]),
        Err(ReadKernelLoaderError::Uncompress { offset: 8192, .. })
    ));
    // A dictionary of 4 GiB.
    let header = [&[0x5d, 0xff, 0xff, 0xff, 0xff][..], &[0; 8], &[0; 16]].concat();
    assert!(matches!(
        read(&[&guided(&header)]),
        Err(ReadKernelLoaderError::Uncompress { .. })
    ));
}
