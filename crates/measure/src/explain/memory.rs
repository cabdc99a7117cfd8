//! What a launch measures before the save areas, with the kernel hashes left open:
//! launches that differ in them alone agree up to their page, and in that page up
//! to the table.

use assay_tee::Sha384Digest;
use assay_tee::hashes_table::{KernelHashes, TABLE_SIZE};
use assay_tee::page_info::{PAGE_SIZE, PAGE_SIZE_U32, PAGE_SIZE_U64, PageType};
use sha2::{Digest as _, Sha384};

use super::budget::pages_of;
use crate::context::{LaunchContext, Updating};
use crate::inputs::FirmwareInputs;
use crate::snp::{VcpuProfile, measure_memory};
use crate::trace::RegionKind;

static ZEROS: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

/// The memory of a firmware under a VMM.
pub(super) struct Memory {
    /// All before the page of the kernel hashes.
    before: LaunchContext<Updating>,
    /// That page and all after it.
    rest: Vec<(PageType, u64)>,
    page: HashesPage,
}

impl Memory {
    /// Measures what does not depend on kernel hashes. `None` where there is no
    /// launch with any: `hashes` only serve to find out.
    pub(super) fn measure(
        firmware: &FirmwareInputs,
        hashes: &KernelHashes,
        profile: &VcpuProfile,
    ) -> Option<Self> {
        let context = measure_memory(firmware, Some(hashes), profile).ok()?;
        let trace = context.finish().into_trace();
        let is_hashes = |kind| kind == RegionKind::KernelHashes;
        let (same, open) = trace.split_at(trace.iter().position(|region| is_hashes(region.kind))?);
        let mut before = LaunchContext::new();
        for region in same {
            before.resume(region.kind, region.digest_after, region.gpa, region.length);
        }
        let rest = open.iter().flat_map(|region| {
            let pages = 0..region.length / PAGE_SIZE_U64;
            pages.map(|page| (region.page_type, region.gpa + page * PAGE_SIZE_U64))
        });
        Some(Self {
            before,
            rest: rest.collect(),
            page: HashesPage::new(firmware.hashes_table_gpa?)?,
        })
    }

    /// The launch with `hashes`.
    pub(super) fn with(&self, hashes: &KernelHashes) -> LaunchContext<Updating> {
        let contents = self.page.digest(hashes);
        let mut context = self.before.branch();
        // Only the hashes page has a type whose content is measured.
        for (page_type, gpa) in &self.rest {
            context.extend(*page_type, *gpa, contents.as_bytes());
        }
        context
    }

    /// What [`Self::with`] costs.
    pub(super) fn cost(&self) -> u64 {
        let rest = u64::try_from(self.rest.len()).unwrap_or(u64::MAX);
        rest.saturating_add(pages_of(TABLE_SIZE + self.page.after.len()))
    }
}

/// The page of the hashes table, hashed up to the table.
struct HashesPage {
    before: Sha384,
    after: &'static [u8],
}

impl HashesPage {
    /// `None` where the table would cross the page's end.
    fn new(table_gpa: u32) -> Option<Self> {
        let offset = usize::try_from(table_gpa % PAGE_SIZE_U32).ok()?;
        Some(Self {
            before: Sha384::new_with_prefix(ZEROS.get(..offset)?),
            after: ZEROS.get(offset + TABLE_SIZE..)?,
        })
    }

    fn digest(&self, hashes: &KernelHashes) -> Sha384Digest {
        let page = self.before.clone().chain_update(hashes.encode_table());
        Sha384Digest::new(page.chain_update(self.after).finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use assay_tee::cpu::CpuSignature;
    use assay_tee::ovmf::{Section, SectionKind};
    use assay_tee::vmsa::Vmm;
    use assay_tee::{GuestFeatures, LaunchDigest};

    use super::*;

    /// Wherever the page is among the sections, and the table in the page.
    #[test]
    fn what_is_kept_gives_the_same_digests() {
        let section = |gpa, size, kind| Section { gpa, size, kind };
        let mut sections = [
            section(0x80_0000, 0x9000, SectionKind::SecMem),
            section(0x80_d000, 0x1000, SectionKind::SnpSecrets),
            section(0x80_e000, 0x1000, SectionKind::Cpuid),
            section(0x81_0000, 0x1000, SectionKind::KernelHashes),
        ];
        let hashes = |kernel: &[u8]| KernelHashes::from_bytes(kernel, None, "ro");
        for _ in 0..sections.len() {
            sections.rotate_left(1);
            for table in [0, 0xc00, 0xf50] {
                let firmware = FirmwareInputs {
                    base_gpa: 0xffc0_0000,
                    digest: LaunchDigest::new([7; 48]),
                    sections: sections.to_vec(),
                    reset_eip: None,
                    hashes_table_gpa: Some(0x81_0000 + table),
                };
                for vmm in Vmm::ALL {
                    let profile = VcpuProfile {
                        vmm,
                        cpu_signature: CpuSignature(0),
                        guest_features: GuestFeatures::default(),
                    };
                    let memory = Memory::measure(&firmware, &hashes(b"one"), &profile).unwrap();
                    let other = hashes(b"other");
                    let expected = measure_memory(&firmware, Some(&other), &profile).unwrap();
                    assert_eq!(
                        memory.with(&other).digest_so_far(),
                        expected.digest_so_far(),
                        "{sections:?}, table at {table:#x}, {vmm:?}"
                    );
                }
            }
        }
    }
}
