//! `assay build -f` and `assay run` with real inputs: the boot kit and the web
//! server of the quickstart, the guest agent, and QEMU.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic is how a test fails"
)]

mod build;
mod disk;
mod memory;
mod registry;
mod reproducible;
mod run;

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use assay_image::oci::{ImageOptions, Layer, OciImage, RunConfig};
use assay_registry::LayoutWriter;
use tempfile::TempDir;

/// What `cargo xtask programs` prepares.
struct Prepared {
    kit: OciImage,
    web: OciImage,
    agent: PathBuf,
    oracles: PathBuf,
}

/// What is prepared, or `None` and a word about the test that is skipped.
fn prepared(test: &str) -> Option<&'static Prepared> {
    static PREPARED: OnceLock<Option<Prepared>> = OnceLock::new();
    let prepared = PREPARED.get_or_init(|| {
        let layer = |variable: &str| Some(fs::read(env::var_os(variable)?).unwrap());
        Some(Prepared {
            kit: image(layer("ASSAY_BOOT_KIT")?, RunConfig::default()),
            web: image(layer("ASSAY_QUICKSTART_WEB")?, web_config()),
            agent: env::var_os("ASSAY_AGENT")?.into(),
            oracles: env::var_os("ASSAY_IMAGE_ORACLES")?.into(),
        })
    });
    if prepared.is_none() {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED {test}: ASSAY_BOOT_KIT, ASSAY_QUICKSTART_WEB, ASSAY_AGENT or \
             ASSAY_IMAGE_ORACLES is not set (cargo xtask programs)"
        );
    }
    prepared.as_ref()
}

/// An image of one layer, which is a tar archive.
fn image(layer: Vec<u8>, run: RunConfig) -> OciImage {
    let options = ImageOptions {
        run,
        ..ImageOptions::default()
    };
    OciImage::assemble(options, &[Layer::tar(layer)]).unwrap()
}

/// How the quickstart's web server is run.
fn web_config() -> RunConfig {
    let words = |words: &[&str]| Some(words.iter().map(|&word| word.to_owned()).collect());
    RunConfig {
        user: Some("65532:65532".to_owned()),
        entrypoint: words(&["/usr/sbin/nginx", "-e", "stderr", "-g", "daemon off;"]),
        stop_signal: Some("SIGQUIT".to_owned()),
        ..RunConfig::default()
    }
}

impl Prepared {
    /// An OCI layout of both images.
    fn layout(&self, directory: &Path) {
        let mut layout = LayoutWriter::create(directory).unwrap();
        layout.add("web", &self.web).unwrap();
        layout.add("kit", &self.kit).unwrap();
    }

    /// The quickstart's MeasuredImage with our images, at `host`.
    fn image_yaml(&self, host: &str) -> String {
        let mut yaml = fs::read_to_string(quickstart().join("image.yaml")).unwrap();
        let zeros = "sha256:".to_owned() + &"0".repeat(64);
        for (name, image) in [("quickstart/web", &self.web), ("assay/boot-kit", &self.kit)] {
            let placeholder = format!("registry.example/{name}@{zeros}");
            assert!(yaml.contains(&placeholder));
            let reference = format!("{host}/{name}@{}", image.manifest_digest);
            yaml = yaml.replace(&placeholder, &reference);
        }
        yaml
    }

    /// Debian's QEMU out of the oracles' root directory, as a program of this machine.
    fn qemu(&self, directory: &Path) -> PathBuf {
        self.qemu_after(directory, "")
    }

    /// The same, after shell commands that change its arguments.
    fn qemu_after(&self, directory: &Path, commands: &str) -> PathBuf {
        self.program(directory, "qemu-system-x86_64", commands)
    }

    /// QEMU that starts guests from IGVM files.
    fn qemu_igvm(&self, directory: &Path) -> PathBuf {
        self.program(directory, "qemu-igvm", "")
    }

    fn program(&self, directory: &Path, name: &str, commands: &str) -> PathBuf {
        let root = self.oracles.to_str().unwrap();
        let libraries = format!("{root}/usr/lib/x86_64-linux-gnu");
        let mut script = format!("#!/bin/sh\n{commands}");
        writeln!(
            script,
            "exec {root}/usr/lib64/ld-linux-x86-64.so.2 --library-path {libraries} \
             {root}/usr/bin/{name} -L {root}/usr/share/qemu -L \
             {root}/usr/share/seabios \"$@\""
        )
        .unwrap();
        let path = directory.join(name);
        fs::write(&path, script).unwrap();
        let status = Command::new("chmod").arg("755").arg(&path).status();
        assert!(status.unwrap().success());
        path
    }

    /// The quickstart's artifact, built once.
    fn artifact(&self) -> PathBuf {
        self.built().join("artifact")
    }

    /// The disk image that was made with it.
    fn disk_image(&self) -> PathBuf {
        self.built().join("disk.img")
    }

    fn built(&self) -> &'static Path {
        static BUILT: OnceLock<TempDir> = OnceLock::new();
        let directory = BUILT.get_or_init(|| {
            let directory = tempfile::tempdir().unwrap();
            let layout = directory.path().join("layout");
            self.layout(&layout);
            let image = directory.path().join("image.yaml");
            fs::write(&image, self.image_yaml("registry.invalid")).unwrap();
            let built = assay()
                .args(["build", "-f"])
                .arg(image)
                .arg("-o")
                .arg(directory.path().join("artifact"))
                .arg("--disk-image")
                .arg(directory.path().join("disk.img"))
                .arg("--rootfs-layout")
                .arg(&layout)
                .arg("--kit-layout")
                .arg(&layout)
                .arg("--agent")
                .arg(&self.agent)
                .output()
                .unwrap();
            assert_well(&built);
            directory
        });
        directory.path()
    }
}

fn quickstart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/quickstart")
}

/// The command, with nothing of the person who runs the tests.
fn assay() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_assay"));
    for variable in ["HOME", "XDG_CACHE_HOME", "DOCKER_CONFIG", "ASSAY_AGENT"] {
        command.env_remove(variable);
    }
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn assert_well(output: &Output) {
    assert!(output.status.success(), "{}", stderr(output));
}
