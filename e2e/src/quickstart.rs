//! The quickstart, and what a hostile node or an operator with a reason can do
//! to it.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::kubectl::{Kubectl, condition};
use crate::{Environment, visitor, wait};

/// The quickstart's namespace.
pub const NAMESPACE: &str = "quickstart";
/// Its MeasuredImage.
pub const IMAGE: &str = "web-1";
/// Its ConfidentialDeployment, and the Service of the same name.
pub const DEPLOYMENT: &str = "web";
/// Its visitor, as the secret has him.
pub const VISITOR: &str = "visitor:measured";

/// What a launcher logs once its guest's agent runs.
pub(crate) const BOOTED: &str = "guest event=Booted";
/// What a launcher logs once the broker has accepted its guest's evidence.
pub(crate) const ATTESTED: &str = "guest event=Attested";
/// What a launcher logs when nothing of its guest runs long after power-on.
const NOT_BOOTED: &str = "guest has not booted";

/// Building pulls, writes and pushes an image; machines are slow.
const BUILD_DEADLINE: Duration = Duration::from_mins(5);
/// Booting takes seconds; a loaded machine, more.
const BOOT_DEADLINE: Duration = Duration::from_mins(4);

/// Applies `examples/quickstart` with this environment's images, and starts a
/// pod to visit it from.
///
/// # Errors
/// When the API server refuses it.
pub fn apply(environment: &Environment) -> Result<()> {
    let overlay = environment.scratch.join("quickstart");
    std::fs::create_dir_all(&overlay).context("create the overlay's directory")?;
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../../examples/quickstart"],
        "patches": [{
            "target": {"kind": "MeasuredImage", "name": IMAGE},
            "patch": json!([
                {"op": "replace", "path": "/spec/source/build/rootfs/image", "value": environment.images.web},
                {"op": "replace", "path": "/spec/source/build/bootKit/image", "value": environment.images.boot_kit},
                {"op": "replace", "path": "/spec/source/build/output/repository",
                 "value": format!("{}/quickstart/web-measured", environment.registry)},
            ]).to_string(),
        }],
    });
    std::fs::write(
        overlay.join("kustomization.yaml"),
        kustomization.to_string(),
    )
    .context("write the overlay")?;
    let directory = overlay
        .to_str()
        .context("the overlay's path is not UTF-8")?;
    environment.kubectl().run(&["apply", "-k", directory])?;
    visitor::start(environment, NAMESPACE)
}

/// Waits until a MeasuredImage is Ready and returns it.
///
/// # Errors
/// When it stalls, or after the deadline.
pub fn wait_for_image(environment: &Environment, name: &str) -> Result<Value> {
    let kubectl = environment.kubectl();
    let (image, _) = wait::until(
        &kubectl,
        NAMESPACE,
        "the measured image",
        BUILD_DEADLINE,
        || {
            let image = kubectl.find(NAMESPACE, "measuredimage", name)?;
            Ok(image.filter(|image| is_true(image, "Ready")))
        },
    )?;
    Ok(image)
}

/// Waits until every guest of a deployment is Ready and attested.
///
/// # Errors
/// After the deadline.
pub fn wait_for_guests(environment: &Environment, name: &str, replicas: i64) -> Result<Value> {
    let kubectl = environment.kubectl();
    let (deployment, _) = wait::until(
        &kubectl,
        NAMESPACE,
        "attested guests",
        BOOT_DEADLINE,
        || {
            let found = kubectl.find(NAMESPACE, "confidentialdeployment", name)?;
            Ok(found.filter(|deployment| {
                let status = &deployment["status"];
                status["readyReplicas"] == replicas
                    && status["attestedReplicas"] == replicas
                    && status["replicas"] == replicas
                    && is_true(deployment, "Ready")
            }))
        },
    )?;
    Ok(deployment)
}

/// Asks the quickstart's Service for `path`, from another pod.
///
/// # Errors
/// When nobody answers.
pub fn ask(environment: &Environment, path: &str, user: Option<&str>) -> Result<(u16, String)> {
    match visit(environment, path, user)? {
        Some(answer) => Ok(answer),
        None => bail!("nobody answers for the Service {DEPLOYMENT}"),
    }
}

