//! A guest whose host adds no certificates, under a policy that requires a
//! revocation list: as hardware attests.

use assay_crds::v1alpha1::attestation_policy::CrlMode;
use assay_psp_sim::KeyDistributionService;
use assay_psp_sim::pki::KeyTemplate;
use assay_tee::Product;
use axum::http::{StatusCode, Uri};
use base64::prelude::{BASE64_STANDARD, Engine as _};

use super::*;
use crate::collateral::tests::service;
use crate::collateral::{CollateralStore, HttpFetch};

/// Serves `service` on the loopback interface.
async fn serve(service: KeyDistributionService<'static>) -> String {
    let service = Arc::new(Mutex::new(service));
    let respond = move |uri: Uri| async move {
        let mut service = service.lock().unwrap();
        let (status, body) = service.respond(&uri.to_string()).unwrap();
        (StatusCode::from_u16(status).unwrap(), body)
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = axum::Router::new().fallback(respond);
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

/// A replica that fetches from `url`, and its guest's request.
async fn replica(directory: &std::path::Path, url: Option<&str>) -> (Replica, HttpRequest) {
    let cluster = FakeCluster::new();
    let policy_hash = {
        let mut world = cluster.0.lock().unwrap();
        let policy = Arc::make_mut(world.observed.policy.as_mut().unwrap());
        policy.spec.snp.crl.mode = CrlMode::Require;
        policy.spec.hash().unwrap()
    };
    let mut replica = Replica::new(&cluster);
    let mut parts = parts(cluster, Arc::new(fixtures::now));
    let source = url
        .map(|url| -> Box<dyn crate::collateral::Fetch> { Box::new(HttpFetch::new(url).unwrap()) });
    parts.collateral = Some(Arc::new(CollateralStore::new(
        directory,
        parts.verifier.anchors,
        source,
        Duration::ZERO,
        parts.clock.clone(),
    )));
    replica.service = Service::new(parts);
    let instance = InstanceData {
        policy_hash,
        ..fixtures::instance()
    };
    let guest = fixtures::launch(1, &instance);
    let session = GuestSession::new().unwrap();
    let response = replica.send(&session.auth_request().unwrap()).await;
    let session = session.on_challenge(&response).unwrap();
    let mut evidence = fixtures::evidence(&guest, session.report_data().unwrap());
    evidence.certificates.clear();
    let document = String::from_utf8(instance.encode().unwrap()).unwrap();
    let request = session.attest_request(evidence, &document).unwrap();
    (replica, request)
}

#[tokio::test]
async fn evidence_of_the_hardwares_kind_needs_fetched_collateral() {
    let directory = tempfile::TempDir::new().unwrap();
    let directory = directory.path();
    let (offline, request) = replica(directory, None).await;
    assert_eq!(offline.send(&request).await.status, 401);

    let url = serve(service()).await;
    let (online, request) = replica(directory, Some(&url)).await;
    let response = online.send(&request).await;
    assert_eq!(
        response.status,
        200,
        "{}",
        String::from_utf8_lossy(&response.body)
    );
    let status = online.cluster.record().unwrap().status.unwrap();
    let endorsements = status.endorsements.unwrap();
    assert_eq!(endorsements.revocation_list_number, Some(7));
    assert_eq!(endorsements.certificates.len(), 3);

    // The directory is a bundle now; the list in it is what lets a guest in.
    let (bundled, request) = replica(directory, None).await;
    assert_eq!(bundled.send(&request).await.status, 200);
    std::fs::remove_file(directory.join("vcek-Genoa.crl")).unwrap();
    let (listless, request) = replica(directory, None).await;
    let response = listless.send(&request).await;
    assert_eq!(response.status, 401);
    let detail = String::from_utf8(response.body).unwrap();
    assert!(detail.contains("RevocationListMissing"), "{detail}");
}

#[tokio::test]
async fn a_revoked_intermediate_is_refused() {
    let mut service = service();
    let mut list = crate::collateral::tests::list(8);
    list.revoked = vec![assay_psp_sim::Authority::ASK_SERIAL.to_vec()];
    service.set_revocation_list(list);
    let url = serve(service).await;
    let directory = tempfile::TempDir::new().unwrap();
    let (replica, request) = replica(directory.path(), Some(&url)).await;
    let response = replica.send(&request).await;
    let detail = String::from_utf8(response.body).unwrap();
    assert!(detail.contains("IntermediateRevoked"), "{detail}");
}

/// A guest of the fixtures that brings no certificate, under a policy that requires
/// no list.
async fn bare(replica: &Replica) -> Result<AttestedSession, String> {
    let instance = fixtures::instance();
    let guest = fixtures::launch(1, &instance);
    let session = GuestSession::new().unwrap();
    let response = replica.send(&session.auth_request().unwrap()).await;
    let session = session.on_challenge(&response).unwrap();
    let mut evidence = fixtures::evidence(&guest, session.report_data().unwrap());
    evidence.certificates.clear();
    let document = String::from_utf8(instance.encode().unwrap()).unwrap();
    let request = session.attest_request(evidence, &document).unwrap();
    let token = session.on_token(&replica.send(&request).await);
    token.map_err(|error| error.to_string())
}

/// A replica without a directory and without a service.
fn without_collateral(cluster: &FakeCluster) -> Replica {
    let mut replica = Replica::new(cluster);
    let clock = replica.clock.clone();
    let mut parts = parts(cluster.clone(), Arc::new(move || *clock.lock().unwrap()));
    let store = CollateralStore::in_memory(parts.verifier.anchors, parts.clock.clone());
    parts.collateral = Some(Arc::new(store));
    replica.service = Service::new(parts);
    replica
}

#[tokio::test]
async fn a_node_s_guest_is_endorsed_by_what_an_earlier_one_brought() {
    let cluster = FakeCluster::new();
    let replica = without_collateral(&cluster);
    assert_refused(bare(&replica).await, 401, "", "EndorsementKeyMissing");
    replica.attest(1).await.unwrap();
    replica.advance(SignedDuration::from_secs(1));
    let writes = || cluster.0.lock().unwrap().node_trust_writes;
    assert_eq!(writes(), 1);

    // A replica that has seen nothing, and a cluster that remembers.
    let another = without_collateral(&cluster);
    *another.clock.lock().unwrap() = *replica.clock.lock().unwrap();
    bare(&another).await.unwrap();
    assert_eq!(writes(), 1, "nothing is new");
    let status = cluster.record().unwrap().status.unwrap();
    assert_eq!(status.endorsements.unwrap().certificates.len(), 3);

    // What somebody else put there is checked as any answer is.
    let good = cluster.0.lock().unwrap().node_trust.clone().unwrap();
    let template = KeyTemplate::vcek(Product::Genoa, "another chip", fixtures::tcb());
    let other = fixtures::authority().issue_vcek(&template).unwrap();
    let other = BASE64_STANDARD.encode(&other.chain().leaf);
    let changes = ["drop", "other", "authority", "flip"];
    for (index, change) in changes.into_iter().enumerate() {
        let mut forged = good.as_ref().clone();
        let status = forged.status.as_mut().unwrap();
        let kept = &mut status.endorsement.as_mut().unwrap().certificates;
        match change {
            "drop" => drop(kept.remove(0)),
            "other" => kept[0].clone_from(&other),
            "authority" => kept[0] = kept[1].clone(),
            _ => kept[0] = kept[0].replacen('A', "B", 1),
        }
        cluster.0.lock().unwrap().node_trust = Some(Arc::new(forged));
        let replica = without_collateral(&cluster);
        let seconds = i64::try_from(index).unwrap() + 2;
        replica.advance(SignedDuration::from_secs(seconds));
        assert!(bare(&replica).await.is_err(), "{change}");
    }
}
