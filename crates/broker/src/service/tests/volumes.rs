//! A volume whose audit log takes nothing, and a lost answer.

use assay_protocol::volume::VolumeRequest;

use super::*;
use crate::volume::declared::DeclaredVolume;
use crate::volume::store::VolumeDirectory;

#[tokio::test]
async fn keys_that_cannot_be_audited_are_not_given_and_not_lost() {
    let directory = tempfile::tempdir().unwrap();
    let mut replica = Replica::new(&FakeCluster::new());
    let path = fixtures::resource_path();
    let declared = DeclaredVolume {
        key_version: 1,
        simulated: true,
    };
    replica.service.parts.volumes = Some(Volumes {
        declared: [(path.to_string(), declared)].into(),
        store: Arc::new(VolumeDirectory::new(directory.path())),
    });
    let log = directory.path().join("audit.jsonl");
    replica.service.parts.audit = Some(crate::audit::tests::full(&log));
    let session = replica.attest(1).await.unwrap();
    let token = Some(session.token());
    let request = VolumeRequest::new(None, None).unwrap();
    let body = serde_json::to_vec(&request).unwrap();
    let opened = replica.service.open_volume(token, &path, &body).await;
    assert_eq!(opened.unwrap_err(), Refusal::Unavailable);

    // The guest asks again, once there is room.
    replica.service.parts.audit = None;
    let jwe = replica.service.open_volume(token, &path, &body).await;
    let response = fixtures::response("", &jwe.unwrap());
    let opened = session.on_volume(&response, &path.to_string(), &request);
    assert_eq!(opened.unwrap().grant.generation, 1);

    for (token, body, kind) in [
        (None, &body[..], "TokenVerificationFailed"),
        (Some("a.b.c"), &body[..], "TokenVerificationFailed"),
        (token, b"{}", "InvalidRequest"),
    ] {
        let refused = replica.service.open_volume(token, &path, body).await;
        assert_eq!(refused.unwrap_err().information().kind(), kind);
        let refused = replica.service.close_volume(token, &path, body).await;
        assert_eq!(refused.unwrap_err().information().kind(), kind);
    }
}
