//! The search: groups of launches, likely ones first.
//!
//! What is measured before the kernel hashes is measured once for each firmware
//! and VMM, and a further virtual CPU extends the digest, so every number of
//! virtual CPUs of a profile costs 512 hashes together. The digest is compared
//! with the observed one only: nothing of what was tried is kept.

use std::collections::{BTreeMap, HashMap};

use assay_tee::VcpuCount;
use assay_tee::page_info::{PAGE_SIZE, PAGE_SIZE_U64, PageType};
use assay_tee::vmsa::Vmm;

use super::budget::{Budget, pages_of};
use super::memory::Memory;
use super::neighbours::{Form, Reach, Variant, Variants, named};
use super::{
    Area, Cause, Change, Explanation, Gap, Launch, MAX_SECTION_PAGES, Question, RuledOut,
    RuledOutArea, shapes,
};
use crate::context::{LaunchContext, Updating};
use crate::snp::{VcpuProfile, measure_igvm_memory, measure_memory};
use crate::vcpus::{SaveAreaDigests, SaveAreas};

/// Compares a group of launches.
type Group = fn(&mut Search<'_>, &mut Variants<'_>, &[shapes::Variant]);

/// Finds the launch, see [`super::explain`].
pub(super) fn search(question: &Question<'_>) -> Explanation {
    let mut budget = Budget::new();
    let mut variants = Variants::of(question, &mut budget);
    let shapes = shapes::variants(&question.expected.profile);
    let mut search = Search {
        question,
        budget,
        memories: HashMap::new(),
        save_areas: HashMap::new(),
        hits: Vec::new(),
        ruled_out: BTreeMap::new(),
    };
    let groups: [Group; 6] = [
        other_shapes,
        other_inputs,
        further_shapes,
        far_shapes,
        near_shapes,
        unlikely_cmdlines,
    ];
    for (index, group) in groups.iter().enumerate() {
        search.budget.begin(index + 1 == groups.len());
        group(&mut search, &mut variants, &shapes);
        if let Some(explanation) = search.found() {
            return explanation;
        }
    }
    search.unexplained()
}

/// The expected inputs in every number of virtual CPUs, with at most one other
/// change of the shape.
fn other_shapes(search: &mut Search<'_>, inputs: &mut Variants<'_>, shapes: &[shapes::Variant]) {
    for variant in inputs.expected() {
        let single = shapes.iter().take_while(|shape| shape.changes.len() < 2);
        search.launches(variant, single, Counts::All);
    }
}

/// Other inputs in the expected shape.
fn other_inputs(search: &mut Search<'_>, inputs: &mut Variants<'_>, shapes: &[shapes::Variant]) {
    for variant in inputs.others() {
        search.launches(variant, shapes.iter().take(1), Counts::Expected);
    }
}

/// The expected inputs in every other shape.
fn further_shapes(search: &mut Search<'_>, inputs: &mut Variants<'_>, shapes: &[shapes::Variant]) {
    for variant in inputs.expected() {
        let further = shapes.iter().filter(|shape| shape.changes.len() > 1);
        search.launches(variant, further, Counts::All);
    }
}

/// Other images in every number of virtual CPUs, with at most one other change
/// of the shape.
fn far_shapes(search: &mut Search<'_>, inputs: &mut Variants<'_>, shapes: &[shapes::Variant]) {
    for variant in inputs.others() {
        if variant.reach == Reach::Far {
            search.launches(variant, shapes.iter().take(1), Counts::Others);
            search.launches(variant, near(shapes).skip(1), Counts::All);
        }
    }
}

/// Other inputs with one change of the shape.
fn near_shapes(search: &mut Search<'_>, inputs: &mut Variants<'_>, shapes: &[shapes::Variant]) {
    let is_near = |variant: &&Variant<'_>| variant.reach == Reach::Near;
    for variant in inputs.all.iter().filter(is_near) {
        search.launches(variant, shapes.iter().take(1), Counts::Others);
    }
    for variant in inputs.all.iter().filter(is_near) {
        search.launches(variant, near(shapes).skip(1), Counts::Expected);
    }
}

/// Command lines that nobody means, in the expected shape. They are many, so none
/// is kept.
fn unlikely_cmdlines(
    search: &mut Search<'_>,
    inputs: &mut Variants<'_>,
    shapes: &[shapes::Variant],
) {
    let Some(line) = inputs.line.take() else {
        return;
    };
    for neighbour in line.unlikely() {
        let budget = &mut search.budget;
        if let Some(variant) = inputs.cmdline(line.text(), neighbour, Reach::Point, budget) {
            search.launches(&variant, shapes.iter().take(1), Counts::Expected);
        }
    }
}

