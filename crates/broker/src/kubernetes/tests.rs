//! The reads and writes against a real API server: the one that the file named
//! by `ASSAY_TEST_KUBECONFIG` describes, with the CRDs installed, no controllers
//! (they would collect records of pods that do not exist) and the right
//! to write in namespace `shop`. Skipped, aloud, where there is none.

use kube::Config;
use kube::api::{DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};

use super::*;
use crate::fixtures;
use crate::node_trust::plan_node_trust;
use crate::record::{plan_record, plan_release};
use assay_attest::Endorsements;
use assay_crds::v1alpha1::attestation_record::{ReleaseOutcome, SecretRelease};

const VARIABLE: &str = "ASSAY_TEST_KUBECONFIG";

async fn client() -> Option<Client> {
    let Some(path) = std::env::var_os(VARIABLE) else {
        eprintln!("skipped: {VARIABLE} names no kubeconfig");
        return None;
    };
    let kubeconfig = Kubeconfig::read_from(path).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .unwrap();
    // Another test may have installed the same provider.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Some(Client::try_from(config).unwrap())
}

#[test]
fn an_object_that_does_not_decode_costs_no_other() {
    let (known, mut writer) = reflector::store::<AttestationPolicy>();
    let mut policies = [fixtures::policy(), fixtures::policy()];
    policies[1].metadata.name = Some("other".to_owned());
    let guarded = |policy: &AttestationPolicy, decodes: bool| {
        DeserializeGuard(if decodes {
            Ok(policy.clone())
        } else {
            Err(InvalidObject {
                error: "no such field".to_owned(),
                metadata: policy.metadata.clone(),
            })
        })
    };
    let mut take = |event| {
        if let Some(event) = decoded(&known, event) {
            writer.apply_watcher_event(&event);
        }
        known.len()
    };
    take(WatchEvent::Init);
    take(WatchEvent::InitApply(guarded(&policies[0], false)));
    take(WatchEvent::InitApply(guarded(&policies[1], true)));
    assert_eq!(take(WatchEvent::InitDone), 1, "the listing goes on");
    assert_eq!(take(WatchEvent::Apply(guarded(&policies[0], true))), 2);
    assert_eq!(
        take(WatchEvent::Apply(guarded(&policies[0], false))),
        1,
        "what was true of it no longer is"
    );
    assert_eq!(take(WatchEvent::Delete(guarded(&policies[0], false))), 1);
}

#[tokio::test]
async fn records_are_written_once_and_in_order() {
    let Some(client) = client().await else { return };
    let records: Api<AttestationRecord> = Api::namespaced(client.clone(), fixtures::NAMESPACE);
    let _ = records
        .delete(fixtures::POD, &DeleteParams::default())
        .await;
    let (inventory, _watches) = KubernetesInventory::start(client);
    let read = async || {
        inventory
            .record(fixtures::NAMESPACE, fixtures::POD)
            .await
            .unwrap()
    };
    assert_eq!(read().await, None);

    let first = plan_record(fixtures::NAMESPACE, &fixtures::accepted(), None).unwrap();
    inventory.write_record(&first, None).await.unwrap();
    let stored = read().await.unwrap();
    assert_eq!(stored.status, first.status);
    assert_eq!(
        stored.metadata.owner_references,
        first.metadata.owner_references
    );
    let generation = stored.metadata.generation;

    // A replica that saw no record was not first.
    let conflict = inventory.write_record(&first, None).await;
    assert!(
        matches!(conflict, Err(InventoryError::Conflict)),
        "{conflict:?}"
    );

    let observed = stored.status.as_ref().unwrap().conditions[0].observed_generation;
    assert_eq!(observed, generation);

    let again = fixtures::accepted_again();
    let second = plan_record(fixtures::NAMESPACE, &again, Some(&stored)).unwrap();
    inventory
        .write_record(&second, Some(&stored))
        .await
        .unwrap();
    let after = read().await.unwrap();
    assert_eq!(after.status.as_ref().unwrap().history.len(), 1);
    assert_eq!(after.metadata.generation, generation);
    assert_ne!(after.resource_version(), stored.resource_version());

    // A replica that planned from the first record is told so.
    let conflict = inventory.write_record(&second, Some(&stored)).await;
    assert!(
        matches!(conflict, Err(InventoryError::Conflict)),
        "{conflict:?}"
    );
    // As is one whose record also names another image now.
    let mut moved = second.clone();
    moved.spec.image_ref.name = "web-2".to_owned();
    let conflict = inventory.write_record(&moved, Some(&stored)).await;
    assert!(
        matches!(conflict, Err(InventoryError::Conflict)),
        "{conflict:?}"
    );
    inventory.write_record(&moved, Some(&after)).await.unwrap();
    assert_eq!(read().await.unwrap().spec.image_ref.name, "web-2");

    // What came of a request for a secret outlives that.
    let stored = read().await.unwrap();
    let release = SecretRelease {
        name: "greeting".to_owned(),
        outcome: ReleaseOutcome::SecretMissing,
        message: Some("create it".to_owned()),
    };
    let secrets = fixtures::deployment().spec.secrets;
    let now = fixtures::now();
    let told = plan_release(&stored, fixtures::POD_UID, &secrets, &release, now).unwrap();
    inventory.write_record(&told, Some(&stored)).await.unwrap();
    assert_eq!(read().await.unwrap().status, told.status);
}

