use super::*;
use crate::rope::Rope;
use crate::uki::tests::{STUB_SBAT, pe_image};
use crate::uki::{OptionalSections, UkiParts, encode_uki};

fn stub(magic: &str) -> Bytes {
    pe_image(
        true,
        &[
            (".text", &[0x90; 700]),
            (".sbat", STUB_SBAT),
            (".sdmagic", magic.as_bytes()),
        ],
    )
}

fn uki(magic: &str, cmdline: &str) -> Bytes {
    let initrd = Rope::from(vec![3; 1500]);
    let parts = UkiParts {
        stub: &stub(magic),
        kernel: &pe_image(true, &[(".text", &[0xcc; 900])]),
        initrd: &initrd,
        cmdline,
        uname: "6.12",
        optional: OptionalSections::default(),
    };
    encode_uki(&parts).unwrap().to_bytes()
}

const STUB_257: &str = "#### LoaderInfo: systemd-stub 257.13-1 ####\0";
const STUB_262: &str = "#### LoaderInfo: systemd-stub 262.1-1 ####\0";
const CMDLINE_TEXT: &str = "console=ttyS0";

fn predict(uki: &Bytes, boot: BootPath) -> PcrPrediction {
    predict_pcrs(uki, boot, &[]).unwrap()
}

fn names(prediction: &PcrPrediction, pcr: u8) -> Vec<&str> {
    let events = prediction.events.iter().filter(|event| event.pcr == pcr);
    events.map(|event| event.what.as_str()).collect()
}

#[test]
fn executables_are_measured_in_the_order_of_the_boot() {
    let rows = [
        (
            STUB_257,
            BootPath::DirectKernel,
            vec![
                "the UKI",
                "boot option is started",
                "separator",
                "the kernel",
            ],
        ),
        (
            STUB_262,
            BootPath::DirectKernel,
            vec!["the UKI", "boot option is started", "separator"],
        ),
        (
            STUB_257,
            BootPath::Disk,
            vec![
                "boot option is started",
                "separator",
                "the UKI",
                "the kernel",
            ],
        ),
    ];
    for (stub, boot, expected) in rows {
        let prediction = predict(&uki(stub, CMDLINE_TEXT), boot);
        assert_eq!(names(&prediction, 4), expected, "{stub} {boot:?}");
        assert_eq!(prediction.unpredictable, []);
    }
}

#[test]
fn a_pcr_that_the_bytes_do_not_decide_has_a_reason_and_no_value() {
    let rows = [
        ("stub", CMDLINE_TEXT, 4, "does not say which version"),
        (
            "#### LoaderInfo: systemd-stub 251.1 ####",
            CMDLINE_TEXT,
            4,
            "of systemd 251",
        ),
        (STUB_257, "quiet", 9, "no console="),
    ];
    for (stub, cmdline, pcr, reason) in rows {
        let prediction = predict(&uki(stub, cmdline), BootPath::DirectKernel);
        assert_eq!(prediction.value(pcr), None);
        let [only] = prediction.unpredictable.as_slice() else {
            panic!("{prediction:?}");
        };
        assert!(only.pcr == pcr && only.reason.contains(reason), "{only:?}");
        assert!(prediction.value(11).is_some() && prediction.value(12).is_some());
    }
    let with_osrel = |stub: &str| {
        let sections: [(&str, &[u8]); 5] = [
            (".sdmagic", stub.as_bytes()),
            (OSREL, b"ID=x\n"),
            (CMDLINE, CMDLINE_TEXT.as_bytes()),
            (LINUX, &pe_image(true, &[])),
            (INITRD, b"initrd"),
        ];
        predict(&pe_image(true, &sections), BootPath::Disk)
    };
    let older = "#### LoaderInfo: systemd-stub 256.7-1 ####";
    for stub in ["stub", older] {
        let prediction = with_osrel(stub);
        assert_eq!(prediction.value(9), None);
        let reason = |it: &Unpredictable| it.pcr == 9 && it.reason.contains(".osrel");
        assert!(prediction.unpredictable.iter().any(reason), "{stub}");
    }
    assert!(with_osrel(STUB_262).value(9).is_some());
}

