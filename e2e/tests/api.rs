//! The API server's own view: CEL rules refuse what contradicts itself, and the
//! chart's roles give each program what it needs and no more.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use assay_e2e::{Environment, Kubectl, install, kubectl, wait};
use serde_json::{Value, json};

#[test]
fn contradictions_are_refused_with_the_field_s_name() -> Result<()> {
    let Some(environment) = Environment::from_variable()? else {
        return Ok(());
    };
    install::install(&environment)?;
    let kubectl = environment.kubectl();
    accept(&kubectl, &image())?;
    accept(&kubectl, &policy())?;
    accept(&kubectl, &deployment())?;

    accept(&kubectl, &with_build_job())?;

    let cases: [(Value, &str, Value, &str); 40] = [
        (
            with_build_job(),
            "/spec/source",
            json!({"type": "OCI", "oci": {"reference": format!("host/x@sha256:{}", "0".repeat(64))}}),
            "spec.buildJob is about the build, and spec.source.type OCI has none",
        ),
        (
            with_build_job(),
            "/spec/buildJob/cache/sizeLimit",
            json!("twenty"),
            "cache.sizeLimit must be an amount such as 20Gi",
        ),
        (
            with_build_job(),
            "/spec/buildJob/cache/claimName",
            json!(""),
            "claimName in body should be at least 1 chars long",
        ),
        (
            image(),
            "/spec/source/type",
            json!("OCI"),
            "source.oci must be set",
        ),
        (
            image(),
            "/spec/source/build/rootfs/image",
            json!("host/repo:tag"),
            "image must be host/repository@sha256:<64 hex digits>",
        ),
        (
            image(),
            "/spec/source/build/bootKit/image",
            json!("host/repo:tag"),
            "give the digest that the push printed",
        ),
        (
            image(),
            "/spec/source",
            json!({"type": "OCI", "oci": {"reference": "host/repo:tag"}}),
            "oci.reference must be host/repository@sha256:<64 hex digits>",
        ),
        (
            image(),
            "/spec/source/build/output/repository",
            json!("host/repo@sha256:0"),
            "leave out tag and digest",
        ),
        (
            without_disk(),
            "/spec/source/build/compression",
            json!("Zstd"),
            "the layout Initramfs has none: leave it out",
        ),
        (
            image(),
            "/spec/shapes",
            json!({"vcpus": [0]}),
            "vcpus[0] in body should be greater than or equal to 1",
        ),
        (
            image(),
            "/metadata/name",
            json!("x".repeat(64)),
            "create the MeasuredImage under a shorter name",
        ),
        (
            policy(),
            "/spec/tees",
            json!([]),
            "tees names no TEE, so no evidence would be accepted: name at least one, such as SNP",
        ),
        (
            policy(),
            "/spec/freshness",
            json!({"interval": "0s"}),
            "must be more than 0s",
        ),
        (
            policy(),
            "/spec/freshness",
            json!({"maxAge": "2000000h"}),
            "at most 1000000h: write it like 90s, 10m or 1h30m",
        ),
        (
            policy(),
            "/spec/freshness",
            json!({"maxAge": "1d"}),
            "write it like 90s, 10m or 1h30m",
        ),
        (
            policy(),
            "/spec/freshness",
            json!({"interval": "10m", "maxAge": "5m"}),
            "shorter than",
        ),
        (
            policy(),
            "/spec/snp/signingKeys",
            json!([]),
            "snp.signingKeys names no key",
        ),
        (
            policy(),
            "/spec/snp/signingKeys",
            json!([{"type": "VLEK"}]),
            "a VLEK counts only from a provider that is named",
        ),
        (
            policy(),
            "/spec/snp/signingKeys",
            json!([{"type": "VCEK", "providers": ["CN=a"]}]),
            "signingKeys.providers must be set exactly when signingKeys.type is VLEK",
        ),
        (
            policy(),
            "/spec/snp/allowedChips",
            json!([]),
            "snp.allowedChips names no chip",
        ),
        (
            policy(),
            "/spec/snp/allowedChips",
            json!(["ab"]),
            "must be sha256:<64 lower-case hex digits>",
        ),
        (
            policy(),
            "/spec/snp/denied",
            json!({"keys": [format!("sha256:{}", "AB".repeat(32))]}),
            "must be sha256:<64 lower-case hex digits>",
        ),
        (
            policy(),
            "/spec/snp/products/0/minimumTCB/fmc",
            json!(1),
            "fmc must be set exactly when products.name is Turin",
        ),
        (
            policy(),
            "/spec/snp/products/0/name",
            json!("Turin"),
            "fmc must be set exactly when products.name is Turin",
        ),
        (
            policy(),
            "/spec/snp/products/0/mitigations",
            json!([64]),
            "mitigations[0] in body should be less than or equal to 63",
        ),
        (
            policy(),
            "/spec/snp/platform",
            json!({"required": ["Ecc", "Smt"], "forbidden": ["Smt"]}),
            "name the same property",
        ),
        (
            policy(),
            "/spec/snp/idBlock",
            json!({"minimumGuestSvn": 1}),
            "set idKeyDigests or authorKeyDigests beside them",
        ),
        (
            policy(),
            "/spec/snp/idBlock",
            json!({"idKeyDigests": ["sha384:ab"]}),
            "must be sha384:<96 lower-case hex digits>",
        ),
        (
            policy(),
            "/spec/snp/idBlock",
            json!({"idKeyDigests": [format!("sha384:{}", "ab".repeat(48))], "imageIds": ["ab"]}),
            "must be 32 lower-case hex digits",
        ),
        (
            policy(),
            "/spec/snp/crl",
            json!({"grace": "1d"}),
            "write it like 90s, 10m or 1h30m",
        ),
        (
            policy(),
            "/spec/release",
            json!([{"resource": "x", "imageStates": ["Revoked"]}]),
            "revoked",
        ),
        (
            deployment(),
            "/spec/machine/vcpus",
            json!(0),
            "vcpus in body should be greater than or equal to 1",
        ),
        (
            deployment(),
            "/spec/replicas",
            json!(-1),
            "replicas is negative: say 0 to stop every guest",
        ),
        (
            deployment(),
            "/metadata/name",
            json!("x".repeat(64)),
            "create the ConfidentialDeployment under a shorter name",
        ),
        (
            deployment(),
            "/spec/imageRef/name",
            json!("x".repeat(64)),
            "use a MeasuredImage with a shorter name",
        ),
        (
            deployment(),
            "/spec/machine/cpuModel",
            json!("host"),
            "cpuModel must name a model",
        ),
        (
            deployment(),
            "/spec/machine/simulation",
            json!({"fault": "TamperedKernel"}),
            "SimulatedSNP alone",
        ),
        (
            deployment(),
            "/spec/machine",
            json!({
                "vcpus": 1, "memory": "1Gi", "cpuModel": "EPYC-v4", "tee": "SimulatedSNP",
                "boot": "IGVM", "simulation": {"fault": "TamperedKernel"},
            }),
            "say TamperedKernelRehashed",
        ),
        (
            deployment(),
            "/spec/ports/0/containerPort",
            json!(9990),
            "status port",
        ),
        (
            deployment(),
            "/spec/secrets/0/target/path",
            json!("/run/secrets/../x"),
            "segments",
        ),
    ];
    for (object, pointer, value, sentence) in cases {
        refuse(&kubectl, object, pointer, value, sentence)?;
    }
    Ok(())
}

