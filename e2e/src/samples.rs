//! Workloads that list the files they see, and what they must see: the layers of
//! their image, flattened.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use assay_image::flatten::{flatten, prepare_root};
use assay_image::oci::ImageConfig;
use assay_image::tree::{Content, InodeId, Tree};
use assay_registry::{Registry, RegistryOptions};
use assay_tee::Sha256Digest;
use bytes::Bytes;
use serde_json::json;

use crate::{Environment, quickstart, visitor};

/// A guest that reads all of its disk, block by block verified, on a slow machine.
const READING: Duration = Duration::from_mins(4);
/// Directories that a guest mounts over.
const MOUNT_POINTS: [&str; 6] = ["/dev", "/proc", "/run", "/sys", "/tmp", "/var/tmp"];
/// Files that the guest agent writes.
const WRITTEN: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];
/// Directories that it makes for all of these, where the image has none.
const MADE: [&str; 2] = ["/etc", "/var"];

/// Builds a guest image from `image` twice, and starts one guest of it; both are
/// called `name`.
///
/// # Errors
/// When the API server refuses it.
pub fn start(environment: &Environment, name: &str, image: &str) -> Result<()> {
    let kubectl = environment.kubectl();
    let namespace = quickstart::NAMESPACE;
    let object = |kind: &str, spec: serde_json::Value| {
        json!({
            "apiVersion": "assay.dev/v1alpha1",
            "kind": kind,
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        })
    };
    let repository = format!("{}/samples/{name}", environment.registry);
    kubectl.apply(&object(
        "MeasuredImage",
        json!({"source": {"type": "Build", "build": {
            "rootfs": {"image": image},
            "bootKit": {"image": environment.images.boot_kit},
            "verifyRebuild": true,
            "output": {"repository": repository},
        }}}),
    ))?;
    kubectl.apply(&object(
        "ConfidentialDeployment",
        json!({
            "replicas": 1,
            "imageRef": {"name": name},
            "policyRef": {"name": "quickstart"},
            "machine": {
                "vcpus": 1, "memory": "512Mi", "cpuModel": "EPYC-v4", "tee": "SimulatedSNP",
            },
            "ports": [{"name": "http", "containerPort": 8080}],
            "service": {"ports": [{"name": "http", "port": 80}]},
            "readiness": {"httpGet": {"path": "/", "port": "http"}},
        }),
    ))
}

/// Checks that the guest of [`start`] sees what its image has: path, kind, mode,
/// owner, content, target and extended attributes of every file.
///
/// # Errors
/// When it does not answer, or sees something else.
pub fn check_files(environment: &Environment, name: &str, image: &str) -> Result<()> {
    let service = environment
        .kubectl()
        .find(quickstart::NAMESPACE, "service", name)?
        .context("the Service does not exist")?;
    let address = service["spec"]["clusterIP"]
        .as_str()
        .context("the Service has no address")?;
    let answer = visitor::get(
        environment,
        quickstart::NAMESPACE,
        (address, 80),
        "/tree",
        None,
        READING,
    )?;
    let (status, body) = answer.context("nobody answers")?;
    ensure!(status == 200, "answer {status}: {body}");

    let mut seen = parse(&body)?;
    let mut wanted = wanted(environment, image)?;
    let mounted: Vec<_> = seen.extract_if(.., |_, file| file == "mount").collect();
    for (path, _) in mounted {
        let known = MOUNT_POINTS.iter().any(|point| path == hex(point));
        ensure!(known, "{} is mounted", text(&path));
        wanted.remove(&path);
    }
    for path in WRITTEN {
        seen.remove(&hex(path));
        wanted.remove(&hex(path));
    }
    for path in MADE {
        if !wanted.contains_key(&hex(path)) {
            seen.remove(&hex(path));
        }
    }
    let mut differences = Vec::new();
    for (path, file) in &wanted {
        let found = seen.remove(path);
        if found.as_ref() != Some(file) {
            let found = found.as_deref().unwrap_or("nothing");
            differences.push(format!("{}: {found} instead of {file}", text(path)));
        }
    }
    for (path, file) in seen {
        let path = text(&path);
        differences.push(format!("{path}: {file}, which the image does not have"));
    }
    ensure!(
        differences.is_empty(),
        "{name}:\n{}",
        differences.join("\n")
    );
    println!("{name}: {} files are those of the image", wanted.len());
    Ok(())
}

fn hex(path: &str) -> String {
    hex::encode(path)
}

fn text(path: &str) -> String {
    let bytes = hex::decode(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Path, in hexadecimal digits, to everything else of each line.
fn parse(body: &str) -> Result<BTreeMap<String, String>> {
    body.lines()
        .map(|line| {
            let (path, file) = line.split_once(' ').context("a line without fields")?;
            Ok((path.to_owned(), file.to_owned()))
        })
        .collect()
}

/// What the image has, as [`parse`] reads it.
fn wanted(environment: &Environment, image: &str) -> Result<BTreeMap<String, String>> {
    let registry = Registry::new(RegistryOptions {
        plain_http_hosts: vec![environment.registry.clone()],
        ..RegistryOptions::default()
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    let pulled = runtime.block_on(registry.pull(image))?;
    let config: ImageConfig =
        serde_json::from_slice(&pulled.config).context("read the image's configuration")?;
    let mut tree = flatten(&pulled.stored_layers()?, &config.rootfs.diff_ids)?;
    prepare_root(&mut tree);
    let mut files = BTreeMap::new();
    list(&tree, Tree::ROOT, b"/", &mut files);
    Ok(files)
}

fn attribute((name, value): (&Bytes, &Bytes)) -> String {
    format!("{}={}", hex::encode(name), hex::encode(value))
}

fn list(tree: &Tree, id: InodeId, path: &[u8], files: &mut BTreeMap<String, String>) {
    let inode = tree.inode(id);
    let metadata = &inode.metadata;
    let attributes: Vec<_> = metadata.attributes.iter().map(attribute).collect();
    let attributes = match attributes.join(",") {
        none if none.is_empty() => "-".to_owned(),
        some => some,
    };
    let (kind, mode, content) = match &inode.content {
        Content::Directory(_) => ("directory", metadata.mode, "-".to_owned()),
        Content::File(content) => {
            let digest = Sha256Digest::of(content).to_hex();
            ("file", metadata.mode, digest)
        }
        Content::Symlink(target) => ("link", 0o777, hex::encode(target)),
    };
    let owner = metadata.owner;
    files.insert(
        hex::encode(path),
        format!(
            "{kind} {mode:o} {} {} {content} {attributes}",
            owner.uid, owner.gid
        ),
    );
    for (name, child) in tree.entries(id).into_iter().flatten() {
        let separator: &[u8] = if path == b"/" { b"" } else { b"/" };
        list(tree, *child, &[path, separator, name].concat(), files);
    }
}
