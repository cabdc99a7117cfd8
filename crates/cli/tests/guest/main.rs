//! `assay build -f` with real inputs: the boot kit and the web
//! server of the quickstart, and the guest agent.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic is how a test fails"
)]

mod build;
mod memory;
mod registry;

use std::env;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use assay_image::oci::{Blob, ImageOptions, Layer, OciImage, RunConfig};

/// What `cargo xtask programs` prepares.
struct Prepared {
    kit: OciImage,
    web: OciImage,
    agent: PathBuf,
}

/// What is prepared, or `None` and a word about the test that is skipped.
fn prepared(test: &str) -> Option<&'static Prepared> {
    static PREPARED: OnceLock<Option<Prepared>> = OnceLock::new();
    let prepared = PREPARED.get_or_init(|| {
        let image = |variable: &str, run| {
            let layer = Layer::tar(fs::read(env::var_os(variable)?).unwrap());
            let options = ImageOptions {
                run,
                ..ImageOptions::default()
            };
            Some(OciImage::assemble(options, &[layer]).unwrap())
        };
        let words = |words: &[&str]| Some(words.iter().map(|&word| word.to_owned()).collect());
        let web = RunConfig {
            user: Some("65532:65532".to_owned()),
            entrypoint: words(&["/usr/sbin/nginx", "-e", "stderr", "-g", "daemon off;"]),
            stop_signal: Some("SIGQUIT".to_owned()),
            ..RunConfig::default()
        };
        Some(Prepared {
            kit: image("ASSAY_BOOT_KIT", RunConfig::default())?,
            web: image("ASSAY_QUICKSTART_WEB", web)?,
            agent: env::var_os("ASSAY_AGENT")?.into(),
        })
    });
    if prepared.is_none() {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED {test}: ASSAY_BOOT_KIT, ASSAY_QUICKSTART_WEB or ASSAY_AGENT is not \
             set (cargo xtask programs)"
        );
    }
    prepared.as_ref()
}

impl Prepared {
    /// An OCI layout of both images.
    fn layout(&self, directory: &Path) {
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        for image in [&self.kit, &self.web] {
            let manifest = Blob::new(image.manifest.clone());
            for blob in image.layers.iter().chain([&image.config, &manifest]) {
                let content = blob.content().to_bytes();
                fs::write(blobs.join(blob.digest().to_hex()), content).unwrap();
            }
        }
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
