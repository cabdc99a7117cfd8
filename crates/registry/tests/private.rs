//! The distribution project's registry behind a password. `ASSAY_REGISTRY_PROGRAM`
//! names the program; `cargo xtask test` sets it.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use assay_image::oci::{ImageOptions, Layer, OciImage};
use assay_image::tarball::{Owner, TarBuilder};
use assay_registry::{
    BlobCache, DockerConfig, NoProgress, Referrer, Registry, RegistryOptions, Subject,
};
use serde_json::json;

/// `user`, whose password is `secret`.
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

struct Server {
    process: Child,
    host: String,
    _directory: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

fn start() -> Option<Server> {
    let Some(program) = std::env::var_os("ASSAY_REGISTRY_PROGRAM") else {
        println!("skipped: ASSAY_REGISTRY_PROGRAM is unset; run `cargo xtask test`");
        return None;
    };
    let directory = tempfile::tempdir().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = free.local_addr().unwrap().to_string();
    drop(free);
    let passwords = directory.path().join("htpasswd");
    std::fs::write(&passwords, HTPASSWD).unwrap();
    let configuration = json!({
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": true}},
        "storage": {"inmemory": {}},
        "http": {"addr": host},
        "auth": {"htpasswd": {"realm": "private", "path": passwords}},
    });
    let path = directory.path().join("registry.json");
    std::fs::write(&path, configuration.to_string()).unwrap();
    let process = Command::new(program)
        .arg("serve")
        .arg(&path)
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let server = Server {
        process,
        host,
        _directory: directory,
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while std::net::TcpStream::connect(&server.host).is_err() {
        assert!(Instant::now() < deadline, "the registry does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(server)
}

fn image() -> OciImage {
    let mut tar = TarBuilder::new();
    tar.file("hello", 0o644, Owner::ROOT, vec![7; 3_000_000]);
    OciImage::assemble(ImageOptions::default(), &[Layer::tar(tar.finish())]).unwrap()
}

#[tokio::test]
async fn only_who_has_the_password_pushes_and_pulls() {
    let Some(server) = start() else { return };
    let nobody = Registry::new(RegistryOptions {
        plain_http_hosts: vec![server.host.clone()],
        ..RegistryOptions::default()
    });
    let nobody = nobody.unwrap();
    let with = |password: &str| {
        let user = json!({"username": "user", "password": password});
        let config = json!({"auths": {&server.host: user}}).to_string();
        nobody.with_credentials(DockerConfig::parse(config.as_bytes()).unwrap())
    };
    let (owner, stranger) = (with("secret"), with("guessed"));
    let image = image();
    let repository = format!("{}/team/app", server.host);
    let reference = owner.push(&repository, &image, &NoProgress).await.unwrap();
    let again = owner.push(&repository, &image, &NoProgress).await.unwrap();
    assert_eq!(reference, again);

    let directory = tempfile::tempdir().unwrap();
    let cache = BlobCache::open(directory.path()).unwrap();
    for cache in [None, Some(&cache), Some(&cache)] {
        let pulled = owner.pull_with(&reference, cache, &NoProgress).await;
        assert_eq!(pulled.unwrap().manifest_digest, image.manifest_digest);
    }
    let subject = Subject {
        repository: &repository,
        manifest: &image.manifest,
    };
    let statement = Referrer {
        media_type: "application/vnd.in-toto+json",
        content: b"{}".as_slice().into(),
    };
    let digest = owner.push_referrer(subject, &statement).await.unwrap();
    let digests = owner.referrers(&repository, image.manifest_digest, statement.media_type);
    assert_eq!(digests.await.unwrap(), [digest]);

    for registry in [&nobody, &stranger] {
        assert!(registry.pull(&reference).await.unwrap_err().is_refusal());
        let push = registry.push(&repository, &image, &NoProgress).await;
        assert!(push.unwrap_err().is_refusal());
    }
}
