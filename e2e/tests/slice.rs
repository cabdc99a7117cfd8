//! The main job, asserted: a measured image runs as attested pods, a hostile
//! node gets nothing, a revocation reaches running pods.
//!
//! One test, because it is one story: each step stands on the one before.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use assay_e2e::leaks::{self, Needles};
use assay_e2e::{
    Environment, builds, install, kubectl, phases, private, quickstart, samples, wait,
};
use assay_tee::guest_message::{CertificateGuid, CertificateTable};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

/// What an answer of the web server contains.
const GREETING: &str = "measured guest";

#[test]
fn a_measured_image_runs_as_attested_pods() -> Result<()> {
    let Some(environment) = Environment::from_variable()? else {
        return Ok(());
    };
    install::install(&environment)?;
    quickstart::delete(&environment)?;
    quickstart::apply(&environment)?;

    let image = quickstart::wait_for_image(&environment, quickstart::IMAGE)?;
    the_published_digest_equals_the_oracles(&environment, &image)?;

    let deployment = quickstart::wait_for_guests(&environment, quickstart::DEPLOYMENT, 2)?;
    println!("{}", phases::table(&environment)?);
    ensure!(deployment["status"]["summary"]["ready"] == "2/2");
    ensure!(deployment["status"]["summary"]["attested"] == "2/2");
    simulation_is_said_aloud(&environment, &deployment)?;
    pods_are_unprivileged(&environment)?;
    the_service_answers_with_the_released_secret(&environment)?;
    records_verify_anywhere(&environment, &deployment)?;
    the_node_shows_what_its_guests_proved(&environment)?;
    drift_is_repaired(&environment)?;
    a_private_artifact_needs_its_owner_s_permission(&environment, &image)?;
    if environment.registry_program.is_some() {
        builds::a_build_ends_when_it_is_told_to(&environment)?;
    }
    an_image_without_a_disk_runs(&environment)?;
    images_of_every_kind_see_their_files(&environment)?;
    a_guest_boots_from_an_igvm_file(&environment)?;

    quickstart::start_hostile(&environment, "tampered", "TamperedKernel")?;
    quickstart::start_hostile(&environment, "rehashed", "TamperedKernelRehashed")?;
    a_rehashed_kernel_is_rejected(&environment)?;
    a_tampered_kernel_never_boots(&environment)?;
    for name in ["tampered", "rehashed"] {
        environment
            .kubectl()
            .run(&["-n", quickstart::NAMESPACE, "delete", "cdep", name])?;
    }

    quickstart::revoke(&environment, "asserted by a test")?;
    the_service_falls_silent(&environment)?;
    the_deployment_says_why(&environment)?;
    no_secret_has_leaked(&environment)?;
    quickstart::delete(&environment)
}

fn the_published_digest_equals_the_oracles(environment: &Environment, image: &Value) -> Result<()> {
    let rows = image["status"]["launchDigests"]
        .as_array()
        .context("no launch digests")?;
    let row = rows
        .iter()
        .find(|row| {
            row["vcpus"] == 1 && row["cpuModel"] == "EPYC-v4" && row["tee"] == "SimulatedSNP"
        })
        .context("no row for the quickstart's machine")?;
    let published = row["digest"].as_str().context("the row has no digest")?;

    let files = pull_artifact(environment, image)?;
    let arguments = |command: &mut Command| {
        command
            .args(["--mode", "snp", "--vcpus", "1", "--vcpu-type", "EPYC-v4"])
            .args(["--guest-features", "0x1", "--output-format", "hex"])
            .arg("--ovmf")
            .arg(files.join("firmware.fd"))
            .arg("--kernel")
            .arg(files.join("uki.efi"));
    };
    let mut ours = Command::new(&environment.assay);
    ours.arg("measure");
    arguments(&mut ours);
    ensure!(
        format!("sha384:{}", stdout(&mut ours)?) == published,
        "assay measure differs"
    );
    // As years later, without the files.
    let mut from_manifest = Command::new(&environment.assay);
    from_manifest
        .args([
            "measure",
            "--vcpus",
            "1",
            "--vcpu-type",
            "EPYC-v4",
            "--inputs",
        ])
        .arg(files.join("manifest.json"));
    ensure!(
        format!("sha384:{}", stdout(&mut from_manifest)?) == published,
        "the digest of the manifest's inputs differs"
    );

    let Some(program) = &environment.sev_snp_measure else {
        println!("skipped: sev-snp-measure is not there");
        return Ok(());
    };
    let mut oracle = Command::new(program);
    arguments(&mut oracle);
    ensure!(
        format!("sha384:{}", stdout(&mut oracle)?) == published,
        "sev-snp-measure differs"
    );
    Ok(())
}

