//! Guests of a simulated processor that share a volume, over TLS.

use assay_protocol::volume::{OpenVolume, VolumeRequest};

use super::*;

const VOLUME: &str = "shop/web/data";
const UIDS: [&str; 3] = [
    "7e2c6bcb-3c53-4f8c-9b5e-0a4f6d1d2c3b",
    "1b4e28ba-2fa1-4d3b-a3f5-ef19b5a7633b",
    "c9a646d3-9c61-4cb7-bfcd-ee2522c8f633",
];

fn policy() -> assay_crds::v1alpha1::AttestationPolicy {
    let mut policy = fixtures::policy();
    let mut rule = policy.spec.release[0].clone();
    "data".clone_into(&mut rule.resource);
    policy.spec.release.push(rule);
    policy
}

/// A broker that makes keys for [`VOLUME`], and more as `volumes` says.
fn world_with(volumes: &str) -> World {
    let directory = directory(&format!(
        "{FILES}\n[[volumes]]\nresource = {VOLUME:?}\nsimulated = true\n{volumes}"
    ));
    write(&directory.path().join("objects/policy.yaml"), &policy());
    start(directory)
}

/// A running guest.
struct Vm {
    guest: assay_psp_sim::Guest,
    instance: InstanceData,
}

impl World {
    /// The guest of a pod boots.
    fn boot(&self, uid: &str) -> Vm {
        let mut instance = self.instance();
        uid.clone_into(&mut instance.pod.uid);
        instance.policy_hash = policy().spec.hash().unwrap();
        let guest = fixtures::launch(1, &instance);
        Vm { guest, instance }
    }

    async fn attest_vm(&self, vm: &Vm) -> AttestedSession {
        let session = GuestSession::new().unwrap();
        let response = self.send(session.auth_request().unwrap()).await;
        let session = session.on_challenge(&response).unwrap();
        let evidence = fixtures::evidence(&vm.guest, session.report_data().unwrap());
        let document = String::from_utf8(vm.instance.encode().unwrap()).unwrap();
        let request = session.attest_request(evidence, &document).unwrap();
        session.on_token(&self.send(request).await).unwrap()
    }

    async fn open_volume(
        &self,
        session: &AttestedSession,
        volume: &str,
        (generation, key_version): (Option<u64>, Option<u32>),
    ) -> Result<OpenVolume, String> {
        let request = VolumeRequest::new(generation, key_version).unwrap();
        let sent = session.open_volume_request(volume, &request).unwrap();
        let response = self.send(sent).await;
        let opened = session.on_volume(&response, volume, &request);
        opened.map_err(|error| error.to_string())
    }

    /// Opens [`VOLUME`] with what a disk says.
    async fn open(
        &self,
        session: &AttestedSession,
        disk: (u64, u32),
    ) -> Result<OpenVolume, String> {
        let disk = (Some(disk.0), Some(disk.1));
        self.open_volume(session, VOLUME, disk).await
    }

    async fn close(&self, session: &AttestedSession, generation: u64) -> Result<(), String> {
        let request = VolumeRequest::new(Some(generation), None).unwrap();
        let sent = session.close_volume_request(VOLUME, &request).unwrap();
        let closed = session.on_volume_closed(&self.send(sent).await);
        closed.map_err(|error| error.to_string())
    }

    fn audit(&self) -> String {
        let log = fs::read(self.path("state/audit.jsonl")).unwrap();
        verify_log(&log[..]).unwrap();
        String::from_utf8(log).unwrap()
    }
}

#[tokio::test]
async fn a_cloned_disk_opens_nothing() {
    let world = world_with("");
    // The first guest makes the disk; someone copies it.
    let first = world.attest_vm(&world.boot(UIDS[0])).await;
    let opened = world.open_volume(&first, VOLUME, (None, None)).await;
    let opened = opened.unwrap();
    assert_eq!(opened.grant.generation, 1);
    let key = opened.keys[&1].clone();
    world.open(&first, (1, 1)).await.unwrap();
    let copy = (1, 1);

    // A guest with the copy beside the running one waits.
    let thief = world.boot(UIDS[2]);
    let session = world.attest_vm(&thief).await;
    assert_refused(world.open(&session, copy).await, "VolumeHeld");

    // The workload boots again, in another pod.
    world.close(&first, 1).await.unwrap();
    let second = world.attest_vm(&world.boot(UIDS[1])).await;
    let opened = world.open(&second, (1, 1)).await.unwrap();
    assert_eq!(opened.grant.generation, 2);
    assert_eq!(opened.keys[&1].as_bytes(), key.as_bytes());
    world.open(&second, (2, 1)).await.unwrap();

    // From now on the copy opens nothing: not at once, not when the lease is over,
    // not under a broker that was started again, and not for the first guest.
    assert_refused(world.open(&session, copy).await, "VolumeGenerationStale");
    assert_refused(world.open(&first, copy).await, "VolumeGenerationStale");
    world.advance(SignedDuration::from_hours(2));
    let world = world.restart().await;
    let session = world.attest_vm(&world.boot(UIDS[2])).await;
    for disk in [(None, None), (Some(1), Some(1)), (Some(1), None)] {
        let opened = world.open_volume(&session, VOLUME, disk).await;
        assert_refused(opened, "VolumeGenerationStale");
    }
    assert!(world.audit().contains("VolumeGenerationStale"));
    let metrics = world.metrics().await;
    let line = "assay_broker_volumes_total{outcome=\"Refused\",reason=\"VolumeGenerationStale\"} 3";
    assert!(metrics.contains(line), "{metrics}");

    // The twin: the disk itself opens for the same guest.
    let opened = world.open(&session, (2, 1)).await.unwrap();
    assert_eq!(opened.grant.generation, 3);
    assert_eq!(opened.keys[&1].as_bytes(), key.as_bytes());
}

