//! What may have been measured instead of the expected firmware and kernel.

use std::collections::{HashMap, HashSet};

use assay_tee::hashes_table::KernelHashes;
use assay_tee::{BootMethod, LaunchDigest, Sha256Digest};

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

/// What is measured of firmware and kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// The firmware, and the hashes of what it is to boot.
    Direct(Option<KernelHashes>),
    /// The pages of an IGVM file that holds both: the digest after them.
    Igvm(LaunchDigest),
}

impl Form {
    pub(super) const fn boot(self) -> BootMethod {
        match self {
            Self::Direct(_) => BootMethod::DirectKernel,
            Self::Igvm(_) => BootMethod::Igvm,
        }
    }

    /// The form of inputs that boot in one way, where they can.
    fn of(inputs: &MeasurementInputs, boot: BootMethod) -> Option<Self> {
        match boot {
            BootMethod::DirectKernel => Some(Self::Direct(inputs.kernel_hashes)),
            BootMethod::Igvm => inputs.igvm_digest.map(Self::Igvm),
        }
    }
}

/// Firmware and kernel to be tried.
pub(super) struct Variant<'a> {
    pub(super) firmware: Firmware<'a>,
    pub(super) form: Form,
    /// The inputs of an image that is tried as a whole.
    whole: Option<&'a MeasurementInputs>,
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
        if let Some(whole) = self.whole {
            return whole.clone();
        }
        MeasurementInputs {
            firmware: self.firmware.inputs.clone(),
            kernel_hashes: match self.form {
                Form::Direct(hashes) => hashes,
                Form::Igvm(_) => None,
            },
            igvm_digest: None,
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
    /// The expected inputs first, where they can be measured. Different variants are
    /// measured differently.
    pub(super) all: Vec<Variant<'a>>,
    /// The expected command line, for [`Self::cmdline`].
    pub(super) line: Option<Line<'a>>,
    expected: Expected<'a>,
    firmwares: Vec<&'a FirmwareInputs>,
    seen: HashMap<(usize, Form), usize>,
    /// Hashes of command lines that were tried in place of the expected one.
    cmdlines: HashSet<Sha256Digest>,
}

impl<'a> Variants<'a> {
    pub(super) fn of(question: &Question<'a>, budget: &mut Budget) -> Self {
        let whole = &question.expected.inputs;
        let boot = question.expected.boot;
        let expected = whole;
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
        let own = Form::of(whole, boot);
        if own.is_none() {
            let name = "the expected launch".to_owned();
            budget.gap(Gap::Unmeasurable { name });
        }
        let other = Form::of(whole, other_boot(boot));
        let forms = [
            own.map(|form| (form, Vec::new(), Area::Shape)),
            other.map(|form| (form, vec![booted(form)], Area::Boot)),
        ];
        for (form, changes, area) in forms.into_iter().flatten() {
            variants.add(Variant {
                firmware: expected.firmware,
                form,
                whole: Some(whole),
                cmdline: Cmdline::Recorded(expected.recorded),
                descriptions: vec![changes],
                area,
                reach: Reach::Far,
            });
        }
        let left_out = question.known.len().saturating_sub(MAX_KNOWN);
        if left_out > 0 {
            budget.gap(Gap::KnownLimit { left_out });
        }
        let known = question.known.get(..MAX_KNOWN).unwrap_or(question.known);
        for image in known {
            match boot {
                BootMethod::DirectKernel => variants.add_image(image),
                BootMethod::Igvm => variants.add_igvm_image(image),
            }
        }
        for image in known {
            variants.add_other_boot(image, boot);
        }
        // An IGVM file has no parts that are measured by themselves.
        if boot == BootMethod::Igvm {
            return variants;
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

    /// The expected inputs.
    pub(super) fn expected(&self) -> impl Iterator<Item = &Variant<'a>> {
        let is_expected = |variant: &&Variant<'_>| variant.area == Area::Shape;
        self.all.iter().filter(is_expected)
    }

    /// All but the expected inputs.
    pub(super) fn others(&self) -> impl Iterator<Item = &Variant<'a>> {
        let is_other = |variant: &&Variant<'_>| variant.area != Area::Shape;
        self.all.iter().filter(is_other)
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
            form: Form::Direct(Some(theirs)),
            whole: Some(&image.inputs),
            cmdline: Cmdline::Recorded(image.inputs.cmdline.as_deref()),
            descriptions: vec![vec![change]],
            area: Area::Image,
            reach: Reach::Far,
        });
    }

    /// The IGVM file of another image.
    fn add_igvm_image(&mut self, image: &'a Known) {
        let Some(form) = Form::of(&image.inputs, BootMethod::Igvm) else {
            return;
        };
        let name = image.name.clone();
        let changes = vec![Change::Image { name }];
        self.add_form(image, form, changes, Area::Image, Reach::Far);
    }

    /// Another image that boots in the other way.
    fn add_other_boot(&mut self, image: &'a Known, expected: BootMethod) {
        let form = Form::of(&image.inputs, other_boot(expected));
        // Firmware alone is no image.
        let Some(form) = form.filter(|form| *form != Form::Direct(None)) else {
            return;
        };
        let name = image.name.clone();
        let changes = vec![Change::Image { name }, booted(form)];
        self.add_form(image, form, changes, Area::Boot, Reach::Near);
    }

    fn add_form(
        &mut self,
        image: &'a Known,
        form: Form,
        changes: Vec<Change>,
        area: Area,
        reach: Reach,
    ) {
        let firmware = self.firmware(&image.inputs.firmware);
        self.add(Variant {
            firmware,
            form,
            whole: Some(&image.inputs),
            cmdline: Cmdline::Recorded(image.inputs.cmdline.as_deref()),
            descriptions: vec![changes],
            area,
            reach,
        });
    }

    /// Parts of the expected inputs left out.
    fn add_own(&mut self, hashes: KernelHashes) {
        let expected = self.expected;
        let mut add = |kernel_hashes: Option<KernelHashes>, change, area| {
            self.add(Variant {
                firmware: expected.firmware,
                form: Form::Direct(kernel_hashes),
                whole: None,
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
            form: Form::Direct(None),
            whole: None,
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
                form: Form::Direct(kernel_hashes),
                whole: None,
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
            form: Form::Direct(Some(KernelHashes { cmdline, ..hashes })),
            whole: None,
            cmdline: Cmdline::Edited(text, edit),
            descriptions: vec![vec![Change::Cmdline(change)]],
            area: Area::Cmdline,
            reach,
        })
    }

    /// Adds a variant, or its descriptions to the variant that is measured alike.
    fn add(&mut self, variant: Variant<'a>) {
        let key = (variant.firmware.number, variant.form);
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

const fn other_boot(boot: BootMethod) -> BootMethod {
    match boot {
        BootMethod::DirectKernel => BootMethod::Igvm,
        BootMethod::Igvm => BootMethod::DirectKernel,
    }
}

const fn booted(form: Form) -> Change {
    Change::Boot { found: form.boot() }
}

/// The known image that a change is about.
pub(super) fn named(change: &Change) -> Option<&str> {
    match change {
        Change::Image { name } => Some(name),
        Change::Part { of, .. } | Change::KernelHashesOn { of } => Some(of),
        _ => None,
    }
}
