//! The search: groups of launches, those with few changes first.
//!
//! What is measured before the save areas is measured once for each variant and
//! VMM, and a further virtual CPU extends the digest, so every number of virtual
//! CPUs of a profile costs 512 hashes together. The digest is compared with the
//! observed one only: nothing of what was tried is kept.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use assay_tee::VcpuCount;
use assay_tee::page_info::PAGE_SIZE_U64;
use assay_tee::vmsa::Vmm;

use super::neighbours::{Reach, Variant, Variants};
use super::{
    Area, Cause, Change, Explanation, Gap, Launch, MAX_SECTION_PAGES, MAX_WORK, Question, RuledOut,
    RuledOutArea, shapes,
};
use crate::context::{LaunchContext, Updating};
use crate::snp::{VcpuProfile, measure_memory};
use crate::vcpus::{SaveAreaDigests, SaveAreas};

/// What hashing one page's content costs, in hashes of PAGE_INFO.
const PAGE_COST: u64 = 17;

/// Compares a group of launches.
type Group = fn(&mut Search<'_>, &[Variant<'_>], &[shapes::Variant]);

/// Finds the launch, see [`super::explain`].
pub(super) fn search(question: &Question<'_>) -> Explanation {
    let variants = Variants::of(question);
    let shapes = shapes::variants(&question.expected.profile);
    let mut search = Search {
        question,
        work: MAX_WORK,
        save_areas: HashMap::new(),
        hits: Vec::new(),
        ruled_out: BTreeMap::new(),
        gaps: variants.gaps.clone(),
    };
    let groups: [Group; 5] = [
        other_shapes,
        other_inputs,
        further_shapes,
        near_shapes,
        far_shapes,
    ];
    for group in groups {
        group(&mut search, &variants.all, &shapes);
        if let Some(explanation) = search.found() {
            return explanation;
        }
    }
    search.unexplained(&variants.all)
}

/// The expected inputs in every number of virtual CPUs, with at most one other
/// change of the shape.
fn other_shapes(search: &mut Search<'_>, inputs: &[Variant<'_>], shapes: &[shapes::Variant]) {
    for variant in inputs.iter().take(1) {
        search.launches(variant, near(shapes), Counts::All);
    }
}

/// Other inputs in the expected shape.
fn other_inputs(search: &mut Search<'_>, inputs: &[Variant<'_>], shapes: &[shapes::Variant]) {
    for variant in inputs.iter().skip(1) {
        search.launches(variant, shapes.iter().take(1), Counts::Expected);
    }
}

/// The expected inputs in every other shape.
fn further_shapes(search: &mut Search<'_>, inputs: &[Variant<'_>], shapes: &[shapes::Variant]) {
    let further = || shapes.iter().filter(|shape| shape.changes.len() > 1);
    for variant in inputs.iter().take(1) {
        search.launches(variant, further(), Counts::All);
    }
}

/// Other inputs with one change of the shape.
fn near_shapes(search: &mut Search<'_>, inputs: &[Variant<'_>], shapes: &[shapes::Variant]) {
    for variant in inputs.iter().skip(1) {
        if variant.reach == Reach::Near {
            search.launches(variant, shapes.iter().take(1), Counts::Others);
            search.launches(variant, near(shapes).skip(1), Counts::Expected);
        }
    }
}

/// Other images in every number of virtual CPUs, with at most one other change
/// of the shape.
fn far_shapes(search: &mut Search<'_>, inputs: &[Variant<'_>], shapes: &[shapes::Variant]) {
    for variant in inputs.iter().skip(1) {
        if variant.reach == Reach::Far {
            search.launches(variant, shapes.iter().take(1), Counts::Others);
            search.launches(variant, near(shapes).skip(1), Counts::All);
        }
    }
}

/// The expected shape, then those with one change.
fn near(shapes: &[shapes::Variant]) -> impl Iterator<Item = &shapes::Variant> {
    shapes.iter().take_while(|shape| shape.changes.len() < 2)
}

/// Numbers of virtual CPUs that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counts {
    /// The expected one.
    Expected,
    /// Every one but that.
    Others,
    /// Every one.
    All,
}

struct Search<'a> {
    question: &'a Question<'a>,
    /// Pages that may still be measured.
    work: u64,
    save_areas: HashMap<(VcpuProfile, Option<u32>), SaveAreaDigests>,
    hits: Vec<Vec<Cause>>,
    /// Launches by area.
    ruled_out: BTreeMap<Area, u64>,
    gaps: Vec<Gap>,
}

