//! The container images: our programs, the boot kit and the quickstart's web
//! server, packed and stored by our own writers, without a container engine.

use crate::destination::Destination;
use crate::layers;
use crate::programs;
use crate::tree::Tree;
use anyhow::{Context, Result};
use assay_cluster::{Cache, progress::say};
use assay_image::oci::{ImageOptions, Layer, OciImage, RunConfig};
use serde::{Deserialize, Serialize};
use std::fs;
use std::time::Instant;

/// References by digest of everything that was stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Images {
    /// Images of inputs.
    #[serde(flatten)]
    pub(crate) inputs: InputImages,
    /// Images of our programs.
    #[serde(flatten)]
    pub(crate) programs: ProgramImages,
}

/// Images that hold only Debian's packages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InputImages {
    /// Kernel, modules, stub and firmware.
    pub(crate) boot_kit: String,
    /// The quickstart's web server.
    pub(crate) quickstart_web: String,
    /// A static shell for test pods.
    pub(crate) busybox: String,
}

/// Images with our programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProgramImages {
    /// CLI, operator and broker.
    pub(crate) assay: String,
    /// QEMU and the launcher.
    pub(crate) launcher: String,
    /// CLI and the guest agent that it packs.
    pub(crate) builder: String,
}

/// Builds everything and stores it.
pub(crate) fn store_all(cache: &Cache, to: &mut Destination) -> Result<Images> {
    let inputs = store_inputs(cache, to)?;
    let programs = store_programs(cache, to)?;
    Ok(Images { inputs, programs })
}

/// Packs and stores what comes from Debian alone.
pub(crate) fn store_inputs(cache: &Cache, to: &mut Destination) -> Result<InputImages> {
    let web = RunConfig {
        user: Some(NONROOT.to_owned()),
        env: Some(vec![path_variable()]),
        entrypoint: Some(strings(&[
            "/usr/sbin/nginx",
            "-e",
            "stderr",
            "-g",
            "daemon off;",
        ])),
        stop_signal: Some("SIGQUIT".to_owned()),
        ..RunConfig::default()
    };
    let shell = RunConfig {
        user: Some(NONROOT.to_owned()),
        env: Some(vec!["PATH=/bin".to_owned()]),
        entrypoint: Some(strings(&["/bin/sh"])),
        ..RunConfig::default()
    };
    Ok(InputImages {
        boot_kit: store(
            to,
            "boot-kit",
            RunConfig::default(),
            &[layers::layer(cache, &layers::BOOT_KIT)?],
        )?,
        quickstart_web: store(
            to,
            "quickstart-web",
            web,
            &[layers::layer(cache, &layers::WEB_SERVER)?],
        )?,
        busybox: store(
            to,
            "busybox",
            shell,
            &[layers::layer(cache, &layers::BUSYBOX)?],
        )?,
    })
}

/// Builds our programs, and packs and stores their images.
fn store_programs(cache: &Cache, to: &mut Destination) -> Result<ProgramImages> {
    let release = programs::build()?;
    let program = |name: &str| -> Result<Vec<u8>> {
        let path = release.join(name);
        fs::read(&path).with_context(|| format!("read {}", path.display()))
    };
    let binaries = |names: &[&str]| -> Result<Tree> {
        let mut tree = Tree::default();
        for name in names {
            tree.file(&format!("usr/bin/{name}"), 0o755, program(name)?);
            tree.symlink(name, &format!("usr/bin/{name}"));
        }
        Ok(tree)
    };
    let run = |entrypoint: &str| RunConfig {
        user: Some(NONROOT.to_owned()),
        env: Some(vec![path_variable()]),
        entrypoint: Some(vec![format!("/usr/bin/{entrypoint}")]),
        ..RunConfig::default()
    };
    let certificates = layers::layer(cache, &layers::CA_CERTIFICATES)?;
    let mut base = Tree::default();
    layers::accounts(&mut base);
    base.directory("tmp", 0o777);
    let base = base.to_layer();

    let assay = binaries(&["assay", "assay-broker", "assay-operator"])?.to_layer();
    let launcher = binaries(&["assay-launcher"])?.to_layer();
    let mut builder = binaries(&["assay"])?;
    builder.file(AGENT_PATH, 0o755, program("assay-agent")?);
    Ok(ProgramImages {
        assay: store(
            to,
            "assay",
            run("assay"),
            &[base.clone(), certificates.clone(), assay],
        )?,
        launcher: store(
            to,
            "assay-launcher",
            run("assay-launcher"),
            &[layers::layer(cache, &layers::LAUNCHER_ROOT)?, launcher],
        )?,
        builder: store(
            to,
            "assay-builder",
            run("assay"),
            &[base, certificates, builder.to_layer()],
        )?,
    })
}

/// The user that every image of ours runs as.
const NONROOT: &str = "65532:65532";
/// Where `assay build` finds the guest agent in the builder image.
const AGENT_PATH: &str = "usr/lib/assay/assay-agent";

fn path_variable() -> String {
    "PATH=/usr/sbin:/usr/bin".to_owned()
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// Assembles an image and stores it.
pub(crate) fn store(
    to: &mut Destination,
    name: &str,
    run: RunConfig,
    layers: &[Layer],
) -> Result<String> {
    let start = Instant::now();
    let options = ImageOptions {
        run,
        ..ImageOptions::default()
    };
    let image = OciImage::assemble(options, layers)
        .with_context(|| format!("assemble the image {name}"))?;
    let reference = to.store(name, &image)?;
    say(format!(
        "stored {reference} ({:.1} s)",
        start.elapsed().as_secs_f64()
    ));
    Ok(reference)
}
