use std::sync::Arc;

use assay_crds::v1alpha1::attestation_policy::ReleaseRule;
use assay_crds::v1alpha1::attestation_record::{ReleaseOutcome, SecretRelease};
use assay_crds::v1alpha1::confidential_deployment::{
    ConfidentialDeploymentReason as Reason, SecretKeyReference, SecretMount, SecretTarget,
    ServicePortSpec, SimulatedFault, SimulationSpec,
};
use assay_crds::v1alpha1::measured_image::{DigestState, LifecycleState};
use assay_crds::v1alpha1::{
    BootMethod, ConfidentialDeployment, ConfidentialDeploymentStatus, TeeType,
};
use assay_crds::{conditions, names};
use assay_launcher::spec::{Fault, LAUNCH_SPEC_KEY, LaunchSpec};
use assay_tee::instance::VerifierEndpoint;
use assay_workload::validate::validate;
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentSpec, DeploymentStatus,
};
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, ContainerState, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, EnvVar, Service, ServicePort, ServiceSpec,
};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt as _;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::observe::{BrokerPlace, Installation, Observed, verifier_inside};
use super::*;
use crate::fixtures::{self, at};
use crate::manifest::Manifest;
use crate::plan::Plan;

type DeploymentPlan = Plan<ConfidentialDeploymentStatus>;

fn installation() -> Installation {
    Installation {
        namespace: "assay-system".to_owned(),
        broker: BrokerPlace::Inside,
        launcher_image: format!("registry.test/assay-launcher@sha256:{}", "c".repeat(64)),
        simulation: Some(fixtures::simulation()),
    }
}

/// What the broker's Service and its authority's ConfigMap come to.
fn inside(cluster_ip: &str, ca: &str) -> Option<VerifierEndpoint> {
    let service = serde_json::from_value(json!({ "spec": { "clusterIP": cluster_ip } })).unwrap();
    let map = serde_json::from_value(json!({ "data": { names::BROKER_CA_KEY: ca } })).unwrap();
    verifier_inside(Some(&service), Some(&map), "assay-system")
}

fn good() -> (ConfidentialDeployment, Observed) {
    let observed = Observed {
        image: Some(Arc::new(fixtures::image())),
        policy: Some(Arc::new(fixtures::policy())),
        verifier: inside("10.96.0.7", "-----BEGIN CERTIFICATE-----"),
        installation: installation(),
        ..Observed::default()
    };
    (fixtures::deployment(), observed)
}

fn planned(deployment: &ConfidentialDeployment, observed: &Observed) -> DeploymentPlan {
    let plan = plan(deployment, observed, at(1_500));
    check_plan(&plan);
    plan
}

fn written<K: DeserializeOwned>(plan: &DeploymentPlan, kind: &str) -> Option<K> {
    let body = |write: &&Manifest| write.resource.kind == kind;
    let write = plan.writes.iter().find(body)?;
    Some(serde_json::from_value(write.body.clone()).unwrap())
}

fn kinds(plan: &DeploymentPlan) -> Vec<&str> {
    plan.writes
        .iter()
        .map(|write| write.resource.kind.as_str())
        .collect()
}

/// What a reconciliation sees after `plan` was carried out.
fn after(mut observed: Observed, plan: &DeploymentPlan) -> Observed {
    fn update<K: DeserializeOwned>(seen: &mut Option<Arc<K>>, plan: &DeploymentPlan, kind: &str) {
        if let Some(object) = written::<K>(plan, kind) {
            *seen = Some(Arc::new(object));
        }
        if plan
            .deletes
            .iter()
            .any(|orphan| orphan.resource.kind == kind)
        {
            *seen = None;
        }
    }
    update::<Service>(&mut observed.service, plan, "Service");
    update::<Role>(&mut observed.role, plan, "Role");
    update::<RoleBinding>(&mut observed.role_binding, plan, "RoleBinding");
    update::<Deployment>(&mut observed.workload, plan, "Deployment");
    observed
        .launches
        .extend(written::<ConfigMap>(plan, "ConfigMap").map(Arc::new));
    observed.launches.retain(|map| {
        plan.deletes
            .iter()
            .all(|orphan| orphan.name != map.name_any())
    });
    observed
}

fn condition(status: &ConfidentialDeploymentStatus, type_: &str) -> (String, String) {
    let condition = conditions::find(&status.conditions, type_).unwrap();
    (condition.status.clone(), condition.reason.clone())
}

