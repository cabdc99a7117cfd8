//! UKIs as other tools read and write them, and as they boot.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::authenticode::SigningKey;
use crate::newc::NewcBuilder;
use crate::oracles::Oracles;
use crate::pcr::{BootPath, PcrPrediction, predict_pcrs};
use crate::pcr_signature::PcrSigner;
use crate::tarball::Owner;

const STUB: &str = "usr/lib/systemd/boot/efi/linuxx64.efi.stub";
const SYSTEMD_MEASURE: &str = "/usr/lib/systemd/systemd-measure";
const CMDLINE_TEXT: &str = "console=ttyS0 panic=-1 quiet";
const UNAME_TEXT: &str = "6.12.0-test";

/// A UKI whose guest prints the TPM's PCRs and what the stub handed on beside the
/// initrd, and goes.
fn uki(oracles: &Oracles, optional: OptionalSections) -> (Bytes, Bytes) {
    const INIT: &str = "#!/bin/busybox sh\n\
        /bin/busybox mount -t devtmpfs dev /dev\n\
        /bin/busybox mount -t sysfs sys /sys\n\
        exec >/dev/console 2>&1\n\
        for pcr in 4 9 11 12; do\n\
        echo \"PCR $pcr $(/bin/busybox cat /sys/class/tpm/tpm0/pcr-sha256/$pcr)\"\n\
        done\n\
        /bin/busybox sha256sum /.extra/* /kernel/x86/microcode/*\n\
        echo done\n\
        /bin/busybox poweroff -f\n";
    let mut initrd = NewcBuilder::new();
    for directory in ["bin", "dev", "sys"] {
        initrd.directory(directory, 0o755, Owner::ROOT).unwrap();
    }
    let busybox = oracles.file("usr/bin/busybox");
    initrd
        .file("bin/busybox", 0o755, Owner::ROOT, busybox)
        .unwrap();
    let init = Bytes::from_static(INIT.as_bytes());
    initrd.file("init", 0o755, Owner::ROOT, init).unwrap();
    let initrd = initrd.finish();
    let encode = |optional| {
        let parts = UkiParts {
            stub: &oracles.file(STUB),
            kernel: &oracles.kernel(),
            initrd: &initrd,
            cmdline: CMDLINE_TEXT,
            uname: UNAME_TEXT,
            optional,
        };
        encode_uki(&parts).unwrap().to_bytes()
    };
    if optional.pcr_public_key.is_none() {
        return (encode(optional), initrd.to_bytes());
    }
    let signatures = pcr_signer().sign(&encode(optional.clone()));
    let signatures = signatures.unwrap().unwrap().encode();
    let optional = OptionalSections {
        pcr_signatures: Some(signatures.into()),
        ..optional
    };
    (encode(optional), initrd.to_bytes())
}

