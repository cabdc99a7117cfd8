use std::process::Command;

use assay_image::oci::{ImageOptions, Layer, OciImage, RunConfig};
use assay_image::rope::Rope;
use assay_image::tarball::{Owner, TarBuilder};

use crate::{Prepared, assert_well, prepared};

/// What a process may have for itself, in MiB: RLIMIT_DATA counts neither its code
/// nor maps of files.
const LIMIT: usize = 128;

/// An image of so many MiB, in files of 64.
fn layer(mebibytes: usize, byte: impl Fn(usize, usize) -> u8) -> Rope {
    let mut tar = TarBuilder::new();
    for number in 0..mebibytes / 64 {
        let content: Vec<u8> = (0..64 << 20).map(|at| byte(number, at)).collect();
        tar.file(format!("data/{number}"), 0o644, Owner::ROOT, content);
    }
    tar.file("bin/web", 0o755, Owner::ROOT, b"\x7fELF".to_vec());
    tar.finish()
}

/// Builds an image of this layer within the limit; the answer is the root disk's
/// length.
fn build_within_limit(prepared: &Prepared, layer: Layer, more: &str) -> usize {
    let options = ImageOptions {
        run: RunConfig {
            entrypoint: Some(vec!["/bin/web".to_owned()]),
            ..RunConfig::default()
        },
        ..ImageOptions::default()
    };
    let large = Prepared {
        kit: prepared.kit.clone(),
        web: OciImage::assemble(options, &[layer]).unwrap(),
        agent: prepared.agent.clone(),
        oracles: prepared.oracles.clone(),
    };
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| directory.path().join(name);
    large.layout(&path("layout"));
    let yaml = large.image_yaml("registry.example");
    let yaml = yaml.replace("    build:\n", &format!("    build:\n{more}"));
    std::fs::write(path("image.yaml"), yaml).unwrap();
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
    // The limit is one: what it allows is less than what the kit alone takes.
    assert!(!build(4).status.success());
    usize::try_from(disk).unwrap()
}

#[test]
fn an_image_larger_than_the_memory_is_built_and_pulled() {
    const IMAGE: usize = 512;
    let Some(prepared) = prepared("an image larger than the memory") else {
        return;
    };
    let layer = layer(IMAGE, |number, at| (at % 251 + number).to_le_bytes()[0]);
    let disk = build_within_limit(prepared, Layer::gzip(&layer).unwrap(), "");
    assert!(disk > IMAGE << 20);
}

/// What compression leaves is more than the memory, too.
#[test]
fn an_image_that_is_larger_than_the_memory_once_compressed_is_built() {
    const IMAGE: usize = 384;
    let Some(prepared) = prepared("a compressed image larger than the memory") else {
        return;
    };
    // Of every 256 bytes, half look like noise.
    let layer = layer(IMAGE, |number, at| {
        let mixed = (at + (number << 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        if at % 256 < 128 {
            mixed.to_be_bytes()[2]
        } else {
            0
        }
    });
    let more = "      compression: Lz4hc\n";
    let disk = build_within_limit(prepared, Layer::tar(layer), more);
    assert!(disk > LIMIT << 20 && disk < IMAGE << 20, "{disk} bytes");
}
