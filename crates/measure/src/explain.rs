//! Why a launch digest is not the expected one: the neighbouring launch that
//! has it, named in one sentence.
//!
//! A digest says nothing about what was measured, so the cause is found by
//! trying: each small change of the expected launch is measured and compared.
//! Launches that start alike are measured together, and the work is bounded by
//! [`MAX_WORK`], whatever the inputs.
//!
//! An explanation is advice for a person. It is no verdict, and nothing may
//! accept a guest because its digest was explained.

mod budget;
mod cmdline;
mod memory;
mod neighbours;
mod search;
mod sentence;
mod shapes;

use assay_tee::cpu::CpuSignature;
use assay_tee::vmsa::Vmm;
use assay_tee::{BootMethod, GuestFeatures, LaunchDigest, VcpuCount};
use serde::Serialize;

use crate::inputs::MeasurementInputs;
use crate::snp::{MeasureError, VcpuProfile, measure_snp_boot};

pub use cmdline::CmdlineChange;

/// Most measured pages of one explanation. A page costs the hash of its PAGE_INFO:
/// 112 bytes and their padding are two blocks of SHA-512, which take a third of a
/// microsecond, and less than half of one on slow processors. Everything else
/// that is hashed counts as the pages that take as long, so the whole stays below
/// a second. A search that would need more leaves out the rest and says so
/// ([`Gap::WorkLimit`]).
pub const MAX_WORK: u64 = 2_000_000;
/// Most known images that are tried.
pub const MAX_KNOWN: usize = 256;
/// Most pages of firmware sections that are measured for one launch. OVMF has
/// less than a hundred.
pub const MAX_SECTION_PAGES: u64 = 4096;

/// A launch: what is measured, and the shape that it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Launch {
    /// Firmware and kernel.
    pub inputs: MeasurementInputs,
    /// How the kernel reaches the guest.
    pub boot: BootMethod,
    /// What the virtual CPUs start with.
    pub profile: VcpuProfile,
    /// How many there are.
    pub vcpus: VcpuCount,
}

impl Launch {
    /// The launch digest.
    ///
    /// # Errors
    /// See [`MeasureError`].
    pub fn measure(&self) -> Result<LaunchDigest, MeasureError> {
        measure_snp_boot(&self.inputs, self.boot, &self.profile, self.vcpus)
            .map(|measurement| measurement.digest)
    }
}

/// Something that may have been launched instead: an image, or firmware alone
/// where the inputs have no kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its name, as the sentence has it.
    pub name: String,
    /// What is measured of it.
    pub inputs: MeasurementInputs,
}

/// What is to be explained.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The digest that a guest reported.
    pub observed: LaunchDigest,
    /// What should have been launched.
    pub expected: &'a Launch,
    /// What else there is.
    pub known: &'a [Known],
    /// Words that the command line may have in addition, besides common ones
    /// and those of the known images.
    pub tokens: &'a [String],
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "camelCase")]
pub enum Explanation {
    /// The digest is the expected one.
    Expected,
    /// Neighbouring launches have the digest: at least one cause. Several are
    /// such that the digest cannot tell apart, all with equally few changes.
    Found {
        /// The causes, in the order of the search.
        causes: Vec<Cause>,
    },
    /// No launch that was tried has the digest.
    Unexplained(RuledOut),
}

/// A launch that has the observed digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cause {
    /// How it differs from the expected one: what is measured first, the shape
    /// after. At least one change.
    pub changes: Vec<Change>,
    /// The launch.
    pub launch: Launch,
}

