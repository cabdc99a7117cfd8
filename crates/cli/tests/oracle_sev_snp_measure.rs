//! The same command line for sev-snp-measure and for `assay measure`: a script
//! that moves over gets the same line on standard output.
//!
//! `ASSAY_SEV_SNP_MEASURE` names its executable (PyPI package sev-snp-measure).

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../../measure/tests/support/synthetic_firmware.rs"]
mod synthetic_firmware;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use assay_tee::ovmf::{Section, SectionKind};
use synthetic_firmware::{SyntheticFirmware, build_firmware, build_svsm};

const fn section(gpa: u32, kind: SectionKind) -> Section {
    Section {
        gpa,
        size: 0x1000,
        kind,
    }
}

const SECTIONS: [Section; 5] = [
    section(0x80_0000, SectionKind::SecMem),
    section(0x80_d000, SectionKind::SnpSecrets),
    section(0x80_e000, SectionKind::Cpuid),
    section(0x80_f000, SectionKind::SvsmCaa),
    section(0x81_0000, SectionKind::KernelHashes),
];

/// What follows the program's name, but for files, which are in its directory.
const COMMAND_LINES: [&str; 40] = [
    "--mode sev --ovmf ovmf.fd",
    "--mode sev --ovmf ovmf.fd --kernel kernel",
    "--mode sev --ovmf ovmf.fd --kernel kernel --initrd initrd --append quiet",
    "--mode sev --ovmf ovmf.fd --vcpus 4 --vcpu-type EPYC-v4",
    "--mode sev --ovmf ovmf.fd --output-format base64",
    "--mode seves --ovmf ovmf.fd --vcpus 1 --vcpu-type EPYC-v4",
    "--mode seves --ovmf ovmf.fd --vcpus 4 --vcpu-type EPYC-Milan --kernel kernel",
    "--mode seves --ovmf ovmf.fd --vcpus 2 --vcpu-type EPYC --guest-features 0x21",
    "--mode seves --ovmf ovmf.fd --vcpus 2 --vcpu-sig 0xa20f12 --kernel kernel --append a=b",
    "--mode snp --ovmf ovmf.fd --vcpus 1 --vcpu-type EPYC",
    "--mode snp --ovmf ovmf.fd --vcpus 1 --vcpu-type EPYC-v1",
    "--mode snp --ovmf ovmf.fd --vcpus 1 --vcpu-type EPYC-IBPB",
    "--mode snp --ovmf ovmf.fd --vcpus 1 --vcpu-type EPYC-Rome-v3",
    "--mode snp --ovmf ovmf.fd --vcpus 1 --vcpu-type EPYC-Milan-v2",
    "--mode snp --ovmf ovmf.fd --vcpus 1 --vcpu-type EPYC-Genoa-v1",
    "--mode snp --ovmf ovmf.fd --vcpus 1 --vcpu-type EPYC-Turin",
    "--mode=snp --ovmf=ovmf.fd --vcpus=2 --vcpu-type=EPYC-v4",
    "--mode snp --ovmf ovmf.fd --vcpus 2 --vcpu-sig 10489617",
    "--mode snp --ovmf ovmf.fd --vcpus 2 --vcpu-sig 0xa00f11",
    "--mode snp --ovmf ovmf.fd --vcpus 2 --vcpu-family 25 --vcpu-model 17 --vcpu-stepping 1",
    "--mode snp --ovmf ovmf.fd --vcpus 2 --vcpu-family 23 --vcpu-model 1 --vcpu-stepping 2",
    "--mode snp --ovmf ovmf.fd --vcpus 512 --vcpu-type EPYC-v4",
    "--mode snp --ovmf ovmf.fd --vcpus 2 --vcpu-type EPYC-v4 --guest-features 0x21",
    "--mode snp --ovmf ovmf.fd --vcpus 2 --vcpu-type EPYC-v4 --guest-features 1",
    "--mode snp --ovmf ovmf.fd --vcpus 2 --vcpu-type EPYC-v4 --output-format hex",
    "--mode snp --ovmf ovmf.fd --vcpus 2 --vcpu-type EPYC-v4 --output-format base64",
    "--mode snp --ovmf ovmf.fd --vcpus 2 --vcpu-type EPYC-v4 --kernel kernel",
    "--mode snp --ovmf ovmf.fd --vcpus 2 --vcpu-type EPYC-v4 --kernel kernel --initrd initrd",
    "--mode snp --ovmf ovmf.fd --vcpus 2 --vcpu-type EPYC-v4 --kernel kernel --append quiet",
    "--mode snp --ovmf ovmf.fd --vcpus 2 --vcpu-type EPYC-v4 --kernel kernel --append=",
    "--mode snp --ovmf ovmf.fd --vcpus 2 --vcpu-type EPYC-v4 --vmm-type QEMU",
    "--mode snp --ovmf ovmf.fd --vcpus 2 --vcpu-type EPYC-v4 --vmm-type ec2",
    "--mode snp --ovmf ovmf.fd --vcpus 2 --vcpu-type EPYC-v4 --vmm-type gce",
    "--mode snp --ovmf ovmf.fd --vcpus 2 --vmm-type ec2 --vcpu-sig 0 --kernel kernel",
    "--mode snp --ovmf ovmf.fd --vcpus 2 --vcpu-type EPYC-v4 --snp-ovmf-hash \
     086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa16aff8c374c2a55c467a50da6d466b74",
    "--mode snp:ovmf-hash --ovmf ovmf.fd",
    "--mode snp:ovmf-hash --ovmf ovmf.fd --vcpus 1",
    "--mode snp:svsm --ovmf ovmf.fd --svsm svsm.bin --vars-size 4096 --vcpus 1 --vcpu-type EPYC-v4 \
     SVSM",
    "--mode snp:svsm --ovmf ovmf.fd --svsm svsm.bin --vars-file vars --vcpus 4 --vcpu-type EPYC-v4 \
     SVSM",
    "--mode snp:svsm --ovmf ovmf.fd --svsm svsm.bin --vars-size 8192 --vcpus 2 --vcpu-sig 1 SVSM",
];

