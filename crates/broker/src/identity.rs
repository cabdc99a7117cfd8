//! Whether the pod that instance data names is what it claims to be: a live
//! pod of the ConfidentialDeployment that it names.
//!
//! HOST_DATA shows that the guest was launched with this document; that the
//! document is true is shown by the cluster's objects alone. A broker outside the
//! cluster has none: then pod and node are what the host says, and nothing but
//! the evidence and the policy says who may be a guest of the deployment.

use assay_crds::names::{DEPLOYMENT_LABEL, IMAGE_LABEL};
use assay_crds::v1alpha1::ConfidentialDeployment;
use assay_tee::InstanceData;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// Who else than the host says which pods there are.
#[derive(Debug, Clone)]
pub enum Witness {
    /// The API server.
    ApiServer(Box<Lineage>),
    /// Nobody. A host may launch as many guests as it likes, under any names.
    Nobody,
}

impl Default for Witness {
    /// An API server that knows of no pod.
    fn default() -> Self {
        Self::ApiServer(Box::default())
    }
}

/// The pod and what controls it, as the API server has them.
#[derive(Debug, Clone, Default)]
pub struct Lineage {
    /// The pod that the instance data names.
    pub pod: Option<Pod>,
    /// The ReplicaSet that controls the pod.
    pub replica_set: Option<ReplicaSet>,
}

/// Why the instance data's identity is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// There is no such pod.
    #[error("the pod does not exist")]
    PodMissing,
    /// Another pod has the name now.
    #[error("the pod has UID {got}")]
    PodUid {
        /// The UID of the pod that exists.
        got: String,
    },
    /// The pod's UID is none, where it is all that tells guests apart.
    #[error("pod.uid is not a UID: {got:?}")]
    PodUidMalformed {
        /// The UID.
        got: String,
    },
    /// The pod is on its way out.
    #[error("the pod is terminating")]
    PodTerminating,
    /// The pod belongs to another deployment, or to none.
    #[error("the pod is labelled as of deployment {got:?}")]
    PodLabel {
        /// Value of the label.
        got: Option<String>,
    },
    /// The pod runs on another node.
    #[error("the pod is on node {got:?}")]
    PodNode {
        /// The node.
        got: Option<String>,
    },
    /// There is no such deployment.
    #[error("the ConfidentialDeployment does not exist")]
    DeploymentMissing,
    /// The pod is not controlled by the deployment.
    #[error("the pod is not controlled by the ConfidentialDeployment: {0} breaks the chain")]
    NotControlled(&'static str),
}

impl IdentityError {
    /// The reason code.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::PodMissing => "PodMissing",
            Self::PodUid { .. } => "PodUidMismatch",
            Self::PodUidMalformed { .. } => "PodUidMalformed",
            Self::PodTerminating => "PodTerminating",
            Self::PodLabel { .. } => "PodLabelMismatch",
            Self::PodNode { .. } => "PodNodeMismatch",
            Self::DeploymentMissing => "DeploymentMissing",
            Self::NotControlled(_) => "PodNotControlled",
        }
    }
}

/// Checks the identity in `instance` against what is known.
///
/// # Errors
/// The first thing that is not as the instance data says.
pub fn check_identity<'a>(
    instance: &InstanceData,
    witness: &Witness,
    deployment: Option<&'a ConfidentialDeployment>,
) -> Result<&'a ConfidentialDeployment, IdentityError> {
    match witness {
        Witness::ApiServer(lineage) => check_lineage(instance, lineage, deployment),
        Witness::Nobody if is_uid(&instance.pod.uid) => {
            deployment.ok_or(IdentityError::DeploymentMissing)
        }
        Witness::Nobody => Err(IdentityError::PodUidMalformed {
            got: instance.pod.uid.clone(),
        }),
    }
}

/// Whether `uid` is a UUID (RFC 9562) as Kubernetes writes them, in lower case.
pub(crate) fn is_uid(uid: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    uid.len() == 36
        && uid.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => digit(byte),
        })
}

