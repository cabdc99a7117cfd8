//! Explanations as sentences.

use std::fmt;

use assay_tee::vmsa::Vmm;
use assay_tee::{BootMethod, GuestFeatures};

use super::{Area, Cause, Change, CmdlineChange, Explanation, Gap, Part, RuledOut, RuledOutArea};

/// Most causes that a sentence lists.
const MAX_LISTED: usize = 4;
/// Most characters of a command line in a sentence.
const MAX_QUOTED: usize = 160;

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expected => f.write_str("equals what was expected"),
            Self::Found { causes } => {
                f.write_str("equals ")?;
                for (index, cause) in causes.iter().take(MAX_LISTED).enumerate() {
                    let separator = if index == 0 { "" } else { ", or " };
                    write!(f, "{separator}{cause}")?;
                }
                match causes.len().saturating_sub(MAX_LISTED) {
                    0 => Ok(()),
                    more => write!(f, ", or {more} more that are measured alike"),
                }
            }
            Self::Unexplained(ruled_out) => ruled_out.fmt(f),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let image = self.changes.iter().find_map(|change| match change {
            Change::Image { name } => Some(name),
            _ => None,
        });
        match image {
            Some(name) => write!(f, "image {name}")?,
            None => f.write_str("this image")?,
        }
        let rest = |change: &&Change| !matches!(change, Change::Image { .. });
        for change in self.changes.iter().filter(rest) {
            write!(f, " {change}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image { name } => write!(f, "replaced by image {name}"),
            Self::Part { part, of } => write!(f, "with the {part} of {of}"),
            Self::Boot { found } => f.write_str(match found {
                BootMethod::DirectKernel => "in its direct boot form",
                BootMethod::Igvm => "in its IGVM form",
            }),
            Self::KernelHashesOff => f.write_str("booted without kernel hashes"),
            Self::KernelHashesOn { of } => {
                write!(f, "with kernel hashes on and the kernel of {of}")
            }
            Self::InitrdLeftOut => f.write_str("with the initrd left out"),
            Self::Cmdline(change) => change.fmt(f),
            Self::Vcpus { found, expected } => {
                let plural = if found.get() == 1 { "" } else { "s" };
                let (found, expected) = (found.get(), expected.get());
                write!(f, "with {found} vCPU{plural} instead of {expected}")
            }
            Self::CpuModel {
                signature,
                models,
                host,
            } => match (models.split_last(), host) {
                (None, None) => write!(f, "on a CPU of signature {signature}"),
                (None, Some(host)) => write!(f, "with -cpu host on {host}"),
                (Some((only, [])), _) => write!(f, "on {only}"),
                (Some((last, others)), _) => write!(f, "on {} or {last}", others.join(", ")),
            },
            Self::GuestFeatures { found, expected } => write!(
                f,
                "with guest features {} instead of {}",
                Features(*found),
                Features(*expected)
            ),
            Self::Vmm { found } => f.write_str(match found {
                Vmm::Qemu => "started by QEMU on Linux 6.10 or later",
                Vmm::QemuBeforeInit2 => "started by QEMU on a Linux before 6.10",
                Vmm::Ec2 => "started by Amazon EC2",
                Vmm::Ec2BeforeRdx => "started by Amazon EC2 before April 2026",
                Vmm::Gce => "started by Google Compute Engine",
                Vmm::GceGenoa => "started by Google Compute Engine on Genoa",
                Vmm::Krun => "started by libkrun",
            }),
        }
    }
}

/// Features as a number and by name.
struct Features(GuestFeatures);

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0.0)?;
        let set = GuestFeatures::named().filter(|(_, bit)| self.0.0 & bit != 0);
        let names: Vec<_> = set.map(|(name, _)| name).collect();
        if names.is_empty() {
            Ok(())
        } else {
            write!(f, " ({})", names.join(","))
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Firmware => "firmware",
            Self::Boot => "kernel, initrd and command line",
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::Cmdline => "command line",
        })
    }
}

