//! What may have been measured instead of the expected firmware and kernel.

use std::collections::HashMap;

use assay_tee::Sha256Digest;
use assay_tee::hashes_table::KernelHashes;

use super::{Area, Change, Gap, Known, MAX_KNOWN, Part, Question, cmdline};
use crate::inputs::{FirmwareInputs, MeasurementInputs};

/// Firmware and kernel to be tried. Different variants are measured differently.
pub(super) struct Variant<'a> {
    pub(super) firmware: &'a FirmwareInputs,
    pub(super) kernel_hashes: Option<KernelHashes>,
    cmdline: Option<String>,
    /// Each of these alone is what differs from the expected inputs. Empty for
    /// those.
    pub(super) changes: Vec<Change>,
    pub(super) area: Area,
    pub(super) reach: Reach,
}

impl Variant<'_> {
    /// The variant as inputs.
    pub(super) fn to_inputs(&self) -> MeasurementInputs {
        MeasurementInputs {
            firmware: self.firmware.clone(),
            kernel_hashes: self.kernel_hashes,
            cmdline: self.cmdline.clone(),
        }
    }
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

/// Every variant, the expected inputs first.
pub(super) struct Variants<'a> {
    pub(super) all: Vec<Variant<'a>>,
    pub(super) gaps: Vec<Gap>,
    firmwares: Vec<&'a FirmwareInputs>,
    seen: HashMap<(usize, Option<KernelHashes>), usize>,
}

impl<'a> Variants<'a> {
    pub(super) fn of(question: &Question<'a>) -> Self {
        let expected = &question.expected.inputs;
        let mut variants = Self {
            all: Vec::new(),
            gaps: Vec::new(),
            firmwares: Vec::new(),
            seen: HashMap::new(),
        };
        variants.add(Variant {
            firmware: &expected.firmware,
            kernel_hashes: expected.kernel_hashes,
            cmdline: expected.cmdline.clone(),
            changes: Vec::new(),
            area: Area::Shape,
            reach: Reach::Far,
        });
        let left_out = question.known.len().saturating_sub(MAX_KNOWN);
        if left_out > 0 {
            variants.gaps.push(Gap::KnownLimit { left_out });
        }
        let known = question.known.get(..MAX_KNOWN).unwrap_or(question.known);
        for image in known
            .iter()
            .filter(|image| image.inputs.kernel_hashes.is_some())
        {
            variants.add_image(image);
        }
        if let Some(hashes) = expected.kernel_hashes {
            variants.add_own(expected, hashes);
        }
        for image in known {
            variants.add_parts(expected, image);
        }
        if let Some(hashes) = expected.kernel_hashes {
            variants.add_cmdlines(expected, hashes, known, question.tokens);
        }
        variants
    }

    /// Another image as a whole.
    fn add_image(&mut self, image: &'a Known) {
        self.add(Variant {
            firmware: &image.inputs.firmware,
            kernel_hashes: image.inputs.kernel_hashes,
            cmdline: image.inputs.cmdline.clone(),
            changes: vec![Change::Image {
                name: image.name.clone(),
            }],
            area: Area::Image,
            reach: Reach::Far,
        });
    }

    /// Parts of the expected inputs left out.
    fn add_own(&mut self, expected: &'a MeasurementInputs, hashes: KernelHashes) {
        let mut add = |kernel_hashes: Option<KernelHashes>, change, area| {
            self.add(Variant {
                firmware: &expected.firmware,
                kernel_hashes,
                cmdline: kernel_hashes.and_then(|_| expected.cmdline.clone()),
                changes: vec![change],
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

    /// Each part of another image in place of the expected one.
    fn add_parts(&mut self, expected: &'a MeasurementInputs, image: &'a Known) {
        let mut add = |part, firmware, kernel_hashes, cmdline: &Option<String>, reach| {
            self.add(Variant {
                firmware,
                kernel_hashes,
                cmdline: cmdline.clone(),
                changes: vec![Change::Part {
                    part,
                    of: image.name.clone(),
                }],
                area: Area::Part,
                reach,
            });
        };
        let inputs = &image.inputs;
        let (ours, theirs) = (expected.kernel_hashes, inputs.kernel_hashes);
        let near = Reach::Near;
        add(
            Part::Firmware,
            &inputs.firmware,
            ours,
            &expected.cmdline,
            near,
        );
        let Some(theirs) = theirs else { return };
        let firmware = &expected.firmware;
        add(Part::Boot, firmware, Some(theirs), &inputs.cmdline, near);
        let Some(ours) = ours else { return };
        for (part, hashes) in [
            (
                Part::Kernel,
                KernelHashes {
                    kernel: theirs.kernel,
                    ..ours
                },
            ),
            (
                Part::Initrd,
                KernelHashes {
                    initrd: theirs.initrd,
                    ..ours
                },
            ),
            (
                Part::Cmdline,
                KernelHashes {
                    cmdline: theirs.cmdline,
                    ..ours
                },
            ),
        ] {
            // Nothing in its place is a change of its own.
            let is_nothing = match part {
                Part::Initrd => hashes.initrd == Sha256Digest::of(b""),
                Part::Cmdline => {
                    inputs.known_cmdline() == Some("") && expected.known_cmdline().is_some()
                }
                _ => false,
            };
            if is_nothing {
                continue;
            }
            let cmdline = match part {
                Part::Cmdline => &inputs.cmdline,
                _ => &expected.cmdline,
            };
            add(part, firmware, Some(hashes), cmdline, Reach::Point);
        }
    }

    fn add_cmdlines(
        &mut self,
        expected: &'a MeasurementInputs,
        hashes: KernelHashes,
        known: &[Known],
        tokens: &[String],
    ) {
        let Some(text) = expected.known_cmdline() else {
            self.gaps.push(Gap::CmdlineUnknown);
            return;
        };
        if !cmdline::is_typed(text) {
            self.gaps.push(Gap::CmdlineTooLong);
        }
        let theirs = known
            .iter()
            .filter_map(|image| image.inputs.known_cmdline());
        let theirs = theirs.flat_map(str::split_ascii_whitespace);
        let tokens = tokens.iter().map(String::as_str).chain(theirs);
        for variant in cmdline::variants(text, tokens) {
            self.add(Variant {
                firmware: &expected.firmware,
                kernel_hashes: Some(KernelHashes {
                    cmdline: variant.digest,
                    ..hashes
                }),
                cmdline: variant.text,
                changes: vec![Change::Cmdline(variant.change)],
                area: Area::Cmdline,
                reach: if variant.likely {
                    Reach::Near
                } else {
                    Reach::Point
                },
            });
        }
    }

    /// Adds a variant, or its change to the variant that is measured alike.
    fn add(&mut self, variant: Variant<'a>) {
        let firmware = self.firmware_index(variant.firmware);
        let key = (firmware, variant.kernel_hashes);
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
        let is_named = |change: &Change| match change {
            Change::Part { of, .. } => known.changes.iter().any(|known| match known {
                Change::Image { name } | Change::Part { of: name, .. } => name == of,
                _ => false,
            }),
            _ => false,
        };
        if !known.changes.is_empty() && !variant.changes.iter().any(is_named) {
            known.changes.extend(variant.changes);
            known.reach = known.reach.max(variant.reach);
        }
    }

    fn firmware_index(&mut self, firmware: &'a FirmwareInputs) -> usize {
        let known = self.firmwares.iter().position(|known| *known == firmware);
        known.unwrap_or_else(|| {
            self.firmwares.push(firmware);
            self.firmwares.len() - 1
        })
    }
}
