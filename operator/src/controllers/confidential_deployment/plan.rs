//! What a deployment needs, compared with what is there.

use std::collections::BTreeSet;

use assay_crds::names;
use assay_crds::v1alpha1::{ConfidentialDeployment, ConfidentialDeploymentStatus};
use assay_workload::validate::validate;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{Resource as _, ResourceExt as _};

use super::launch::build_launch;
use super::observe::{BrokerPlace, Observed, role_name};
use super::pod_template::build_pod_template;
use super::status;
use crate::manifest::{Manifest, Orphan, child_metadata, is_controlled_by, write_for};
use crate::plan::{Plan, Requeue};

/// Old ReplicaSets that are kept for `kubectl rollout history`, with their launch
/// ConfigMaps. A roll back is a change of the ConfidentialDeployment.
const REVISION_HISTORY: i32 = 2;
/// Seconds after which a rollout without progress counts as failed: pulling an
/// artifact of hundreds of megabytes, booting and attesting fit in.
const PROGRESS_DEADLINE_SECONDS: i32 = 900;
/// A Deployment's replicas: another number alone is no other intent.
const REPLICAS: (&str, &str) = ("/spec", "replicas");

/// Plans one deployment.
pub fn plan(
    deployment: &ConfidentialDeployment,
    observed: &Observed,
    now: Timestamp,
) -> Plan<ConfidentialDeploymentStatus> {
    let verdict = validate(deployment, &observed.surroundings());
    let mut writes = Vec::new();
    let mut deletes = Vec::new();
    if let Ok(valid) = &verdict {
        let launch = build_launch(deployment, valid);
        let template = build_pod_template(deployment, valid, observed, &launch);
        let current = observed
            .launches
            .iter()
            .find(|seen| seen.name_any() == launch.config_map.name_any());
        writes.extend(write_for(
            &launch.config_map,
            current.map(AsRef::as_ref),
            None,
        ));
        plan_release(deployment, observed, &mut writes, &mut deletes);
        plan_service(deployment, observed, &mut writes, &mut deletes);
        let workload = build_workload(deployment, observed, template);
        writes.extend(write_for(
            &workload,
            observed.workload.as_deref(),
            Some(REPLICAS),
        ));
        deletes.extend(unused_launches(observed, &launch.revision));
    }
    let waiting_on = verdict.as_ref().err().map(|why| why.message.clone());
    let (status, events) = status::status(deployment, observed, verdict.as_ref(), &writes, now);
    Plan {
        writes,
        deletes,
        status,
        events,
        requeue: Requeue::Resync,
        waiting_on,
    }
}

/// Lets the broker read exactly the Secrets that are named. The right to read is
/// not the right to receive: what a guest gets, the broker decides on evidence. A
/// broker outside the cluster has the values itself, and nobody reads any Secret.
fn plan_release(
    deployment: &ConfidentialDeployment,
    observed: &Observed,
    writes: &mut Vec<Manifest>,
    deletes: &mut Vec<Orphan>,
) {
    let name = deployment.name_any();
    let secrets: BTreeSet<String> = deployment
        .spec
        .secrets
        .iter()
        .map(|secret| secret.secret_ref.name.clone())
        .collect();
    if secrets.is_empty() || observed.installation.broker == BrokerPlace::Outside {
        let uid = deployment.uid().unwrap_or_default();
        let bindings = observed.role_binding.iter();
        let bindings = bindings.filter(|binding| is_controlled_by(&binding.metadata, &uid));
        deletes.extend(bindings.map(|binding| Orphan::of(binding.as_ref())));
        let roles = observed
            .role
            .iter()
            .filter(|role| is_controlled_by(&role.metadata, &uid));
        deletes.extend(roles.map(|role| Orphan::of(role.as_ref())));
        return;
    }
    let metadata = || {
        child_metadata(
            deployment,
            role_name(&name),
            &[(names::DEPLOYMENT_LABEL, name.as_str())],
        )
    };
    let role = Role {
        metadata: metadata(),
        rules: Some(vec![PolicyRule {
            api_groups: Some(vec![String::new()]),
            resources: Some(vec!["secrets".to_owned()]),
            resource_names: Some(secrets.into_iter().collect()),
            verbs: vec!["get".to_owned()],
            ..PolicyRule::default()
        }]),
    };
    let binding = RoleBinding {
        metadata: metadata(),
        role_ref: RoleRef {
            api_group: Role::group(&()).into_owned(),
            kind: Role::kind(&()).into_owned(),
            name: role_name(&name),
        },
        subjects: Some(vec![Subject {
            kind: "ServiceAccount".to_owned(),
            name: names::BROKER.to_owned(),
            namespace: Some(observed.installation.namespace.clone()),
            ..Subject::default()
        }]),
    };
    writes.extend(write_for(&role, observed.role.as_deref(), None));
    writes.extend(write_for(&binding, observed.role_binding.as_deref(), None));
}