#[test]
fn one_mistake_is_one_reason() {
    type Change = fn(&mut ConfidentialDeployment, &mut Observed);
    let table: [(&str, Change, Reason, &str); 30] = [
        (
            "name",
            |d, _| d.metadata.name = Some("x".repeat(64)),
            Reason::SpecInvalid,
            "metadata.name",
        ),
        (
            "dotted name",
            |d, _| d.metadata.name = Some("web.v1".to_owned()),
            Reason::SpecInvalid,
            "metadata.name",
        ),
        (
            "memory",
            |d, _| d.spec.machine.memory = Quantity("lots".to_owned()),
            Reason::SpecInvalid,
            "spec.machine.memory",
        ),
        (
            "too little memory",
            |d, _| d.spec.machine.memory = Quantity("128Mi".to_owned()),
            Reason::SpecInvalid,
            "256Mi",
        ),
        (
            "odd memory",
            |d, _| d.spec.machine.memory = Quantity("512M".to_owned()),
            Reason::SpecInvalid,
            "whole number of MiB",
        ),
        (
            "no vcpus",
            |d, _| d.spec.machine.vcpus = 0,
            Reason::SpecInvalid,
            "spec.machine.vcpus",
        ),
        (
            "CPU model",
            |d, _| d.spec.machine.cpu_model = "EPYC-v9".to_owned(),
            Reason::SpecInvalid,
            "EPYC-v9",
        ),
        (
            "port twice",
            |d, _| {
                let mut again = d.spec.ports[0].clone();
                again.name = "other".to_owned();
                d.spec.ports.push(again);
            },
            Reason::SpecInvalid,
            "8080 occurs twice",
        ),
        (
            "the launcher's port name",
            |d, _| d.spec.ports[0].name = "assay-status".to_owned(),
            Reason::SpecInvalid,
            "assay-status",
        ),
        (
            "unknown service port",
            |d, _| d.spec.service.as_mut().unwrap().ports[0].name = "https".to_owned(),
            Reason::SpecInvalid,
            "spec.service.ports",
        ),
        (
            "service port twice",
            |d, _| {
                let again = ServicePortSpec {
                    name: "http".to_owned(),
                    port: 80,
                };
                d.spec.service.as_mut().unwrap().ports.push(again);
            },
            Reason::SpecInvalid,
            "port 80 occurs twice",
        ),
        (
            "unknown readiness port",
            |d, _| d.spec.readiness.as_mut().unwrap().http_get.port = "https".to_owned(),
            Reason::SpecInvalid,
            "spec.readiness.httpGet.port",
        ),
        (
            "colliding secrets",
            |d, _| {
                d.spec.secrets.push(SecretMount {
                    name: "password".to_owned(),
                    secret_ref: SecretKeyReference {
                        name: "web-password".to_owned(),
                        key: "other".to_owned(),
                    },
                    target: SecretTarget {
                        path: "/run/secrets/password/other".to_owned(),
                    },
                });
            },
            Reason::SpecInvalid,
            "collides",
        ),
        (
            "secret without release rule",
            |d, _| d.spec.secrets[0].name = "token".to_owned(),
            Reason::SpecInvalid,
            "spec.secrets[token]",
        ),
        (
            "no policy",
            |_, o| o.policy = None,
            Reason::PolicyMissing,
            "demo",
        ),
        (
            "a policy that does not decode",
            |_, o| {
                o.policy = None;
                o.policy_error = Some("maxAge: too long".to_owned());
            },
            Reason::PolicyInvalid,
            "demo cannot be read: maxAge: too long",
        ),
        (
            "TEE not in the policy",
            |_, o| {
                let mut policy = fixtures::policy();
                policy.spec.tees = vec![TeeType::Snp];
                o.policy = Some(Arc::new(policy));
            },
            Reason::TeeNotAllowed,
            "SimulatedSNP",
        ),
        (
            "simulation disabled",
            |_, o| o.installation.simulation = None,
            Reason::SimulationDisabled,
            "simulation enabled",
        ),
        (
            "no image",
            |_, o| o.image = None,
            Reason::ImageMissing,
            "web-1",
        ),
        (
            "an image that does not decode",
            |_, o| {
                o.image = None;
                o.image_error = Some("unknown source".to_owned());
            },
            Reason::ImageInvalid,
            "web-1 cannot be read: unknown source",
        ),
        (
            "image without status",
            |_, o| o.image = Some(Arc::new(fixtures::new_image())),
            Reason::ImageNotReady,
            "artifact",
        ),
        (
            "revoked image",
            |_, o| {
                let mut image = fixtures::image();
                image.spec.lifecycle.state = LifecycleState::Revoked;
                image.spec.lifecycle.reason = Some("CVE-2026-1".to_owned());
                o.image = Some(Arc::new(image));
            },
            Reason::ImageRevoked,
            "CVE-2026-1",
        ),
        (
            "revoked row",
            |_, o| {
                let mut image = fixtures::image();
                image.status.as_mut().unwrap().launch_digests[0].state = DigestState::Revoked;
                o.image = Some(Arc::new(image));
            },
            Reason::ImageNotReady,
            "no launch digest",
        ),
        (
            "row of another shape",
            |d, _| d.spec.machine.vcpus = 4,
            Reason::ImageNotReady,
            "no launch digest",
        ),
        (
            "row of another TEE",
            |d, _| d.spec.machine.tee = TeeType::Snp,
            Reason::ImageNotReady,
            "no launch digest",
        ),
        (
            "row of another boot method",
            |d, _| {
                d.spec.machine.boot = BootMethod::Igvm;
                d.spec.machine.memory = Quantity("1Gi".to_owned());
            },
            Reason::ImageNotReady,
            "no launch digest",
        ),
        (
            "too little memory for an IGVM file",
            |d, _| d.spec.machine.boot = BootMethod::Igvm,
            Reason::SpecInvalid,
            "at least 641Mi",
        ),
        (
            "a fault of the hashes table without one",
            |d, _| {
                d.spec.machine.boot = BootMethod::Igvm;
                let fault = Some(SimulatedFault::TamperedKernel);
                d.spec.machine.simulation = Some(SimulationSpec { fault });
            },
            Reason::SpecInvalid,
            "TamperedKernelRehashed",
        ),
        (
            "malformed digest",
            |_, o| {
                let mut image = fixtures::image();
                image.status.as_mut().unwrap().launch_digests[0].digest = "sha384:x".to_owned();
                o.image = Some(Arc::new(image));
            },
            Reason::ImageNotReady,
            "malformed",
        ),
        (
            "no broker",
            |_, o| o.verifier = None,
            Reason::BrokerNotReady,
            "assay-system",
        ),
    ];
    for (name, change, reason, hint) in table {
        let (mut deployment, mut observed) = good();
        change(&mut deployment, &mut observed);
        let why = validate(&deployment, &observed.surroundings()).unwrap_err();
        assert_eq!(why.reason, reason, "{name}: {}", why.message);
        assert!(why.message.contains(hint), "{name}: {}", why.message);

        let plan = planned(&deployment, &observed);
        assert!(plan.writes.is_empty() && plan.deletes.is_empty(), "{name}");
        let (status, ready) = condition(&plan.status, "Ready");
        assert_eq!(
            (status.as_str(), ready.as_str()),
            ("False", reason.as_str()),
            "{name}"
        );
        let (stalled, _) = condition(&plan.status, "Stalled");
        let (reconciling, _) = condition(&plan.status, "Reconciling");
        assert_ne!(stalled, reconciling, "{name}: it is the one or the other");
    }
}

