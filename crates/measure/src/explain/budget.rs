//! The bound of the work, and what was left out.

use super::{Area, Gap, MAX_WORK};

/// Bytes that are hashed in the time of a page's PAGE_INFO, with SHA-384.
pub(super) const BYTES_OF_PAGE: usize = 256;

/// What may still be measured, and what was not tried.
///
/// No part of the search may take more than half of what is left before it, but
/// for the last one: many images do not keep it from trying typing errors.
pub(super) struct Budget {
    left: u64,
    /// What later parts of the search may count on.
    reserved: u64,
    gaps: Vec<Gap>,
}

impl Budget {
    pub(super) const fn new() -> Self {
        Self {
            left: MAX_WORK,
            reserved: MAX_WORK / 2,
            gaps: Vec::new(),
        }
    }

    /// Begins the next part of the search.
    pub(super) const fn begin(&mut self, is_last: bool) {
        self.reserved = if is_last { 0 } else { self.left / 2 };
    }

    /// Takes `pages` off what may be measured. `None` where there is not enough
    /// left.
    pub(super) fn spend(&mut self, pages: u64, area: Area) -> Option<()> {
        match self.left.checked_sub(pages) {
            Some(left) if left >= self.reserved => {
                self.left = left;
                Some(())
            }
            _ => {
                self.gap(Gap::WorkLimit { area });
                None
            }
        }
    }

    /// Notes what was not tried.
    pub(super) fn gap(&mut self, gap: Gap) {
        if !self.gaps.contains(&gap) {
            self.gaps.push(gap);
        }
    }

    pub(super) fn into_gaps(self) -> Vec<Gap> {
        self.gaps
    }
}

/// The pages that take as long as hashing `bytes`.
pub(super) fn pages_of(bytes: usize) -> u64 {
    u64::try_from(bytes / BYTES_OF_PAGE + 1).unwrap_or(u64::MAX)
}