/// Pulls the artifact's files into the scratch directory.
fn pull_artifact(environment: &Environment, image: &Value) -> Result<PathBuf> {
    let reference = image["status"]["artifact"]["reference"]
        .as_str()
        .context("no artifact reference")?;
    let files = environment.scratch.join("artifact");
    stdout(
        Command::new(&environment.assay)
            .args([
                "pull",
                reference,
                "--plain-http",
                &environment.registry,
                "--output",
            ])
            .arg(&files),
    )?;
    Ok(files)
}

fn simulation_is_said_aloud(environment: &Environment, deployment: &Value) -> Result<()> {
    let hardware = kubectl::condition(deployment, "HardwareBacked").context("no HardwareBacked")?;
    ensure!(hardware["status"] == "False" && hardware["reason"] == "Simulated");
    for record in quickstart::records(environment, quickstart::DEPLOYMENT)? {
        ensure!(record["status"]["tee"] == "SimulatedSNP");
        let domain = record["status"]["trustDomain"].as_str().unwrap_or_default();
        ensure!(domain.starts_with("Simulated"), "trust domain {domain:?}");
    }
    Ok(())
}

fn pods_are_unprivileged(environment: &Environment) -> Result<()> {
    for pod in environment.kubectl().list(
        quickstart::NAMESPACE,
        "pods",
        &format!("assay.dev/deployment={}", quickstart::DEPLOYMENT),
    )? {
        let spec = &pod["spec"];
        ensure!(spec["automountServiceAccountToken"] == false);
        ensure!(spec["securityContext"]["runAsNonRoot"] == true);
        for container in spec["containers"].as_array().into_iter().flatten() {
            let context = &container["securityContext"];
            ensure!(context["allowPrivilegeEscalation"] == false);
            ensure!(context["readOnlyRootFilesystem"] == true);
            ensure!(context["capabilities"]["drop"][0] == "ALL");
        }
    }
    Ok(())
}

fn the_service_answers_with_the_released_secret(environment: &Environment) -> Result<()> {
    let (status, body) = quickstart::ask(environment, "/", Some(quickstart::VISITOR))?;
    ensure!(
        status == 200 && body.contains(GREETING),
        "answer {status}: {body}"
    );
    let (status, _) = quickstart::ask(environment, "/", Some("visitor:guessed"))?;
    ensure!(status == 401, "a wrong password is answered with {status}");
    Ok(())
}

fn records_verify_anywhere(environment: &Environment, deployment: &Value) -> Result<()> {
    let expected = deployment["status"]["expectedDigest"]
        .as_str()
        .context("no expected digest")?;
    let records = quickstart::records(environment, quickstart::DEPLOYMENT)?;
    ensure!(
        records.len() == 2,
        "{} records for two guests",
        records.len()
    );
    let root = environment.kubectl().run(&[
        "-n",
        install::NAMESPACE,
        "get",
        "configmap",
        "assay-simulation-root",
        "-o",
        "jsonpath={.data.ark\\.pem}",
    ])?;
    let root_file = environment.scratch.join("simulated-root.pem");
    std::fs::write(&root_file, root).context("write the simulated root")?;
    let file = environment.scratch.join("record.json");
    std::fs::write(&file, records[0].to_string()).context("write the record")?;
    stdout(
        Command::new(&environment.assay)
            .arg("verify")
            .arg("--record")
            .arg(&file)
            .arg("--simulated-root")
            .arg(&root_file)
            .args(["--measurement", expected]),
    )?;
    let expected = expected.trim_start_matches("sha384:");
    go_sev_guest_accepts(environment, &records[0], &root_file, expected)
}

