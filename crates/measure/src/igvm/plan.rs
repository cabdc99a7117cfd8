//! What a loader does with a file, step by step, without the save areas that
//! KVM measures after all steps.

use assay_tee::igvm::{
    Directive, IgvmFile, Initialization, PageData, PageDataType, PlatformType, VpContext, VpState,
};
use assay_tee::page_info::{PAGE_SIZE_U64, PageType};
use assay_tee::vmsa::Vmsa;

use super::{IgvmLoader, MeasureIgvmError};

/// What a loader puts into the guest.
#[derive(Debug)]
pub(super) enum Step<'a> {
    /// Pages of the file.
    Pages(Pages<'a>),
    /// A parameter area, as unmeasured pages.
    Area {
        /// Guest physical address.
        gpa: u64,
        /// Bytes, whole pages.
        length: u64,
    },
    /// A save area where the file has it.
    SaveArea {
        /// Index of the virtual CPU.
        vcpu: u16,
        /// Guest physical address.
        gpa: u64,
        /// The save area.
        vmsa: &'a Vmsa,
    },
}

/// Pages of one kind, one after another in the file and in the guest.
#[derive(Debug)]
pub(super) struct Pages<'a> {
    /// Guest physical address of the first page.
    pub(super) gpa: u64,
    /// How they are given to the processor, but that empty normal pages may be
    /// zero pages.
    pub(super) page_type: PageType,
    /// Whether none of them has content; otherwise all have.
    pub(super) empty: bool,
    /// The pages' contents. `None` stands for zeros.
    pub(super) contents: Vec<Option<&'a [u8]>>,
    /// The last page, and its position among the directives.
    last: (PageData<'a>, usize),
}

impl<'a> Pages<'a> {
    fn new(page: PageData<'a>, index: usize) -> Self {
        Self {
            gpa: page.gpa,
            page_type: page_type(&page),
            empty: page.contents.is_none(),
            contents: vec![page.contents],
            last: (page, index),
        }
    }

    /// Bytes of the pages.
    pub(super) fn length(&self) -> u64 {
        let pages = u64::try_from(self.contents.len()).unwrap_or(u64::MAX);
        pages.saturating_mul(PAGE_SIZE_U64)
    }

    /// Whether QEMU adds a page to the pages before it.
    fn continues(&self, page: &PageData<'_>, index: usize) -> bool {
        let (last, last_index) = &self.last;
        last.flags == page.flags
            && last.data_type == page.data_type
            && last.compatibility_mask == page.compatibility_mask
            && self.empty == page.contents.is_none()
            && last.gpa.checked_add(PAGE_SIZE_U64) == Some(page.gpa)
            && last_index.checked_add(1) == Some(index)
    }
}

const fn page_type(page: &PageData<'_>) -> PageType {
    match page.data_type {
        PageDataType::Secrets => PageType::Secrets,
        PageDataType::CpuidData | PageDataType::CpuidXf => PageType::Cpuid,
        PageDataType::Normal if page.flags.unmeasured => PageType::Unmeasured,
        PageDataType::Normal => PageType::Normal,
    }
}

/// The compatibility mask of a platform.
pub(super) fn platform_mask(
    file: &IgvmFile<'_>,
    wanted: PlatformType,
) -> Result<u32, MeasureIgvmError> {
    if let Some(platform) = file.platform(wanted) {
        return Ok(platform.compatibility_mask);
    }
    let platforms: Vec<_> = file
        .platforms
        .iter()
        .map(|platform| platform.platform_type.to_string())
        .collect();
    Err(MeasureIgvmError::NoPlatform {
        wanted,
        platforms: platforms.join(", "),
    })
}

/// The steps of a loader on a platform.
pub(super) fn plan<'a>(
    file: &IgvmFile<'a>,
    platform: PlatformType,
    loader: IgvmLoader,
) -> Result<Vec<Step<'a>>, MeasureIgvmError> {
    let mask = platform_mask(file, platform)?;
    file.check_overlaps(mask)
        .map_err(MeasureIgvmError::Overlap)?;
    let is_qemu = matches!(loader, IgvmLoader::Qemu | IgvmLoader::QemuSvsm);
    if is_qemu {
        refuse_unknown_effects(file)?;
    }

    let mut steps = Vec::new();
    let mut pending: Option<Pages<'a>> = None;
    for (index, directive) in file.directives.iter().enumerate() {
        let applies = directive.compatibility_mask().is_none_or(|m| m & mask != 0);
        match directive {
            Directive::PageData(page) if applies => {
                if page.flags.is_2mb_page {
                    return Err(MeasureIgvmError::LargePage { gpa: page.gpa });
                }
                if page.flags.shared {
                    match loader {
                        IgvmLoader::Qemu | IgvmLoader::QemuSvsm => {
                            return Err(MeasureIgvmError::SharedPage { gpa: page.gpa });
                        }
                        IgvmLoader::FileOrder | IgvmLoader::NativeZero => continue,
                        IgvmLoader::Igvmmeasure => {}
                    }
                }
                match &mut pending {
                    Some(pages) if pages.continues(page, index) => {
                        pages.contents.push(page.contents);
                        pages.last = (*page, index);
                    }
                    _ => {
                        let pages = pending.replace(Pages::new(*page, index));
                        steps.extend(pages.map(Step::Pages));
                    }
                }
            }
            Directive::ParameterInsert(insert) if applies => {
                if !is_qemu {
                    steps.extend(pending.take().map(Step::Pages));
                }
                let length = match loader {
                    IgvmLoader::Igvmmeasure => PAGE_SIZE_U64,
                    _ => insert.number_of_bytes,
                };
                steps.push(Step::Area {
                    gpa: insert.gpa,
                    length,
                });
            }
            Directive::VpContext(VpContext {
                gpa,
                vp_index,
                state: VpState::Vmsa(vmsa),
                ..
            }) if !is_qemu && (applies || loader == IgvmLoader::Igvmmeasure) => {
                steps.extend(pending.take().map(Step::Pages));
                steps.push(Step::SaveArea {
                    vcpu: *vp_index,
                    gpa: *gpa,
                    vmsa,
                });
            }
            _ => {}
        }
    }
    steps.extend(pending.map(Step::Pages));
    Ok(steps)
}

/// Refuses headers that QEMU does not know and that move or add memory. Those
/// that only ask for parameters change no digest.
fn refuse_unknown_effects(file: &IgvmFile<'_>) -> Result<(), MeasureIgvmError> {
    let moves = |header: &&Initialization<'_>| {
        matches!(
            header,
            Initialization::RelocatableRegion(_) | Initialization::PageTableRelocation(_)
        )
    };
    let initialization = file.initialization.iter().find(moves);
    let header = initialization
        .map(Initialization::header_type)
        .or_else(|| file.optional.first().map(|header| header.header_type));
    match header {
        Some(header) => Err(MeasureIgvmError::Header(header)),
        None => Ok(()),
    }
}
