//! `assay build` against what a person would run by hand: gzip, mkfs.erofs,
//! veritysetup, cpio and ukify, on the same images.

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use assay_image::oci::{ImageOptions, Layer, OciImage, RunConfig};
use assay_image::rope::Rope;
use assay_image::tarball::{Owner, TarBuilder};
use assay_image::uki::parse_uki;
use assay_image::verity::{VerityParameters, append_verity};
use assay_registry::LayoutWriter;
use assay_tee::Sha256Digest;
use bytes::Bytes;
use serde_json::json;

use crate::hashing::against_openssl;
use crate::peers::Peers;
use crate::process::{Cost, in_turn};
use crate::table::{compare, duration, heading, mebibytes, median, skipped};

/// Sizes of the trees: megabytes, and what they are called.
const TREES: [(usize, &str); 2] = [(200, "200 MB"), (1000, "1 GB")];
/// Length of most files, as in a distribution's image.
const FILE_LEN: usize = 50_000;
/// Times that each pipeline runs.
const ROUNDS: usize = 3;

/// By hand, with `$1` the root of the programs, `$2` the directory of the build as
/// seen there and `$3` as seen here.
const BY_HAND: &str = r#"set -e
cd "$3"
sha256sum --quiet --check layer.sha256
gzip -dc layer.tar.gz > rootfs.tar
rm -f rootfs.img
chroot "$1" mkfs.erofs --quiet -T0 --all-time -U 00000000-0000-4000-8000-000000000001 --tar=f "$2/rootfs.img" "$2/rootfs.tar"
chroot "$1" veritysetup format --salt=00 --uuid=00000000-0000-4000-8000-000000000002 \
  --hash-offset="$(stat -c %s rootfs.img)" "$2/rootfs.img" "$2/rootfs.img" > verity.txt
(cd initrd && find . | LC_ALL=C sort) |
  chroot "$1" cpio --quiet --create --format=newc --reproducible --owner=0:0 --directory="$2/initrd" > initrd.cpio
chroot "$1" ukify build --linux="$2/linux" --initrd="$2/initrd.cpio" --cmdline=console=ttyS0 --os-release=ID=bench \
  --uname=bench --stub=/usr/lib/systemd/boot/efi/linuxx64.efi.stub --output="$2/uki.efi" > ukify.txt
sha256sum uki.efi rootfs.img > manifest.txt
"#;

/// Runs the benchmark.
pub(crate) fn run(peers: &Peers) -> Result<()> {
    heading("Images: `assay build` against mkfs.erofs, veritysetup, cpio and ukify");
    verity()?;
    let (Some(kit), Some(agent)) = (&peers.boot_kit, &peers.agent) else {
        skipped("images", "there is no boot kit");
        return Ok(());
    };
    let Some(root) = &peers.image_programs else {
        skipped("images", "the programs are not installed");
        return Ok(());
    };
    for (megabytes, name) in TREES {
        let build = Build::prepare(root, kit, agent, &peers.assay, megabytes)?;
        let costs = in_turn([&build.ours, &build.by_hand], ROUNDS, || Ok(()))?;
        build.report(name, costs)?;
    }
    Ok(())
}

/// The hash tree in memory, on all processors.
fn verity() -> Result<()> {
    let data = Bytes::from(vec![0x5a_u8; 256 << 20]);
    let parameters = VerityParameters {
        salt: [0; 32],
        uuid: [0; 16],
    };
    // By the clock: a thread's own time leaves out the others.
    let times = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        let mut image = Rope::from(data.clone());
        black_box(append_verity(&mut image, &parameters))?;
        Ok(start.elapsed())
    });
    let time = median(times.collect::<Result<_>>()?);
    let ours = f64::from(256 << 20) / time.as_secs_f64();
    against_openssl(
        "dm-verity tree of 256 MiB, all processors",
        ours,
        "sha256",
        4096,
    );
    Ok(())
}

/// One image, to be built in two ways.
struct Build {
    directory: tempfile::TempDir,
    ours: Command,
    by_hand: Command,
}