fn plan_service(
    deployment: &ConfidentialDeployment,
    observed: &Observed,
    writes: &mut Vec<Manifest>,
    deletes: &mut Vec<Orphan>,
) {
    let name = deployment.name_any();
    let Some(wanted) = &deployment.spec.service else {
        let uid = deployment.uid().unwrap_or_default();
        let services = observed.service.iter();
        let services = services.filter(|service| is_controlled_by(&service.metadata, &uid));
        deletes.extend(services.map(|service| Orphan::of(service.as_ref())));
        return;
    };
    let ports = wanted
        .ports
        .iter()
        .map(|port| ServicePort {
            name: Some(port.name.clone()),
            port: i32::from(port.port),
            target_port: Some(IntOrString::String(port.name.clone())),
            protocol: Some("TCP".to_owned()),
            ..ServicePort::default()
        })
        .collect();
    let service = Service {
        metadata: child_metadata(
            deployment,
            name.clone(),
            &[(names::DEPLOYMENT_LABEL, &name)],
        ),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: selector(&name).match_labels,
            ports: Some(ports),
            // True would route to guests whose gate is closed.
            publish_not_ready_addresses: Some(false),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    };
    writes.extend(write_for(&service, observed.service.as_deref(), None));
}

/// The pods of a deployment.
pub(super) fn selector(deployment: &str) -> LabelSelector {
    let label = (names::DEPLOYMENT_LABEL.to_owned(), deployment.to_owned());
    LabelSelector {
        match_labels: Some([label].into()),
        ..LabelSelector::default()
    }
}

fn build_workload(
    deployment: &ConfidentialDeployment,
    observed: &Observed,
    template: k8s_openapi::api::core::v1::PodTemplateSpec,
) -> Deployment {
    let name = deployment.name_any();
    let seen = observed
        .workload
        .as_ref()
        .and_then(|workload| workload.spec.as_ref());
    Deployment {
        metadata: child_metadata(
            deployment,
            name.clone(),
            &[(names::DEPLOYMENT_LABEL, &name)],
        ),
        spec: Some(DeploymentSpec {
            // Left alone where nobody says a number: leaving out a field that
            // was applied before would reset it to one.
            replicas: deployment
                .spec
                .replicas
                .or(seen.and_then(|seen| seen.replicas)),
            selector: selector(&name),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                // A guest that does not attest never replaces one that has.
                rolling_update: Some(RollingUpdateDeployment {
                    max_unavailable: Some(IntOrString::Int(0)),
                    max_surge: Some(IntOrString::Int(1)),
                }),
            }),
            progress_deadline_seconds: Some(PROGRESS_DEADLINE_SECONDS),
            revision_history_limit: Some(REVISION_HISTORY),
            paused: Some(false),
            template,
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    }
}

/// Launch ConfigMaps that neither a ReplicaSet nor a pod nor the Deployment
/// names.
fn unused_launches(observed: &Observed, current: &str) -> Vec<Orphan> {
    let applied = observed.workload.as_ref().and_then(|workload| {
        let template = workload.spec.as_ref()?.template.metadata.as_ref()?;
        template.labels.as_ref()?.get(names::REVISION_LABEL)
    });
    let in_use = |revision: &str| {
        revision == current
            || applied.is_some_and(|applied| applied == revision)
            || observed.revisions_in_use.contains(revision)
    };
    observed
        .launches
        .iter()
        .filter(|map| {
            map.labels()
                .get(names::REVISION_LABEL)
                .is_none_or(|revision| !in_use(revision))
        })
        .map(|map| Orphan::of(map.as_ref()))
        .collect()
}

/// Checks what must hold of every plan, whatever led to it.
///
/// # Panics
/// When an invariant is broken, which is a bug of the planner.
pub fn check_plan(plan: &Plan<ConfidentialDeploymentStatus>) {
    let of = |kind: &'static str| plan.writes.iter().filter(move |w| w.resource.kind == kind);
    for workload in of("Deployment") {
        let pod = &workload.body["spec"]["template"]["spec"];
        assert_eq!(
            pod["readinessGates"][0]["conditionType"],
            names::ATTESTED_GATE,
            "a pod without the gate takes traffic unattested"
        );
        assert_eq!(
            pod["automountServiceAccountToken"], false,
            "a guest's host has no credentials"
        );
        let reference = pod["volumes"][0]["image"]["reference"]
            .as_str()
            .unwrap_or_default();
        assert!(
            reference.contains("@sha256:"),
            "an artifact by tag is other bytes tomorrow"
        );
        let annotations = &workload.body["spec"]["template"]["metadata"]["annotations"];
        assert!(
            annotations[names::EXPECTED_DIGEST_ANNOTATION].is_string(),
            "no guest starts without an expected launch digest"
        );
        for container in pod["containers"].as_array().into_iter().flatten() {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false);
            assert_eq!(security["capabilities"]["drop"][0], "ALL");
            assert!(security["privileged"].is_null());
        }
    }
    for service in of("Service") {
        assert_eq!(
            service.body["spec"]["publishNotReadyAddresses"], false,
            "the Service must not route around the gate"
        );
    }
    for role in of("Role") {
        for rule in role.body["rules"].as_array().into_iter().flatten() {
            let names = rule["resourceNames"].as_array().map_or(0, Vec::len);
            assert!(
                names > 0,
                "a rule without names is every Secret of the namespace"
            );
            assert_eq!(rule["verbs"], serde_json::json!(["get"]));
        }
    }
    for write in &plan.writes {
        assert!(
            !write.owner.is_empty(),
            "{} {} has no owner",
            write.resource.kind,
            write.name
        );
    }
}