#[test]
fn amounts_of_memory_are_read_as_kubernetes_writes_them() {
    for (text, mib) in [
        ("512Mi", 512),
        ("1Gi", 1024),
        ("536870912", 512),
        ("1048576Ki", 1024),
    ] {
        let (mut deployment, observed) = good();
        deployment.spec.machine.memory = Quantity(text.to_owned());
        assert_eq!(
            validate(&deployment, &observed.surroundings())
                .unwrap()
                .memory_mib,
            mib,
            "{text}"
        );
    }
    for text in [
        "",
        "-1Gi",
        "1.5Gi",
        "1e9",
        "2Pi",
        "99999999999999999999Gi",
        "2Ti",
    ] {
        let (mut deployment, observed) = good();
        deployment.spec.machine.memory = Quantity(text.to_owned());
        assert!(
            validate(&deployment, &observed.surroundings()).is_err(),
            "{text}"
        );
    }
}

#[test]
fn children_come_in_the_order_that_pods_need_them() {
    let (deployment, observed) = good();
    let plan = planned(&deployment, &observed);
    assert_eq!(
        kinds(&plan),
        ["ConfigMap", "Role", "RoleBinding", "Service", "Deployment"]
    );
    assert_eq!(
        condition(&plan.status, "Ready"),
        ("False".to_owned(), "Progressing".to_owned())
    );
    assert_eq!(plan.status.expected_digest, Some(fixtures::row().digest));
}

