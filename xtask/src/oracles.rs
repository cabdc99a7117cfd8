//! Programs by others whose answers tests compare with ours, and what tests boot.

use crate::{layers, programs};
use anyhow::{Context, Result};
use assay_cluster::Cache;
use std::path::Path;

/// Where they are, as the environment variables that tests look at. What is
/// missing is fetched or built.
pub(crate) fn variables(cache: &Cache) -> Result<Vec<(&'static str, String)>> {
    let mut firmware = vec![layers::firmware(cache)?];
    firmware.extend(layers::other_firmware(cache)?);
    let firmware = std::env::join_paths(firmware).context("name the firmware")?;
    [
        ("ASSAY_SEV_SNP_MEASURE", cache.sev_snp_measure()?),
        ("ASSAY_GO_SEV_GUEST_CHECK", cache.go_sev_guest_check()?),
        ("ASSAY_ORACLE_FIRMWARE", firmware.into()),
        ("ASSAY_IMAGE_ORACLES", layers::image_oracles(cache)?),
        ("ASSAY_BOOT_KIT", layers::archive(cache, &layers::BOOT_KIT)?),
        (
            "ASSAY_QUICKSTART_WEB",
            layers::archive(cache, &layers::WEB_SERVER)?,
        ),
        ("ASSAY_AGENT", programs::build_agent()?),
    ]
    .into_iter()
    .map(|(name, path)| Ok((name, text(&path)?)))
    .collect()
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().context("a path is not UTF-8")?.to_owned())
}
