//! `assay kit`, `assay build` and `assay verify-image` on one another's output.
//! Kernel, stub and firmware are Debian's, so this runs where the programs of
//! `cargo xtask programs` are.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use assay_image::oci::{ImageOptions, Layer, OciImage, RunConfig};
use assay_image::tarball::{Owner, TarBuilder};
use assay_registry::LayoutWriter;
use serde_json::{Value, json};

/// The Debian packages of a kit, in the cache that `cargo xtask programs` fills.
fn packages(test: &str) -> Option<Vec<PathBuf>> {
    let cache = std::env::var_os("ASSAY_IMAGE_ORACLES").map(PathBuf::from);
    let packages = cache.and_then(|root| {
        let cache = root.ancestors().nth(3)?.to_owned();
        let mut found = Vec::new();
        for entry in fs::read_dir(cache.join("debian/packages")).ok()? {
            found.push(entry.ok()?.path());
        }
        let wanted = ["linux-image-6", "systemd-boot-efi_", "ovmf-amdsev_"];
        wanted
            .map(|prefix| {
                let is_wanted = |path: &&PathBuf| {
                    let name = path.file_name().and_then(|name| name.to_str());
                    name.is_some_and(|name| name.starts_with(prefix))
                };
                found.iter().filter(is_wanted).max().cloned()
            })
            .into_iter()
            .collect()
    });
    if packages.is_none() {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED {test}: no Debian packages (cargo xtask programs)"
        );
    }
    packages
}

fn assay(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_assay"))
        .current_dir(directory)
        .args(arguments)
        .output()
        .unwrap()
}

#[track_caller]
fn succeed(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout.clone())
        .unwrap()
        .trim()
        .to_owned()
}

fn web() -> OciImage {
    let status = "Package: web\nStatus: install ok installed\nVersion: 1\nArchitecture: amd64\n";
    let mut tar = TarBuilder::new();
    tar.file("bin/web", 0o755, Owner::ROOT, vec![1; 100_000])
        .file(
            "var/lib/dpkg/status",
            0o644,
            Owner::ROOT,
            status.as_bytes().to_vec(),
        );
    let options = ImageOptions {
        run: RunConfig {
            entrypoint: Some(vec!["/bin/web".to_owned()]),
            ..RunConfig::default()
        },
        ..ImageOptions::default()
    };
    OciImage::assemble(options, &[Layer::tar(tar.finish())]).unwrap()
}

/// A layout with the workload's image and a kit, and a recipe that names them.
fn prepare(directory: &Path, packages: &[PathBuf]) -> String {
    let mut arguments = vec!["kit", "build", "-o", "kit"];
    for package in packages {
        arguments.extend(["--deb", package.to_str().unwrap()]);
    }
    let kit = succeed(&assay(directory, &arguments));
    let shown = succeed(&assay(directory, &["kit", "check", "kit"]));
    assert!(shown.contains("guests on SEV-SNP  run"), "{shown}");

    let web = web();
    let mut layout = LayoutWriter::create(&directory.join("web")).unwrap();
    layout.add("web", &web).unwrap();
    for entry in fs::read_dir(directory.join("web/blobs/sha256")).unwrap() {
        let entry = entry.unwrap();
        let to = directory.join("kit/blobs/sha256").join(entry.file_name());
        fs::copy(entry.path(), to).unwrap();
    }
    fs::write(directory.join("agent"), b"\x7fELF\x02\x01agent").unwrap();
    let recipe = json!({
        "version": 1,
        "rootfs": {"image": format!("registry.invalid/web@{}", web.manifest_digest)},
        "bootKit": {"image": format!("registry.invalid/kit@{kit}")},
        "layout": "DmVerity",
        "compression": "Zstd",
        "hardening": {"exceptions": [{"setting": "NoExec", "reason": "a compiler in /tmp"}]},
        "git": {"repository": "https://git.example/web", "commit": "0".repeat(40)},
        "output": {"repository": "registry.invalid/guest"},
    });
    fs::write(directory.join("recipe.json"), recipe.to_string()).unwrap();
    kit
}

const BUILD: [&str; 10] = [
    "build",
    "--recipe",
    "recipe.json",
    "--agent",
    "agent",
    "--rootfs-layout",
    "kit",
    "--kit-layout",
    "kit",
    "-o",
];

