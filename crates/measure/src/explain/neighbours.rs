//! What may have been measured instead of the expected firmware and kernel.

use std::collections::{HashMap, HashSet};

use assay_tee::Sha256Digest;
use assay_tee::hashes_table::KernelHashes;

use super::budget::Budget;
use super::cmdline::{Edit, Line, Neighbour};
use super::{Area, Change, Gap, Known, MAX_KNOWN, Part, Question};
use crate::inputs::{FirmwareInputs, MeasurementInputs};

/// Firmware. Equal ones have the same number.
#[derive(Clone, Copy)]
pub(super) struct Firmware<'a> {
    pub(super) number: usize,
    pub(super) inputs: &'a FirmwareInputs,
}

/// Firmware and kernel to be tried.
pub(super) struct Variant<'a> {
    pub(super) firmware: Firmware<'a>,
    pub(super) kernel_hashes: Option<KernelHashes>,
    cmdline: Cmdline<'a>,
    /// All that differs from the expected inputs, said in one way or another. For
    /// those themselves it is said with no change.
    pub(super) descriptions: Vec<Vec<Change>>,
    pub(super) area: Area,
    pub(super) reach: Reach,
}

impl Variant<'_> {
    /// The variant as inputs.
    pub(super) fn to_inputs(&self) -> MeasurementInputs {
        MeasurementInputs {
            firmware: self.firmware.inputs.clone(),
            kernel_hashes: self.kernel_hashes,
            cmdline: match &self.cmdline {
                Cmdline::Recorded(text) => text.map(str::to_owned),
                Cmdline::Edited(text, edit) => edit.apply(text),
            },
        }
    }
}

/// The command line of a variant.
enum Cmdline<'a> {
    /// As it was recorded, if it was.
    Recorded(Option<&'a str>),
    /// The expected one with a change.
    Edited(&'a str, Edit),
}

/// In which shapes a variant is tried, beyond the expected one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    /// In none.
    Point,
    /// In those with one change.
    Near,
    /// In every number of virtual CPUs of every profile with one change.
    Far,
}

/// The expected inputs.
#[derive(Clone, Copy)]
struct Expected<'a> {
    firmware: Firmware<'a>,
    kernel_hashes: Option<KernelHashes>,
    recorded: Option<&'a str>,
    /// The command line, where it is known for certain.
    cmdline: Option<&'a str>,
}

/// Every variant but unlikely command lines.
pub(super) struct Variants<'a> {
    /// The expected inputs first. Different variants are measured differently.
    pub(super) all: Vec<Variant<'a>>,
    /// The expected command line, for [`Self::cmdline`].
    pub(super) line: Option<Line<'a>>,
    expected: Expected<'a>,
    firmwares: Vec<&'a FirmwareInputs>,
    seen: HashMap<(usize, Option<KernelHashes>), usize>,
    /// Hashes of command lines that were tried in place of the expected one.
    cmdlines: HashSet<Sha256Digest>,
}

impl<'a> Variants<'a> {
    pub(super) fn of(question: &Question<'a>, budget: &mut Budget) -> Self {
        let expected = &question.expected.inputs;
        let expected = Expected {
            firmware: Firmware {
                number: 0,
                inputs: &expected.firmware,
            },
            kernel_hashes: expected.kernel_hashes,
            recorded: expected.cmdline.as_deref(),
            cmdline: expected.known_cmdline(),
        };
        let mut variants = Self {
            all: Vec::new(),
            line: None,
            expected,
            firmwares: vec![expected.firmware.inputs],
            seen: HashMap::new(),
            cmdlines: HashSet::from_iter(expected.kernel_hashes.map(|hashes| hashes.cmdline)),
        };
        variants.add(Variant {
            firmware: expected.firmware,
            kernel_hashes: expected.kernel_hashes,
            cmdline: Cmdline::Recorded(expected.recorded),
            descriptions: vec![Vec::new()],
            area: Area::Shape,
            reach: Reach::Far,
        });
        let left_out = question.known.len().saturating_sub(MAX_KNOWN);
        if left_out > 0 {
            budget.gap(Gap::KnownLimit { left_out });
        }
        let known = question.known.get(..MAX_KNOWN).unwrap_or(question.known);
        for image in known {
            variants.add_image(image);
        }
        if let Some(hashes) = expected.kernel_hashes {
            variants.add_own(hashes);
        }
        for image in known {
            variants.add_without_kernel_hashes(image);
            variants.add_parts(image);
        }
        if expected.kernel_hashes.is_some() {
            variants.add_cmdlines(known, question.tokens, budget);
        }
        variants
    }