/// Another verifier on the record's raw evidence: go-sev-guest accepts it under
/// the development root with the digest that was published, and with no other.
fn go_sev_guest_accepts(
    environment: &Environment,
    record: &Value,
    root: &Path,
    digest: &str,
) -> Result<()> {
    /// Exit status of `check` for a report that differs from what is expected.
    const EXIT_POLICY: i32 = 5;
    let Some(program) = &environment.go_sev_guest_check else {
        println!("skipped: go-sev-guest's check is not there");
        return Ok(());
    };
    let bytes = |field: &str| -> Result<Vec<u8>> {
        let text = record["status"]["evidence"][field]
            .as_str()
            .with_context(|| format!("the record's evidence has no {field}"))?;
        let bytes = BASE64_STANDARD.decode(text);
        bytes.with_context(|| format!("the record's {field} is not base64"))
    };
    let table = bytes("certificates")?;
    // It wants the product's chain in one file: the ASK, then the ARK.
    let ask = CertificateTable::parse(&table)?
        .get(CertificateGuid::ASK)
        .map(|der| BASE64_STANDARD.encode(der))
        .context("the record has no ASK")?;
    let chain = format!(
        "-----BEGIN CERTIFICATE-----\n{ask}\n-----END CERTIFICATE-----\n{}",
        std::fs::read_to_string(root).context("read the simulated root")?
    );
    let directory = environment.scratch.join("go-sev-guest");
    std::fs::create_dir_all(&directory).context("create a directory for go-sev-guest")?;
    let report = [bytes("report")?, table].concat();
    std::fs::write(directory.join("report.bin"), report).context("write the report")?;
    std::fs::write(directory.join("chain.pem"), chain).context("write the chain")?;
    let check = |digest: &str| -> Result<(Option<i32>, String)> {
        let output = Command::new(program)
            .current_dir(&directory)
            .args(["-in", "report.bin", "-inform", "bin", "-network=false"])
            .args(["-check_crl=false", "-product_name", "Genoa-B1"])
            .args(["-product_key_path", "chain.pem", "-vmpl", "0"])
            .args(["-guest_policy", "0x30000", "-platform_info", "0x27"])
            .args(["-measurement", digest])
            .output()
            .with_context(|| format!("run {}", program.display()))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((output.status.code(), said))
    };
    let (status, said) = check(digest)?;
    ensure!(status == Some(0), "go-sev-guest refuses the record: {said}");
    let (status, said) = check(&"00".repeat(48))?;
    ensure!(
        status == Some(EXIT_POLICY),
        "go-sev-guest takes any digest ({status:?}): {said}"
    );
    Ok(())
}

/// A NodeTrust says of the node's processor what the records say, and goes with the
/// Node.
fn the_node_shows_what_its_guests_proved(environment: &Environment) -> Result<()> {
    let kubectl = environment.kubectl();
    let records = quickstart::records(environment, quickstart::DEPLOYMENT)?;
    let record = records.first().context("no record")?;
    let node = record["spec"]["nodeName"]
        .as_str()
        .context("the record names no node")?;
    let trust = kubectl.json(&["get", "nodetrust", node])?;
    let status = &trust["status"];
    ensure!(
        status["trustDomain"] == record["status"]["trustDomain"]
            && status["tee"] == "SimulatedSNP"
            && status["product"] == "Genoa",
        "{status}"
    );
    let certificates = status["endorsement"]["certificates"].as_array();
    ensure!(
        certificates.is_some_and(|certificates| !certificates.is_empty()),
        "no certificates: {status}"
    );
    let owner = &trust["metadata"]["ownerReferences"][0];
    ensure!(owner["kind"] == "Node" && owner["name"] == node, "{owner}");
    Ok(())
}

/// Until then the artifact is out of reach, and the message has the very commands.
fn a_private_artifact_needs_its_owner_s_permission(
    environment: &Environment,
    image: &Value,
) -> Result<()> {
    let Some(program) = &environment.registry_program else {
        println!("skipped: the cluster is not on this machine");
        return Ok(());
    };
    let kubectl = environment.kubectl();
    let reference = image["status"]["artifact"]["reference"]
        .as_str()
        .context("no artifact reference")?;
    let registry = private::PrivateRegistry::start(environment, program)?;
    let copy = registry.copy(environment, reference)?;
    let config = private::docker_config(environment).to_string();
    let metadata = |name: &str| json!({"name": name, "namespace": quickstart::NAMESPACE});
    kubectl.apply(&json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata("pull"),
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": config},
    }))?;
    kubectl.apply(&json!({
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "MeasuredImage",
        "metadata": metadata("private"),
        "spec": {
            "source": {"type": "OCI", "oci": {"reference": copy}},
            "pullSecretRef": {"name": "pull"},
            "shapes": {"vcpus": [1], "cpuModels": ["EPYC-v4"]},
        },
    }))?;
    let why = builds::wait_for_reason(&kubectl, "private", "PullSecretUnusable")?;
    let commands = why.split('`').skip(1).step_by(2);
    let mut count = 0;
    for command in commands {
        let words: Vec<&str> = command.split_whitespace().collect();
        ensure!(words.first() == Some(&"kubectl"), "{why}");
        kubectl.run(&words[1..])?;
        count += 1;
    }
    ensure!(count == 2, "{why}");
    let ready = quickstart::wait_for_image(environment, "private")?;
    let digests = |image: &Value| -> Vec<Value> {
        let rows = image["status"]["launchDigests"].as_array().cloned();
        let rows = rows.unwrap_or_default().into_iter();
        rows.map(|row| row["digest"].clone()).collect()
    };
    let (copied, original) = (digests(&ready), digests(image));
    ensure!(
        !copied.is_empty() && copied.iter().any(|digest| original.contains(digest)),
        "the copy has other digests: {copied:?} {original:?}"
    );
    kubectl
        .run(&["-n", quickstart::NAMESPACE, "delete", "mi", "private"])
        .map(drop)
}