#[test]
fn what_admission_cannot_know_becomes_a_condition() -> Result<()> {
    let Some(environment) = Environment::from_variable()? else {
        return Ok(());
    };
    install::install(&environment)?;
    let kubectl = environment.kubectl();
    let mut unknown_model = image();
    unknown_model["metadata"]["name"] = json!("unknown-model");
    unknown_model["spec"]["shapes"] = json!({"vcpus": [1], "cpuModels": ["EPYC-v99"]});
    let mut no_secret = image();
    no_secret["metadata"]["name"] = json!("no-secret");
    no_secret["spec"]["source"]["build"]["output"]["secretRef"] = json!({"name": "absent"});
    for (object, type_, reason, sentence) in [
        (
            unknown_model,
            "Measured",
            "UnknownCpuModel",
            "spec.shapes.cpuModels",
        ),
        (
            no_secret,
            "Ready",
            "BuildFailed",
            "create the Secret that spec.source.build.output.secretRef names",
        ),
    ] {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let delete = || kubectl.run(&["-n", "default", "delete", "mi", name, "--ignore-not-found"]);
        delete()?;
        kubectl.apply(&object)?;
        wait::until(
            &kubectl,
            "default",
            &format!("{type_} to be False with {reason}"),
            Duration::from_mins(2),
            || {
                let found = kubectl.find("default", "measuredimage", name)?;
                let told = found.as_ref().is_some_and(|image| {
                    kubectl::condition(image, type_).is_some_and(|condition| {
                        let message = condition["message"].as_str().unwrap_or_default();
                        condition["status"] == "False"
                            && condition["reason"] == reason
                            && message.contains(sentence)
                    })
                });
                Ok(told.then_some(()))
            },
        )?;
        delete()?;
    }
    Ok(())
}