#[test]
fn the_same_command_line_prints_the_same() {
    let Some(oracle) = std::env::var_os("ASSAY_SEV_SNP_MEASURE") else {
        let why = "ASSAY_SEV_SNP_MEASURE does not name its executable (cargo xtask programs)";
        let _ = writeln!(std::io::stderr(), "SKIPPED oracle sev-snp-measure: {why}");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(directory.path().join(name), bytes).unwrap();
    let firmware = SyntheticFirmware {
        pages: 3,
        filler: 0xf4,
        sections: &SECTIONS,
        reset_eip: 0x80_b004,
        hashes_table_gpa: 0x81_0c00,
    };
    write("ovmf.fd", &build_firmware(&firmware));
    let sections = [section(0, SectionKind::SecMem)];
    write("svsm.bin", &build_svsm(2, 0x90, &sections, 0x10));
    write("vars", &[0; 0x3000]);
    write("kernel", &[7; 5000]);
    write("initrd", &[8; 9000]);
    let run = |command: &mut Command, arguments: &[&str]| {
        let output = command
            .current_dir(directory.path())
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{command:?}: {said}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    for line in COMMAND_LINES {
        // Of an SVSM it prints a digest that no processor reports; ours has a
        // name for it.
        let words: Vec<_> = line.split(' ').filter(|word| *word != "SVSM").collect();
        let ours: &[&str] = if line.ends_with("SVSM") {
            &["--svsm-fpu", "sev-snp-measure"]
        } else {
            &[]
        };
        let mut assay = Command::new(Path::new(env!("CARGO_BIN_EXE_assay")));
        let assay = run(assay.arg("measure"), &[&words, ours].concat());
        assert_eq!(assay, run(&mut Command::new(&oracle), &words), "{line}");
    }
}
