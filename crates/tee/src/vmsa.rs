//! The VM save area: the register state that a virtual CPU starts with, encrypted
//! and measured like any other page (AMD APM vol. 2, table B-4 "VMSA Layout,
//! State Save Area for SEV-ES").
//!
//! Which values a VMSA holds is decided by the VMM and the kernel, not by the
//! guest's owner: each combination that is known is a variant of [`Vmm`].

mod kvm;

use std::mem::{offset_of, size_of};

use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::GuestFeatures;
use crate::cpu::CpuSignature;
use crate::page_info::PAGE_SIZE;

pub use kvm::{DroppedRegisterError, pass_to_kvm};

/// Guest physical address at which KVM has every VMSA measured: the highest
/// page of a 48-bit address space (Linux `arch/x86/kvm/svm/sev.c`,
/// INITIAL_VMSA_GPA).
pub const KVM_VMSA_GPA: u64 = 0xffff_ffff_f000;

/// Guest physical address at which Google's hypervisor has every VMSA measured
/// on Genoa: it asks for address -1, and the processor keeps the highest page of
/// the 52 bits that Genoa has (gce-tcb-verifier `sev/measurement.go`). Milan has
/// 48 bits, which gives [`KVM_VMSA_GPA`].
pub const GENOA_VMSA_GPA: u64 = 0xf_ffff_ffff_f000;

/// Where the boot processor starts: the reset vector, 16 bytes below 4 GiB.
const RESET_VECTOR: u32 = 0xffff_fff0;

/// A segment register (AMD APM vol. 2, table B-4).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Segment {
    /// Selector.
    pub selector: U16,
    /// Attributes in the packed form of the VMCB.
    pub attributes: U16,
    /// Limit.
    pub limit: U32,
    /// Base.
    pub base: U64,
}

const _: () = assert!(size_of::<Segment>() == 16);

/// The save area, one page (AMD APM vol. 2, table B-4).
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields are the registers that they are named after"
)]
pub struct Vmsa {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub gdtr: Segment,
    pub ldtr: Segment,
    pub idtr: Segment,
    pub tr: Segment,
    pub vmpl0_ssp: U64,
    pub vmpl1_ssp: U64,
    pub vmpl2_ssp: U64,
    pub vmpl3_ssp: U64,
    pub u_cet: U64,
    _rsvd_0xc8: [u8; 2],
    pub vmpl: u8,
    pub cpl: u8,
    _rsvd_0xcc: [u8; 4],
    pub efer: U64,
    _rsvd_0xd8: [u8; 104],
    pub xss: U64,
    pub cr4: U64,
    pub cr3: U64,
    pub cr0: U64,
    pub dr7: U64,
    pub dr6: U64,
    pub rflags: U64,
    pub rip: U64,
    pub dr: [U64; 4],
    pub dr_addr_mask: [U64; 4],
    _rsvd_0x1c0: [u8; 24],
    pub rsp: U64,
    pub s_cet: U64,
    pub ssp: U64,
    pub isst_addr: U64,
    pub rax: U64,
    pub star: U64,
    pub lstar: U64,
    pub cstar: U64,
    pub sfmask: U64,
    pub kernel_gs_base: U64,
    pub sysenter_cs: U64,
    pub sysenter_esp: U64,
    pub sysenter_eip: U64,
    pub cr2: U64,
    _rsvd_0x248: [u8; 32],
    pub g_pat: U64,
    pub dbgctl: U64,
    pub br_from: U64,
    pub br_to: U64,
    pub last_excp_from: U64,
    pub last_excp_to: U64,
    _rsvd_0x298: [u8; 80],
    pub pkru: U32,
    pub tsc_aux: U32,
    _rsvd_0x2f0: [u8; 24],
    pub rcx: U64,
    pub rdx: U64,
    pub rbx: U64,
    _rsvd_0x320: [u8; 8],
    pub rbp: U64,
    pub rsi: U64,
    pub rdi: U64,
    pub r8_to_r15: [U64; 8],
    _rsvd_0x380: [u8; 16],
    pub guest_exit_info_1: U64,
    pub guest_exit_info_2: U64,
    pub guest_exit_int_info: U64,
    pub guest_nrip: U64,
    pub sev_features: U64,
    pub vintr_ctrl: U64,
    pub guest_exit_code: U64,
    pub virtual_tom: U64,
    pub tlb_id: U64,
    pub pcpu_id: U64,
    pub event_inj: U64,
    pub xcr0: U64,
    _rsvd_0x3f0: [u8; 16],
    pub x87_dp: U64,
    pub mxcsr: U32,
    pub x87_ftw: U16,
    pub x87_fsw: U16,
    pub x87_fcw: U16,
    pub x87_fop: U16,
    pub x87_ds: U16,
    pub x87_cs: U16,
    pub x87_rip: U64,
    pub fpreg_x87: [u8; 80],
    pub fpreg_xmm: [u8; 256],
    pub fpreg_ymm: [u8; 256],
    _rsvd_0x670: [u8; 2448],
}