    /// Another image as a whole.
    fn add_image(&mut self, image: &'a Known) {
        let Some(theirs) = image.inputs.kernel_hashes else {
            return;
        };
        let firmware = self.firmware(&image.inputs.firmware);
        let is_ours = firmware.number == self.expected.firmware.number;
        let change = match self.expected.kernel_hashes {
            None if is_ours => Change::KernelHashesOn {
                of: image.name.clone(),
            },
            _ => Change::Image {
                name: image.name.clone(),
            },
        };
        self.add(Variant {
            firmware,
            kernel_hashes: Some(theirs),
            cmdline: Cmdline::Recorded(image.inputs.cmdline.as_deref()),
            descriptions: vec![vec![change]],
            area: Area::Image,
            reach: Reach::Far,
        });
    }

    /// Parts of the expected inputs left out.
    fn add_own(&mut self, hashes: KernelHashes) {
        let expected = self.expected;
        let mut add = |kernel_hashes: Option<KernelHashes>, change, area| {
            self.add(Variant {
                firmware: expected.firmware,
                kernel_hashes,
                cmdline: Cmdline::Recorded(kernel_hashes.and(expected.recorded)),
                descriptions: vec![vec![change]],
                area,
                reach: Reach::Near,
            });
        };
        add(None, Change::KernelHashesOff, Area::KernelHashes);
        let without_initrd = KernelHashes {
            initrd: Sha256Digest::of(b""),
            ..hashes
        };
        add(Some(without_initrd), Change::InitrdLeftOut, Area::Initrd);
    }

    /// The firmware of another image alone, where a kernel is expected.
    fn add_without_kernel_hashes(&mut self, image: &'a Known) {
        if self.expected.kernel_hashes.is_none() {
            return;
        }
        let name = image.name.clone();
        let change = match image.inputs.kernel_hashes {
            Some(_) => Change::Image { name },
            None => Change::Part {
                part: Part::Firmware,
                of: name,
            },
        };
        let firmware = self.firmware(&image.inputs.firmware);
        self.add(Variant {
            firmware,
            kernel_hashes: None,
            cmdline: Cmdline::Recorded(None),
            descriptions: vec![vec![change, Change::KernelHashesOff]],
            area: Area::KernelHashes,
            reach: Reach::Near,
        });
    }

    /// Each part of another image in place of the expected one.
    fn add_parts(&mut self, image: &'a Known) {
        let expected = self.expected;
        let inputs = &image.inputs;
        let (ours, theirs) = (expected.kernel_hashes, inputs.kernel_hashes);
        let other_firmware = self.firmware(&inputs.firmware);
        let of = || image.name.clone();
        let part = |part| Change::Part { part, of: of() };
        let mut add = |change, firmware, kernel_hashes, cmdline, reach| {
            self.add(Variant {
                firmware,
                kernel_hashes,
                cmdline: Cmdline::Recorded(cmdline),
                descriptions: vec![vec![change]],
                area: Area::Part,
                reach,
            });
        };
        let (recorded, near) = (expected.recorded, Reach::Near);
        add(part(Part::Firmware), other_firmware, ours, recorded, near);
        let Some(theirs) = theirs else { return };
        let firmware = expected.firmware;
        let their_cmdline = inputs.cmdline.as_deref();
        let Some(ours) = ours else {
            let change = Change::KernelHashesOn { of: of() };
            add(change, firmware, Some(theirs), their_cmdline, near);
            return;
        };
        add(
            part(Part::Boot),
            firmware,
            Some(theirs),
            their_cmdline,
            near,
        );
        let point = Reach::Point;
        let hashes = KernelHashes {
            kernel: theirs.kernel,
            ..ours
        };
        add(part(Part::Kernel), firmware, Some(hashes), recorded, point);
        // Nothing in its place is a change of its own.
        if theirs.initrd != Sha256Digest::of(b"") {
            let hashes = KernelHashes {
                initrd: theirs.initrd,
                ..ours
            };
            add(part(Part::Initrd), firmware, Some(hashes), recorded, point);
        }
        if expected.cmdline.is_none() || inputs.known_cmdline() != Some("") {
            let hashes = KernelHashes {
                cmdline: theirs.cmdline,
                ..ours
            };
            let change = part(Part::Cmdline);
            add(change, firmware, Some(hashes), their_cmdline, point);
        }
    }