#[test]
fn programs_can_do_what_they_need_and_no_more() -> Result<()> {
    let Some(environment) = Environment::from_variable()? else {
        return Ok(());
    };
    install::install(&environment)?;
    let kubectl = environment.kubectl();
    let operator = "assay-operator";
    let broker = "assay-broker";
    for (account, verb, resource, namespace, expected) in [
        (operator, "patch", "pods/status", "default", true),
        (operator, "create", "jobs.batch", "default", true),
        (operator, "delete", "jobs.batch", "default", true),
        (
            operator,
            "patch",
            "measuredimages.assay.dev/status",
            "default",
            true,
        ),
        (
            operator,
            "patch",
            "measuredimages.assay.dev",
            "default",
            false,
        ),
        (operator, "get", "secrets", "default", false),
        (operator, "create", "pods", "default", false),
        (operator, "create", "clusterrolebindings", "default", false),
        (
            operator,
            "patch",
            "attestationrecords.assay.dev/status",
            "default",
            false,
        ),
        (
            broker,
            "patch",
            "attestationrecords.assay.dev/status",
            "default",
            true,
        ),
        (broker, "create", "nodetrusts.assay.dev", "default", true),
        (
            broker,
            "patch",
            "nodetrusts.assay.dev/status",
            "default",
            true,
        ),
        (broker, "delete", "nodetrusts.assay.dev", "default", false),
        (broker, "get", "nodes", "default", true),
        (broker, "list", "nodes", "default", false),
        (broker, "patch", "nodes", "default", false),
        (broker, "get", "secrets", "default", false),
        (broker, "list", "secrets", "default", false),
        (broker, "create", "deployments.apps", "default", false),
        (broker, "patch", "pods/status", "default", false),
    ] {
        let user = format!(
            "--as=system:serviceaccount:{}:{account}",
            install::NAMESPACE
        );
        let (kind, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let subresource = format!("--subresource={subresource}");
        let question = [
            "auth",
            "can-i",
            verb,
            kind,
            &subresource,
            "-n",
            namespace,
            &user,
        ];
        let output = kubectl.output(&question, "")?;
        ensure!(
            output.status.success() == expected,
            "{account} {verb} {resource}: expected {expected}, got {}",
            String::from_utf8_lossy(&output.stdout).trim()
        );
    }
    Ok(())
}

#[test]
fn the_operator_cannot_grant_itself_secrets() -> Result<()> {
    let Some(environment) = Environment::from_variable()? else {
        return Ok(());
    };
    install::install(&environment)?;
    let user = format!(
        "--as=system:serviceaccount:{}:assay-operator",
        install::NAMESPACE
    );
    let role = |name: &str, rules: Value| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": name, "namespace": "default"},
            "rules": rules,
        })
    };
    let any_secret = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]);
    let one_secret = json!([{
        "apiGroups": [""], "resources": ["secrets"], "verbs": ["get"], "resourceNames": ["x"],
    }]);
    let other = json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]);
    for (object, allowed) in [
        (role("assay-release-x", one_secret.clone()), true),
        (role("assay-release-x", any_secret), false),
        (role("assay-release-x", other), false),
        (role("something-else", one_secret), false),
        (binding("assay-broker"), true),
        (binding("assay-operator"), false),
    ] {
        let output = environment.kubectl().output(
            &["create", "--dry-run=server", &user, "-f", "-"],
            &object.to_string(),
        )?;
        ensure!(
            output.status.success() == allowed,
            "{object}: expected {allowed}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

#[test]
fn a_broker_outside_writes_records_and_does_nothing_else() -> Result<()> {
    let Some(environment) = Environment::from_variable()? else {
        return Ok(());
    };
    install::install(&environment)?;
    let kubectl = environment.kubectl();
    let identity = install::render(
        &environment,
        "templates/publisher.yaml",
        "charts/golden/external-verifier.values.yaml",
    )?;
    let home = ["-n", install::NAMESPACE];
    kubectl.run_with_input(&[&home[..], &["apply", "-f", "-"]].concat(), &identity)?;
    let user = format!(
        "--as=system:serviceaccount:{}:assay-record-publisher",
        install::NAMESPACE
    );
    for (verb, resource, expected) in [
        ("patch", "attestationrecords.assay.dev", true),
        ("create", "attestationrecords.assay.dev", true),
        ("get", "attestationrecords.assay.dev", false),
        ("delete", "attestationrecords.assay.dev", false),
        ("get", "secrets", false),
        ("get", "pods", false),
        ("patch", "pods", false),
        ("create", "events.events.k8s.io", false),
    ] {
        let question = ["auth", "can-i", verb, resource, "-n", "default", &user];
        let output = kubectl.output(&question, "")?;
        ensure!(
            output.status.success() == expected,
            "{verb} {resource}: expected {expected}"
        );
    }

    // A pod that nobody schedules, so that its record is not collected.
    kubectl.run(&[
        "-n",
        "default",
        "delete",
        "pod",
        "outside-1",
        "--ignore-not-found",
    ])?;
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "outside-1", "namespace": "default"},
        "spec": {
            "schedulingGates": [{"name": "assay.dev/never"}],
            "containers": [{"name": "c", "image": environment.images.busybox}],
        },
    });
    kubectl.run_with_input(&["create", "-f", "-"], &pod.to_string())?;
    let pod = kubectl.find("default", "pod", "outside-1")?;
    let uid = pod.as_ref().and_then(|pod| pod["metadata"]["uid"].as_str());
    let uid = uid.context("the pod has no UID")?;
    let absent = "7e2c6bcb-3c53-4f8c-9b5e-000000000001";
    let apply = |object: &Value, dry_run: &str| {
        let manager = "--field-manager=assay-broker";
        let args = [
            "apply",
            "--server-side",
            "--force-conflicts",
            manager,
            dry_run,
            &user,
            "-f",
            "-",
        ];
        kubectl.output(&args, &object.to_string())
    };
    // An API server learns of an admission policy some time after it is there.
    let unowned_record = unowned(record("outside-1", uid, uid));
    wait::until(
        &kubectl,
        "default",
        "the admission policy to be in force",
        Duration::from_mins(1),
        || {
            let refused = !apply(&unowned_record, "--dry-run=server")?.status.success();
            Ok(refused.then_some(()))
        },
    )?;
    for (object, refusal) in [
        (record("outside-1", uid, uid), None),
        (record("outside-1", uid, absent), Some("owned by the pod")),
        (record("outside-1", absent, absent), Some("of another pod")),
        (unowned_record.clone(), Some("owned by the pod")),
        // Nothing shows that there is no such pod: this one is collected.
        (record("outside-2", absent, absent), None),
    ] {
        let output = apply(&object, "--dry-run=none")?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success() == refusal.is_none()
                && error.contains(refusal.unwrap_or_default()),
            "{object}: expected {refusal:?}: {error}"
        );
    }
    wait::until(
        &kubectl,
        "default",
        "the record of a pod that does not exist to be collected",
        Duration::from_mins(2),
        || {
            let found = kubectl.find("default", "attestationrecord", "outside-2")?;
            Ok(found.is_none().then_some(()))
        },
    )?;
    kubectl.run(&["-n", "default", "delete", "pod", "outside-1"])?;
    kubectl.run_with_input(&[&home[..], &["delete", "-f", "-"]].concat(), &identity)?;
    Ok(())
}