#[test]
fn a_plan_that_was_applied_plans_nothing() {
    let (mut deployment, observed) = good();
    let first = planned(&deployment, &observed);
    let mut observed = after(observed, &first);
    deployment.status = Some(first.status);
    // What is false the API server leaves out.
    let mut service = observed.service.as_deref().unwrap().clone();
    service.spec.as_mut().unwrap().publish_not_ready_addresses = None;
    observed.service = Some(Arc::new(service));
    let mut workload = observed.workload.as_deref().unwrap().clone();
    workload.spec.as_mut().unwrap().paused = None;
    observed.workload = Some(Arc::new(workload));
    let second = planned(&deployment, &observed);
    assert_eq!(kinds(&second), Vec::<&str>::new());
    assert!(second.deletes.is_empty());

    // The Deployment's controller reports, the pods attest.
    let mut workload = observed.workload.as_deref().unwrap().clone();
    workload.status = Some(DeploymentStatus {
        replicas: Some(2),
        updated_replicas: Some(2),
        ready_replicas: Some(2),
        available_replicas: Some(2),
        ..DeploymentStatus::default()
    });
    observed.workload = Some(Arc::new(workload));
    let pod = fixtures::pod_with_gate("True", "Attested", "accepted as x", at(1_400));
    observed.pods = vec![Arc::new(pod.clone()), Arc::new(pod)];
    observed.oldest_attestation = Some(at(1_300));
    deployment.status = Some(second.status);
    let third = planned(&deployment, &observed);
    assert!(!status::is_current(&deployment, &third.status));
    assert_eq!(
        condition(&third.status, "Ready"),
        ("True".to_owned(), "AllReplicasReady".to_owned())
    );
    assert_eq!(
        condition(&third.status, "HardwareBacked"),
        ("False".to_owned(), "Simulated".to_owned())
    );
    let summary = third.status.summary.clone().unwrap();
    assert_eq!(
        (summary.ready.as_str(), summary.attested.as_str()),
        ("2/2", "2/2")
    );
    let told: Vec<&str> = third
        .events
        .iter()
        .map(|note| note.reason.as_str())
        .collect();
    assert_eq!(told, ["AllReplicasReady", "AllReplicasFresh"]);

    deployment.status = Some(third.status);
    let fourth = plan(&deployment, &observed, at(9_999));
    assert!(status::is_current(&deployment, &fourth.status), "silence");
    assert!(fourth.events.is_empty() && fourth.writes.is_empty());
}

#[test]
fn drift_of_a_child_is_repaired() {
    let (deployment, observed) = good();
    let first = planned(&deployment, &observed);
    let settled = after(observed, &first);

    let mut drifted = settled.clone();
    let mut role = settled.role.as_deref().unwrap().clone();
    role.rules.as_mut().unwrap()[0].resource_names = None;
    drifted.role = Some(Arc::new(role));
    assert_eq!(kinds(&planned(&deployment, &drifted)), ["Role"]);

    let mut drifted = settled.clone();
    let mut workload = settled.workload.as_deref().unwrap().clone();
    workload
        .spec
        .as_mut()
        .unwrap()
        .template
        .spec
        .as_mut()
        .unwrap()
        .readiness_gates = None;
    drifted.workload = Some(Arc::new(workload));
    assert_eq!(kinds(&planned(&deployment, &drifted)), ["Deployment"]);

    let services: [fn(&mut ServiceSpec); 3] = [
        |service| {
            let selector = service.selector.as_mut().unwrap();
            selector.insert("extra".to_owned(), "x".to_owned());
        },
        |service| service.publish_not_ready_addresses = Some(true),
        |service| {
            let ports = service.ports.as_mut().unwrap();
            ports.push(ServicePort::default());
        },
    ];
    for drift in services {
        let mut drifted = settled.clone();
        let mut service = settled.service.as_deref().unwrap().clone();
        drift(service.spec.as_mut().unwrap());
        drifted.service = Some(Arc::new(service));
        assert_eq!(kinds(&planned(&deployment, &drifted)), ["Service"]);
    }
    let workloads: [fn(&mut DeploymentSpec); 4] = [
        |workload| workload.paused = Some(true),
        |workload| {
            let pod = workload.template.spec.as_mut().unwrap();
            pod.containers.push(Container::default());
        },
        |workload| {
            let pod = workload.template.spec.as_mut().unwrap();
            let variables = pod.containers[0].env.as_mut().unwrap();
            variables.push(EnvVar::default());
        },
        |workload| {
            let pod = workload.template.spec.as_mut().unwrap();
            pod.node_selector = Some([("disk".to_owned(), "ssd".to_owned())].into());
        },
    ];
    for drift in workloads {
        let mut drifted = settled.clone();
        let mut workload = settled.workload.as_deref().unwrap().clone();
        drift(workload.spec.as_mut().unwrap());
        drifted.workload = Some(Arc::new(workload));
        assert_eq!(kinds(&planned(&deployment, &drifted)), ["Deployment"]);
    }

    let mut drifted = settled;
    drifted.service = None;
    drifted.launches.clear();
    assert_eq!(
        kinds(&planned(&deployment, &drifted)),
        ["ConfigMap", "Service"]
    );
}

