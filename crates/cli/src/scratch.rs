//! Where large content is kept while it is worked on.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use assay_registry::Scratch;

/// Options of commands that handle whole images.
#[derive(Debug, clap::Args)]
pub(crate) struct ScratchArgs {
    /// Directory for temporary files without a name, as large as the images once
    /// uncompressed; on a disk, since a tmpfs is memory [default: $TMPDIR or /var/tmp]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

impl ScratchArgs {
    /// The directory, which must take files.
    pub(crate) fn open(&self) -> Result<Scratch> {
        let directory = self.scratch.clone().unwrap_or_else(|| {
            env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
        });
        Scratch::new(directory).context("name another directory with --scratch")
    }
}