fn record(pod: &str, uid: &str, owner: &str) -> Value {
    json!({
        "apiVersion": "assay.dev/v1alpha1",
        "kind": "AttestationRecord",
        "metadata": {
            "name": pod,
            "namespace": "default",
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": owner}],
        },
        "spec": {
            "podRef": {"name": pod, "uid": uid},
            "nodeName": "node",
            "deploymentRef": {"name": "good"},
            "imageRef": {"name": "good"},
            "policyRef": {"name": "good"},
        },
    })
}

fn unowned(mut record: Value) -> Value {
    record["metadata"]["ownerReferences"] = json!([]);
    record
}

fn binding(account: &str) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "assay-release-x", "namespace": "default"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "assay-release-x"},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": install::NAMESPACE}],
    })
}

fn accept(kubectl: &Kubectl, object: &Value) -> Result<()> {
    kubectl
        .run_with_input(
            &["create", "--dry-run=server", "-f", "-"],
            &object.to_string(),
        )
        .map(drop)
}

fn refuse(
    kubectl: &Kubectl,
    mut object: Value,
    pointer: &str,
    value: Value,
    sentence: &str,
) -> Result<()> {
    let (parent, field) = pointer.rsplit_once('/').unwrap_or_default();
    if let Some(parent) = object.pointer_mut(parent) {
        parent[field] = value;
    }
    let output = kubectl.output(
        &["create", "--dry-run=server", "-f", "-"],
        &object.to_string(),
    )?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "{pointer} was accepted: {object}");
    ensure!(
        error.contains(sentence),
        "{pointer}: {sentence:?} is not in: {error}"
    );
    Ok(())
}

