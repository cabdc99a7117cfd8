//! A build that is asked to end does, and says so.

use std::io::Read as _;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

#[test]
fn sigterm_ends_a_build_and_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    // A registry that takes its time.
    let registry = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = registry.local_addr().unwrap().to_string();
    let image = format!("{host}/x@sha256:{}", "11".repeat(32));
    let recipe = json!({
        "version": 1,
        "rootfs": {"image": image},
        "bootKit": {"image": image},
        "layout": "DmVerity",
        "output": {"repository": format!("{host}/y")},
    });
    std::fs::write(path("recipe.json"), recipe.to_string()).unwrap();
    std::fs::write(path("agent"), b"\x7fELF\x02\x01").unwrap();
    let mut build = Command::new(env!("CARGO_BIN_EXE_assay"))
        .arg("build")
        .arg("--recipe")
        .arg(path("recipe.json"))
        .arg("--agent")
        .arg(path("agent"))
        .arg("--result-file")
        .arg(path("result.json"))
        .arg("--scratch")
        .arg(directory.path())
        .args(["--push", "--plain-http", &host])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It is at work once it asks for something.
    let (_pulling, _) = registry.accept().unwrap();
    let killed = Command::new("kill")
        .args(["-TERM", &build.id().to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    let ended = build.wait().unwrap();
    let mut said = String::new();
    build.stderr.unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(ended.code(), Some(143), "{said}");
    let result: Value =
        serde_json::from_slice(&std::fs::read(path("result.json")).unwrap()).unwrap();
    let error = result["error"].as_str().unwrap();
    assert!(error.contains("nothing is published"), "{error}");
    let mut left: Vec<_> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["agent", "recipe.json", "result.json"]);
}