/// The expected shape, then those with one change that is not rare.
fn near(shapes: &[shapes::Variant]) -> impl Iterator<Item = &shapes::Variant> {
    let is_near = |shape: &&shapes::Variant| shape.changes.len() < 2 && !shape.is_rare;
    shapes.iter().take_while(is_near)
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
    budget: Budget,
    /// By firmware and VMM; `None` where there is no launch with kernel hashes.
    memories: HashMap<(usize, Vmm), Option<Memory>>,
    save_areas: HashMap<(VcpuProfile, Option<u32>), SaveAreaDigests>,
    hits: Vec<Vec<Cause>>,
    ruled_out: BTreeMap<Area, RuledOutArea>,
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
    /// launch, or no work left for it.
    fn measure_memory(
        &mut self,
        variant: &Variant<'_>,
        profile: &VcpuProfile,
    ) -> Option<LaunchContext<Updating>> {
        let area = variant.area;
        let hashes = match &variant.form {
            Form::Direct(hashes) => hashes,
            Form::Igvm(digest) => {
                self.budget.spend(1, area)?;
                // Others than QEMU start no such guest.
                return measure_igvm_memory(Some(*digest), profile).ok();
            }
        };
        let firmware = variant.firmware.inputs;
        let sections = firmware.sections.iter();
        let bytes: u64 = sections.map(|section| u64::from(section.size)).sum();
        let pages = bytes / PAGE_SIZE_U64;
        if pages > MAX_SECTION_PAGES {
            self.unmeasurable(variant);
            return None;
        }
        let Some(hashes) = hashes else {
            self.budget.spend(pages, area)?;
            let measured = measure_memory(firmware, None, profile).ok();
            return measured.or_else(|| {
                self.unmeasurable(variant);
                None
            });
        };
        let key = (variant.firmware.number, profile.vmm);
        if !self.memories.contains_key(&key) {
            self.budget.spend(pages + pages_of(PAGE_SIZE), area)?;
            let memory = Memory::measure(firmware, hashes, profile);
            self.memories.insert(key, memory);
        }
        let Some(Some(memory)) = self.memories.get(&key) else {
            // A part of one launch in another need not be possible; a whole one
            // must.
            if matches!(area, Area::Shape | Area::Image) {
                self.unmeasurable(variant);
            }
            return None;
        };
        self.budget.spend(memory.cost(), area)?;
        Some(memory.with(hashes))
    }

    fn vcpus(
        &mut self,
        variant: &Variant<'_>,
        shape: &shapes::Variant,
        context: &LaunchContext<Updating>,
        counts: Counts,
    ) {
        let expected = self.question.expected.vcpus.get();
        let reset_eip = variant.firmware.inputs.reset_eip;
        let most = match (counts, reset_eip) {
            (Counts::Expected, _) => expected,
            (_, Some(_)) => VcpuCount::MAX,
            (_, None) => 1,
        };
        if self.budget.spend(u64::from(most), variant.area).is_none() {
            return;
        }
        let Some(areas) = self.save_areas(&shape.profile, reset_eip, variant.area) else {
            return;
        };
        let gpa = shape.profile.vmm.vmsa_gpa();
        let mut context = context.branch();
        let mut compared = 0;
        let mut found = None;
        for index in 0..most {
            let Some(area) = areas.get(index) else { break };
            context.extend(PageType::Vmsa, gpa, area.as_bytes());
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
        let is_first = shape.changes.is_empty() && counts != Counts::Others;
        self.rule_out(variant.area, u64::from(is_first), compared);
        if let Some(count) = found {
            self.hits.push(self.causes(variant, shape, count));
        }
    }

    fn save_areas(
        &mut self,
        profile: &VcpuProfile,
        reset_eip: Option<u32>,
        area: Area,
    ) -> Option<SaveAreaDigests> {
        let key = (*profile, reset_eip);
        if !self.save_areas.contains_key(&key) {
            self.budget.spend(pages_of(2 * PAGE_SIZE), area)?;
            let digests = SaveAreas::snp(profile, reset_eip).digests();
            self.save_areas.insert(key, digests);
        }
        self.save_areas.get(&key).copied()
    }

    fn rule_out(&mut self, area: Area, variants: u64, launches: u64) {
        let none = RuledOutArea {
            area,
            variants: 0,
            launches: 0,
        };
        let ruled_out = self.ruled_out.entry(area).or_insert(none);
        ruled_out.variants += variants;
        ruled_out.launches += launches;
    }

    fn unmeasurable(&mut self, variant: &Variant<'_>) {
        for description in &variant.descriptions {
            let name = description.iter().find_map(named);
            let name = name.unwrap_or("the expected launch").to_owned();
            self.budget.gap(Gap::Unmeasurable { name });
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
            boot: variant.form.boot(),
            profile: shape.profile,
            vcpus: count,
        };
        let descriptions = variant.descriptions.iter();
        let causes = descriptions.map(|of_inputs| Cause {
            changes: [of_inputs.as_slice(), &of_shape].concat(),
            launch: launch.clone(),
        });
        causes.collect()
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

    fn unexplained(self) -> Explanation {
        Explanation::Unexplained(RuledOut {
            areas: self.ruled_out.into_values().collect(),
            gaps: self.budget.into_gaps(),
        })
    }
}