fn drift_is_repaired(environment: &Environment) -> Result<()> {
    let kubectl = environment.kubectl();
    let uid = |kubectl: &assay_e2e::Kubectl| -> Result<Option<Value>> {
        let service = kubectl.find(quickstart::NAMESPACE, "service", quickstart::DEPLOYMENT)?;
        Ok(service.map(|service| service["metadata"]["uid"].clone()))
    };
    let before = uid(&kubectl)?;
    kubectl.run(&[
        "-n",
        quickstart::NAMESPACE,
        "delete",
        "service",
        quickstart::DEPLOYMENT,
    ])?;
    wait::until(
        &kubectl,
        quickstart::NAMESPACE,
        "the Service to be made again",
        Duration::from_mins(1),
        || Ok(uid(&kubectl)?.filter(|now| Some(now) != before.as_ref())),
    )?;
    let sidecar = json!({"name": "sidecar", "image": environment.images.web});
    let port = json!({"name": "more", "port": 81});
    let variable = json!({"name": "A", "value": "b"});
    let launcher = "/spec/template/spec/containers/0";
    for (kind, pointer, foreign) in [
        ("deployment", "/spec/replicas", json!(5)),
        ("service", "/spec/selector/extra", json!("x")),
        ("service", "/spec/publishNotReadyAddresses", json!(true)),
        ("service", "/spec/ports/1", port),
        ("deployment", "/spec/paused", json!(true)),
        ("deployment", &format!("{launcher}/env/3"), variable),
        ("deployment", "/spec/template/spec/containers/1", sidecar),
    ] {
        let look = || -> Result<Value> {
            let found = kubectl.find(quickstart::NAMESPACE, kind, quickstart::DEPLOYMENT)?;
            let found = found.with_context(|| format!("the {kind} is gone"))?;
            Ok(found.pointer(pointer).cloned().unwrap_or_default())
        };
        let good = look()?;
        ensure!(good != foreign, "{pointer} is {good} already");
        kubectl.run(&[
            "-n",
            quickstart::NAMESPACE,
            "patch",
            kind,
            quickstart::DEPLOYMENT,
            "--type=json",
            "-p",
            &json!([{"op": "add", "path": pointer, "value": foreign}]).to_string(),
        ])?;
        wait::until(
            &kubectl,
            quickstart::NAMESPACE,
            &format!("{pointer} of the {kind} to be put right"),
            Duration::from_mins(1),
            || Ok((look()? == good).then_some(())),
        )?;
    }
    // Not only is the drift gone: the deployment says that all is well again.
    quickstart::wait_for_guests(environment, quickstart::DEPLOYMENT, 2).map(drop)
}

fn a_rehashed_kernel_is_rejected(environment: &Environment) -> Result<()> {
    let record = quickstart::wait_for_rejection(environment, "rehashed")?;
    let checks = record["status"]["checks"]
        .as_array()
        .context("the record has no checks")?;
    let failed: Vec<&Value> = checks
        .iter()
        .filter(|check| check["result"] == "Fail")
        .collect();
    ensure!(
        failed.len() == 1 && failed[0]["name"] == "Measurement",
        "failed checks: {failed:?}"
    );
    ensure!(failed[0]["expected"] != failed[0]["observed"]);
    quickstart::ensure_never_ready(environment, "rehashed")?;
    let events = environment
        .kubectl()
        .json(&["-n", quickstart::NAMESPACE, "get", "events"])?;
    let pod = &record["spec"]["podRef"]["name"];
    let released = events["items"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|event| {
            event["reason"] == "SecretReleased" && &event["involvedObject"]["name"] == pod
        });
    ensure!(!released, "a secret was released to {pod}");
    Ok(())
}