#[test]
fn the_kernel_gets_microcode_first_and_the_stubs_archives_last() {
    let digest = |sections: &[(&str, &[u8])]| {
        let mut all: Vec<(&str, &[u8])> = vec![
            (".sdmagic", STUB_262.as_bytes()),
            (CMDLINE, CMDLINE_TEXT.as_bytes()),
            (LINUX, b"kernel"),
            (INITRD, b"initrd"),
        ];
        all.extend(sections);
        let prediction = predict(&pe_image(true, &all), BootPath::Disk);
        let initrd = prediction.events.iter().find(|it| it.what == "initrd");
        initrd.unwrap().digest
    };
    assert_eq!(digest(&[]), Sha256Digest::of(b"initrd"));
    assert_eq!(
        digest(&[(UCODE, b"micro")]),
        Sha256Digest::of(b"micro\0\0\0initrd\0\0")
    );
    let archive = stub_archive("os-release", b"ID=x\n");
    let entries = crate::newc::parse_newc(&archive.clone().into()).unwrap();
    let seen: Vec<_> = entries
        .iter()
        .map(|entry| (entry.path.as_ref(), entry.mode, entry.content.as_ref()))
        .collect();
    let directory = (b".extra".as_slice(), 0o040_555, b"".as_slice());
    let file = (
        b".extra/os-release".as_slice(),
        0o100_444,
        b"ID=x\n".as_slice(),
    );
    assert_eq!(seen, [directory, file]);
    let all = [b"initrd\0\0".as_slice(), &archive].concat();
    assert_eq!(digest(&[(OSREL, b"ID=x\n")]), Sha256Digest::of(&all));
}

#[test]
fn every_measured_byte_changes_its_pcr_and_no_other() {
    let original = predict(&uki(STUB_262, CMDLINE_TEXT), BootPath::Disk);
    let cmdline = predict(&uki(STUB_262, "console=ttyS1"), BootPath::Disk);
    for pcr in [4, 9, 11] {
        assert_ne!(original.value(pcr), cmdline.value(pcr), "PCR {pcr}");
    }
    // The code of the stub is part of the executable alone.
    let image = uki(STUB_262, CMDLINE_TEXT);
    let code = PeImage::parse(&image).unwrap().sections[0].raw_offset as usize;
    let mut changed = image.to_vec();
    changed[code] ^= 1;
    let changed = predict(&changed.into(), BootPath::Disk);
    assert_ne!(original.value(4), changed.value(4));
    for pcr in [9, 11, 12] {
        assert_eq!(original.value(pcr), changed.value(pcr), "PCR {pcr}");
    }
    assert_eq!(original.value(12), Some(Sha256Digest::new([0; 32])));
    assert_eq!(original.value(7), None);
}

#[test]
fn the_checksum_and_the_signatures_are_not_hashed() {
    let image = uki(STUB_262, CMDLINE_TEXT);
    let digest = |image: &[u8]| PeImage::parse(image).unwrap().authenticode_digest(image);
    let unsigned = digest(&image).unwrap();
    let pe = PeImage::parse(&image).unwrap().pe_offset;

    let mut signed = image.to_vec();
    signed[pe + 88..pe + 92].copy_from_slice(&[1, 2, 3, 4]);
    let entry = pe + 24 + 112 + 8 * 4;
    let offset = u32::try_from(image.len()).unwrap();
    signed[entry..entry + 4].copy_from_slice(&offset.to_le_bytes());
    signed[entry + 4..entry + 8].copy_from_slice(&16_u32.to_le_bytes());
    signed.extend([7; 16]);
    assert_eq!(digest(&signed).unwrap(), unsigned);

    // What follows the sections without being a signature is.
    let mut longer = image.to_vec();
    longer.extend([7; 16]);
    assert_ne!(digest(&longer).unwrap(), unsigned);
    assert!(digest(&image[..image.len() - 1]).is_err());
}

#[test]
fn load_options_are_what_the_stub_makes_of_a_command_line() {
    let rows = [
        ("console=ttyS0", "console=ttyS0"),
        ("a b \n", "a b"),
        ("a\tb\0c", "a b"),
        (" a", " a"),
        ("", ""),
    ];
    for (cmdline, options) in rows {
        assert_eq!(load_options(cmdline), options, "{cmdline:?}");
    }
}

#[test]
fn two_sections_of_one_name_are_refused() {
    let image = pe_image(true, &[(LINUX, b"1"), (LINUX, b"2")]);
    assert_eq!(
        predict_pcrs(&image, BootPath::Disk, &[]),
        Err(PredictPcrError::Duplicate(LINUX))
    );
}
