//! The running launch digest (SEV-SNP Firmware ABI, SNP_LAUNCH_UPDATE): each page
//! replaces the digest by the SHA-384 of its PAGE_INFO, which holds the digest
//! so far. The initial digest is zero.

use std::marker::PhantomData;

use assay_tee::page_info::{PAGE_SIZE, PAGE_SIZE_U64, PageInfo, PageType};
use assay_tee::{LaunchDigest, Sha384Digest};
use zerocopy::IntoBytes as _;

use crate::pages::PageDigests;
use crate::sha384::sha384;
use crate::trace::{MeasuredRegion, RegionKind};

/// Pages may still be added; there is no digest to compare with anything yet.
#[derive(Debug, Clone, Copy)]
pub struct Updating;

/// SNP_LAUNCH_FINISH: the digest is final.
#[derive(Debug, Clone, Copy)]
pub struct Finished;

/// A launch in progress or finished.
#[derive(Debug, Clone)]
pub struct LaunchContext<State> {
    digest: [u8; 48],
    trace: Vec<MeasuredRegion>,
    state: PhantomData<State>,
}

/// Pages that no processor would accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// The address is no multiple of the page size.
    #[error("address {gpa:#x} is not page-aligned")]
    Misaligned {
        /// Guest physical address.
        gpa: u64,
    },
    /// The length is no multiple of the page size, or the region wraps around.
    #[error("{length:#x} bytes at {gpa:#x} are no whole pages of the address space")]
    Length {
        /// Guest physical address.
        gpa: u64,
        /// Length in bytes.
        length: u64,
    },
    /// The page type needs content and none was given.
    #[error("pages of type {page_type:?} at {gpa:#x} need their content")]
    ContentsRequired {
        /// The page type.
        page_type: PageType,
        /// Guest physical address.
        gpa: u64,
    },
}

impl Default for LaunchContext<Updating> {
    fn default() -> Self {
        Self::new()
    }
}

impl LaunchContext<Updating> {
    /// SNP_LAUNCH_START: nothing is measured.
    pub const fn new() -> Self {
        Self {
            digest: [0; 48],
            trace: Vec::new(),
            state: PhantomData,
        }
    }

    /// A launch whose firmware at `gpa` was measured before, giving `digest`.
    pub fn after_firmware(digest: LaunchDigest, gpa: u64, length: u64) -> Self {
        let mut context = Self::new();
        context.resume(RegionKind::Firmware, digest, gpa, length);
        context
    }

    /// Continues after normal pages at `gpa` that were measured before, giving
    /// `digest`.
    pub fn resume(&mut self, kind: RegionKind, digest: LaunchDigest, gpa: u64, length: u64) {
        self.digest = *digest.as_bytes();
        self.record(kind, PageType::Normal, gpa, length);
    }

    /// The same launch with an empty trace, to be continued another way.
    #[must_use]
    pub const fn branch(&self) -> Self {
        Self {
            digest: self.digest,
            trace: Vec::new(),
            state: PhantomData,
        }
    }

    /// Measures normal pages with `contents` at `gpa`.
    ///
    /// # Errors
    /// When address or length are not page-aligned.
    pub fn update_normal(
        &mut self,
        kind: RegionKind,
        gpa: u64,
        contents: &[u8],
    ) -> Result<(), UpdateError> {
        let (pages, rest) = contents.as_chunks::<PAGE_SIZE>();
        let length = u64::try_from(contents.len()).unwrap_or(u64::MAX);
        if !rest.is_empty() {
            return Err(UpdateError::Length { gpa, length });
        }
        count_pages(gpa, length)?;
        self.update_hashed(kind, gpa, &PageDigests::of(pages))
    }

    /// Measures normal pages from `gpa` on whose contents were hashed before.
    ///
    /// # Errors
    /// When the address is not page-aligned, or they go beyond the address space.
    pub fn update_hashed(
        &mut self,
        kind: RegionKind,
        gpa: u64,
        pages: &PageDigests,
    ) -> Result<(), UpdateError> {
        let length = pages.length();
        count_pages(gpa, length)?;
        let mut page_gpa = gpa;
        for (run, contents) in pages.runs() {
            for _ in 0..*run {
                self.extend(PageType::Normal, page_gpa, contents.as_bytes());
                page_gpa = page_gpa.wrapping_add(PAGE_SIZE_U64);
            }
        }
        let region = self.record(kind, PageType::Normal, gpa, length);
        region.contents = match pages.runs() {
            [(1, contents)] => Some(*contents),
            _ => None,
        };
        Ok(())
    }

    /// Measures the save area of virtual CPU `vcpu`, whose page has the digest
    /// `contents`.
    ///
    /// # Errors
    /// When the address is not page-aligned.
    pub fn update_vmsa(
        &mut self,
        vcpu: u32,
        gpa: u64,
        contents: Sha384Digest,
    ) -> Result<(), UpdateError> {
        count_pages(gpa, PAGE_SIZE_U64)?;
        self.extend(PageType::Vmsa, gpa, contents.as_bytes());
        let region = self.record(RegionKind::Vmsa, PageType::Vmsa, gpa, PAGE_SIZE_U64);
        region.vcpu = Some(vcpu);
        region.contents = Some(contents);
        Ok(())
    }

    /// The digest as it would be if the launch ended here.
    pub(crate) const fn digest_so_far(&self) -> LaunchDigest {
        LaunchDigest::new(self.digest)
    }

