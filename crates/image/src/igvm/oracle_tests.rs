//! IGVM files booted by QEMU, without protection: by the same pages from which
//! SEV-SNP guests start.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use ::igvm::measurement::generate_snp_measurement;
use assay_measure::igvm::{IgvmLaunch, measure_igvm_snp};
use assay_tee::cpu::CpuModel;
use assay_tee::igvm::{Directive, PlatformType, VpState, parse_igvm};
use assay_tee::vmsa::Vmsa;
use zerocopy::IntoBytes as _;

use super::*;
use crate::oracles::Oracles;

/// What a guest says of itself.
const SCRIPT: &str = "mkdir /proc\n\
    mount -t proc proc /proc\n\
    echo GUEST one cpus $(cat /sys/devices/system/cpu/online) cmdline $(cat /proc/cmdline)\n";
/// Bytes of the boot processor's save area in which the files differ: ours, theirs.
const SAVE_AREA_DIFFERS: &[(usize, u8, u8)] = &[
    // LDTR after a reset is present, with the largest limit; theirs is not.
    (0x72, 0x82, 0),
    (0x74, 0xff, 0),
    (0x75, 0xff, 0),
    // TR is busy, as QEMU has it.
    (0x92, 0x8b, 0x83),
    // CR4.MCE and bit 1 of RFLAGS, which KVM sets whatever the file says.
    (0x148, 0x40, 0),
    (0x170, 0x02, 0),
    // EDX holds the signature of the CPU model after a reset.
    (0x310, 0x12, 0),
    (0x311, 0x0f, 0),
    (0x312, 0x80, 0),
];
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
        let said = format!("GUEST one cpus {online} cmdline {}\n", Oracles::CMDLINE);
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
    // Without the check of what the firmware does with a kernel: that is tested here.
    encode_file(&file_of(&spec).unwrap()).unwrap().to_bytes()
}

fn kernel(guests: &Guests, uki: &[u8]) -> [String; 2] {
    ["-kernel".to_owned(), guests.oracles.write("kernel", uki)]
}

/// What another program makes of the same firmware and UKI.
struct Theirs {
    file: Bytes,
}

impl Theirs {
    /// By virtfw-igvm-tools: firmware first, then the UKI into it.
    fn make(test: &str, guests: &Guests, firmware: &Bytes) -> Option<Self> {
        let Some(programs) = std::env::var_os("ASSAY_IGVM_TOOLS") else {
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED {test}: ASSAY_IGVM_TOOLS is not set (cargo xtask programs)"
            );
            return None;
        };
        let programs = PathBuf::from(programs);
        let oracles = &guests.oracles;
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(programs.join(program))
                .args(arguments)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{program}: {said}");
        };
        let outside = |name: &str| oracles.outside(name).to_str().unwrap().to_owned();
        oracles.write("their.fd", firmware);
        oracles.write("their.efi", &guests.uki);
        let (firmware, uki) = (outside("their.fd"), outside("their.efi"));
        let (wrapped, file) = (outside("their-firmware.igvm"), outside("their.igvm"));
        let wrap = ["--input", &firmware, "--snp", "--output", &wrapped];
        run("igvm-wrap", &wrap);
        let update = ["--input", &wrapped, "--kernel", &uki, "--output", &file];
        run("igvm-update", &update);
        Some(Self {
            file: std::fs::read(&file).unwrap().into(),
        })
    }
}

/// The pages of a file for SEV-SNP: type, and content with the zeros that are left out.
fn pages(file: &[u8]) -> BTreeMap<u64, (PageDataType, Vec<u8>)> {
    let parsed = parse_igvm(file).unwrap();
    let mask = parsed
        .platform(PlatformType::SevSnp)
        .unwrap()
        .compatibility_mask;
    let pages = parsed
        .directives_for(mask)
        .filter_map(|directive| match directive {
            Directive::PageData(page) => {
                let content = page.contents.map_or(vec![0; PAGE_SIZE], <[u8]>::to_vec);
                assert!(!page.flags.unmeasured && !page.flags.shared);
                Some((page.gpa, (page.data_type, content)))
            }
            _ => None,
        });
    pages.collect()
}

fn save_areas(file: &[u8]) -> Vec<(u16, Vmsa)> {
    let parsed = parse_igvm(file).unwrap();
    let areas = parsed
        .directives
        .iter()
        .filter_map(|directive| match directive {
            Directive::VpContext(context) => match context.state {
                VpState::Vmsa(vmsa) => Some((context.vp_index, vmsa.clone())),
                _ => None,
            },
            _ => None,
        });
    areas.collect()
}

