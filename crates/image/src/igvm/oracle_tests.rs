//! IGVM files booted by QEMU, without protection: by the same pages from which
//! SEV-SNP guests start.

use std::io::Write as _;
use std::time::{Duration, Instant};

use assay_tee::cpu::CpuModel;
use assay_tee::igvm::{Directive, parse_igvm};

use super::*;
use crate::oracles::Oracles;

/// What a guest says of itself.
const SCRIPT: &str = "mkdir /proc\n\
    mount -t proc proc /proc\n\
    echo GUEST one cpus $(cat /sys/devices/system/cpu/online) cmdline $(cat /proc/cmdline)\n";
/// The command line of [`Oracles::uki`].
const CMDLINE: &str = "cmdline console=ttyS0 panic=-1\n";
/// Time that a guest has which ought not to boot: many times that of one that
/// does.
const PATIENCE: u32 = 4;

struct Guests {
    oracles: Oracles,
    /// The AmdSev build, which verifies kernels, and Debian's generic one.
    firmware: [Bytes; 2],
    uki: Bytes,
}

impl Guests {
    fn find(test: &str) -> Option<Self> {
        let oracles = Oracles::find(test)?;
        let Some(paths) = std::env::var_os("ASSAY_ORACLE_FIRMWARE") else {
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED {test}: ASSAY_ORACLE_FIRMWARE is not set (cargo xtask programs)"
            );
            return None;
        };
        let mut paths = std::env::split_paths(&paths);
        let mut next = |name: &str| {
            let path = paths.next().unwrap();
            assert!(path.ends_with(name), "{}", path.display());
            Bytes::from(std::fs::read(path).unwrap())
        };
        Some(Self {
            firmware: [next("OVMF.amdsev.fd"), next("OVMF.fd")],
            uki: oracles.uki(SCRIPT, &[]),
            oracles,
        })
    }

    fn embedded(&self, firmware: &Bytes, vcpus: u32) -> Bytes {
        file(firmware, IgvmKernel::Embedded(&self.uki), vcpus)
    }

    fn verified(&self, uki: &[u8], vcpus: u32) -> Bytes {
        let hashes = KernelHashes::from_bytes(uki, None, "");
        file(&self.firmware[0], IgvmKernel::Verified(hashes), vcpus)
    }

    /// The console of a guest that starts from `file`, as far as it comes.
    fn boot(&self, seconds: u64, file: &[u8], vcpus: u32, memory: u64, more: &[&str]) -> String {
        let object = format!(
            "igvm-cfg,id=igvm0,file={}",
            self.oracles.write("igvm", file)
        );
        let (vcpus, memory) = (vcpus.to_string(), format!("{memory}M"));
        let options: &[&str] = &[
            "-machine",
            "igvm-cfg=igvm0",
            "-object",
            &object,
            "-smp",
            &vcpus,
            "-m",
            &memory,
        ];
        let (_, console, text) = self.oracles.boot_igvm(seconds, &[options, more].concat());
        console + &text
    }

    /// The time that a guest takes which boots.
    fn boots(&self, file: &[u8], vcpus: u32, memory: u64, more: &[&str]) -> Duration {
        let start = Instant::now();
        let console = self.boot(300, file, vcpus, memory, more);
        let online = match vcpus {
            1 => "0".to_owned(),
            more => format!("0-{}", more - 1),
        };
        let said = format!("GUEST one cpus {online} {CMDLINE}");
        assert!(console.contains(&said), "{said}: {console}");
        start.elapsed()
    }

    /// Memory that the file asks for, in MiB.
    fn memory(&self) -> u64 {
        min_memory(self.uki.len() as u64).div_ceil(1 << 20)
    }
}

fn file(firmware: &Bytes, kernel: IgvmKernel<'_>, vcpus: u32) -> Bytes {
    let spec = IgvmSpec {
        firmware,
        kernel,
        vcpus: VcpuCount::try_from(vcpus).unwrap(),
        cpu_signature: CpuModel::by_name("EPYC-v4").unwrap().signature(),
        guest_features: GuestFeatures::default(),
        policy: GuestPolicy::default(),
    };
    encode_igvm(&spec).unwrap().to_bytes()
}

fn kernel(guests: &Guests, uki: &[u8]) -> [String; 2] {
    ["-kernel".to_owned(), guests.oracles.write("kernel", uki)]
}