fn key(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/keys/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// A key in a file that only its owner may read: systemd-measure warns otherwise.
fn private_key(oracles: &Oracles) -> String {
    let path = oracles.write("private", &key("secure-boot.key.pem"));
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(oracles.outside("private"), mode).unwrap();
    path
}

/// Phases as a guest with systemd measures them, and none.
const PHASES: [&str; 3] = ["", "enter-initrd", "enter-initrd:leave-initrd"];

fn pcr_signer() -> PcrSigner {
    let key = SigningKey::from_pem(&key("secure-boot.key.pem")).unwrap();
    PcrSigner::with_key(key, PHASES.map(str::to_owned).to_vec()).unwrap()
}

/// Everything that is optional; signatures are made for it.
fn optional() -> OptionalSections {
    OptionalSections {
        os_release: Some("ID=test\nNAME=\"A test\"\n".into()),
        splash: Some(super::tests::splash()),
        microcode: Some(super::tests::microcode(&["AuthenticAMD.bin"])),
        pcr_public_key: Some(pcr_signer().key.to_pem().into()),
        pcr_signatures: None,
    }
}

/// The arguments of `ukify build` for what [`uki`] is made of.
fn ukify_arguments(oracles: &Oracles, initrd: &[u8], sections: &[String]) -> Vec<String> {
    let kernel = oracles.write("kernel", &oracles.kernel());
    let initrd = oracles.write("initrd", initrd);
    let mut build = vec![
        "/usr/bin/ukify".to_owned(),
        "build".to_owned(),
        format!("--linux={kernel}"),
        format!("--initrd={initrd}"),
        format!("--cmdline={CMDLINE_TEXT}"),
        format!("--uname={UNAME_TEXT}"),
        format!("--stub=/{STUB}"),
        format!("--output={}", oracles.inside("theirs")),
    ];
    build.extend_from_slice(sections);
    build
}

/// What ukify makes of the same, but for one NUL that it counts more in `.sbat`
/// before version 258.
fn ukify(oracles: &Oracles, initrd: &[u8], sections: &[String]) -> Vec<u8> {
    let build = ukify_arguments(oracles, initrd, sections);
    let build: Vec<_> = build.iter().map(String::as_str).collect();
    oracles.run("python3", &build);
    let theirs = Bytes::from(std::fs::read(oracles.outside("theirs")).unwrap());
    let mut expected = theirs.to_vec();
    let image = PeImage::parse(&theirs).unwrap();
    let index = image
        .sections
        .iter()
        .position(|section| section.name == SBAT);
    let size = image.section_table + index.unwrap() * SECTION_HEADER_LEN + 8;
    let counted = crate::pe::u32_at(&theirs, size).unwrap();
    expected[size..size + 4].copy_from_slice(&(counted - 1).to_le_bytes());
    expected
}

#[test]
fn ukify_writes_the_same_bytes_and_reads_every_section() {
    let Some(oracles) = Oracles::find("ukify") else {
        return;
    };
    let (ours, initrd) = uki(&oracles, OptionalSections::default());
    // It would take the machine's own.
    let theirs = ukify(&oracles, &initrd, &["--os-release=".to_owned()]);
    assert!(ours == theirs, "the files differ");

    let (ours, _) = uki(&oracles, optional());
    let given = optional();
    let file = |name: &str, content: Option<Bytes>| oracles.write(name, &content.unwrap());
    let mut sections = vec![
        format!("--os-release=@{}", file("osrel", given.os_release)),
        format!("--splash={}", file("splash", given.splash)),
        format!("--microcode={}", file("ucode", given.microcode)),
        format!("--pcrpkey={}", file("key", given.pcr_public_key)),
    ];
    let theirs = ukify(&oracles, &initrd, &sections);
    let signatures = PeImage::parse(&ours).unwrap();
    let unsigned = signatures.section(PCRSIG).unwrap().raw_offset as usize;
    // Headers apart, as they count and list a section more.
    let first = signatures.section(CMDLINE).unwrap().raw_offset as usize;
    assert!(
        ours[first..unsigned] == theirs[first..],
        "the sections differ"
    );

    // What it signs is of a longer .sbat, but the section has the same form.
    let private = private_key(&oracles);
    sections.push(format!("--pcr-private-key={private}"));
    sections.push("--pcr-banks=sha256".to_owned());
    let theirs = Bytes::from(ukify(&oracles, &initrd, &sections));
    let names = |uki: &Bytes| {
        let image = PeImage::parse(uki).unwrap();
        let names = image.sections.into_iter().map(|section| section.name);
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(&ours), names(&theirs));
    let section = parse_uki(&theirs).unwrap().section(PCRSIG).unwrap().clone();
    let signatures = PcrSignatures::parse(&section).unwrap();
    assert_eq!(signatures.encode(), section);

    let ours = oracles.write("ours", &ours);
    let listing = oracles.run(
        "python3",
        &["/usr/bin/ukify", "inspect", &ours, "--json=short"],
    );
    let headers = oracles.run("objdump", &["-h", &ours]);
    for section in ALL_SECTIONS {
        assert!(listing.contains(&format!("\"{section}\"")), "{listing}");
        assert!(headers.contains(section), "{headers}");
    }
}

/// `.osrel` is what a boot menu knows an image by.
#[test]
fn bootctl_takes_it_for_a_uki_and_reads_what_it_is() {
    let Some(oracles) = Oracles::find("bootctl") else {
        return;
    };
    let (uki, _) = uki(&oracles, optional());
    let path = oracles.write("uki", &uki);
    let kind = oracles.run("bootctl", &["kernel-identify", &path]);
    assert_eq!(kind.trim(), "uki");
    let told = oracles.run("bootctl", &["kernel-inspect", &path]);
    for words in [UNAME_TEXT, CMDLINE_TEXT, "A test"] {
        assert!(told.contains(words), "{words}: {told}");
    }
}

/// The arguments with which systemd-measure gets a UKI's measured sections.
fn measured_sections(oracles: &Oracles, uki: &Bytes) -> Vec<String> {
    let content = parse_uki(uki).unwrap();
    let measured = content.sections.iter().filter(|(name, _)| *name != PCRSIG);
    measured
        .map(|(name, bytes)| {
            let name = name.trim_start_matches('.');
            format!("--{name}={}", oracles.write(name, bytes))
        })
        .collect()
}

#[test]
fn systemd_measure_predicts_the_same_pcr_11() {
    let Some(oracles) = Oracles::find("systemd-measure calculate") else {
        return;
    };
    for optional in [OptionalSections::default(), optional()] {
        let (uki, _) = uki(&oracles, optional);
        let sections = measured_sections(&oracles, &uki);
        for phases in [
            "",
            "enter-initrd",
            "enter-initrd:leave-initrd:sysinit:ready",
        ] {
            let phase = format!("--phase={phases}");
            let arguments: Vec<_> = ["calculate", "--bank=sha256"]
                .into_iter()
                .chain(sections.iter().map(String::as_str))
                .chain([&*phase])
                .collect();
            let theirs = oracles.run(SYSTEMD_MEASURE, &arguments);
            let words = crate::pcr_signature::phase_words(phases);
            let prediction = predict_pcrs(&uki, BootPath::DirectKernel, &words).unwrap();
            let ours = format!("11:sha256={}", prediction.value(11).unwrap().to_hex());
            assert!(theirs.contains(&ours), "{phases:?}: {theirs}\nours: {ours}");
        }
    }
}

#[test]
fn systemd_measure_signs_the_same_policies() {
    let Some(oracles) = Oracles::find("systemd-measure sign") else {
        return;
    };
    let (uki, _) = uki(&oracles, optional());
    let sections = measured_sections(&oracles, &uki);
    let private = private_key(&oracles);
    let private = format!("--private-key={private}");
    let phases = PHASES.map(|phase| format!("--phase={phase}"));
    let arguments: Vec<_> = ["sign", "--bank=sha256", "--json=short", &private]
        .into_iter()
        .chain(sections.iter().map(String::as_str))
        .chain(phases.iter().map(String::as_str))
        .collect();
    let theirs = oracles.run(SYSTEMD_MEASURE, &arguments);
    let theirs: serde_json::Value = serde_json::from_str(&theirs).unwrap();
    let content = parse_uki(&uki).unwrap();
    let ours: serde_json::Value = serde_json::from_slice(content.section(PCRSIG).unwrap()).unwrap();
    assert_eq!(ours, theirs);
}

#[test]
fn sbsign_and_we_agree_on_what_is_signed() {
    let Some(oracles) = Oracles::find("sbsign") else {
        return;
    };
    let (uki, _) = uki(&oracles, optional());
    let unsigned = oracles.write("unsigned", &uki);
    let key = oracles.inside("key.pem");
    let certificate = oracles.inside("certificate.pem");
    let new_key = [
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-noenc",
        "-subj",
        "/CN=test",
        "-keyout",
        &key,
        "-out",
        &certificate,
    ];
    oracles.run("openssl", &new_key);
    let output = oracles.inside("signed");
    let sign = [
        "--key",
        &key,
        "--cert",
        &certificate,
        "--output",
        &output,
        &unsigned,
    ];
    oracles.run("sbsign", &sign);
    let signed = std::fs::read(oracles.outside("signed")).unwrap();
    let digest = |image: &[u8]| PeImage::parse(image).unwrap().authenticode_digest(image);
    let expected = digest(&uki).unwrap();
    assert_eq!(digest(&signed).unwrap(), expected);
    // The digest is what the signature holds: flipping it there breaks it.
    let at = signed
        .windows(32)
        .position(|window| window == expected.as_bytes())
        .expect("the signature holds our digest");
    let verify = |image: &[u8]| {
        let image = oracles.write("verified", image);
        oracles.try_run("sbverify", &["--cert", &certificate, &image])
    };
    let (well, text) = verify(&signed);
    assert!(well, "{text}");
    let mut changed = signed;
    changed[at] ^= 1;
    assert!(!verify(&changed).0);
}

#[test]
fn the_pcrs_of_real_boots_are_those_predicted() {
    let Some(oracles) = Oracles::find("swtpm") else {
        return;
    };
    for optional in [OptionalSections::default(), optional()] {
        let (uki, _) = uki(&oracles, optional);
        boots_as_predicted(&oracles, &uki);
    }
}

/// Boots a UKI both ways.
fn boots_as_predicted(oracles: &Oracles, uki: &Bytes) {
    std::fs::create_dir_all(oracles.outside("esp/EFI/BOOT")).unwrap();
    let on_disk = oracles.write("esp/EFI/BOOT/BOOTX64.EFI", uki);
    let drive = format!(
        "file=fat:rw:{},format=raw,if=none,id=esp",
        oracles.inside("esp")
    );
    let boots = [
        (BootPath::DirectKernel, vec!["-kernel", &on_disk]),
        (
            BootPath::Disk,
            vec!["-drive", &drive, "-device", "virtio-blk-pci,drive=esp"],
        ),
    ];
    let content = parse_uki(uki).unwrap();
    for (boot, source) in boots {
        let console = boot_with_tpm(oracles, &source);
        let prediction = predict_pcrs(uki, boot, &[]).unwrap();
        for pcr in PcrPrediction::PCRS {
            let value = prediction.value(pcr).unwrap().to_hex().to_uppercase();
            let line = format!("PCR {pcr} {value}");
            assert!(
                console.contains(&line),
                "{boot:?}: {line} is not in\n{console}"
            );
        }
        for (section, file) in [
            (OSREL, "/.extra/os-release"),
            (PCRPKEY, "/.extra/tpm2-pcr-public-key.pem"),
            (PCRSIG, "/.extra/tpm2-pcr-signature.json"),
        ] {
            if let Some(content) = content.section(section) {
                let line = format!("{}  {file}", assay_tee::Sha256Digest::of(content).to_hex());
                assert!(console.contains(&line), "{line} is not in\n{console}");
            }
        }
        let microcode = console.contains("  /kernel/x86/microcode/AuthenticAMD.bin");
        assert_eq!(microcode, content.section(UCODE).is_some(), "{console}");
    }
}

/// The serial console of a boot.
fn boot_with_tpm(oracles: &Oracles, source: &[&str]) -> String {
    let state = oracles.outside("tpm");
    let _ = std::fs::remove_dir_all(&state);
    std::fs::create_dir(&state).unwrap();
    let socket = oracles.inside("tpm/socket");
    let mut tpm = Running(
        oracles
            .command("swtpm")
            .args(["socket", "--tpm2", "--flags", "startup-clear"])
            .args(["--tpmstate", &format!("dir={}", oracles.inside("tpm"))])
            .args(["--ctrl", &format!("type=unixio,path={socket}")])
            .spawn()
            .unwrap(),
    );
    let started = std::time::Instant::now();
    while !state.join("socket").exists() {
        assert!(tpm.0.try_wait().unwrap().is_none(), "swtpm ended");
        assert!(started.elapsed().as_secs() < 60, "swtpm does not listen");
        std::thread::yield_now();
    }
    let chardev = format!("socket,id=tpm,path={socket}");
    let mut arguments = vec![
        "-bios",
        "/usr/share/ovmf/OVMF.fd",
        "-chardev",
        &chardev,
        "-tpmdev",
        "emulator,id=tpm,chardev=tpm",
        "-device",
        "tpm-crb,tpmdev=tpm",
    ];
    arguments.extend(source);
    oracles.boot(&arguments)
}

/// A program that ends with its owner.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
