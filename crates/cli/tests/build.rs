//! `assay build` where it cannot succeed: the exit status tells a build Job
//! whether another try may end differently.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use assay_image::recipe::{EXIT_NO_CREDENTIALS, EXIT_UNBUILDABLE};

fn build(directory: &Path, recipe: &str) -> Output {
    fs::write(directory.join("recipe.json"), recipe).unwrap();
    fs::write(directory.join("agent"), "agent").unwrap();
    Command::new(env!("CARGO_BIN_EXE_assay"))
        .current_dir(directory)
        .args(["build", "--push", "--recipe", "recipe.json"])
        .args(["--agent", "agent", "--docker-config", "config.json"])
        .args(["--result-file", "result.json"])
        .output()
        .unwrap()
}

fn recipe(image: &str) -> String {
    format!(
        r#"{{"version": 1, "rootfs": {{"image": "{image}"}}, "bootKit": {{"image": "{image}"}},
            "layout": "DmVerity", "output": {{"repository": "registry.invalid/out"}}}}"#
    )
}

#[test]
fn a_missing_secret_ends_the_build_at_once_and_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let image = format!("registry.invalid/web@sha256:{}", "0".repeat(64));
    let output = build(directory.path(), &recipe(&image));
    assert_eq!(output.status.code(), Some(EXIT_NO_CREDENTIALS.into()));
    let result = fs::read_to_string(directory.path().join("result.json")).unwrap();
    for part in [
        "create the Secret that spec.source.build.output.secretRef names",
        "cannot read config.json",
    ] {
        assert!(result.contains(part), "{part:?} is not in {result}");
    }
}

#[test]
fn a_recipe_that_nothing_mends_has_a_status_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let output = build(directory.path(), &recipe("registry.invalid/web:tag"));
    assert_eq!(output.status.code(), Some(EXIT_UNBUILDABLE.into()));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("rootfs.image"), "{said}");
}