const _: () = assert!(size_of::<Vmsa>() == PAGE_SIZE);
const _: () = assert!(offset_of!(Vmsa, cs) == 0x10);
const _: () = assert!(offset_of!(Vmsa, gdtr) == 0x60);
const _: () = assert!(offset_of!(Vmsa, tr) == 0x90);
const _: () = assert!(offset_of!(Vmsa, vmpl0_ssp) == 0xa0);
const _: () = assert!(offset_of!(Vmsa, vmpl) == 0xca);
const _: () = assert!(offset_of!(Vmsa, efer) == 0xd0);
const _: () = assert!(offset_of!(Vmsa, xss) == 0x140);
const _: () = assert!(offset_of!(Vmsa, cr4) == 0x148);
const _: () = assert!(offset_of!(Vmsa, cr0) == 0x158);
const _: () = assert!(offset_of!(Vmsa, dr7) == 0x160);
const _: () = assert!(offset_of!(Vmsa, rip) == 0x178);
const _: () = assert!(offset_of!(Vmsa, rsp) == 0x1d8);
const _: () = assert!(offset_of!(Vmsa, rax) == 0x1f8);
const _: () = assert!(offset_of!(Vmsa, cr2) == 0x240);
const _: () = assert!(offset_of!(Vmsa, g_pat) == 0x268);
const _: () = assert!(offset_of!(Vmsa, pkru) == 0x2e8);
const _: () = assert!(offset_of!(Vmsa, tsc_aux) == 0x2ec);
const _: () = assert!(offset_of!(Vmsa, rcx) == 0x308);
const _: () = assert!(offset_of!(Vmsa, rdx) == 0x310);
const _: () = assert!(offset_of!(Vmsa, rbp) == 0x328);
const _: () = assert!(offset_of!(Vmsa, r8_to_r15) == 0x340);
const _: () = assert!(offset_of!(Vmsa, guest_exit_info_1) == 0x390);
const _: () = assert!(offset_of!(Vmsa, sev_features) == 0x3b0);
const _: () = assert!(offset_of!(Vmsa, virtual_tom) == 0x3c8);
const _: () = assert!(offset_of!(Vmsa, xcr0) == 0x3e8);
const _: () = assert!(offset_of!(Vmsa, x87_dp) == 0x400);
const _: () = assert!(offset_of!(Vmsa, mxcsr) == 0x408);
const _: () = assert!(offset_of!(Vmsa, x87_fcw) == 0x410);
const _: () = assert!(offset_of!(Vmsa, x87_rip) == 0x418);
const _: () = assert!(offset_of!(Vmsa, fpreg_xmm) == 0x470);
const _: () = assert!(offset_of!(Vmsa, _rsvd_0x670) == 0x670);

/// The VMM (and, where it matters, its era) whose initial register state is
/// meant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vmm {
    /// QEMU and KVM since KVM_SEV_INIT2 (Linux 6.10 with QEMU 9.1): the FPU's
    /// initial state is part of the VMSA.
    #[default]
    Qemu,
    /// QEMU and KVM before KVM_SEV_INIT2: MXCSR and the x87 control word are
    /// zero.
    QemuBeforeInit2,
    /// Amazon EC2 since April 2026: RDX is 0x600 for every CPU model.
    Ec2,
    /// Amazon EC2 before: RDX is zero.
    Ec2BeforeRdx,
    /// Google Compute Engine on Milan: RDX is 0x600 for every CPU model.
    Gce,
    /// Google Compute Engine on Genoa: as [`Vmm::Gce`], but save areas are
    /// measured at [`GENOA_VMSA_GPA`].
    GceGenoa,
    /// libkrun: RDX is zero (the `sev` crate's KRUN; no digest of a processor
    /// is published).
    Krun,
}