fn check_lineage<'a>(
    instance: &InstanceData,
    lineage: &Lineage,
    deployment: Option<&'a ConfidentialDeployment>,
) -> Result<&'a ConfidentialDeployment, IdentityError> {
    let pod = lineage.pod.as_ref().ok_or(IdentityError::PodMissing)?;
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    if uid.is_empty() || uid != instance.pod.uid {
        return Err(IdentityError::PodUid { got: uid });
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return Err(IdentityError::PodTerminating);
    }
    let label = pod
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(DEPLOYMENT_LABEL))
        .cloned();
    if label.as_deref() != Some(instance.deployment.as_str()) {
        return Err(IdentityError::PodLabel { got: label });
    }
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    if node.as_deref() != Some(instance.node.as_str()) {
        return Err(IdentityError::PodNode { got: node });
    }
    let deployment = deployment.ok_or(IdentityError::DeploymentMissing)?;
    let replica_set = lineage.replica_set.as_ref().map(|object| &object.metadata);
    if !replica_set.is_some_and(|replica_set| controls("ReplicaSet", replica_set, &pod.metadata)) {
        return Err(IdentityError::NotControlled("the pod"));
    }
    // The Deployment of a ConfidentialDeployment has its name. It is not read:
    // whoever may write Deployments of the namespace may mount its Secrets
    // anyway, and gains nothing from a forged owner.
    let workload = replica_set.and_then(|replica_set| controller_name(replica_set, "Deployment"));
    if workload != Some(instance.deployment.as_str()) {
        return Err(IdentityError::NotControlled("the ReplicaSet"));
    }
    Ok(deployment)
}

/// Whether `owner` is the controller of `child`, by UID.
fn controls(owner_kind: &str, owner: &ObjectMeta, child: &ObjectMeta) -> bool {
    let Some(uid) = owner.uid.as_deref().filter(|uid| !uid.is_empty()) else {
        return false;
    };
    controller(child, owner_kind).is_some_and(|reference| reference.uid == uid)
}

fn controller<'a>(child: &'a ObjectMeta, kind: &str) -> Option<&'a OwnerReference> {
    child
        .owner_references
        .iter()
        .flatten()
        .find(|reference| reference.controller == Some(true) && reference.kind == kind)
}

/// Name of the controller of `child` that has `kind`.
pub fn controller_name<'a>(child: &'a ObjectMeta, kind: &str) -> Option<&'a str> {
    controller(child, kind).map(|reference| reference.name.as_str())
}