/// Whether nobody answers for the quickstart's Service.
///
/// # Errors
/// When it cannot be asked.
pub fn is_silent(environment: &Environment) -> Result<bool> {
    Ok(visit(environment, "/healthz", None)?.is_none())
}

fn visit(
    environment: &Environment,
    path: &str,
    user: Option<&str>,
) -> Result<Option<(u16, String)>> {
    let service = environment
        .kubectl()
        .find(NAMESPACE, "service", DEPLOYMENT)?
        .context("the Service does not exist")?;
    let address = service["spec"]["clusterIP"]
        .as_str()
        .context("the Service has no address")?;
    visitor::get(
        environment,
        NAMESPACE,
        (address, 80),
        path,
        user,
        visitor::TIMEOUT,
    )
}

/// Addresses that the Service sends traffic to.
///
/// # Errors
/// When the API server cannot be asked.
pub fn ready_endpoints(environment: &Environment) -> Result<usize> {
    let slices = environment.kubectl().list(
        NAMESPACE,
        "endpointslices",
        &format!("kubernetes.io/service-name={DEPLOYMENT}"),
    )?;
    Ok(slices
        .iter()
        .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten())
        .filter(|endpoint| endpoint["conditions"]["ready"] == true)
        .count())
}

/// Starts one guest of the quickstart's image on a node that plays `fault`.
///
/// # Errors
/// When the API server refuses it.
pub fn start_hostile(environment: &Environment, name: &str, fault: &str) -> Result<()> {
    let kubectl = environment.kubectl();
    let mut hostile = copy(&kubectl, "confidentialdeployment", DEPLOYMENT, name)?;
    hostile["spec"]["replicas"] = json!(1);
    hostile["spec"]["machine"]["simulation"] = json!({"fault": fault});
    kubectl.apply(&hostile)
}

/// Builds the quickstart's image again with everything in the UKI and no disk, in the
/// way that `build_job` says, and starts one guest of it; both are called `name`.
///
/// # Errors
/// When the API server refuses it.
pub fn start_without_disk(environment: &Environment, name: &str, build_job: &Value) -> Result<()> {
    let kubectl = environment.kubectl();
    let mut image = copy(&kubectl, "measuredimage", IMAGE, name)?;
    image["spec"]["source"]["build"]["layout"] = json!("Initramfs");
    image["spec"]["buildJob"] = build_job.clone();
    kubectl.apply(&image)?;
    let mut deployment = copy(&kubectl, "confidentialdeployment", DEPLOYMENT, name)?;
    deployment["spec"]["replicas"] = json!(1);
    deployment["spec"]["imageRef"]["name"] = json!(name);
    // The files are unpacked into it.
    deployment["spec"]["machine"]["memory"] = json!("1Gi");
    kubectl.apply(&deployment)
}

/// Starts one guest of the quickstart's image from an IGVM file, on a node that may
/// play a `fault`.
///
/// # Errors
/// When the API server refuses it.
pub fn start_from_igvm(environment: &Environment, name: &str, fault: Option<&str>) -> Result<()> {
    let kubectl = environment.kubectl();
    let mut deployment = copy(&kubectl, "confidentialdeployment", DEPLOYMENT, name)?;
    deployment["spec"]["replicas"] = json!(1);
    deployment["spec"]["machine"]["boot"] = json!("IGVM");
    if let Some(fault) = fault {
        deployment["spec"]["machine"]["simulation"] = json!({"fault": fault});
    }
    // The UKI lies in it from 512 MiB on.
    deployment["spec"]["machine"]["memory"] = json!("1Gi");
    kubectl.apply(&deployment)
}

/// An object as a person would write it after another, under another name.
fn copy(kubectl: &Kubectl, kind: &str, of: &str, name: &str) -> Result<Value> {
    let original = kubectl
        .find(NAMESPACE, kind, of)?
        .context("the quickstart is not applied")?;
    Ok(json!({
        "apiVersion": original["apiVersion"],
        "kind": original["kind"],
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": original["spec"],
    }))
}

