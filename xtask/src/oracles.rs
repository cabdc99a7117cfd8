//! Programs by others whose answers tests compare with ours, and what tests boot.

use crate::{layers, programs};
use anyhow::{Context, Result};
use assay_cluster::programs::REGISTRY;
use assay_cluster::{Cache, command, pins};
use std::fs;
use std::path::{Path, PathBuf};

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
        ("ASSAY_IGVM_TOOLS", igvm_tools(cache)?),
        ("ASSAY_IMAGE_ORACLES", layers::image_oracles(cache)?),
        ("ASSAY_BOOT_KIT", layers::archive(cache, &layers::BOOT_KIT)?),
        (
            "ASSAY_QUICKSTART_WEB",
            layers::archive(cache, &layers::WEB_SERVER)?,
        ),
        ("ASSAY_AGENT", programs::build_agent()?),
        (
            "ASSAY_REGISTRY_PROGRAM",
            cache.program(&REGISTRY, "registry")?,
        ),
    ]
    .into_iter()
    .map(|(name, path)| Ok((name, text(&path)?)))
    .collect()
}

/// Directory of the programs of virtfw-igvm-tools.
fn igvm_tools(cache: &Cache) -> Result<PathBuf> {
    let name = format!("virtfw-igvm-tools-{}", pins::IGVM_TOOLS);
    let what = format!("{name} (second opinion on IGVM files)");
    let entry = cache.entry("programs", &name, &what, |scratch| {
        let target = scratch.join("target");
        let mut install = command::with_args(
            "cargo",
            [
                "install",
                "--locked",
                "--quiet",
                "--version",
                pins::IGVM_TOOLS,
            ],
        );
        install
            .args(["virtfw-igvm-tools".as_ref(), "--root".as_ref(), scratch])
            .args(["--target-dir".as_ref(), target.as_path()])
            // Of this workspace no setting is theirs.
            .current_dir(scratch);
        command::logged(&mut install, &cache.log("igvm-tools")?)
            .context("install virtfw-igvm-tools; does cargo reach its registry?")?;
        fs::remove_dir_all(&target).with_context(|| format!("remove {}", target.display()))
    })?;
    Ok(entry.join("bin"))
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().context("a path is not UTF-8")?.to_owned())
}