#[test]
fn replicas_belong_to_whoever_scales() {
    let (mut deployment, observed) = good();
    deployment.spec.replicas = None;
    let first = planned(&deployment, &observed);
    let created: Deployment = written(&first, "Deployment").unwrap();
    assert_eq!(
        created.spec.as_ref().unwrap().replicas,
        None,
        "the API server's default of one"
    );

    let mut observed = after(observed, &first);
    let mut scaled = created;
    scaled.spec.as_mut().unwrap().replicas = Some(7);
    observed.workload = Some(Arc::new(scaled));
    assert!(
        planned(&deployment, &observed).writes.is_empty(),
        "scaling is no drift"
    );

    deployment.spec.replicas = Some(3);
    let plan = planned(&deployment, &observed);
    let resized: Deployment = written(&plan, "Deployment").unwrap();
    assert_eq!(resized.spec.unwrap().replicas, Some(3));
}

#[test]
fn what_is_no_longer_wanted_is_deleted() {
    let (mut deployment, observed) = good();
    let settled = after(observed.clone(), &planned(&deployment, &observed));
    deployment.spec.service = None;
    deployment.spec.readiness = None;
    deployment.spec.secrets.clear();
    let plan = planned(&deployment, &settled);
    let gone: Vec<&str> = plan
        .deletes
        .iter()
        .map(|o| o.resource.kind.as_str())
        .collect();
    assert_eq!(gone, ["RoleBinding", "Role", "Service"]);
    let settled = after(settled, &plan);
    assert!(
        planned(&deployment, &settled)
            .deletes
            .iter()
            .all(|o| o.resource.kind == "ConfigMap")
    );
}

#[test]
fn guests_of_a_broker_outside_name_it_and_nobody_reads_secrets() {
    let (deployment, observed) = good();
    let settled = after(observed.clone(), &planned(&deployment, &observed));
    assert!(settled.role.is_some() && settled.role_binding.is_some());
    let outside = VerifierEndpoint {
        url: "https://broker.example:8443".to_owned(),
        addresses: vec!["192.0.2.1:8443".to_owned()],
        ca: "-----BEGIN CERTIFICATE-----".to_owned(),
    };
    let moved = |mut observed: Observed| {
        observed.verifier = Some(outside.clone());
        observed.installation.broker = BrokerPlace::Outside;
        observed
    };
    // What let the broker inside read is taken back.
    let plan = planned(&deployment, &moved(settled));
    let gone: Vec<&str> = plan
        .deletes
        .iter()
        .map(|orphan| orphan.resource.kind.as_str())
        .collect();
    assert_eq!(gone, ["RoleBinding", "Role"]);
    assert_eq!(kinds(&plan), ["ConfigMap", "Deployment"]);
    // Where nothing was, nothing comes.
    let plan = planned(&deployment, &moved(observed));
    assert!(!kinds(&plan).iter().any(|kind| kind.starts_with("Role")));
    let map: ConfigMap = written(&plan, "ConfigMap").unwrap();
    let launch: LaunchSpec = serde_json::from_str(&map.data.unwrap()[LAUNCH_SPEC_KEY]).unwrap();
    assert_eq!(launch.instance.verifier, outside);
}