#[tokio::test]
async fn of_guests_that_race_one_gets_the_volume() {
    let world = world_with("");
    let mut sessions = Vec::new();
    for uid in UIDS {
        sessions.push(world.attest_vm(&world.boot(uid)).await);
    }
    let opens = sessions
        .iter()
        .map(|session| world.open_volume(session, VOLUME, (None, None)));
    let results = futures::future::join_all(opens).await;
    let (opened, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!((opened.len(), refused.len()), (1, 2));
    for result in refused {
        assert_refused(result, "VolumeHeld");
    }
}

#[tokio::test]
async fn a_guest_goes_on_with_another_key() {
    let world = world_with("");
    let vm = world.boot(UIDS[0]);
    let session = world.attest_vm(&vm).await;
    let opened = world.open_volume(&session, VOLUME, (None, None)).await;
    let old = opened.unwrap().keys[&1].clone();
    world.open(&session, (1, 1)).await.unwrap();

    let path = world.path("broker.toml");
    let config = fs::read_to_string(&path).unwrap() + "keyVersion = 2\n";
    fs::write(&path, config).unwrap();
    let world = world.restart().await;
    let session = world.attest_vm(&vm).await;
    let opened = world.open(&session, (1, 1)).await.unwrap();
    assert_eq!(opened.grant.generation, 1);
    assert_eq!(opened.grant.key_version, 2);
    assert_eq!(opened.keys[&1].as_bytes(), old.as_bytes());
    assert_ne!(opened.keys[&2].as_bytes(), old.as_bytes());
    let opened = world.open(&session, (1, 2)).await.unwrap();
    assert!(opened.keys.keys().eq([&2]));
    assert_refused(
        world.open(&session, (1, 1)).await,
        "VolumeKeyVersionUnknown",
    );
    assert_eq!(world.audit().matches("\"rotatedFrom\":1").count(), 1);
    let metrics = world.metrics().await;
    let line = "assay_broker_volume_key_rotations_total 1";
    assert!(metrics.contains(line), "{metrics}");
}

#[tokio::test]
async fn a_volume_is_refused_wherever_a_secret_is() {
    type Change = fn(&World);
    let image = |state| {
        let mut image = fixtures::image();
        image.spec.lifecycle.state = state;
        image
    };
    let revoked = image(LifecycleState::Revoked);
    let world = world_with(
        "[[volumes]]\nresource = \"shop/web/hardware\"\n\
         [[volumes]]\nresource = \"shop/web/greeting\"\n",
    );
    let session = world.attest_vm(&world.boot(UIDS[0])).await;
    world
        .open_volume(&session, VOLUME, (None, None))
        .await
        .unwrap();
    for (volume, reason) in [
        ("shop/web/hardware", "NotReleased"),
        ("shop/web/greeting", "VolumeClassMismatch"),
        ("shop/db/data", "IdentityMismatch"),
        ("shop/web/DATA", "PathInvalid"),
    ] {
        let opened = world.open_volume(&session, volume, (None, None)).await;
        assert_refused(opened, reason);
    }
    let rows: [(Change, &str); 2] = [
        (
            |world| write(&world.path("objects/policy.yaml"), &fixtures::policy()),
            "PolicyChanged",
        ),
        (
            |world| fs::remove_file(world.path("objects/policy.yaml")).unwrap(),
            "PolicyMissing",
        ),
    ];
    write(&world.path("objects/image.yaml"), &revoked);
    assert_refused(world.open(&session, (1, 1)).await, "ImageRevoked");
    write(
        &world.path("objects/image.yaml"),
        &image(LifecycleState::Active),
    );
    for (change, reason) in rows {
        change(&world);
        assert_refused(world.open(&session, (1, 1)).await, reason);
        assert_refused(world.close(&session, 1).await, reason);
        write(&world.path("objects/policy.yaml"), &policy());
        world.open(&session, (1, 1)).await.unwrap();
    }
    let log = world.audit();
    assert_eq!(log.matches("\"operation\":\"Open\"").count(), 10);
    // When the attestation is over, so is the token.
    world.advance(SignedDuration::from_hours(2));
    assert_refused(
        world.open(&session, (1, 1)).await,
        "TokenVerificationFailed",
    );
}

#[tokio::test]
async fn without_a_declared_volume_there_is_none() {
    let directory = directory(FILES);
    write(&directory.path().join("objects/policy.yaml"), &policy());
    let world = start(directory);
    let session = world.attest_vm(&world.boot(UIDS[0])).await;
    let opened = world.open_volume(&session, VOLUME, (None, None)).await;
    assert_refused(opened, "ResourceUnknown");
}

#[tokio::test]
async fn a_state_that_is_not_whole_opens_nothing_and_is_kept() {
    let world = world_with("");
    let session = world.attest_vm(&world.boot(UIDS[0])).await;
    world
        .open_volume(&session, VOLUME, (None, None))
        .await
        .unwrap();
    let file = world.path("state/volumes/shop/web/data.json");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[1..]).unwrap();
    assert_refused(world.open(&session, (1, 1)).await, "503");
    assert_eq!(fs::read(&file).unwrap(), &bytes[1..]);
    fs::write(&file, &bytes).unwrap();
    world.open(&session, (1, 1)).await.unwrap();
}