/// One difference from the expected launch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Change {
    /// Another image, firmware included.
    Image {
        /// Name of the known image.
        name: String,
    },
    /// A part of another image, all else as expected.
    Part {
        /// Which part.
        part: Part,
        /// Name of the known image.
        of: String,
    },
    /// The other of an image's two ways to boot.
    Boot {
        /// The way that gives the digest.
        found: BootMethod,
    },
    /// No kernel was hashed: `kernel-hashes=off`, or no kernel at all.
    KernelHashesOff,
    /// A kernel was hashed where none was expected to be: `kernel-hashes=on`.
    KernelHashesOn {
        /// Name of the known image that has the kernel.
        of: String,
    },
    /// There was no initrd, or an empty one.
    InitrdLeftOut,
    /// Another command line.
    Cmdline(CmdlineChange),
    /// Another number of virtual CPUs.
    Vcpus {
        /// The number that gives the digest.
        found: VcpuCount,
        /// The expected number.
        expected: VcpuCount,
    },
    /// Another CPU model.
    CpuModel {
        /// The signature that gives the digest.
        signature: CpuSignature,
        /// Every model with that signature, by QEMU's names.
        models: Vec<&'static str>,
        /// The processors that have it under `-cpu host`, where no model has.
        host: Option<&'static str>,
    },
    /// Other guest features.
    GuestFeatures {
        /// The features that give the digest.
        found: GuestFeatures,
        /// The expected features.
        expected: GuestFeatures,
    },
    /// Another VMM, or another era of it.
    Vmm {
        /// The VMM that gives the digest.
        found: Vmm,
    },
}

/// A part of an image that is measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Part {
    /// The firmware.
    Firmware,
    /// Kernel, initrd and command line together.
    Boot,
    /// The kernel, or UKI.
    Kernel,
    /// The initrd.
    Initrd,
    /// The command line.
    Cmdline,
}

/// What the digest is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuledOut {
    /// Launches that were measured, by what differs in them. In the order of
    /// [`Area`], without those of which there were none.
    pub areas: Vec<RuledOutArea>,
    /// Where the search was less than complete.
    pub gaps: Vec<Gap>,
}

/// Launches of one area.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuledOutArea {
    /// What differs in them.
    pub area: Area,
    /// Variants of it, such as command lines or images.
    pub variants: u64,
    /// Launches: variants in all shapes that were tried.
    pub launches: u64,
}

/// What differs in a launch that was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Area {
    /// Nothing but the shape.
    Shape,
    /// The way in which an image boots.
    Boot,
    /// The kernel hashes are missing.
    KernelHashes,
    /// The initrd.
    Initrd,
    /// The command line.
    Cmdline,
    /// The whole image.
    Image,
    /// A part that a known image has.
    Part,
}

/// Something that was not tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Gap {
    /// Only the hash of the expected command line is known, so changes of its
    /// words were not tried.
    CmdlineUnknown,
    /// The command line is too long to try every mistyped character.
    CmdlineTooLong,
    /// Words of the command line beyond those that were changed.
    WordLimit {
        /// How many.
        left_out: usize,
    },
    /// Further words beyond those that were added.
    TokenLimit {
        /// How many.
        left_out: usize,
    },
    /// Known images beyond [`MAX_KNOWN`].
    KnownLimit {
        /// How many.
        left_out: usize,
    },
    /// Inputs that nothing can be launched from, or with sections beyond
    /// [`MAX_SECTION_PAGES`].
    Unmeasurable {
        /// The expected launch or the name of a known image.
        name: String,
    },
    /// Launches beyond [`MAX_WORK`], or beyond the share of it that their part
    /// of the search has.
    WorkLimit {
        /// What differs in them.
        area: Area,
    },
}

/// Finds the neighbouring launch that has the observed digest.
///
/// The search goes from what is likely to what is not: every other shape of the
/// expected launch, likely changes of what is measured, known images in every
/// shape, likely changes in other shapes, and unlikely command lines. It ends
/// with the first group that has the digest. The order depends on the question
/// alone, so the same question has the same answer.
///
/// A guest that was to boot from an IGVM file is compared with the IGVM files of all
/// images and with their direct boots; parts and command lines are changed for direct
/// boots alone, because the IGVM file holds the whole UKI.
///
/// Tried are: 1 to 512 virtual CPUs, every CPU model and the signatures of real
/// processors, the common guest features and up to two named ones switched, every
/// VMM and era; the kernel hashes left out or put in, the initrd left out, the
/// command line with each word removed, doubled, added, replaced or swapped, with
/// one slip of the hand, with blanks or a newline, without or with a second NUL;
/// every known image, its firmware alone, and each part of it; the other way to boot.
pub fn explain(question: &Question<'_>) -> Explanation {
    search::search(question)
}