#[test]
fn the_broker_inside_is_known_by_its_service_and_its_authority() {
    let found = inside("fd00::7", "CA").unwrap();
    assert_eq!(found.addresses, ["[fd00::7]:8443"]);
    assert_eq!(found.url, "https://assay-broker.assay-system.svc:8443");
    for (cluster_ip, ca) in [("None", "CA"), ("", "CA"), ("10.96.0.7", " \n")] {
        assert_eq!(inside(cluster_ip, ca), None, "{cluster_ip:?} {ca:?}");
    }
    assert_eq!(verifier_inside(None, None, "assay-system"), None);
}

#[test]
fn a_launch_config_map_lives_as_long_as_something_names_it() {
    let (mut deployment, observed) = good();
    let first = planned(&deployment, &observed);
    let mut observed = after(observed, &first);
    let old = observed.launches[0].labels()[names::REVISION_LABEL].clone();
    deployment.spec.machine.memory = Quantity("1Gi".to_owned());
    observed.revisions_in_use.insert(old.clone());

    let roll = planned(&deployment, &observed);
    assert_eq!(kinds(&roll), ["ConfigMap", "Deployment"]);
    assert!(
        roll.deletes.is_empty(),
        "old pods need the old specification"
    );

    let mut observed = after(observed, &roll);
    observed.revisions_in_use.clear();
    let settled = planned(&deployment, &observed);
    assert_eq!(settled.deletes.len(), 1);
    assert!(settled.deletes[0].name.ends_with(&old));
}

#[test]
fn the_launch_specification_is_what_the_launcher_reads() {
    let (mut deployment, observed) = good();
    deployment.spec.machine.simulation = Some(SimulationSpec {
        fault: Some(SimulatedFault::TamperedKernelRehashed),
    });
    let plan = planned(&deployment, &observed);
    let map: ConfigMap = written(&plan, "ConfigMap").unwrap();
    assert_eq!(map.immutable, Some(true));
    let launch: LaunchSpec = serde_json::from_str(&map.data.unwrap()[LAUNCH_SPEC_KEY]).unwrap();
    assert_eq!(launch.version, LaunchSpec::VERSION);
    assert_eq!(launch.expected_digest.to_string(), fixtures::row().digest);
    assert_eq!(launch.memory_mib, 512);
    assert_eq!(
        launch.instance.verifier.url,
        "https://assay-broker.assay-system.svc:8443"
    );
    assert_eq!(launch.instance.verifier.addresses, ["10.96.0.7:8443"]);
    assert_eq!(
        launch.instance.policy_hash,
        fixtures::policy().spec.hash().unwrap()
    );
    assert_eq!(launch.instance.attestation_interval_seconds, 600);
    assert_eq!(launch.instance.resources[0].path, "/run/secrets/password");
    assert_eq!(
        launch.simulation.unwrap().fault,
        Some(Fault::TamperedKernelRehashed)
    );
}

#[test]
fn a_missing_dependency_tears_nothing_down() {
    let (deployment, observed) = good();
    let settled = after(observed.clone(), &planned(&deployment, &observed));
    for change in [
        |o: &mut Observed| o.image = None,
        |o: &mut Observed| o.policy = None,
        |o: &mut Observed| o.verifier = None,
    ] {
        let mut broken = settled.clone();
        change(&mut broken);
        let plan = planned(&deployment, &broken);
        assert!(plan.writes.is_empty() && plan.deletes.is_empty());
        assert_eq!(condition(&plan.status, "Ready").0, "False");
    }
}