impl Vmm {
    /// Every VMM, in the order of the variants.
    pub const ALL: [Self; 7] = [
        Self::Qemu,
        Self::QemuBeforeInit2,
        Self::Ec2,
        Self::Ec2BeforeRdx,
        Self::Gce,
        Self::GceGenoa,
        Self::Krun,
    ];

    /// Whether the CPU model is part of the launch digest.
    pub const fn measures_cpu_signature(self) -> bool {
        matches!(self, Self::Qemu | Self::QemuBeforeInit2)
    }

    /// Guest physical address at which every save area is measured.
    pub const fn vmsa_gpa(self) -> u64 {
        match self {
            Self::GceGenoa => GENOA_VMSA_GPA,
            _ => KVM_VMSA_GPA,
        }
    }
}

/// The FPU state in the save areas of an SVSM that QEMU starts without IGVM:
/// which KVM initialised it, or which tool one compares with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SvsmFpu {
    /// KVM before KVM_SEV_INIT2: MXCSR and the x87 control word are zero. The
    /// only state that a processor is known to have measured for such an SVSM:
    /// the hosts that started SVSMs in this way had such a KVM.
    #[default]
    BeforeInit2,
    /// KVM since KVM_SEV_INIT2: both have their initial values.
    Init2,
    /// What sev-snp-measure (0.0.10 to 0.0.13) prints: MXCSR has its initial
    /// value, the x87 control word is zero. No KVM does this.
    SevSnpMeasure,
}

impl SvsmFpu {
    /// MXCSR and the x87 control word.
    const fn registers(self) -> (u32, u16) {
        match self {
            Self::BeforeInit2 => (0, 0),
            Self::Init2 => (MXCSR_INITIAL, X87_FCW_INITIAL),
            Self::SevSnpMeasure => (MXCSR_INITIAL, 0),
        }
    }
}

/// Which virtual CPU a save area is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Vcpu {
    /// The boot processor: starts at the reset vector.
    Boot,
    /// An application processor: starts where the firmware says
    /// (`OvmfMetadata::reset_eip`).
    Application {
        /// The firmware's address.
        reset_eip: u32,
    },
}

impl Vcpu {
    /// The linear address of the first instruction.
    const fn eip(self) -> u32 {
        match self {
            Self::Boot => RESET_VECTOR,
            Self::Application { reset_eip } => reset_eip,
        }
    }
}

/// What differs between VMMs.
struct Differences {
    cs: u16,
    ss: u16,
    tr: u16,
    g_pat: u64,
    rdx: u64,
    mxcsr: u32,
    x87_fcw: u16,
}

/// PAT after reset (AMD APM vol. 2, section 7.8.1).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// MXCSR and x87 control word as Linux initialises a guest's FPU (APM vol. 1,
/// MXCSR; vol. 5, FINIT).
const MXCSR_INITIAL: u32 = 0x1f80;
const X87_FCW_INITIAL: u16 = 0x37f;

impl Differences {
    fn of(vmm: Vmm, vcpu: Vcpu, signature: CpuSignature) -> Self {
        let qemu = Self {
            cs: 0x9b,
            ss: 0x93,
            tr: 0x8b,
            g_pat: PAT_RESET,
            rdx: u64::from(signature.0),
            mxcsr: MXCSR_INITIAL,
            x87_fcw: X87_FCW_INITIAL,
        };
        let ec2 = Self {
            cs: match vcpu {
                Vcpu::Boot => 0x9a,
                Vcpu::Application { .. } => 0x9b,
            },
            ss: 0x92,
            tr: 0x83,
            g_pat: PAT_RESET,
            rdx: 0x600,
            mxcsr: 0,
            x87_fcw: 0,
        };
        match vmm {
            Vmm::Qemu => qemu,
            Vmm::QemuBeforeInit2 => Self {
                mxcsr: 0,
                x87_fcw: 0,
                ..qemu
            },
            Vmm::Ec2 => ec2,
            Vmm::Ec2BeforeRdx => Self { rdx: 0, ..ec2 },
            Vmm::Krun => Self {
                cs: 0x9a,
                rdx: 0,
                ..ec2
            },
            Vmm::Gce | Vmm::GceGenoa => Self {
                g_pat: 0x0007_0106,
                rdx: 0x600,
                mxcsr: 0,
                x87_fcw: 0,
                ..qemu
            },
        }
    }
}