/// Name of the MeasuredImage that the pod was made to run: while a deployment
/// moves from one image to another, pods of both attest. The ReplicaSet's
/// template says which; nothing on the node can write it. Where there is none it
/// is the image that the deployment names.
pub fn image_name<'a>(witness: &'a Witness, deployment: &'a ConfidentialDeployment) -> &'a str {
    let replica_set = match witness {
        Witness::ApiServer(lineage) => lineage.replica_set.as_ref(),
        Witness::Nobody => None,
    };
    replica_set
        .and_then(|replica_set| {
            replica_set
                .spec
                .as_ref()?
                .template
                .as_ref()?
                .metadata
                .as_ref()
        })
        .and_then(|metadata| metadata.labels.as_ref()?.get(IMAGE_LABEL))
        .unwrap_or(&deployment.spec.image_ref.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    fn pod(lineage: &mut Lineage) -> &mut Pod {
        lineage.pod.as_mut().unwrap()
    }

    #[test]
    fn the_deployment_s_pod_is_believed() {
        let deployment = fixtures::deployment();
        let found = check_identity(
            &fixtures::instance(),
            &Witness::ApiServer(Box::new(fixtures::lineage())),
            Some(&deployment),
        );
        assert_eq!(found, Ok(&deployment));
    }

    #[test]
    fn the_replica_set_names_the_image() {
        let deployment = fixtures::deployment();
        let mut lineage = fixtures::lineage();
        let image = |lineage: &Lineage| {
            image_name(&Witness::ApiServer(Box::new(lineage.clone())), &deployment).to_owned()
        };
        assert_eq!(image(&lineage), fixtures::IMAGE);
        let spec = lineage.replica_set.as_mut().unwrap().spec.as_mut().unwrap();
        let labels = spec.template.as_mut().unwrap().metadata.as_mut().unwrap();
        labels.labels = Some([(IMAGE_LABEL.to_owned(), "older".to_owned())].into());
        assert_eq!(image(&lineage), "older");
        lineage.replica_set = None;
        assert_eq!(image(&lineage), fixtures::IMAGE);
        assert_eq!(image_name(&Witness::Nobody, &deployment), fixtures::IMAGE);
    }

    #[test]
    fn every_break_is_found() {
        type Change = fn(&mut Lineage);
        let rows: [(Change, &str); 11] = [
            (|l| l.pod = None, "PodMissing"),
            (
                |l| pod(l).metadata.uid = Some("other".to_owned()),
                "PodUidMismatch",
            ),
            (|l| pod(l).metadata.uid = None, "PodUidMismatch"),
            (
                |l| {
                    let now = fixtures::now();
                    pod(l).metadata.deletion_timestamp = Some(now.into());
                },
                "PodTerminating",
            ),
            (|l| pod(l).metadata.labels = None, "PodLabelMismatch"),
            (
                |l| pod(l).spec.as_mut().unwrap().node_name = None,
                "PodNodeMismatch",
            ),
            (
                |l| pod(l).metadata.owner_references = None,
                "PodNotControlled",
            ),
            (|l| l.replica_set = None, "PodNotControlled"),
            (
                |l| l.replica_set.as_mut().unwrap().metadata.uid = Some("other".to_owned()),
                "PodNotControlled",
            ),
            (
                |l| {
                    let replica_set = l.replica_set.as_mut().unwrap();
                    replica_set.metadata.owner_references.as_mut().unwrap()[0].controller = None;
                },
                "PodNotControlled",
            ),
            (
                |l| {
                    let replica_set = l.replica_set.as_mut().unwrap();
                    replica_set.metadata.owner_references.as_mut().unwrap()[0].name =
                        "other".to_owned();
                },
                "PodNotControlled",
            ),
        ];
        let deployment = fixtures::deployment();
        for (index, (change, reason)) in rows.into_iter().enumerate() {
            let mut lineage = fixtures::lineage();
            change(&mut lineage);
            let witness = Witness::ApiServer(Box::new(lineage));
            let error = check_identity(&fixtures::instance(), &witness, Some(&deployment));
            assert_eq!(error.unwrap_err().reason(), reason, "row {index}");
        }
        let witness = Witness::ApiServer(Box::new(fixtures::lineage()));
        let missing = check_identity(&fixtures::instance(), &witness, None);
        assert_eq!(missing, Err(IdentityError::DeploymentMissing));
    }

    #[test]
    fn without_a_witness_the_uid_tells_guests_apart() {
        let deployment = fixtures::deployment();
        let mut instance = fixtures::instance();
        let mut check = |uid: &str, deployment| {
            instance.pod.uid = uid.to_owned();
            check_identity(&instance, &Witness::Nobody, deployment).map(drop)
        };
        assert_eq!(check(fixtures::POD_UID, Some(&deployment)), Ok(()));
        assert_eq!(
            check(fixtures::POD_UID, None),
            Err(IdentityError::DeploymentMissing)
        );
        for uid in [
            "",
            "7E2C6BCB-3C53-4F8C-9B5E-0A4F6D1D2C3B",
            "7e2c6bcb-3c53-4f8c-9b5e-0a4f6d1d2c3b0",
            "7e2c6bcb/3c53-4f8c-9b5e-0a4f6d1d2c3b",
            "../../../../../../../../../etc/passw",
        ] {
            let error = check(uid, Some(&deployment)).unwrap_err();
            assert_eq!(error.reason(), "PodUidMalformed", "{uid}");
        }
    }
}