#[test]
fn the_status_tells_why_a_guest_is_refused() {
    let (deployment, observed) = good();
    let mut observed = after(observed.clone(), &planned(&deployment, &observed));
    let waiting = fixtures::pod_with_gate("False", "AwaitingAttestation", "", at(1));
    let expired = fixtures::pod_with_gate("False", "AttestationExpired", "expired", at(1));
    let rejected = fixtures::pod_with_gate("False", "AttestationRejected", "Measurement: x", at(1));
    let revoked = fixtures::pod_with_gate("False", "ImageRevoked", "web-1 is revoked", at(1));
    let table = [
        (vec![waiting.clone()], "AwaitingAttestation", "0 of 2"),
        (
            vec![waiting.clone(), expired.clone()],
            "AttestationExpired",
            "pod web-abc: expired",
        ),
        (
            vec![expired, rejected],
            "AttestationRejected",
            "pod web-abc: Measurement: x",
        ),
        (
            vec![waiting, revoked],
            "AttestationRejected",
            "pod web-abc: ImageRevoked: web-1 is",
        ),
    ];
    for (pods, reason, hint) in table {
        observed.pods = pods.into_iter().map(Arc::new).collect();
        let plan = planned(&deployment, &observed);
        let attested = conditions::find(&plan.status.conditions, "Attested").unwrap();
        assert_eq!(
            (attested.status.as_str(), attested.reason.as_str()),
            ("False", reason)
        );
        assert!(attested.message.contains(hint), "{}", attested.message);
    }
}

/// A Secret that cannot be released is named, also while pods are still being
/// made; once guests have it, nothing more is said.
#[test]
fn the_status_tells_which_secret_is_missing() {
    let (mut deployment, mut observed) = good();
    let policy = Arc::make_mut(observed.policy.as_mut().unwrap());
    policy.spec.release.push(ReleaseRule {
        resource: "other".to_owned(),
        ..policy.spec.release[0].clone()
    });
    deployment.spec.secrets.insert(
        0,
        SecretMount {
            name: "other".to_owned(),
            target: SecretTarget {
                path: "/run/secrets/other".to_owned(),
            },
            ..deployment.spec.secrets[0].clone()
        },
    );
    let release = |name: &str, outcome| SecretRelease {
        name: name.to_owned(),
        outcome,
        message: (outcome != ReleaseOutcome::Released).then(|| {
            "Secret \"web-password\" does not exist in namespace shop; create it".to_owned()
        }),
    };
    let record = |releases: &[SecretRelease]| {
        let mut record = fixtures::record();
        record.status.as_mut().unwrap().secrets = releases.to_vec();
        Arc::new(record)
    };
    let other = release("other", ReleaseOutcome::Released);
    let released = record(&[other.clone(), release("password", ReleaseOutcome::Released)]);
    let missing = record(&[
        other.clone(),
        release("password", ReleaseOutcome::SecretMissing),
    ]);
    let partly = record(std::slice::from_ref(&other));
    let of_no_secret = record(&[release("former", ReleaseOutcome::SecretMissing)]);
    let text = "spec.secrets[1].secretRef: Secret \"web-password\" does not exist in namespace \
                shop; create it";
    let (yes, no) = ("True", "False");
    for (records, status, reason, message) in [
        (vec![], no, "AwaitingRelease", "0 of 2 guests have"),
        (
            vec![&of_no_secret],
            no,
            "AwaitingRelease",
            "0 of 2 guests have",
        ),
        (
            vec![&released, &partly],
            no,
            "AwaitingRelease",
            "1 of 2 guests have",
        ),
        (vec![&released, &missing], no, "SecretMissing", text),
        (
            vec![&released, &released],
            yes,
            "AllSecretsReleased",
            "2 of 2 guests have",
        ),
    ] {
        let mut observed = observed.clone();
        observed.records = records.into_iter().cloned().collect();
        let plan = planned(&deployment, &observed);
        let secrets = conditions::find(&plan.status.conditions, "SecretsReleased").unwrap();
        assert_eq!(
            (secrets.status.as_str(), secrets.reason.as_str()),
            (status, reason)
        );
        assert!(secrets.message.starts_with(message), "{}", secrets.message);
        let ready = conditions::find(&plan.status.conditions, "Ready").unwrap();
        let told: Vec<&str> = plan.events.iter().map(|note| &*note.action).collect();
        if reason == "SecretMissing" {
            assert_eq!((&*ready.reason, &*ready.message), (reason, text));
            assert_eq!(told, ["SecretsReleased"], "once");
        } else {
            assert_eq!(ready.reason, "Progressing");
            assert_eq!(told, [""; 0]);
        }
    }
    deployment.spec.secrets.clear();
    let plan = planned(&deployment, &observed);
    assert_eq!(
        condition(&plan.status, "SecretsReleased"),
        ("True".to_owned(), "AllSecretsReleased".to_owned())
    );
}

