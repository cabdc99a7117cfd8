//! UKIs as other tools read and write them, and as they boot.

use super::*;
use crate::newc::NewcBuilder;
use crate::oracles::Oracles;
use crate::pcr::{BootPath, PcrPrediction, predict_pcrs};
use crate::tarball::Owner;

const STUB: &str = "usr/lib/systemd/boot/efi/linuxx64.efi.stub";
const SYSTEMD_MEASURE: &str = "/usr/lib/systemd/systemd-measure";
const CMDLINE_TEXT: &str = "console=ttyS0 panic=-1 quiet";
const UNAME_TEXT: &str = "6.12.0-test";

/// A UKI whose guest prints the TPM's PCRs and goes.
fn uki(oracles: &Oracles) -> (Bytes, Bytes) {
    const INIT: &str = "#!/bin/busybox sh\n\
        /bin/busybox mount -t devtmpfs dev /dev\n\
        /bin/busybox mount -t sysfs sys /sys\n\
        exec >/dev/console 2>&1\n\
        for pcr in 4 9 11 12; do\n\
        echo \"PCR $pcr $(/bin/busybox cat /sys/class/tpm/tpm0/pcr-sha256/$pcr)\"\n\
        done\n\
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
    let parts = UkiParts {
        stub: &oracles.file(STUB),
        kernel: &oracles.kernel(),
        initrd: &initrd,
        cmdline: CMDLINE_TEXT,
        uname: UNAME_TEXT,
    };
    (encode_uki(&parts).unwrap().to_bytes(), initrd.to_bytes())
}

#[test]
fn ukify_writes_the_same_bytes_and_reads_every_section() {
    let Some(oracles) = Oracles::find("ukify") else {
        return;
    };
    let (ours, initrd) = uki(&oracles);
    let kernel = oracles.write("kernel", &oracles.kernel());
    let initrd = oracles.write("initrd", &initrd);
    let build = [
        "/usr/bin/ukify",
        "build",
        &format!("--linux={kernel}"),
        &format!("--initrd={initrd}"),
        &format!("--cmdline={CMDLINE_TEXT}"),
        &format!("--uname={UNAME_TEXT}"),
        // It would take the machine's own.
        "--os-release=",
        &format!("--stub=/{STUB}"),
        &format!("--output={}", oracles.inside("theirs")),
    ];
    oracles.run("python3", &build);
    let theirs = Bytes::from(std::fs::read(oracles.outside("theirs")).unwrap());
    // ukify before 258 counts one NUL more in .sbat.
    let mut expected = theirs.to_vec();
    let image = PeImage::parse(&theirs).unwrap();
    let index = image
        .sections
        .iter()
        .position(|section| section.name == SBAT);
    let size = image.section_table + index.unwrap() * SECTION_HEADER_LEN + 8;
    let counted = crate::pe::u32_at(&theirs, size).unwrap();
    expected[size..size + 4].copy_from_slice(&(counted - 1).to_le_bytes());
    assert!(ours == expected, "the files differ");

    let ours = oracles.write("ours", &ours);
    let listing = oracles.run(
        "python3",
        &["/usr/bin/ukify", "inspect", &ours, "--json=short"],
    );
    for section in SECTIONS {
        assert!(listing.contains(&format!("\"{section}\"")), "{listing}");
    }
    let headers = oracles.run("objdump", &["-h", &ours]);
    for section in SECTIONS {
        assert!(headers.contains(section), "{headers}");
    }
}

#[test]
fn systemd_measure_predicts_the_same_pcr_11() {
    let Some(oracles) = Oracles::find("systemd-measure") else {
        return;
    };
    let (uki, _) = uki(&oracles);
    let content = parse_uki(&uki).unwrap();
    let mut calculate = vec!["calculate".to_owned(), "--bank=sha256".to_owned()];
    for (name, bytes) in &content.sections {
        let name = name.trim_start_matches('.');
        calculate.push(format!("--{name}={}", oracles.write(name, bytes)));
    }
    for phases in [
        "",
        "enter-initrd",
        "enter-initrd:leave-initrd:sysinit:ready",
    ] {
        let phase = format!("--phase={phases}");
        let arguments: Vec<_> = calculate
            .iter()
            .map(String::as_str)
            .chain([&*phase])
            .collect();
        let theirs = oracles.run(SYSTEMD_MEASURE, &arguments);
        let words: Vec<_> = phases
            .split(':')
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect();
        let prediction = predict_pcrs(&uki, BootPath::DirectKernel, &words).unwrap();
        let ours = format!("11:sha256={}", prediction.value(11).unwrap().to_hex());
        assert!(theirs.contains(&ours), "{phases:?}: {theirs}\nours: {ours}");
    }
}

#[test]
fn sbsign_and_we_agree_on_what_is_signed() {
    let Some(oracles) = Oracles::find("sbsign") else {
        return;
    };
    let (uki, _) = uki(&oracles);
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
    let (uki, _) = uki(&oracles);
    std::fs::create_dir_all(oracles.outside("esp/EFI/BOOT")).unwrap();
    let on_disk = oracles.write("esp/EFI/BOOT/BOOTX64.EFI", &uki);
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
    for (boot, source) in boots {
        let console = boot_with_tpm(&oracles, &source);
        let prediction = predict_pcrs(&uki, boot, &[]).unwrap();
        for pcr in PcrPrediction::PCRS {
            let value = prediction.value(pcr).unwrap().to_hex().to_uppercase();
            let line = format!("PCR {pcr} {value}");
            assert!(
                console.contains(&line),
                "{boot:?}: {line} is not in\n{console}"
            );
        }
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