/// The only pod of a deployment, once its launcher runs.
///
/// # Errors
/// After the deadline.
pub fn wait_for_running_pod(environment: &Environment, deployment: &str) -> Result<Value> {
    let kubectl = environment.kubectl();
    let selector = format!("assay.dev/deployment={deployment}");
    let (pod, _) = wait::until(
        &kubectl,
        NAMESPACE,
        "a running launcher",
        BOOT_DEADLINE,
        || {
            let pods = kubectl.list(NAMESPACE, "pods", &selector)?;
            Ok(pods
                .into_iter()
                .find(|pod| pod["status"]["containerStatuses"][0]["state"]["running"].is_object()))
        },
    )?;
    Ok(pod)
}

/// The first rejecting AttestationRecord of a deployment.
///
/// # Errors
/// After the deadline.
pub fn wait_for_rejection(environment: &Environment, deployment: &str) -> Result<Value> {
    let kubectl = environment.kubectl();
    let (record, _) = wait::until(&kubectl, NAMESPACE, "a rejection", BOOT_DEADLINE, || {
        let records = records(environment, deployment)?;
        Ok(records
            .into_iter()
            .find(|record| record["status"]["verdict"] == "Rejected"))
    })?;
    Ok(record)
}

/// Waits until the launcher of a deployment's only pod gives the guest up,
/// because the firmware refuses what it was given.
///
/// # Errors
/// When the guest boots, or after the deadline.
pub fn wait_for_refused_boot(environment: &Environment, deployment: &str) -> Result<()> {
    let kubectl = environment.kubectl();
    let pod = wait_for_running_pod(environment, deployment)?;
    let name = pod["metadata"]["name"]
        .as_str()
        .context("the pod has no name")?;
    wait::until(
        &kubectl,
        NAMESPACE,
        "the launcher to give up",
        BOOT_DEADLINE,
        || {
            let log = kubectl.run(&["-n", NAMESPACE, "logs", name])?;
            ensure!(!log.contains(BOOTED), "a tampered kernel booted:\n{log}");
            Ok(log.contains(NOT_BOOTED).then_some(()))
        },
    )?;
    Ok(())
}

/// The AttestationRecords of a deployment.
///
/// # Errors
/// When the API server cannot be asked.
pub fn records(environment: &Environment, deployment: &str) -> Result<Vec<Value>> {
    let list = environment
        .kubectl()
        .json(&["-n", NAMESPACE, "get", "attestationrecords"])?;
    Ok(list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|record| record["spec"]["deploymentRef"]["name"] == deployment)
        .cloned()
        .collect())
}

/// Checks that no pod of `deployment` is attested or Ready.
///
/// # Errors
/// When one is.
pub fn ensure_never_ready(environment: &Environment, deployment: &str) -> Result<()> {
    let selector = format!("assay.dev/deployment={deployment}");
    for pod in environment.kubectl().list(NAMESPACE, "pods", &selector)? {
        for state in ["Ready", "assay.dev/Attested"] {
            ensure!(
                !is_true(&pod, state),
                "pod {} of a hostile node has {state}=True",
                pod["metadata"]["name"]
            );
        }
    }
    Ok(())
}

/// Sets the image's lifecycle, and waits until the Service has no guest left.
/// Returns the time between the two.
///
/// # Errors
/// After the deadline.
pub fn revoke(environment: &Environment, reason: &str) -> Result<Duration> {
    let kubectl = environment.kubectl();
    let patch = json!({"spec": {"lifecycle": {"state": "Revoked", "reason": reason}}}).to_string();
    kubectl.run(&[
        "-n",
        NAMESPACE,
        "patch",
        "mi",
        IMAGE,
        "--type=merge",
        "-p",
        &patch,
    ])?;
    let deadline = Duration::from_secs(30);
    let ((), elapsed) = wait::until(&kubectl, NAMESPACE, "an empty Service", deadline, || {
        Ok((ready_endpoints(environment)? == 0).then_some(()))
    })?;
    Ok(elapsed)
}

/// Takes the quickstart away and waits until nothing of it is left.
///
/// # Errors
/// When kubectl fails or the namespace does not go.
pub fn delete(environment: &Environment) -> Result<()> {
    environment
        .kubectl()
        .run(&[
            "delete",
            "namespace",
            NAMESPACE,
            "--ignore-not-found",
            "--timeout=180s",
        ])
        .map(drop)
}

fn is_true(object: &Value, type_: &str) -> bool {
    condition(object, type_).is_some_and(|condition| condition["status"] == "True")
}