#[tokio::test]
async fn what_is_known_of_a_node_is_the_node_s() {
    let Some(client) = client().await else { return };
    let nodes: Api<Node> = Api::all(client.clone());
    let _ = nodes.delete("trusted-1", &DeleteParams::default()).await;
    let trusts: Api<NodeTrust> = Api::all(client.clone());
    let _ = trusts.delete("trusted-1", &DeleteParams::default()).await;
    let (inventory, watches) = KubernetesInventory::start(client);
    let watches = tokio::spawn(watches);

    let mut instance = fixtures::instance();
    instance.node = "trusted-1".to_owned();
    let mut submission = fixtures::submission();
    submission.instance = instance;
    let planned = plan_node_trust(
        fixtures::NAMESPACE,
        &submission,
        &Endorsements::default(),
        &fixtures::accepted(),
        &fixtures::verifier(),
        None,
    );
    let planned = planned.unwrap();
    // Of a node that does not exist nothing is known.
    inventory.write_node_trust(&planned).await.unwrap();
    assert!(trusts.get_opt("trusted-1").await.unwrap().is_none());

    let node = serde_json::from_value(json!({ "metadata": { "name": "trusted-1" } })).unwrap();
    let node = nodes.create(&PostParams::default(), &node).await.unwrap();
    inventory.write_node_trust(&planned).await.unwrap();
    let stored = trusts.get("trusted-1").await.unwrap();
    assert_eq!(stored.status, planned.status);
    let owners = stored.metadata.owner_references.clone().unwrap();
    assert_eq!(owners.len(), 1);
    assert_eq!(Some(&owners[0].uid), node.metadata.uid.as_ref());
    // Another replica that has not seen it yet changes nothing.
    inventory.write_node_trust(&planned).await.unwrap();
    let again = trusts.get("trusted-1").await.unwrap();
    assert_eq!(again.resource_version(), stored.resource_version());
    let known = async {
        while inventory.node_trust("trusted-1").is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let deadline = std::time::Duration::from_secs(10);
    tokio::time::timeout(deadline, known).await.unwrap();
    watches.abort();
    nodes
        .delete("trusted-1", &DeleteParams::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_observed_is_what_is_there() {
    let Some(client) = client().await else { return };
    let api: Api<AttestationPolicy> = Api::namespaced(client.clone(), fixtures::NAMESPACE);
    let _ = api.delete("standard", &DeleteParams::default()).await;
    let (inventory, watches) = KubernetesInventory::start(client);
    let synced = inventory.synced();
    let watches = tokio::spawn(watches);
    assert!(synced.await);

    // Nothing of the workload is there.
    let observed = inventory.observe(&fixtures::instance()).await.unwrap();
    let Witness::ApiServer(lineage) = observed.witness else {
        panic!("{:?}", observed.witness)
    };
    assert!(lineage.pod.is_none() && observed.deployment.is_none());

    // A policy that was made a moment ago is found, watched already or not, and
    // hashes to what the guest's instance data says.
    api.create(&PostParams::default(), &fixtures::policy())
        .await
        .unwrap();
    let policy = inventory
        .cached(&inventory.policies, "read", fixtures::NAMESPACE, "standard")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        policy.spec.hash().unwrap(),
        fixtures::instance().policy_hash
    );
    watches.abort();
}