/// The save area of a virtual CPU that starts OVMF in real mode.
///
/// `signature` matters only where [`Vmm::measures_cpu_signature`] says so.
pub fn build_vmsa(vmm: Vmm, vcpu: Vcpu, signature: CpuSignature, features: GuestFeatures) -> Vmsa {
    let differences = Differences::of(vmm, vcpu, signature);
    let eip = vcpu.eip();
    let segment = |selector, attributes, base| segment(selector, attributes, 0xffff, base);
    Vmsa {
        es: segment(0, 0x93, 0),
        cs: segment(0xf000, differences.cs, eip & 0xffff_0000),
        ss: segment(0, differences.ss, 0),
        ds: segment(0, 0x93, 0),
        fs: segment(0, 0x93, 0),
        gs: segment(0, 0x93, 0),
        gdtr: segment(0, 0, 0),
        ldtr: segment(0, 0x82, 0),
        idtr: segment(0, 0, 0),
        tr: segment(0, differences.tr, 0),
        rip: U64::new(u64::from(eip & 0xffff)),
        g_pat: U64::new(differences.g_pat),
        rdx: U64::new(differences.rdx),
        sev_features: U64::new(features.0),
        mxcsr: U32::new(differences.mxcsr),
        x87_fcw: U16::new(differences.x87_fcw),
        ..reset_state()
    }
}

/// The save area of every virtual CPU of an SVSM that QEMU starts without IGVM:
/// flat 32-bit protected mode at `entry`, with SNPActive as the only feature
/// (Coconut's QEMU of January 2024, `target/i386/sev.c`).
pub fn build_svsm_vmsa(fpu: SvsmFpu, entry: u32, signature: CpuSignature) -> Vmsa {
    const PROTECTION_ENABLED: u64 = 1;
    let (mxcsr, x87_fcw) = fpu.registers();
    let reset = reset_state();
    let data = segment(0x10, 0xc93, u32::MAX, 0);
    Vmsa {
        es: data,
        cs: segment(8, 0xc9b, u32::MAX, 0),
        ss: data,
        ds: data,
        fs: data,
        gs: segment(0, 0x93, 0xffff, 0),
        gdtr: segment(0, 0, 0xffff, 0),
        ldtr: segment(0, 0x82, 0xffff, 0),
        idtr: segment(0, 0, 0xffff, 0),
        tr: segment(0, 0x8b, 0xffff, 0),
        cr0: U64::new(reset.cr0.get() | PROTECTION_ENABLED),
        rip: U64::new(u64::from(entry)),
        g_pat: U64::new(PAT_RESET),
        rdx: U64::new(u64::from(signature.0)),
        sev_features: U64::new(GuestFeatures::SNP_ACTIVE),
        mxcsr: U32::new(mxcsr),
        x87_fcw: U16::new(x87_fcw),
        ..reset
    }
}

fn segment(selector: u16, attributes: u16, limit: u32, base: u32) -> Segment {
    Segment {
        selector: U16::new(selector),
        attributes: U16::new(attributes),
        limit: U32::new(limit),
        base: U64::new(u64::from(base)),
    }
}