/// virtfw-igvm-tools puts the same bytes at the same addresses. What differs is
/// written down here, each with its reason.
#[test]
fn another_program_makes_the_same_guest() {
    let Some(guests) = Guests::find("IGVM files of virtfw-igvm-tools") else {
        return;
    };
    let firmware = &guests.firmware[0];
    let Some(theirs) = Theirs::make("IGVM files of virtfw-igvm-tools", &guests, firmware) else {
        return;
    };
    let ours = guests.embedded(firmware, 1);
    let (our_pages, mut their_pages) = (pages(&ours), pages(&theirs.file));

    // They put the end of the firmware below 1 MiB as well, for a processor that starts
    // there; QEMU's and KVM's start at the end of the address space.
    let low = their_pages.split_off(&0x8_0000);
    assert!(their_pages.is_empty());
    let mut their_pages = low;
    for page in (0xe_0000..0x10_0000).step_by(PAGE_SIZE) {
        let (_, content) = their_pages.remove(&page).unwrap();
        let alias = &our_pages[&(page + 0xfff0_0000)].1;
        assert_eq!(&content, alias, "{page:#x}");
    }
    // The same pages for everything else, with the same types and contents.
    let addresses = |pages: &BTreeMap<u64, _>| pages.keys().copied().collect::<Vec<_>>();
    assert_eq!(addresses(&our_pages), addresses(&their_pages));
    for (gpa, page) in &our_pages {
        assert_eq!(&their_pages[gpa], page, "{gpa:#x}");
    }

    // They have the boot processor alone, in the state of a reset and as KVM would not
    // have it in the end; we have what KVM measures.
    let (ours_at, theirs_at) = (save_areas(&ours), save_areas(&theirs.file));
    let [(0, our_area)] = ours_at.as_slice() else {
        panic!("{ours_at:?}")
    };
    let [(0, their_area)] = theirs_at.as_slice() else {
        panic!("{theirs_at:?}")
    };
    let bytes = our_area.as_bytes().iter().zip(their_area.as_bytes());
    let differ: Vec<_> = bytes
        .enumerate()
        .filter(|(_, (ours, theirs))| ours != theirs)
        .map(|(offset, (ours, theirs))| (offset, *ours, *theirs))
        .collect();
    assert_eq!(differ, SAVE_AREA_DIFFERS);

    // In the order of the file their digest is what the igvm crate computes, and it is
    // not what a processor reports that QEMU and KVM launch it on.
    let parsed = parse_igvm(&theirs.file).unwrap();
    let by = |launch| measure_igvm_snp(&parsed, &launch).unwrap().digest;
    let in_order = by(IgvmLaunch::FileOrder);
    let file = ::igvm::IgvmFile::new_from_binary(&theirs.file, None).unwrap();
    let (initial, directives) = (file.initializations(), file.directives());
    let mask = parsed.platform(PlatformType::SevSnp).unwrap();
    let crates = generate_snp_measurement(initial, directives, mask.compatibility_mask).unwrap();
    assert_eq!(in_order, LaunchDigest::new(crates));
    let vcpus = VcpuCount::ONE;
    let by_qemu = by(IgvmLaunch::Qemu { vcpus, reset: None });
    assert_ne!(in_order, by_qemu);
    // Ours is the same by either.
    let parsed = parse_igvm(&ours).unwrap();
    let by = |launch| measure_igvm_snp(&parsed, &launch).unwrap().digest;
    let ours = by(IgvmLaunch::FileOrder);
    assert_eq!(ours, by(IgvmLaunch::Qemu { vcpus, reset: None }));
    assert_ne!(ours, by_qemu);

    for vcpus in [1, 2] {
        guests.boots(&theirs.file, vcpus, guests.memory(), &[]);
    }
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
    let [option, path] = kernel(&guests, &guests.uki);
    let file = guests.verified(&guests.uki, 1);
    guests.boots(&file, 1, 1024, &[&option, &path]);
    let file = guests.verified(&guests.uki, 2);
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

/// Why the AmdSev build is asked for, and no file is written with another: the generic
/// one takes a command line of the host's, and the file, with its launch digest, is the
/// same.
#[test]
fn generic_firmware_takes_a_command_line_of_the_host() {
    let Some(guests) = Guests::find("what a host adds to generic firmware") else {
        return;
    };
    let file = guests.embedded(&guests.firmware[1], 1);
    let [option, path] = kernel(&guests, &guests.uki);
    let append = "console=ttyS0 panic=-1 no_timer_check evil=1";
    let console = guests.boot(300, &file, 1, 1024, &[&option, &path, "-append", append]);
    assert!(
        console.contains(&format!("GUEST one cpus 0 cmdline {append}")),
        "{console}"
    );
}