impl Search<'_> {
    /// Compares a variant's launches in `shapes`.
    fn launches<'s>(
        &mut self,
        variant: &Variant<'_>,
        shapes: impl Iterator<Item = &'s shapes::Variant>,
        counts: Counts,
    ) {
        let mut memory: Vec<(Vmm, Option<LaunchContext<Updating>>)> = Vec::new();
        for shape in shapes {
            let vmm = shape.profile.vmm;
            let known = memory.iter().position(|(known, _)| *known == vmm);
            let index = known.unwrap_or_else(|| {
                memory.push((vmm, self.measure_memory(variant, &shape.profile)));
                memory.len() - 1
            });
            if let Some((_, Some(context))) = memory.get(index) {
                self.vcpus(variant, shape, context, counts);
            }
        }
    }

    /// All that is measured before the save areas; `None` where there is no such
    /// launch.
    fn measure_memory(
        &mut self,
        variant: &Variant<'_>,
        profile: &VcpuProfile,
    ) -> Option<LaunchContext<Updating>> {
        let sections = &variant.firmware.sections;
        let bytes: u64 = sections.iter().map(|section| u64::from(section.size)).sum();
        let pages = bytes / PAGE_SIZE_U64;
        if pages > MAX_SECTION_PAGES {
            self.unmeasurable(variant);
            return None;
        }
        self.spend(pages + PAGE_COST)?;
        let measured = measure_memory(variant.firmware, variant.kernel_hashes.as_ref(), profile);
        // A part of one launch in another need not be possible; a whole one must.
        if measured.is_err() && matches!(variant.area, Area::Shape | Area::Image) {
            self.unmeasurable(variant);
        }
        measured.ok()
    }

    fn vcpus(
        &mut self,
        variant: &Variant<'_>,
        shape: &shapes::Variant,
        context: &LaunchContext<Updating>,
        counts: Counts,
    ) {
        let expected = self.question.expected.vcpus.get();
        let most = match (counts, variant.firmware.reset_eip) {
            (Counts::Expected, _) => expected,
            (_, Some(_)) => VcpuCount::MAX,
            (_, None) => 1,
        };
        if self.spend(u64::from(most)).is_none() {
            return;
        }
        let Some(areas) = self.save_areas(&shape.profile, variant.firmware.reset_eip) else {
            return;
        };
        let gpa = shape.profile.vmm.vmsa_gpa();
        let mut context = context.branch();
        let mut compared = 0;
        let mut found = None;
        for index in 0..most {
            let Some(area) = areas.get(index) else { break };
            context.extend_vmsa(gpa, &area);
            let count = index + 1;
            let is_asked = match counts {
                Counts::Expected => count == expected,
                Counts::Others => count != expected,
                Counts::All => true,
            };
            if is_asked {
                compared += 1;
                if context.digest_so_far() == self.question.observed {
                    found = VcpuCount::try_from(count).ok();
                }
            }
        }
        *self.ruled_out.entry(variant.area).or_default() += compared;
        if let Some(count) = found {
            self.hits.push(self.causes(variant, shape, count));
        }
    }

    fn save_areas(
        &mut self,
        profile: &VcpuProfile,
        reset_eip: Option<u32>,
    ) -> Option<SaveAreaDigests> {
        let key = (*profile, reset_eip);
        if !self.save_areas.contains_key(&key) {
            self.spend(2 * PAGE_COST)?;
            let digests = SaveAreas::snp(profile, reset_eip).digests();
            self.save_areas.insert(key, digests);
        }
        self.save_areas.get(&key).copied()
    }

    /// Takes `pages` off what may be measured. `None` where there is not enough
    /// left.
    fn spend(&mut self, pages: u64) -> Option<()> {
        if let Some(left) = self.work.checked_sub(pages) {
            self.work = left;
            return Some(());
        }
        self.gap(Gap::WorkLimit);
        None
    }

    fn gap(&mut self, gap: Gap) {
        if !self.gaps.contains(&gap) {
            self.gaps.push(gap);
        }
    }

    fn unmeasurable(&mut self, variant: &Variant<'_>) {
        let names = variant.changes.iter().filter_map(|change| match change {
            Change::Image { name } | Change::Part { of: name, .. } => Some(name.clone()),
            _ => None,
        });
        let mut names: Vec<_> = names.collect();
        if variant.changes.is_empty() {
            names.push("the expected launch".to_owned());
        }
        for name in names {
            self.gap(Gap::Unmeasurable { name });
        }
    }

    /// A hit as one cause for each way to describe its inputs.
    fn causes(
        &self,
        variant: &Variant<'_>,
        shape: &shapes::Variant,
        count: VcpuCount,
    ) -> Vec<Cause> {
        let expected = self.question.expected.vcpus;
        let of_count = (count != expected).then_some(Change::Vcpus {
            found: count,
            expected,
        });
        let of_shape: Vec<Change> = shape.changes.iter().cloned().chain(of_count).collect();
        let launch = Launch {
            inputs: variant.to_inputs(),
            profile: shape.profile,
            vcpus: count,
        };
        let cause = |of_inputs: &[Change]| Cause {
            changes: [of_inputs, &of_shape].concat(),
            launch: launch.clone(),
        };
        if variant.changes.is_empty() {
            return vec![cause(&[])];
        }
        let of_inputs = variant.changes.iter();
        of_inputs
            .map(|change| cause(std::slice::from_ref(change)))
            .collect()
    }

    /// The hits of the groups so far with the fewest changes.
    fn found(&mut self) -> Option<Explanation> {
        let causes = std::mem::take(&mut self.hits).concat();
        let fewest = causes.iter().map(|cause| cause.changes.len()).min()?;
        if fewest == 0 {
            return Some(Explanation::Expected);
        }
        let causes = causes.into_iter();
        let causes = causes.filter(|cause| cause.changes.len() == fewest);
        Some(Explanation::Found {
            causes: causes.collect(),
        })
    }

    fn unexplained(self, variants: &[Variant<'_>]) -> Explanation {
        let areas: BTreeSet<Area> = self.ruled_out.keys().copied().collect();
        let areas = areas.into_iter().map(|area| {
            let of_area = variants.iter().filter(|variant| variant.area == area);
            RuledOutArea {
                area,
                variants: u64::try_from(of_area.count()).unwrap_or(u64::MAX),
                launches: self.ruled_out.get(&area).copied().unwrap_or_default(),
            }
        });
        Explanation::Unexplained(RuledOut {
            areas: areas.collect(),
            gaps: self.gaps,
        })
    }
}