#[test]
fn an_artifact_is_reproduced_or_what_differs_is_named() {
    let Some(packages) = packages("verify-image") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    prepare(directory, &packages);
    succeed(&assay(directory, &[&BUILD[..], &["out"]].concat()));

    let verify = ["verify-image", "out", "--inputs", "kit"];
    let said = succeed(&assay(directory, &verify));
    assert!(
        said.starts_with("reproduced: every byte of out follows from"),
        "{said}"
    );
    let json: Value = serde_json::from_str(&succeed(&assay(
        directory,
        &[&verify[..], &["--json"]].concat(),
    )))
    .unwrap();
    assert_eq!(json["verdict"], "reproduced");

    // One byte of the root disk, where the manifest is none the wiser.
    let disk = directory.join("out/rootfs.img");
    let good = fs::read(&disk).unwrap();
    let mut bad = good.clone();
    bad[8192] ^= 1;
    fs::write(&disk, bad).unwrap();
    let output = assay(directory, &verify);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("different: "), "{said}");
    assert!(said.contains("rootfs.img"), "{said}");
    fs::write(&disk, good).unwrap();

    // One byte of the agent, which the artifact itself has to give.
    let uki = directory.join("out/uki.efi");
    let good = fs::read(&uki).unwrap();
    let mut bad = good.clone();
    let agent = b"\x7fELF\x02\x01agent";
    let at = bad.windows(agent.len()).position(|it| it == agent).unwrap();
    bad[at + agent.len() - 1] ^= 1;
    fs::write(&uki, bad).unwrap();
    let output = assay(directory, &verify);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("uki.efi > .initrd > init: is the agent"),
        "{said}"
    );
    fs::write(&uki, good).unwrap();

    // Another agent than the one that ought to be in it.
    fs::write(directory.join("other"), b"\x7fELF\x02\x01other").unwrap();
    let output = assay(directory, &[&verify[..], &["--agent", "other"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        said.contains("uki.efi > .initrd > init: 5 bytes differ"),
        "{said}"
    );

    // Inputs that are out of reach decide nothing.
    let output = assay(directory, &["verify-image", "out", "--inputs", "web"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_kernel_that_lacks_something_is_named_before_anything_boots() {
    let Some(packages) = packages("kit check") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    for package in &packages {
        let unpacked = Command::new("dpkg-deb")
            .arg("-x")
            .args([package.as_path(), &directory.join("system")])
            .status()
            .unwrap();
        assert!(unpacked.success());
    }
    let build = ["kit", "build", "--root", "system", "-o"];
    succeed(&assay(directory, &[&build[..], &["whole"]].concat()));
    succeed(&assay(directory, &["kit", "check", "whole"]));

    let boot = fs::read_dir(directory.join("system/boot")).unwrap();
    let mut files = boot.map(|entry| entry.unwrap().path());
    let config = files
        .find(|path| path.to_str().unwrap().contains("/config-"))
        .unwrap();
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace("CONFIG_SEV_GUEST=m", "# CONFIG_SEV_GUEST is not set"),
    )
    .unwrap();
    succeed(&assay(directory, &[&build[..], &["less"]].concat()));
    let output = assay(directory, &["kit", "check", "less"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    let sentence = "no SEV-SNP report can be had: CONFIG_SEV_GUEST must be y or m";
    assert!(
        said.contains(&format!("guests on SEV-SNP  do not run: {sentence}")),
        "{said}"
    );
    let json = assay(directory, &["kit", "check", "less", "--json"]).stdout;
    let json: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["problems"], json!([sentence]));
}

#[test]
fn documents_about_an_artifact_are_the_same_for_the_same_build() {
    let Some(packages) = packages("provenance") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let kit = prepare(directory, &packages);
    let reference = succeed(&assay(directory, &[&BUILD[..], &["one"]].concat()));
    succeed(&assay(directory, &[&BUILD[..], &["two"]].concat()));
    let read = |name: &str| fs::read(directory.join(name)).unwrap();
    for name in ["provenance.json", "sbom.spdx.json", "manifest.json"] {
        assert_eq!(
            read(&format!("one/{name}")),
            read(&format!("two/{name}")),
            "{name}"
        );
    }
    let statement: Value = serde_json::from_slice(&read("one/provenance.json")).unwrap();
    let digest = statement["subject"][0]["digest"]["sha256"]
        .as_str()
        .unwrap();
    assert_eq!(reference, format!("registry.invalid/guest@sha256:{digest}"));
    let dependencies = &statement["predicate"]["buildDefinition"]["resolvedDependencies"];
    assert!(kit.ends_with(dependencies[1]["digest"]["sha256"].as_str().unwrap()));

    let sbom: Value = serde_json::from_slice(&read("one/sbom.spdx.json")).unwrap();
    let names: Vec<_> = sbom["packages"].as_array().unwrap().iter().collect();
    for (name, url) in [
        ("web", "pkg:deb/debian/web@1?arch=amd64"),
        ("ovmf-amdsev", "pkg:deb/debian/ovmf-amdsev@"),
    ] {
        let package = names
            .iter()
            .find(|package| package["name"] == name)
            .unwrap();
        let found = package["externalRefs"][0]["referenceLocator"]
            .as_str()
            .unwrap();
        assert!(found.starts_with(url), "{found}");
    }
    let manifest: Value = serde_json::from_slice(&read("one/manifest.json")).unwrap();
    assert_eq!(
        manifest["hardening"]["NoExec"],
        json!({"state": "Off", "reason": "a compiler in /tmp"})
    );
    assert_eq!(manifest["hardening"]["Lockdown"], json!({"state": "On"}));
    assert!(manifest["builder"]["codecs"]["zstd"].is_string());
}

#[test]
fn a_signature_is_made_here_or_elsewhere() {
    let Some(packages) = packages("signed provenance") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    prepare(directory, &packages);
    let openssl = |arguments: &[&str]| {
        let status = Command::new("openssl")
            .current_dir(directory)
            .args(arguments)
            .status()
            .unwrap();
        assert!(status.success());
    };
    openssl(&[
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-out",
        "key.pem",
    ]);
    openssl(&["pkey", "-in", "key.pem", "-pubout", "-out", "key.pub"]);
    let with = |out: &str, more: &[&str]| assay(directory, &[&BUILD[..], &[out], more].concat());
    succeed(&with("signed", &["--provenance-key", "key.pem"]));
    succeed(&with("plain", &[]));
    openssl(&[
        "dgst",
        "-sha256",
        "-sign",
        "key.pem",
        "-out",
        "sig",
        "plain/provenance.pae",
    ]);
    let elsewhere = [
        "--provenance-signature",
        "sig",
        "--provenance-public-key",
        "key.pub",
    ];
    succeed(&with("again", &elsewhere));
    let key = assay_reference::PublicKey::read(&fs::read(directory.join("key.pub")).unwrap());
    for out in ["signed", "again"] {
        let bundle = fs::read(directory.join(out).join("provenance.sigstore.json")).unwrap();
        let bundle = assay_reference::Bundle::parse(&bundle).unwrap();
        let statement = fs::read(directory.join(out).join("provenance.json")).unwrap();
        let keys = [key.clone().unwrap()];
        assert_eq!(bundle.verify_payload(&keys).unwrap(), statement);
    }
    let vouch = [
        "verify-image",
        "signed",
        "--inputs",
        "kit",
        "--provenance-key",
    ];
    let said = succeed(&assay(directory, &[&vouch[..], &["key.pub"]].concat()));
    assert!(said.contains("vouched   by a given key"), "{said}");
    // A key that signed nothing, and a statement about another artifact.
    openssl(&[
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-384",
        "-out",
        "no.pem",
    ]);
    openssl(&["pkey", "-in", "no.pem", "-pubout", "-out", "no.pub"]);
    let refused = |key: &str, wanted: &str| {
        let output = assay(directory, &[&vouch[..], &[key]].concat());
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains(wanted), "{said}");
    };
    refused("no.pub", "provenance: none of 1 bundles is signed by a key");
    let manifest = directory.join("signed/manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("git.example", "git.elsewhere")).unwrap();
    refused(
        "key.pub",
        "what was signed is not the provenance of this artifact",
    );

    // A signature of another build.
    fs::write(directory.join("agent"), b"\x7fELF\x02\x01other").unwrap();
    let output = with("never", &elsewhere);
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("--provenance-signature is not of this build"),
        "{said}"
    );
    assert!(!directory.join("never").exists());
}
