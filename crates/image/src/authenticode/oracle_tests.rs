//! Signatures as sbsigntool reads and writes them.

use super::tests::signer;
use super::*;
use crate::oracles::Oracles;
use crate::pe::{field, u32_at};

#[test]
fn sbverify_accepts_our_signature_and_no_other_image() {
    let Some(oracles) = Oracles::find("sbverify") else {
        return;
    };
    let certificate = include_bytes!("../../tests/keys/secure-boot.pem");
    let certificate = oracles.write("certificate.pem", certificate);
    let other = include_bytes!("../../tests/keys/other.pem");
    let other = oracles.write("other.pem", other);
    let verify = |image: &[u8], certificate: &str| {
        let image = oracles.write("image", image);
        oracles.try_run("sbverify", &["--cert", certificate, &image])
    };
    let signed = signer().sign(&oracles.file(Oracles::STUB)).unwrap();
    let (well, text) = verify(&signed, &certificate);
    assert!(well && !text.contains("warning"), "{text}");
    assert!(!verify(&signed, &other).0);
    let sections = PeImage::parse(&signed).unwrap().sections;
    for section in sections.iter().filter(|section| section.raw_size > 0) {
        let mut changed = signed.clone();
        changed[section.raw_offset as usize] ^= 1;
        assert!(!verify(&changed, &certificate).0, "{}", section.name);
    }
}

#[test]
fn what_sbsign_writes_is_read_and_has_the_checksum_that_we_give() {
    let Some(oracles) = Oracles::find("sbsign") else {
        return;
    };
    let key = include_bytes!("../../tests/keys/secure-boot.key.pem");
    let key = oracles.write("key.pem", key);
    let certificate = include_bytes!("../../tests/keys/secure-boot.pem");
    let certificate = oracles.write("certificate.pem", certificate);
    let unsigned = oracles.write("unsigned", &oracles.file(Oracles::STUB));
    let output = oracles.inside("signed");
    let sign = ["--key", &key, "--cert", &certificate, "--output", &output];
    oracles.run("sbsign", &[&sign[..], &[&*unsigned]].concat());
    let theirs = std::fs::read(oracles.outside("signed")).unwrap();
    let ours = signer().sign(&oracles.file(Oracles::STUB)).unwrap();
    let signers = |image: &[u8]| {
        let signatures = verify_signatures(image).unwrap();
        let signatures = signatures.into_iter().map(Result::unwrap);
        signatures.collect::<Vec<_>>()
    };
    assert_eq!(signers(&theirs), signers(&ours));
    let mut changed = theirs;
    let at = PeImage::parse(&changed).unwrap().pe_offset + field::CHECKSUM;
    let checksum = u32_at(&changed, at);
    changed[at..at + 4].fill(0);
    assert_eq!(table::image_checksum(&changed), checksum);
    changed[0x1000] ^= 1;
    assert!(verify_signatures(&changed).unwrap().remove(0).is_err());
}

#[test]
fn firmware_with_secure_boot_starts_what_is_signed_and_nothing_else() {
    const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.snakeoil.fd";
    const BOOTED: &str = "the guest runs";
    const REFUSED: &str = "Access Denied";
    let Some(oracles) = Oracles::find("OVMF with Secure Boot") else {
        return;
    };
    // Debian's firmware for tests knows this certificate and comes with its key.
    let key = oracles.inside("key.pem");
    let source = "/usr/share/ovmf/PkKek-1-snakeoil.key";
    let decrypt = ["pkey", "-in", source, "-passin", "pass:snakeoil"];
    oracles.run("openssl", &[&decrypt[..], &["-out", &key]].concat());
    let certificate = oracles.file("usr/share/ovmf/PkKek-1-snakeoil.pem");
    let key = std::fs::read(oracles.outside("key.pem")).unwrap();
    let snakeoil = ImageSigner {
        certificate: SigningCertificate::parse(&certificate).unwrap(),
        by: SignedBy::Key(SigningKey::from_pem(&key).unwrap()),
    };
    let uki = oracles.uki(&format!("echo {BOOTED}\n"), &[]);
    let stranger = signer().sign(&uki).unwrap();
    let signed = snakeoil.sign(&uki).unwrap();

    std::fs::create_dir_all(oracles.outside("esp/EFI/BOOT")).unwrap();
    let esp = format!(
        "file=fat:rw:{},format=raw,if=none,id=esp",
        oracles.inside("esp")
    );
    for (image, expected) in [
        (uki.as_ref(), REFUSED),
        (&stranger, REFUSED),
        (&signed, BOOTED),
    ] {
        oracles.write("esp/EFI/BOOT/BOOTX64.EFI", image);
        let variables = oracles.file("usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd");
        let variables = oracles.write("variables", &variables);
        let code = format!("if=pflash,unit=0,format=raw,readonly=on,file={FIRMWARE}");
        let variables = format!("if=pflash,unit=1,format=raw,file={variables}");
        let arguments = [
            "-machine",
            "smm=on",
            "-global",
            "driver=cfi.pflash01,property=secure,value=on",
            "-drive",
            &code,
            "-drive",
            &variables,
            "-drive",
            &esp,
            "-device",
            "virtio-blk-pci,drive=esp",
        ];
        let console = oracles.console_until(&arguments, &[BOOTED, REFUSED]);
        assert!(console.contains(expected), "{console}");
        if expected == BOOTED {
            assert!(console.contains("Secure boot enabled"), "{console}");
        }
    }
}