fn object(kind: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "assay.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": "good", "namespace": "default"},
        "spec": spec,
    })
}

fn image() -> Value {
    let reference = format!("host:5000/repository@sha256:{}", "0".repeat(64));
    object(
        "MeasuredImage",
        &json!({"source": {"type": "Build", "build": {
            "rootfs": {"image": reference},
            "bootKit": {"image": reference},
            "output": {"repository": "host:5000/repository"},
        }}}),
    )
}

fn with_build_job() -> Value {
    let mut image = image();
    image["spec"]["pullSecretRef"] = json!({"name": "pull"});
    image["spec"]["buildJob"] = json!({
        "suspend": true,
        "resources": {"requests": {"cpu": 2}, "limits": {"memory": "3Gi"}},
        "cache": {"claimName": "images", "sizeLimit": "20Gi"},
    });
    image
}

fn without_disk() -> Value {
    let mut image = image();
    image["spec"]["source"]["build"]["layout"] = json!("Initramfs");
    image
}

fn policy() -> Value {
    object(
        "AttestationPolicy",
        &json!({"tees": ["SNP"], "snp": {"products": [{
            "name": "Genoa",
            "minimumTCB": {"bootLoader": 1, "tee": 0, "snp": 1, "microcode": 1},
        }]}}),
    )
}

fn deployment() -> Value {
    object(
        "ConfidentialDeployment",
        &json!({
            "replicas": 1,
            "imageRef": {"name": "good"},
            "policyRef": {"name": "good"},
            "machine": {"vcpus": 1, "memory": "512Mi", "cpuModel": "EPYC-v4", "tee": "SNP"},
            "ports": [{"name": "http", "containerPort": 8080}],
            "secrets": [{
                "name": "s",
                "secretRef": {"name": "x", "key": "y"},
                "target": {"path": "/run/secrets/s"},
            }],
        }),
    )
}
