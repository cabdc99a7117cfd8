use jiff::ToSpan as _;

use super::*;
use crate::fixtures;

mod interleavings;

pub(super) const DECLARED: DeclaredVolume = DeclaredVolume {
    key_version: 1,
    simulated: true,
};

pub(super) fn key() -> VolumeKey {
    VolumeKey::generate().unwrap()
}

/// A guest that is attested for ten minutes.
pub(super) fn guest(report_id: &str, now: Timestamp) -> Guest {
    Guest {
        holder: Holder {
            report_id: report_id.to_owned(),
            pod: "web-abc".to_owned(),
            pod_uid: "uid".to_owned(),
            nonce: "bm9uY2U=".to_owned(),
            since: now,
            lease_until: Some(now + 10.minutes()),
        },
        simulated: true,
    }
}

pub(super) fn request(generation: Option<u64>, key_version: Option<u32>) -> VolumeRequest {
    VolumeRequest::new(generation, key_version).unwrap()
}

/// A broker with one volume.
struct World {
    volume: Option<Volume>,
    declared: DeclaredVolume,
    now: Timestamp,
}

impl World {
    fn new() -> Self {
        Self {
            volume: None,
            declared: DECLARED,
            now: fixtures::now(),
        }
    }

    /// Opened by guest `a`, which has written the generation to its disk.
    fn held() -> Self {
        let mut world = Self::new();
        world.open("a", None, None).unwrap();
        world.open("a", Some(1), Some(1)).unwrap();
        world
    }

    fn open_as(
        &mut self,
        guest: &Guest,
        generation: Option<u64>,
        key_version: Option<u32>,
    ) -> Result<(Opening, u64), VolumeRefusal> {
        let request = request(generation, key_version);
        let existing = self.volume.as_ref();
        let opened = decide_open(existing, self.declared, guest, &request, key(), self.now)?;
        let generation = opened.next.generation;
        self.volume = Some(opened.next);
        Ok((opened.opening, generation))
    }

    fn open(
        &mut self,
        report_id: &str,
        generation: Option<u64>,
        key_version: Option<u32>,
    ) -> Result<(Opening, u64), VolumeRefusal> {
        self.open_as(&guest(report_id, self.now), generation, key_version)
    }

    fn close(&mut self, report_id: &str, generation: u64) -> Result<(), VolumeRefusal> {
        let guest = guest(report_id, self.now);
        let request = request(Some(generation), None);
        let existing = self.volume.as_ref();
        self.volume = Some(decide_close(existing, self.declared, &guest, &request)?);
        Ok(())
    }

    fn versions(&self) -> Vec<u32> {
        self.volume.as_ref().unwrap().keys.keys().copied().collect()
    }
}

#[test]
fn another_guest_waits_for_the_lease_and_gets_another_generation() {
    let mut world = World::held();
    assert_eq!(world.open("b", Some(1), None), Err(VolumeRefusal::Held));
    world.now += 10.minutes();
    assert_eq!(world.open("b", Some(1), None), Ok((Opening::Opened, 2)));
    // The first guest comes back: it is another guest now.
    assert_eq!(world.open("a", Some(1), None), Err(VolumeRefusal::Held));
}

#[test]
fn a_holder_keeps_its_generation_for_as_long_as_it_asks() {
    let mut world = World::held();
    for _ in 0..3 {
        world.now += 9.minutes();
        assert_eq!(world.open("a", Some(1), Some(1)), Ok((Opening::Renewed, 1)));
    }
    assert_eq!(world.open("b", Some(1), None), Err(VolumeRefusal::Held));
    // Over, and nobody else came.
    world.now += 1.hour();
    assert_eq!(world.open("a", Some(1), None), Ok((Opening::Renewed, 1)));
}

#[test]
fn a_closed_volume_waits_for_nobody() {
    let mut world = World::held();
    assert_eq!(world.close("b", 1), Err(VolumeRefusal::Held));
    assert_eq!(world.close("a", 2), Err(VolumeRefusal::GenerationUnknown));
    world.close("a", 1).unwrap();
    // The answer was lost.
    world.close("a", 1).unwrap();
    assert_eq!(world.open("a", Some(1), None), Ok((Opening::Renewed, 1)));
    assert_eq!(world.open("b", Some(1), None), Err(VolumeRefusal::Held));
    world.close("a", 1).unwrap();
    assert_eq!(world.open("b", Some(1), None), Ok((Opening::Opened, 2)));
    assert_eq!(world.close("a", 1), Err(VolumeRefusal::Held));
    assert_eq!(
        World::new().close("a", 1),
        Err(VolumeRefusal::GenerationUnknown)
    );
}