    /// Likely command lines. Unlikely ones are left to the last part of the
    /// search.
    fn add_cmdlines(&mut self, known: &'a [Known], tokens: &'a [String], budget: &mut Budget) {
        let Some(text) = self.expected.cmdline else {
            budget.gap(Gap::CmdlineUnknown);
            return;
        };
        let theirs = known
            .iter()
            .filter_map(|image| image.inputs.known_cmdline());
        let theirs = theirs.flat_map(str::split_ascii_whitespace);
        let tokens = tokens.iter().map(String::as_str).chain(theirs);
        let line = Line::new(text, tokens, budget);
        for neighbour in line.likely() {
            if let Some(variant) = self.cmdline(text, neighbour, Reach::Near, budget) {
                self.add(variant);
            }
        }
        self.line = Some(line);
    }

    /// The expected inputs with another command line. `None` where the text is
    /// not a new one: its first description is the simplest.
    pub(super) fn cmdline(
        &mut self,
        text: &'a str,
        (change, edit): Neighbour,
        reach: Reach,
        budget: &mut Budget,
    ) -> Option<Variant<'a>> {
        let hashes = self.expected.kernel_hashes?;
        budget.spend(edit.cost(text), Area::Cmdline)?;
        let cmdline = edit.digest(text);
        self.cmdlines.insert(cmdline).then(|| Variant {
            firmware: self.expected.firmware,
            kernel_hashes: Some(KernelHashes { cmdline, ..hashes }),
            cmdline: Cmdline::Edited(text, edit),
            descriptions: vec![vec![Change::Cmdline(change)]],
            area: Area::Cmdline,
            reach,
        })
    }

    /// Adds a variant, or its descriptions to the variant that is measured alike.
    fn add(&mut self, variant: Variant<'a>) {
        let key = (variant.firmware.number, variant.kernel_hashes);
        let Some(known) = self
            .seen
            .get(&key)
            .and_then(|index| self.all.get_mut(*index))
        else {
            self.seen.insert(key, self.all.len());
            self.all.push(variant);
            return;
        };
        // What is measured as expected is no change, and a part of an image that
        // is named already says nothing new.
        let is_expected = known.descriptions.iter().any(Vec::is_empty);
        let is_known = |name: &str| {
            let known = known.descriptions.iter().flatten();
            known.filter_map(named).any(|known| known == name)
        };
        let says_nothing = |change: &Change| match change {
            Change::Part { of, .. } | Change::KernelHashesOn { of } => is_known(of),
            _ => false,
        };
        if !is_expected && !variant.descriptions.iter().flatten().any(says_nothing) {
            known.descriptions.extend(variant.descriptions);
            known.reach = known.reach.max(variant.reach);
        }
    }

    /// Numbers a firmware.
    fn firmware(&mut self, inputs: &'a FirmwareInputs) -> Firmware<'a> {
        let known = self.firmwares.iter().position(|known| *known == inputs);
        let number = known.unwrap_or_else(|| {
            self.firmwares.push(inputs);
            self.firmwares.len() - 1
        });
        Firmware { number, inputs }
    }
}

/// The known image that a change is about.
pub(super) fn named(change: &Change) -> Option<&str> {
    match change {
        Change::Image { name } => Some(name),
        Change::Part { of, .. } | Change::KernelHashesOn { of } => Some(of),
        _ => None,
    }
}