fn a_tampered_kernel_never_boots(environment: &Environment) -> Result<()> {
    quickstart::wait_for_refused_boot(environment, "tampered")?;
    ensure!(
        quickstart::records(environment, "tampered")?.is_empty(),
        "a guest that cannot boot has a record"
    );
    quickstart::ensure_never_ready(environment, "tampered")
}

/// kube-proxy follows the EndpointSlice in its own time.
fn the_service_falls_silent(environment: &Environment) -> Result<()> {
    let what = "the Service to fall silent";
    let deadline = Duration::from_secs(30);
    wait::until(
        &environment.kubectl(),
        quickstart::NAMESPACE,
        what,
        deadline,
        || Ok(quickstart::is_silent(environment)?.then_some(())),
    )?;
    Ok(())
}

fn the_deployment_says_why(environment: &Environment) -> Result<()> {
    let kubectl = environment.kubectl();
    wait::until(
        &kubectl,
        quickstart::NAMESPACE,
        "the deployment to name the revocation",
        Duration::from_secs(30),
        || {
            let found = kubectl.find(
                quickstart::NAMESPACE,
                "confidentialdeployment",
                quickstart::DEPLOYMENT,
            )?;
            Ok(found.filter(|deployment| {
                kubectl::condition(deployment, "Ready").is_some_and(|ready| {
                    ready["status"] == "False" && ready["reason"] == "ImageRevoked"
                })
            }))
        },
    )?;
    Ok(())
}

/// The other layout, from build to a guest that serves with its secret.
fn an_image_without_a_disk_runs(environment: &Environment) -> Result<()> {
    let name = "web-in-memory";
    // A cluster on another machine has no directory here.
    let claim = "images";
    let cache = environment.registry_program.as_ref();
    let cache = cache.map(|_| builds::make_cache(environment, claim));
    let cache = cache.transpose()?;
    let build_job = match &cache {
        Some(_) => json!({"cache": {"claimName": claim, "sizeLimit": "900Mi"}}),
        None => json!({}),
    };
    quickstart::start_without_disk(environment, name, &build_job)?;
    let image = quickstart::wait_for_image(environment, name)?;
    if let Some(directory) = cache {
        let kept = std::fs::read_dir(directory.join("blobs/sha256"))
            .context("the build kept nothing")?
            .count();
        // Manifest, configuration and layers of two images.
        ensure!(kept >= 6, "the build kept {kept} blobs");
        builds::remove_cache(environment, claim, &directory)?;
    }
    let artifact = &image["status"]["artifact"];
    ensure!(
        artifact["rootDisk"].is_null(),
        "the layout Initramfs has a disk: {artifact}"
    );
    quickstart::wait_for_guests(environment, name, 1)?;
    remove(environment, name)
}

/// One after the other: each takes a processor while it boots.
fn images_of_every_kind_see_their_files(environment: &Environment) -> Result<()> {
    let Some(samples) = &environment.samples else {
        println!("skipped: there are no sample workloads");
        return Ok(());
    };
    for (name, image) in [
        ("static-server", &samples.static_server),
        ("interpreter", &samples.interpreter),
        ("distroless", &samples.distroless),
    ] {
        samples::start(environment, name, image)?;
        let built = quickstart::wait_for_image(environment, name)?;
        let reproducible = kubectl::condition(&built, "Reproducible").context("built once")?;
        ensure!(reproducible["status"] == "True", "{reproducible}");
        quickstart::wait_for_guests(environment, name, 1)?;
        samples::check_files(environment, name, image)?;
        remove(environment, name)?;
    }
    Ok(())
}

/// Deletes the deployment and the image of one name.
fn remove(environment: &Environment, name: &str) -> Result<()> {
    for kind in ["cdep", "mi"] {
        environment
            .kubectl()
            .run(&["-n", quickstart::NAMESPACE, "delete", kind, name])?;
    }
    Ok(())
}