#[test]
fn the_status_names_a_pod_whose_guest_does_not_come_up() {
    let (deployment, observed) = good();
    let settled = after(observed.clone(), &planned(&deployment, &observed));
    let pod = |status: Option<ContainerStatus>| {
        let mut pod = fixtures::pod_with_gate("False", "AwaitingAttestation", "", at(1));
        pod.status.as_mut().unwrap().container_statuses = status.map(|status| vec![status]);
        Arc::new(pod)
    };
    let waiting = |reason: &str| ContainerStatus {
        state: Some(ContainerState {
            waiting: Some(ContainerStateWaiting {
                reason: Some(reason.to_owned()),
                message: Some("because".to_owned()),
            }),
            ..ContainerState::default()
        }),
        ..ContainerStatus::default()
    };
    let restarted = ContainerStatus {
        restart_count: 3,
        last_state: Some(ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: 7,
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        }),
        ..ContainerStatus::default()
    };
    let table = [
        (None, false, "Progressing", "0 of 2"),
        (
            Some(waiting("ContainerCreating")),
            false,
            "Progressing",
            "0 of 2",
        ),
        (
            Some(waiting("ImagePullBackOff")),
            false,
            "PodFailing",
            "pod web-abc: ImagePullBackOff: because; look at kubectl describe pod web-abc",
        ),
        (
            Some(restarted.clone()),
            false,
            "PodFailing",
            "pod web-abc: the launcher ended with status 7",
        ),
        (
            Some(restarted),
            true,
            "ProgressDeadlineExceeded",
            "ended with status 7",
        ),
        (
            None,
            true,
            "ProgressDeadlineExceeded",
            "look at kubectl logs web-abc: firmware that refuses",
        ),
    ];
    for (container, exceeded, reason, hint) in table {
        let mut observed = settled.clone();
        let mut workload = settled.workload.as_deref().unwrap().clone();
        let progress = if exceeded {
            ("False", "ProgressDeadlineExceeded")
        } else {
            ("True", "ReplicaSetUpdated")
        };
        workload.status = Some(DeploymentStatus {
            conditions: Some(vec![DeploymentCondition {
                type_: "Progressing".to_owned(),
                status: progress.0.to_owned(),
                reason: Some(progress.1.to_owned()),
                ..DeploymentCondition::default()
            }]),
            ..DeploymentStatus::default()
        });
        observed.workload = Some(Arc::new(workload));
        observed.pods = vec![pod(container)];
        let status = planned(&deployment, &observed).status;
        let ready = conditions::find(&status.conditions, "Ready").unwrap();
        assert_eq!(ready.reason, reason);
        assert!(ready.message.contains(hint), "{}", ready.message);
        let (stalled, _) = condition(&status, "Stalled");
        let (reconciling, _) = condition(&status, "Reconciling");
        assert_eq!(stalled == "True", exceeded, "{reason}");
        assert_ne!(stalled, reconciling, "{reason}");

        // What the Deployment says of its past is no news of its future.
        let mut changed = deployment.clone();
        changed.spec.machine.memory = Quantity("1Gi".to_owned());
        let status = planned(&changed, &observed).status;
        assert_ne!(condition(&status, "Ready").1, "ProgressDeadlineExceeded");
    }
}

#[test]
fn pods_match_their_golden_form() {
    let (deployment, observed) = good();
    golden("pod-simulated.json", &planned(&deployment, &observed));

    let (mut deployment, mut observed) = good();
    deployment.spec.machine.tee = TeeType::Snp;
    deployment.spec.readiness = None;
    deployment.spec.scheduling.node_selector =
        [("topology.kubernetes.io/zone".to_owned(), "a".to_owned())].into();
    let mut image = fixtures::image();
    image.status.as_mut().unwrap().launch_digests[0].tee = TeeType::Snp;
    observed.image = Some(Arc::new(image));
    golden("pod-snp.json", &planned(&deployment, &observed));
}

/// Compares the planned pod template with a file; `BLESS=1` writes the file.
fn golden(file: &str, plan: &DeploymentPlan) {
    let write = plan
        .writes
        .iter()
        .find(|write| write.resource.kind == "Deployment")
        .unwrap();
    let mut actual = serde_json::to_string_pretty(&write.body["spec"]["template"]).unwrap();
    actual.push('\n');
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(file);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &actual).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        actual, expected,
        "{file}: run with BLESS=1 and review the difference"
    );
}