/// With the least memory that we say is enough.
#[test]
fn a_self_contained_file_boots() {
    let Some(guests) = Guests::find("a self-contained IGVM file boots") else {
        return;
    };
    for (firmware, vcpus) in [(0, 1), (0, 4), (1, 1), (1, 2)] {
        let file = guests.embedded(&guests.firmware[firmware], vcpus);
        guests.boots(&file, vcpus, guests.memory(), &[]);
    }
}

#[test]
fn a_file_with_hashes_boots_their_uki_and_no_other() {
    let Some(guests) = Guests::find("an IGVM file with hashes boots") else {
        return;
    };
    let file = guests.verified(&guests.uki, 2);
    let [option, path] = kernel(&guests, &guests.uki);
    let taken = guests.boots(&file, 2, 1024, &[&option, &path]);
    let patience = (taken * PATIENCE).as_secs().max(20);

    let mut changed = guests.uki.to_vec();
    let at = changed.len() - 1;
    changed[at] ^= 1;
    let [option, path] = kernel(&guests, &changed);
    let console = guests.boot(patience, &file, 2, 1024, &[&option, &path]);
    assert!(!console.contains("GUEST"), "{console}");
    // It is the hash that keeps it from booting.
    guests.boots(&guests.verified(&changed, 2), 2, 1024, &[&option, &path]);

    // A byte of the page in the file, under the right UKI.
    let [option, path] = kernel(&guests, &guests.uki);
    let parsed = parse_igvm(&file).unwrap();
    let table = parse_ovmf(&guests.firmware[0])
        .unwrap()
        .hashes_table
        .unwrap();
    let page = parsed
        .directives
        .iter()
        .find_map(|directive| match directive {
            Directive::PageData(page) if page.gpa == u64::from(table.gpa & !0xfff) => page.contents,
            _ => None,
        });
    let page = page.unwrap();
    let offset = page.as_ptr() as usize - file.as_ptr() as usize;
    let in_page = usize::try_from(table.gpa & 0xfff).unwrap();
    let hash = KernelHashes::from_bytes(&guests.uki, None, "").kernel;
    let in_table = page[in_page..]
        .windows(32)
        .position(|w| w == hash.as_bytes());
    let mut changed = file.to_vec();
    changed[offset + in_page + in_table.unwrap()] ^= 1;
    let console = guests.boot(patience, &changed, 2, 1024, &[&option, &path]);
    assert!(!console.contains("GUEST"), "{console}");
}

/// A host may hand over another kernel, initrd or command line beside the file,
/// none of which is measured.
#[test]
fn what_the_host_adds_to_a_self_contained_file_never_runs() {
    let Some(guests) = Guests::find("what a host adds to an IGVM file") else {
        return;
    };
    let file = guests.embedded(&guests.firmware[0], 1);
    let taken = guests.boots(&file, 1, 1024, &[]);
    let patience = (taken * PATIENCE).as_secs().max(20);
    let other = guests.oracles.uki("echo GUEST other\n", &[]);
    let [option, path] = kernel(&guests, &other);
    let initrd = guests.oracles.write("initrd", b"not an archive");
    for more in [
        &[][..],
        &["-append", "console=ttyS0 evil=1"],
        &["-initrd", &initrd],
    ] {
        let more = [&[option.as_str(), path.as_str()], more].concat();
        let console = guests.boot(patience, &file, 1, 1024, &more);
        assert!(!console.contains("GUEST other"), "{more:?}: {console}");
        assert!(!console.contains("evil"), "{more:?}: {console}");
    }
}

/// Why the AmdSev build is asked for: the generic one takes a command line of the
/// host's, and the file, with its launch digest, is the same.
#[test]
fn generic_firmware_takes_a_command_line_of_the_host() {
    let Some(guests) = Guests::find("what a host adds to generic firmware") else {
        return;
    };
    let file = guests.embedded(&guests.firmware[1], 1);
    let [option, path] = kernel(&guests, &guests.uki);
    let append = "console=ttyS0 panic=-1 evil=1";
    let console = guests.boot(300, &file, 1, 1024, &[&option, &path, "-append", append]);
    assert!(
        console.contains(&format!("GUEST one cpus 0 cmdline {append}")),
        "{console}"
    );
}
