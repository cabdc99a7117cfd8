//! The launch commands that QEMU gives for an IGVM file, from the file's own
//! bytes, and the digest of the same file by the other implementation.
//!
//! Only files of ours are launched, in which parameter areas come first and save
//! areas last. QEMU's order is then the file's (QEMU `backends/igvm.c`), and a
//! file in another order is refused, not guessed about.

use assay_measure::igvm::{IgvmLaunch, MeasureIgvmError, measure_igvm_snp};
use assay_psp_sim::{LaunchError, Launching};
use assay_tee::igvm::{
    Directive, IgvmFile, PageDataType, ParseIgvmError, PlatformType, VpState, parse_igvm,
};
use assay_tee::page_info::{PAGE_SIZE, PageType};
use assay_tee::{LaunchDigest, LaunchShape};
use zerocopy::IntoBytes as _;

/// An IGVM file cannot be launched.
#[derive(Debug, thiserror::Error)]
pub enum IgvmError {
    /// The file cannot be read.
    #[error("cannot parse the file")]
    Parse(#[from] ParseIgvmError),
    /// The file is for other platforms.
    #[error("the file is not for SEV-SNP")]
    NoPlatform,
    /// The file's order is not QEMU's.
    #[error("directive {index} comes after others that QEMU gives the processor later")]
    Order {
        /// Position among the directives, from zero.
        index: usize,
    },
    /// A directive that no file of ours has.
    #[error("directive {index} is none that files of ours have")]
    Unexpected {
        /// Position among the directives, from zero.
        index: usize,
    },
    /// The simulated processor refuses a launch command.
    #[error("the simulated processor refuses the launch")]
    Launch(#[from] LaunchError),
    /// The file cannot be measured.
    #[error("cannot measure the file")]
    Measure(#[from] MeasureIgvmError),
}

/// An IGVM file that QEMU was given.
pub(super) struct IgvmBytes(pub(super) Vec<u8>);

impl IgvmBytes {
    pub(super) fn update(&self, launching: &mut Launching) -> Result<(), IgvmError> {
        let file = parse_igvm(&self.0)?;
        let mut stage = Stage::Parameters;
        for (index, directive) in of_snp(&file)? {
            let unexpected = IgvmError::Unexpected { index };
            let mut enter = |next: Stage| {
                let in_order = stage <= next;
                stage = next;
                in_order.then_some(()).ok_or(IgvmError::Order { index })
            };
            match directive {
                // Memory of QEMU's, which it fills and inserts below.
                Directive::ParameterArea(_) | Directive::Parameter(_) => {
                    enter(Stage::Parameters)?;
                }
                Directive::ParameterInsert(insert) => {
                    enter(Stage::Parameters)?;
                    let size = usize::try_from(insert.number_of_bytes).map_err(|_| unexpected)?;
                    launching.launch_update(PageType::Unmeasured, insert.gpa, &vec![0; size])?;
                }
                Directive::PageData(page) => {
                    enter(Stage::Pages)?;
                    if page.flags.unmeasured || page.flags.shared || page.flags.is_2mb_page {
                        return Err(unexpected);
                    }
                    let page_type = match page.data_type {
                        PageDataType::Normal => PageType::Normal,
                        PageDataType::Secrets => PageType::Secrets,
                        PageDataType::CpuidData => PageType::Cpuid,
                        PageDataType::CpuidXf => return Err(unexpected),
                    };
                    let contents = page.contents.unwrap_or(&[0; PAGE_SIZE]);
                    launching.launch_update(page_type, page.gpa, contents)?;
                }
                Directive::VpContext(context) => {
                    enter(Stage::SaveAreas)?;
                    let VpState::Vmsa(vmsa) = context.state else {
                        return Err(unexpected);
                    };
                    launching.launch_update(PageType::Vmsa, context.gpa, vmsa.as_bytes())?;
                }
                _ => return Err(unexpected),
            }
        }
        Ok(())
    }

    pub(super) fn predict(&self, shape: &LaunchShape) -> Result<LaunchDigest, IgvmError> {
        let launch = IgvmLaunch::Qemu {
            vcpus: shape.vcpus,
            reset: None,
        };
        Ok(measure_igvm_snp(&parse_igvm(&self.0)?, &launch)?.digest)
    }
}

/// The order in which QEMU and KVM give a file's parts to the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Parameters,
    Pages,
    SaveAreas,
}

/// The directives for SEV-SNP, with their positions.
fn of_snp<'a, 'b>(
    file: &'b IgvmFile<'a>,
) -> Result<impl Iterator<Item = (usize, &'b Directive<'a>)>, IgvmError> {
    let platform = file
        .platform(PlatformType::SevSnp)
        .ok_or(IgvmError::NoPlatform)?;
    let mask = platform.compatibility_mask;
    let applies = move |(_, directive): &(usize, &Directive<'a>)| {
        directive.compatibility_mask().is_none_or(|m| m & mask != 0)
    };
    Ok(file.directives.iter().enumerate().filter(applies))
}