impl fmt::Display for CmdlineChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newline => f.write_str("with the command line ended by a newline"),
            Self::CarriageReturn => {
                f.write_str("with the command line ended by a carriage return and a newline")
            }
            Self::TrailingBlank => f.write_str("with the command line ended by a blank"),
            Self::LeadingBlank => f.write_str("with a blank before the command line"),
            Self::Trimmed => f.write_str("without the blanks around the command line"),
            Self::WithoutNul => f.write_str("with the command line hashed without its NUL"),
            Self::SecondNul => f.write_str("with the command line ended by a second NUL"),
            Self::Empty => f.write_str("with an empty command line"),
            Self::WordRemoved { word } => write!(f, "without the word {}", Quoted(word)),
            Self::WordEmptied { word } => {
                write!(
                    f,
                    "with a blank alone in place of the word {}",
                    Quoted(word)
                )
            }
            Self::WordDoubled { word } => write!(f, "with the word {} twice", Quoted(word)),
            Self::WordsSwapped { first, second } => {
                write!(f, "with {} and {} swapped", Quoted(first), Quoted(second))
            }
            Self::WordAdded { word, before: None } => {
                write!(f, "with the word {} added", Quoted(word))
            }
            Self::WordAdded {
                word,
                before: Some(before),
            } => write!(
                f,
                "with the word {} added before {}",
                Quoted(word),
                Quoted(before)
            ),
            Self::WordReplaced { word, by } | Self::Mistyped { words: word, by } => {
                write!(f, "with {} instead of {}", Quoted(by), Quoted(word))
            }
        }
    }
}

/// Text of a command line, cut where it is long. Words of plain characters stand
/// as they are.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_plain = |char: char| char.is_ascii_graphic() && char != '"';
        if self.0.chars().count() > MAX_QUOTED {
            let start: String = self.0.chars().take(MAX_QUOTED).collect();
            write!(f, "{start:?}…")
        } else if !self.0.is_empty() && self.0.chars().all(is_plain) {
            f.write_str(self.0)
        } else {
            write!(f, "{:?}", self.0)
        }
    }
}

impl fmt::Display for RuledOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("equals nothing that is known")?;
        for (index, area) in self.areas.iter().enumerate() {
            let separator = if index == 0 { "; ruled out: " } else { ", " };
            write!(f, "{separator}{area}")?;
        }
        for (index, gap) in self.gaps.iter().enumerate() {
            let separator = if index == 0 { "; not tried: " } else { ", " };
            write!(f, "{separator}{gap}")?;
        }
        Ok(())
    }
}

impl fmt::Display for RuledOutArea {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (variants, launches) = (self.variants, self.launches);
        let plural = |one: &str| {
            let s = if variants == 1 { "" } else { "s" };
            format!("{variants} {one}{s}")
        };
        let what = match self.area {
            Area::Shape => return write!(f, "this image in {launches} shapes"),
            Area::Boot => plural("image") + " in the other boot form",
            Area::KernelHashes => plural("firmware") + " without kernel hashes",
            Area::Initrd => "no initrd".to_owned(),
            Area::Cmdline => plural("other command line"),
            Area::Image => plural("other image"),
            Area::Part => plural("part") + " of other images",
        };
        write!(f, "{what} ({launches} launches)")
    }
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CmdlineUnknown => f.write_str("other command lines, as only its hash is known"),
            Self::CmdlineTooLong => f.write_str("typing errors in so long a command line"),
            Self::WordLimit { left_out } => {
                write!(
                    f,
                    "changes of the last {left_out} words of the command line"
                )
            }
            Self::TokenLimit { left_out } => {
                write!(f, "{left_out} further words in the command line")
            }
            Self::KnownLimit { left_out } => write!(f, "{left_out} further images"),
            Self::Unmeasurable { name } => write!(f, "{name}, which cannot be measured"),
            Self::WorkLimit { area } => {
                let what = match area {
                    Area::Shape => "shapes of this image",
                    Area::Boot => "launches in the other boot form",
                    Area::KernelHashes => "launches without kernel hashes",
                    Area::Initrd => "launches without an initrd",
                    Area::Cmdline => "launches with other command lines",
                    Area::Image => "launches of other images",
                    Area::Part => "launches with parts of other images",
                };
                write!(f, "some {what}, as the limit of work was reached")
            }
        }
    }
}