#[test]
fn a_lost_answer_is_given_again() {
    let mut world = World::new();
    assert_eq!(world.open("a", None, None), Ok((Opening::Created, 1)));
    let first = world.volume.clone().unwrap();
    assert_eq!(world.open("a", None, None), Ok((Opening::Renewed, 1)));
    let again = world.volume.clone().unwrap();
    assert_eq!(first.keys[&1].as_bytes(), again.keys[&1].as_bytes());
    // It died before it wrote anything: its successor has the same empty disk.
    world.now += 10.minutes();
    assert_eq!(world.open("b", None, None), Ok((Opening::Opened, 2)));
    // So did that one, but after it had written.
    world.now += 10.minutes();
    assert_eq!(world.open("c", Some(2), None), Ok((Opening::Opened, 3)));
    // Which proves that there is no empty disk any more.
    world.now += 10.minutes();
    assert_eq!(
        world.open("d", None, None),
        Err(VolumeRefusal::GenerationStale)
    );
    assert_eq!(world.open("d", Some(2), None), Ok((Opening::Opened, 4)));
}

#[test]
fn a_generation_that_was_left_behind_or_never_given_opens_nothing() {
    let mut world = World::held();
    world.close("a", 1).unwrap();
    world.open("b", Some(1), None).unwrap();
    world.open("b", Some(2), None).unwrap();
    world.close("b", 2).unwrap();
    for (generation, refusal) in [
        (None, VolumeRefusal::GenerationStale),
        (Some(0), VolumeRefusal::GenerationStale),
        (Some(1), VolumeRefusal::GenerationStale),
        (Some(3), VolumeRefusal::GenerationUnknown),
        (Some(u64::MAX), VolumeRefusal::GenerationUnknown),
    ] {
        assert_eq!(world.open("c", generation, None), Err(refusal));
    }
    assert_eq!(world.open("c", Some(2), None), Ok((Opening::Opened, 3)));
    let unknown = World::new().open("a", Some(1), None);
    assert_eq!(unknown, Err(VolumeRefusal::GenerationUnknown));
    let unknown = World::new().open("a", None, Some(1));
    assert_eq!(unknown, Err(VolumeRefusal::KeyVersionUnknown));
}

#[test]
fn the_last_generation_is_the_last() {
    let mut world = World::held();
    let volume = world.volume.as_mut().unwrap();
    volume.generation = MAX_GENERATION;
    volume.holder.lease_until = None;
    assert_eq!(
        world.open("b", Some(MAX_GENERATION), None),
        Err(VolumeRefusal::GenerationExhausted)
    );
}

#[test]
fn an_older_key_stays_until_the_disk_opens_with_the_newer_one() {
    let mut world = World::held();
    world.declared.key_version = 3;
    world.open("a", Some(1), Some(1)).unwrap();
    assert_eq!(world.versions(), [1, 3]);
    // Nothing is made twice, and nothing is lost by asking again.
    world.open("a", Some(1), None).unwrap();
    assert_eq!(world.versions(), [1, 3]);
    world.declared.key_version = 4;
    world.open("a", Some(1), Some(1)).unwrap();
    assert_eq!(world.versions(), [1, 3, 4]);
    world.open("a", Some(1), Some(4)).unwrap();
    assert_eq!(world.versions(), [4]);
    for version in [1, 3, 5] {
        assert_eq!(
            world.open("a", Some(1), Some(version)),
            Err(VolumeRefusal::KeyVersionUnknown)
        );
    }
    world.declared.key_version = 2;
    world.open("a", Some(1), Some(4)).unwrap();
    assert_eq!(world.versions(), [4]);
}

#[test]
fn simulated_guests_and_others_share_no_volume() {
    let now = fixtures::now();
    let (simulated, mut hardware) = (guest("a", now), guest("a", now));
    hardware.simulated = false;
    let for_hardware = DeclaredVolume {
        simulated: false,
        ..DECLARED
    };
    for (declared, good, bad) in [
        (DECLARED, &simulated, &hardware),
        (for_hardware, &hardware, &simulated),
    ] {
        let mut world = World::new();
        world.declared = declared;
        let refused = Err(VolumeRefusal::ClassMismatch);
        assert_eq!(world.open_as(bad, None, None), refused);
        world.open_as(good, None, None).unwrap();
        // Not even when the key holder changes his mind: the key is out.
        world.declared.simulated = !declared.simulated;
        assert_eq!(world.open_as(bad, None, None), refused);
        assert_eq!(world.open_as(good, None, None), refused);
    }
}

#[test]
fn a_lease_is_told_in_seconds_and_ends_with_the_attestation() {
    let world = World::held();
    let volume = world.volume.unwrap();
    let path = fixtures::resource_path();
    let request = request(None, None);
    let lease = |now| volume.answer(&path, &request, now).grant.lease_seconds;
    assert_eq!(lease(world.now), 600);
    assert_eq!(lease(world.now + 599.seconds()), 1);
    assert_eq!(lease(world.now + 1.hour()), 0);
}

#[test]
fn requests_have_names() {
    let named = |name: &str| {
        check_request(&VolumeRequest {
            request: name.to_owned(),
            generation: None,
            key_version: None,
        })
    };
    assert!(named("a").is_ok());
    assert!(check_request(&request(None, None)).is_ok());
    for bad in ["", "a b", "ä", &"a".repeat(MAX_REQUEST_ID + 1)] {
        assert!(named(bad).unwrap_err().contains("request: "), "{bad}");
    }
}