impl Build {
    fn prepare(
        root: &Path,
        kit: &Path,
        agent: &Path,
        assay: &Path,
        megabytes: usize,
    ) -> Result<Self> {
        let directory = tempfile::tempdir_in(root.join("tmp")).context("create a directory")?;
        let at = |name: &str| directory.path().join(name);
        let layer = Layer::gzip(&tree(megabytes)).context("compress the layer")?;
        let mut layout = LayoutWriter::create(&at("layout"))?;
        let rootfs = store(&mut layout, "tree", &layer, run_config())?;
        let kit = fs::read(kit).with_context(|| format!("read {}", kit.display()))?;
        let kit = Layer::tar(kit);
        let kit = store(&mut layout, "kit", &kit, RunConfig::default())?;
        let recipe = json!({
            "version": 1,
            "rootfs": { "image": format!("registry.example/tree@{rootfs}") },
            "bootKit": { "image": format!("registry.example/kit@{kit}") },
            "layout": "DmVerity",
            "output": { "repository": "registry.example/guest" },
        });
        write(&at("recipe.json"), recipe.to_string().as_bytes())?;
        let mut ours = Command::new(assay);
        ours.args(["build", "--progress", "plain", "--recipe"])
            .arg(at("recipe.json"))
            .arg("--agent")
            .arg(agent)
            .arg("--rootfs-layout")
            .arg(at("layout"))
            .arg("--kit-layout")
            .arg(at("layout"))
            .arg("--scratch")
            .arg(directory.path())
            .arg("--output")
            .arg(at("out"));
        ensure!(ours.status().context("run assay")?.success(), "{ours:?}");

        let compressed = layer.blob().content().to_bytes();
        write(&at("layer.tar.gz"), &compressed)?;
        let check = format!("{}  layer.tar.gz\n", layer.blob().digest().to_hex());
        write(&at("layer.sha256"), check.as_bytes())?;
        unpack_uki(root, directory.path(), &at("out/uki.efi"))?;
        let inside = directory.path().strip_prefix(root);
        let inside = Path::new("/").join(inside.context("the directory is below the root")?);
        let mut by_hand = Command::new("sh");
        by_hand.args(["-c", BY_HAND, "sh"]).arg(root).arg(inside);
        by_hand.arg(directory.path());
        ensure!(by_hand.status().context("run sh")?.success(), "{by_hand:?}");
        Ok(Self {
            directory,
            ours,
            by_hand,
        })
    }

    fn report(&self, name: &str, [ours, by_hand]: [Cost; 2]) -> Result<()> {
        compare(
            &format!("{name}, wall time"),
            &duration(ours.wall),
            &duration(by_hand.wall),
            by_hand.wall.as_secs_f64() / ours.wall.as_secs_f64(),
        );
        let size = |what: &str, ours: u64, peer: u64| {
            compare(
                &format!("{name}, {what}"),
                &mebibytes(ours),
                &mebibytes(peer),
                ratio(peer, ours),
            );
        };
        size("peak memory", ours.peak_memory, by_hand.peak_memory);
        for file in ["rootfs.img", "uki.efi"] {
            let length = |path: PathBuf| -> Result<u64> {
                let metadata = fs::metadata(&path);
                Ok(metadata
                    .with_context(|| format!("read {}", path.display()))?
                    .len())
            };
            let directory = self.directory.path();
            let ours = length(directory.join("out").join(file))?;
            size(file, ours, length(directory.join(file))?);
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn ratio(peer: u64, ours: u64) -> f64 {
    peer as f64 / ours as f64
}

/// A tree of files that compress about as well as programs do.
fn tree(megabytes: usize) -> Rope {
    let mut tar = TarBuilder::new();
    let mut state = 1_u32;
    let mut content = Vec::with_capacity(FILE_LEN);
    for file in 0..megabytes * 1_000_000 / FILE_LEN {
        content.clear();
        while content.len() < FILE_LEN {
            // Half of it is noise, half is not (Numerical Recipes' generator).
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            content.extend(state.to_be_bytes());
            content.extend_from_slice(b"text");
        }
        let path = format!("usr/lib/{}/{file}", file % 64);
        tar.file(path, 0o644, Owner::ROOT, content.clone());
    }
    tar.file("bin/web", 0o755, Owner::ROOT, b"\x7fELF".to_vec());
    tar.finish()
}

fn run_config() -> RunConfig {
    RunConfig {
        entrypoint: Some(vec!["/bin/web".to_owned()]),
        ..RunConfig::default()
    }
}

/// Writes an image of one layer to an OCI layout.
fn store(
    layout: &mut LayoutWriter,
    name: &str,
    layer: &Layer,
    run: RunConfig,
) -> Result<Sha256Digest> {
    let options = ImageOptions {
        run,
        ..ImageOptions::default()
    };
    let image = OciImage::assemble(options, std::slice::from_ref(layer))?;
    layout.add(name, &image)?;
    Ok(image.manifest_digest)
}

/// Puts what is in a UKI where the pipeline by hand takes it from.
fn unpack_uki(root: &Path, directory: &Path, uki: &Path) -> Result<()> {
    let bytes = fs::read(uki).with_context(|| format!("read {}", uki.display()))?;
    let uki = parse_uki(&bytes.into())?;
    let section = |name| {
        uki.section(name)
            .with_context(|| format!("no section {name}"))
    };
    write(&directory.join("linux"), section(".linux")?)?;
    let initrd = directory.join("initrd");
    fs::create_dir(&initrd).with_context(|| format!("create {}", initrd.display()))?;
    let archive = directory.join("unpacked.cpio");
    write(&archive, section(".initrd")?)?;
    let inside = initrd.strip_prefix(root).context("below the root")?;
    let status = Command::new("chroot")
        .arg(root)
        .args(["cpio", "--quiet", "--extract", "--directory"])
        .arg(Path::new("/").join(inside))
        .stdin(fs::File::open(&archive).context("open the archive")?)
        .status()
        .context("run cpio")?;
    ensure!(status.success(), "cpio failed ({status})");
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}
