use std::process::Command;

use assay_image::oci::{ImageOptions, Layer, OciImage, RunConfig};
use assay_image::tarball::{Owner, TarBuilder};

use crate::{Prepared, assert_well, prepared};

/// What the files of the image have together, in MiB.
const IMAGE: usize = 512;
/// What a process may have for itself, in MiB: RLIMIT_DATA counts neither its code
/// nor maps of files.
const LIMIT: usize = 128;

#[test]
fn an_image_larger_than_the_memory_is_built_and_pulled() {
    let Some(prepared) = prepared("an image larger than the memory") else {
        return;
    };
    let mut tar = TarBuilder::new();
    for number in 0..IMAGE / 64 {
        let content: Vec<u8> = (0..64 << 20)
            .map(|at: usize| (at % 251 + number).to_le_bytes()[0])
            .collect();
        tar.file(format!("data/{number}"), 0o644, Owner::ROOT, content);
    }
    tar.file("bin/web", 0o755, Owner::ROOT, b"\x7fELF".to_vec());
    let options = ImageOptions {
        run: RunConfig {
            entrypoint: Some(vec!["/bin/web".to_owned()]),
            ..RunConfig::default()
        },
        ..ImageOptions::default()
    };
    let layer = Layer::gzip(&tar.finish()).unwrap();
    let large = Prepared {
        kit: prepared.kit.clone(),
        web: OciImage::assemble(options, &[layer]).unwrap(),
        agent: prepared.agent.clone(),
        oracles: prepared.oracles.clone(),
    };

    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| directory.path().join(name);
    large.layout(&path("layout"));
    std::fs::write(path("image.yaml"), large.image_yaml("registry.example")).unwrap();
    let build = |limit: usize| {
        Command::new("sh")
            .args(["-c", "ulimit -d \"$0\" && exec \"$@\""])
            .args([&(limit * 1024).to_string(), env!("CARGO_BIN_EXE_assay")])
            .args(["build", "--progress", "plain", "-f"])
            .arg(path("image.yaml"))
            .arg("--agent")
            .arg(&large.agent)
            .arg("--rootfs-layout")
            .arg(path("layout"))
            .arg("--kit-layout")
            .arg(path("layout"))
            .arg("--scratch")
            .arg(directory.path())
            .arg("--output")
            .arg(path("out"))
            .output()
            .unwrap()
    };
    assert_well(&build(LIMIT));
    let disk = std::fs::metadata(path("out/rootfs.img")).unwrap().len();
    assert!(disk > (IMAGE << 20) as u64);
    // The limit is one: what it allows is less than what the kit alone takes.
    assert!(!build(4).status.success());
}
