//! What becomes of a save area between QEMU and KVM. QEMU cannot give KVM a save
//! area, so it sets registers one by one; KVM builds the save area from them
//! (QEMU `target/i386/sev.c`, `check_vmsa_supported` and
//! `sev_apply_cpu_context`; Linux `arch/x86/kvm/svm`).

use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::{Segment, Vmsa};

/// CR0.ET, which QEMU sets (`cpu_x86_update_cr0`).
const CR0_ET: u64 = 1 << 4;
/// CR0.NW and CR0.CD, which KVM clears (KVM_X86_QUIRK_CD_NW_CLEARED).
const CR0_NW_CD: u64 = 3 << 29;
/// CR4.MCE, which KVM sets with the host's (`svm_set_cr4`).
const CR4_MCE: u64 = 1 << 6;
/// EFER.SVME, which every guest has under SVM (`svm_set_efer`).
const EFER_SVME: u64 = 1 << 12;
/// The bit of RFLAGS that is always set (`__set_regs`).
const RFLAGS_FIXED: u64 = 1 << 1;
/// Attributes of a segment that QEMU and KVM have.
const SEGMENT_ATTRIBUTES: u16 = 0xfff;

/// A save area sets a register that QEMU does not pass to KVM, and so refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the register at offset {offset:#x} is none that QEMU passes to KVM, and QEMU refuses it; \
     leave it zero"
)]
pub struct DroppedRegisterError {
    /// Offset in the save area.
    pub offset: usize,
}

/// The save area that KVM measures where QEMU was given `vmsa` for a virtual
/// CPU: with CR0.ET, CR4.MCE, EFER.SVME and bit 1 of RFLAGS set, CR0.CD and
/// CR0.NW clear.
///
/// # Errors
/// When a register is set that does not reach KVM.
pub fn pass_to_kvm(vmsa: &Vmsa) -> Result<Vmsa, DroppedRegisterError> {
    let passed = Vmsa {
        es: segment(&vmsa.es),
        cs: segment(&vmsa.cs),
        ss: segment(&vmsa.ss),
        ds: segment(&vmsa.ds),
        fs: segment(&vmsa.fs),
        gs: segment(&vmsa.gs),
        gdtr: descriptor_table(&vmsa.gdtr),
        ldtr: segment(&vmsa.ldtr),
        idtr: descriptor_table(&vmsa.idtr),
        tr: segment(&vmsa.tr),
        efer: vmsa.efer,
        cr4: vmsa.cr4,
        cr3: vmsa.cr3,
        cr0: vmsa.cr0,
        dr7: vmsa.dr7,
        dr6: vmsa.dr6,
        rflags: vmsa.rflags,
        rip: vmsa.rip,
        rsp: vmsa.rsp,
        rax: vmsa.rax,
        g_pat: vmsa.g_pat,
        rcx: vmsa.rcx,
        rdx: vmsa.rdx,
        rbx: vmsa.rbx,
        rbp: vmsa.rbp,
        rsi: vmsa.rsi,
        rdi: vmsa.rdi,
        r8_to_r15: vmsa.r8_to_r15,
        sev_features: vmsa.sev_features,
        xcr0: vmsa.xcr0,
        mxcsr: vmsa.mxcsr,
        x87_fcw: vmsa.x87_fcw,
        ..Vmsa::new_zeroed()
    };
    let mut bytes = vmsa.as_bytes().iter().zip(passed.as_bytes());
    if let Some(offset) = bytes.position(|(file, passed)| file != passed) {
        return Err(DroppedRegisterError { offset });
    }
    let with = |register: U64, bits: u64| U64::new(register.get() | bits);
    Ok(Vmsa {
        cr0: U64::new((vmsa.cr0.get() | CR0_ET) & !CR0_NW_CD),
        cr4: with(vmsa.cr4, CR4_MCE),
        efer: with(vmsa.efer, EFER_SVME),
        rflags: with(vmsa.rflags, RFLAGS_FIXED),
        ..passed
    })
}

fn segment(segment: &Segment) -> Segment {
    Segment {
        attributes: U16::new(segment.attributes.get() & SEGMENT_ATTRIBUTES),
        ..*segment
    }
}

/// A descriptor table has an address and a 16-bit limit.
fn descriptor_table(table: &Segment) -> Segment {
    Segment {
        selector: U16::ZERO,
        attributes: U16::ZERO,
        limit: (table.limit.get() & 0xffff).into(),
        base: table.base,
    }
}