    /// Measures that `length` bytes at `gpa` exist with a type whose content is
    /// not measured. No bytes, no measurement: a length of zero leaves digest
    /// and trace as they are.
    ///
    /// # Errors
    /// When address or length are not page-aligned, or the type needs content.
    pub fn update_without_contents(
        &mut self,
        kind: RegionKind,
        page_type: PageType,
        gpa: u64,
        length: u64,
    ) -> Result<(), UpdateError> {
        if page_type.has_contents() {
            return Err(UpdateError::ContentsRequired { page_type, gpa });
        }
        for page_gpa in page_addresses(gpa, length)? {
            self.extend(page_type, page_gpa, &[0; 48]);
        }
        if length != 0 {
            self.record(kind, page_type, gpa, length);
        }
        Ok(())
    }

    /// SNP_LAUNCH_FINISH.
    pub fn finish(self) -> LaunchContext<Finished> {
        LaunchContext {
            digest: self.digest,
            trace: self.trace,
            state: PhantomData,
        }
    }

    /// Measures one page at an address that is page-aligned, without a trace: by
    /// itself for a search over thousands of launches.
    pub(crate) fn extend(&mut self, page_type: PageType, gpa: u64, contents: &[u8; 48]) {
        let info = PageInfo::new(self.digest, page_type, gpa, *contents);
        self.digest = *sha384(info.as_bytes()).as_bytes();
    }

    fn record(
        &mut self,
        kind: RegionKind,
        page_type: PageType,
        gpa: u64,
        length: u64,
    ) -> &mut MeasuredRegion {
        self.trace.push_mut(MeasuredRegion {
            kind,
            page_type,
            vcpu: None,
            gpa,
            length,
            contents: None,
            digest_after: LaunchDigest::new(self.digest),
        })
    }
}

impl LaunchContext<Finished> {
    /// The launch digest.
    pub const fn digest(&self) -> LaunchDigest {
        LaunchDigest::new(self.digest)
    }

    /// What was measured.
    pub fn into_trace(self) -> Vec<MeasuredRegion> {
        self.trace
    }
}

/// The number of pages in a region of the address space.
fn count_pages(gpa: u64, length: u64) -> Result<u64, UpdateError> {
    if !gpa.is_multiple_of(PAGE_SIZE_U64) {
        return Err(UpdateError::Misaligned { gpa });
    }
    if !length.is_multiple_of(PAGE_SIZE_U64) || gpa.checked_add(length).is_none() {
        return Err(UpdateError::Length { gpa, length });
    }
    Ok(length / PAGE_SIZE_U64)
}

/// The addresses of the pages of a region.
fn page_addresses(gpa: u64, length: u64) -> Result<impl Iterator<Item = u64>, UpdateError> {
    let pages = count_pages(gpa, length)?;
    Ok((0..pages).map(move |page| gpa + page * PAGE_SIZE_U64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(context: LaunchContext<Updating>) -> String {
        context.finish().digest().to_hex()
    }

    /// A page type 1 update from zero (dstack `dstack-mr/src/sev.rs`, test of
    /// its launch context).
    #[test]
    fn one_normal_page_by_digest() {
        let mut context = LaunchContext::new();
        context.extend(
            PageType::Normal,
            0x1000,
            Sha384Digest::of(b"page").as_bytes(),
        );
        assert_eq!(
            finished(context),
            "3ebc1a70acc0bae5ae2788fae29a0371f983b19a68faf9843064f36040f58571\
             ce5bb6bcdc9c361087073f8cffd92635"
        );
    }

    /// Three normal pages at zero (gce-tcb-verifier `sev/sev_test.go`).
    #[test]
    fn normal_pages_by_content() {
        let mut pages = vec![0; 3 * PAGE_SIZE];
        let mark = b"LGTMLGTMLGTMLGTM";
        pages[..16].copy_from_slice(mark);
        let end = pages.len();
        pages[end - 16..].copy_from_slice(mark);
        let mut context = LaunchContext::new();
        context
            .update_normal(RegionKind::Firmware, 0, &pages)
            .unwrap();
        assert_eq!(
            finished(context),
            "cba1cd767c33b30f96271837dbbae4081a945464a5af397b9b0336b5d8759ee8\
             8cc6b62c05d915c4424a9ac5747437d4"
        );
    }

    /// Three zero pages at 0x9000 (gce-tcb-verifier `sev/sev_test.go`).
    #[test]
    fn zero_pages() {
        let mut context = LaunchContext::new();
        context
            .update_without_contents(RegionKind::SecMem, PageType::Zero, 0x9000, 0x3000)
            .unwrap();
        assert_eq!(
            finished(context),
            "4bfe18477ba370a50329da74b9621e721c4f29663176e08fbcf088a17c1bc45f\
             133898b86d5082acbe202a6e9419808a"
        );
    }

    #[test]
    fn impossible_pages_are_refused_and_change_nothing() {
        let mut context = LaunchContext::new();
        let normal = |context: &mut LaunchContext<_>, gpa, bytes: &[u8]| {
            context.update_normal(RegionKind::Firmware, gpa, bytes)
        };
        assert_eq!(
            normal(&mut context, 1, &[0; PAGE_SIZE]),
            Err(UpdateError::Misaligned { gpa: 1 })
        );
        assert_eq!(
            normal(&mut context, 0, &[0; 10]),
            Err(UpdateError::Length { gpa: 0, length: 10 })
        );
        let top = u64::MAX - 0xfff;
        assert_eq!(
            normal(&mut context, top, &[0; 2 * PAGE_SIZE]),
            Err(UpdateError::Length {
                gpa: top,
                length: 0x2000
            })
        );
        assert_eq!(
            context.update_without_contents(RegionKind::Vmsa, PageType::Vmsa, 0, 4096),
            Err(UpdateError::ContentsRequired {
                page_type: PageType::Vmsa,
                gpa: 0
            })
        );
        assert_eq!(finished(context), "00".repeat(48));
    }
}