/// The same image by another way: firmware and UKI in one measured file.
fn a_guest_boots_from_an_igvm_file(environment: &Environment) -> Result<()> {
    let name = "web-from-igvm";
    let hostile = "rehashed-from-igvm";
    quickstart::start_from_igvm(environment, name, None)?;
    quickstart::start_from_igvm(environment, hostile, Some("TamperedKernelRehashed"))?;
    quickstart::wait_for_guests(environment, name, 1)?;
    let image = quickstart::wait_for_image(environment, quickstart::IMAGE)?;
    let rows = image["status"]["launchDigests"]
        .as_array()
        .context("no launch digests")?;
    let (of_igvm, others): (Vec<&Value>, Vec<&Value>) = rows
        .iter()
        .filter(|row| row["vcpus"] == 1 && row["tee"] == "SimulatedSNP")
        .partition(|row| row["boot"] == "IGVM");
    let (&[row], &[other]) = (of_igvm.as_slice(), others.as_slice()) else {
        anyhow::bail!("one row by each boot method was expected: {rows:?}")
    };
    ensure!(
        row["digest"] != other["digest"],
        "both boot methods have one digest"
    );
    let files = environment.scratch.join("artifact");
    let mut build = Command::new(&environment.assay);
    build
        .args(["igvm", "build", "--vcpus", "1", "--vcpu-type", "EPYC-v4"])
        .arg("--ovmf")
        .arg(files.join("firmware.fd"))
        .arg("--kernel")
        .arg(files.join("uki.efi"))
        .arg("--output")
        .arg(files.join("guest.igvm"));
    ensure!(
        row["digest"] == format!("sha384:{}", stdout(&mut build)?),
        "assay igvm build differs"
    );
    let records = quickstart::records(environment, name)?;
    let accepted = records.iter().any(|record| {
        let status = &record["status"];
        status["verdict"] == "Accepted" && status["referenceValue"] == row["id"]
    });
    ensure!(accepted, "no record names the file's row: {records:?}");

    let record = quickstart::wait_for_rejection(environment, hostile)?;
    ensure!(
        record["status"]["reason"] == "MeasurementUnknown",
        "the changed UKI of an IGVM file: {record}"
    );
    quickstart::ensure_never_ready(environment, hostile)?;
    for name in [name, hostile] {
        environment
            .kubectl()
            .run(&["-n", quickstart::NAMESPACE, "delete", "cdep", name])?;
    }
    Ok(())
}

/// The secret may be in its Secret and in the guests alone: not in other objects,
/// logs, Events, or the memory of what it passed through.
fn no_secret_has_leaked(environment: &Environment) -> Result<()> {
    let kubectl = environment.kubectl();
    let name = "web-users";
    let secret = kubectl
        .find(quickstart::NAMESPACE, "secret", name)?
        .context("the Secret is gone")?;
    let encoded = secret["data"]["htpasswd"]
        .as_str()
        .context("the Secret has no htpasswd")?;
    let secret = BASE64_STANDARD
        .decode(encoded)
        .context("the Secret's htpasswd is not base64")?;
    let needles = Needles::of(secret.trim_ascii_end());

    leaks::search_objects(&kubectl, quickstart::NAMESPACE, name, &needles)?;
    if let Some(logs) = &environment.logs {
        leaks::search_files(logs, &needles)?;
    }
    let mut logs = vec![kubectl.run(&[
        "-n",
        install::NAMESPACE,
        "logs",
        "-l",
        "app.kubernetes.io/name=assay",
        "--tail=-1",
    ])?];
    for pod in kubectl.list(quickstart::NAMESPACE, "pods", "assay.dev/deployment")? {
        let name = pod["metadata"]["name"]
            .as_str()
            .context("a pod has no name")?;
        let namespace = quickstart::NAMESPACE;
        logs.push(kubectl.run(&["-n", namespace, "logs", name, "--all-containers"])?);
    }
    for log in logs {
        ensure!(
            needles.find(log.as_bytes()).is_none(),
            "the secret is in a log:\n{log}"
        );
    }

    let here = leaks::search_memory(std::process::id(), &needles)?;
    ensure!(here.is_some(), "the search of memory finds nothing");
    for program in ["assay-broker", "assay-operator", "assay-launcher"] {
        let processes = leaks::processes(program)?;
        ensure!(!processes.is_empty(), "no process is called {program}");
        for id in processes {
            let found = leaks::search_memory(id, &needles)?;
            ensure!(
                found.is_none(),
                "the secret is in the memory of {program} ({id}): {found:?}"
            );
        }
    }
    for id in leaks::processes("assay-broker")? {
        ensure!(
            leaks::leaves_no_core_dump(id)?,
            "the broker ({id}) would leave a core dump"
        );
    }
    Ok(())
}

fn stdout(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)
        .context("output is not UTF-8")?
        .trim()
        .to_owned())
}
