//! Builds that are ended, that wait, and that keep what they pull.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::kubectl::{Kubectl, condition};
use crate::quickstart::NAMESPACE;
use crate::{Environment, wait};

/// A build's pod starts within seconds.
const DEADLINE: Duration = Duration::from_mins(1);
/// Most time between the wish that a build end and its end. A pod that does not
/// listen is killed after thirty seconds.
const PROMPT: Duration = Duration::from_secs(20);

/// Waits until a MeasuredImage is not Ready because of `reason`, and returns what it
/// says.
///
/// # Errors
/// After the deadline.
pub fn wait_for_reason(kubectl: &Kubectl, name: &str, reason: &str) -> Result<String> {
    let what = format!("MeasuredImage {name} to say {reason}");
    let (message, _) = wait::until(kubectl, NAMESPACE, &what, DEADLINE, || {
        let image = kubectl.find(NAMESPACE, "measuredimage", name)?;
        let ready = image.as_ref().and_then(|image| condition(image, "Ready"));
        let ready = ready.filter(|ready| ready["reason"] == reason);
        Ok(ready.map(|ready| ready["message"].as_str().unwrap_or_default().to_owned()))
    })?;
    Ok(message)
}

/// A build that is suspended ends at once, and says so; before, it says how far it
/// is. One whose cache is not there says that.
///
/// # Errors
/// When it does not, or not in time.
pub fn a_build_ends_when_it_is_told_to(environment: &Environment) -> Result<()> {
    let kubectl = environment.kubectl();
    let name = "ended";
    // A registry that never answers.
    let address = environment
        .registry
        .rsplit_once(':')
        .map_or("127.0.0.1", |(host, _)| host);
    let silent = TcpListener::bind((address, 0)).context("listen beside the registry")?;
    let host = silent.local_addr()?.to_string();
    let image = format!("{host}/x@sha256:{}", "11".repeat(32));
    let mut object = json!({
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "MeasuredImage",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "source": {"type": "Build", "build": {
                "rootfs": {"image": image},
                "bootKit": {"image": image},
                "output": {"repository": format!("{host}/y")},
            }},
            "buildJob": {"cache": {"claimName": "absent"}},
        },
    });
    kubectl.apply(&object)?;
    let why = wait_for_reason(&kubectl, name, "BuildBlocked")?;
    ensure!(why.contains("\"absent\" not found"), "{why}");

    object["spec"]["buildJob"] = json!({});
    kubectl.apply(&object)?;
    let what = "the build to say how far it is";
    wait::until(&kubectl, NAMESPACE, what, DEADLINE, || {
        let image = kubectl.find(NAMESPACE, "measuredimage", name)?;
        let phase = image.map(|image| image["status"]["build"]["phase"].clone());
        Ok(phase.filter(|phase| phase == "PullingRootfs"))
    })?;

    object["spec"]["buildJob"] = json!({"suspend": true});
    kubectl.apply(&object)?;
    let selector = format!("assay.dev/image={name}");
    let ((), elapsed) = wait::until(&kubectl, NAMESPACE, "the build to end", DEADLINE, || {
        let pods = kubectl.list(NAMESPACE, "pods", &selector)?;
        let jobs = kubectl.list(NAMESPACE, "jobs", &selector)?;
        Ok((pods.is_empty() && jobs.is_empty()).then_some(()))
    })?;
    ensure!(elapsed < PROMPT, "the build ended after {elapsed:?}");
    let why = wait_for_reason(&kubectl, name, "BuildSuspended")?;
    ensure!(why.contains("spec.buildJob.suspend"), "{why}");
    kubectl.run(&["-n", NAMESPACE, "delete", "mi", name])?;
    Ok(())
}

/// A claim of the quickstart's namespace that is a directory of this machine, which
/// everybody may write to.
///
/// # Errors
/// When the API server refuses it.
pub fn make_cache(environment: &Environment, claim: &str) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = environment.scratch.join("build-cache");
    let _absent = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).context("create the cache's directory")?;
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777))
        .context("open the cache to everybody")?;
    let kubectl = environment.kubectl();
    let volume = format!("assay-e2e-{claim}");
    // A volume stays bound to a claim that is gone.
    kubectl.run(&["delete", "persistentvolume", &volume, "--ignore-not-found"])?;
    kubectl.apply(&json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": volume},
        "spec": {
            "storageClassName": "",
            "accessModes": ["ReadWriteMany"],
            "capacity": {"storage": "1Gi"},
            "hostPath": {"path": directory, "type": "Directory"},
        },
    }))?;
    kubectl.apply(&json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": claim, "namespace": NAMESPACE},
        "spec": {
            "storageClassName": "",
            "accessModes": ["ReadWriteMany"],
            "volumeName": volume,
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }))?;
    Ok(directory)
}

/// Takes the claim of [`make_cache`] and what it keeps away.
///
/// # Errors
/// When the API server refuses.
pub fn remove_cache(environment: &Environment, claim: &str, directory: &Path) -> Result<()> {
    let kubectl = environment.kubectl();
    let volume = format!("assay-e2e-{claim}");
    kubectl.run(&["-n", NAMESPACE, "delete", "pvc", claim, "--wait=false"])?;
    kubectl.run(&["delete", "persistentvolume", &volume, "--wait=false"])?;
    std::fs::remove_dir_all(directory).context("remove the cache's directory")
}