/// What no VMM changes: control, debug and extended control registers.
fn reset_state() -> Vmsa {
    Vmsa {
        // KVM sets SVME in EFER and MCE in CR4 for every guest.
        efer: U64::new(0x1000),
        cr4: U64::new(0x40),
        cr0: U64::new(0x10),
        dr7: U64::new(0x400),
        dr6: U64::new(0xffff_0ff0),
        rflags: U64::new(2),
        xcr0: U64::new(1),
        ..Vmsa::new_zeroed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILAN: CpuSignature = CpuSignature(0x00a0_0f11);

    /// The non-zero bytes of a page by offset.
    fn non_zero(vmsa: &Vmsa) -> Vec<(usize, u8)> {
        vmsa.as_bytes()
            .iter()
            .copied()
            .enumerate()
            .filter(|(_, byte)| *byte != 0)
            .collect()
    }

    #[test]
    fn application_processor_starts_at_the_firmwares_address() {
        let vcpu = Vcpu::Application {
            reset_eip: 0x80_b004,
        };
        let ap = build_vmsa(Vmm::Qemu, vcpu, MILAN, GuestFeatures(1));
        let boot = build_vmsa(Vmm::Qemu, Vcpu::Boot, MILAN, GuestFeatures(1));
        assert_eq!((boot.cs.base.get(), boot.rip.get()), (0xffff_0000, 0xfff0));
        assert_eq!((ap.cs.base.get(), ap.rip.get()), (0x80_0000, 0xb004));
        assert_eq!(
            Vmsa {
                cs: boot.cs,
                rip: boot.rip,
                ..ap
            },
            boot,
            "nothing else differs"
        );
    }

    #[test]
    fn eras_and_clouds_differ_in_the_documented_bytes_only() {
        let build = |vmm| build_vmsa(vmm, Vcpu::Boot, MILAN, GuestFeatures(1));
        let differing = |vmm| -> Vec<usize> {
            let (qemu, other) = (build(Vmm::Qemu), build(vmm));
            let pairs = qemu.as_bytes().iter().zip(other.as_bytes());
            pairs
                .enumerate()
                .filter(|(_, (a, b))| a != b)
                .map(|(at, _)| at)
                .collect()
        };
        assert_eq!(
            differing(Vmm::QemuBeforeInit2),
            [0x408, 0x409, 0x410, 0x411]
        );
        assert_eq!(
            differing(Vmm::Ec2),
            [
                0x12, 0x22, 0x92, 0x310, 0x311, 0x312, 0x408, 0x409, 0x410, 0x411
            ]
        );
        assert_eq!(
            differing(Vmm::Gce),
            [
                0x269, 0x26c, 0x26d, 0x26e, 0x310, 0x311, 0x312, 0x408, 0x409, 0x410, 0x411
            ]
        );
        assert_eq!(
            build(Vmm::Gce),
            build(Vmm::GceGenoa),
            "Genoa differs in the address, not in the page"
        );
        assert_eq!(
            build(Vmm::Krun),
            build(Vmm::Ec2BeforeRdx),
            "the boot processors of krun and EC2 are alike"
        );
        assert_eq!(
            non_zero(&build(Vmm::Ec2BeforeRdx)).len() + 1,
            non_zero(&build(Vmm::Ec2)).len(),
            "0x600 has one non-zero byte"
        );
    }

    #[test]
    fn svsm_variants_differ_in_the_fpu_only() {
        let build = |fpu| build_svsm_vmsa(fpu, 0xffe0_0000, MILAN);
        let observed = build(SvsmFpu::BeforeInit2);
        assert_eq!((observed.mxcsr.get(), observed.x87_fcw.get()), (0, 0));
        for (fpu, mxcsr, x87_fcw) in [
            (SvsmFpu::Init2, 0x1f80, 0x37f),
            (SvsmFpu::SevSnpMeasure, 0x1f80, 0),
        ] {
            let expected = Vmsa {
                mxcsr: U32::new(mxcsr),
                x87_fcw: U16::new(x87_fcw),
                ..observed.clone()
            };
            assert_eq!(build(fpu), expected, "{fpu:?}");
        }
    }

    #[test]
    fn only_genoa_has_another_address() {
        for vmm in Vmm::ALL {
            let expected = match vmm {
                Vmm::GceGenoa => (1 << 52) - 4096,
                _ => (1 << 48) - 4096,
            };
            assert_eq!(vmm.vmsa_gpa(), expected, "{vmm:?}");
        }
    }

    /// The pages that other projects have as fixtures, by their SHA-256:
    /// sev-snp-measure's first commit (`tests/fixtures/vmsa_cpu0.bin`) and
    /// gce-tcb-verifier (`sev/sev_test.go`, `vmsaBytes`).
    #[test]
    fn pages_of_others_are_rebuilt() {
        let naples = CpuSignature(0x0080_0f12);
        for (vmm, sha256) in [
            (
                Vmm::QemuBeforeInit2,
                "ccb411482e4753359b61ded18c81436182dda0b416b34fef408bf6a6dab1c991",
            ),
            (
                Vmm::Gce,
                "a2b1355de1e1f11159d4cfaa28a748c6d19f63b330a7cb09696eda0c5f2f8ab8",
            ),
        ] {
            let vmsa = build_vmsa(vmm, Vcpu::Boot, naples, GuestFeatures(1));
            let digest = crate::Sha256Digest::of(vmsa.as_bytes());
            assert_eq!(digest.to_hex(), sha256, "{vmm:?}");
        }
    }

    #[test]
    fn features_fill_their_eight_bytes() {
        let features = GuestFeatures(0x8877_6655_4433_2211);
        let vmsa = build_vmsa(Vmm::Qemu, Vcpu::Boot, MILAN, features);
        assert_eq!(vmsa.as_bytes()[0x3b0..0x3b8], features.0.to_le_bytes());
    }
}
