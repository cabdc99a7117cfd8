//! Where the programs and files are that are compared.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// Programs and files, by the environment variables that the tests use too.
#[derive(Debug)]
pub(crate) struct Peers {
    /// The `assay` program, built for release.
    pub(crate) assay: PathBuf,
    /// The AmdSev build of OVMF.
    pub(crate) firmware: PathBuf,
    /// The tar archive of a boot kit.
    pub(crate) boot_kit: Option<PathBuf>,
    /// The guest agent, built for release.
    pub(crate) agent: Option<PathBuf>,
    /// A root directory with mkfs.erofs, veritysetup, cpio and ukify.
    pub(crate) image_programs: Option<PathBuf>,
    /// sev-snp-measure.
    pub(crate) sev_snp_measure: Option<PathBuf>,
    /// go-sev-guest's check.
    pub(crate) go_sev_guest_check: Option<PathBuf>,
    /// Real evidence.
    pub(crate) vectors: Option<PathBuf>,
}

impl Peers {
    /// Reads the variables.
    ///
    /// # Errors
    /// When one of our own is missing.
    pub(crate) fn from_variables() -> Result<Self> {
        let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let needed = |name: &str| {
            path(name).with_context(|| format!("{name} is not set; start `cargo xtask bench`"))
        };
        Ok(Self {
            assay: needed("ASSAY_BENCH_CLI")?,
            firmware: needed("ASSAY_BENCH_FIRMWARE")?,
            boot_kit: path("ASSAY_BOOT_KIT"),
            agent: path("ASSAY_AGENT"),
            image_programs: path("ASSAY_IMAGE_ORACLES"),
            sev_snp_measure: path("ASSAY_SEV_SNP_MEASURE"),
            go_sev_guest_check: path("ASSAY_GO_SEV_GUEST_CHECK"),
            vectors: path("ASSAY_VECTORS"),
        })
    }
}
