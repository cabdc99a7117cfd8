//! A directory that a person edits while the broker runs.

use std::fs;
use std::path::PathBuf;

use assay_crds::v1alpha1::measured_image::LifecycleState;
use serde::Serialize;

use super::objects::*;
use super::*;
use crate::fixtures;
use crate::service::Chain;

struct World {
    directory: tempfile::TempDir,
    inventory: DirectoryInventory,
}

fn write(path: &Path, object: &impl Serialize) {
    fs::write(path, serde_saphyr::to_string(object).unwrap()).unwrap();
}

fn world() -> World {
    let directory = tempfile::tempdir().unwrap();
    let objects = directory.path().join("objects");
    fs::create_dir_all(objects.join("images")).unwrap();
    write(&objects.join("deployment.yaml"), &fixtures::deployment());
    write(&objects.join("images/web-1.yml"), &fixtures::image());
    fs::write(
        objects.join("policy.json"),
        serde_json::to_vec(&fixtures::policy()).unwrap(),
    )
    .unwrap();
    fs::write(objects.join("README.md"), "not an object").unwrap();
    fs::create_dir(objects.join(".git")).unwrap();
    fs::write(objects.join(".git/config.yaml"), "a: [").unwrap();
    let records = RecordDirectory::open(
        &directory.path().join("records"),
        4,
        Arc::new(fixtures::now),
    );
    let (inventory, reading) =
        DirectoryInventory::open(&objects, Rules::default(), Arc::new(records.unwrap()));
    assert!(reading.errors.is_empty(), "{:?}", reading.errors);
    assert_eq!(reading.objects, 3);
    assert_eq!(reading.notes, [""; 0]);
    World {
        directory,
        inventory,
    }
}

impl World {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("objects").join(name)
    }

    async fn observed(&self) -> Observed {
        self.inventory.observe(&fixtures::instance()).await.unwrap()
    }

    fn image_state(&self) -> Option<LifecycleState> {
        let image = self.inventory.objects.current().image("shop", "web-1");
        image.map(|image| image.spec.lifecycle.state)
    }
}

#[tokio::test]
async fn the_objects_of_the_directory_are_observed() {
    let world = world();
    let observed = world.observed().await;
    assert_eq!(*observed.deployment.unwrap(), fixtures::deployment());
    assert_eq!(*observed.image.unwrap(), fixtures::image());
    assert_eq!(*observed.policy.unwrap(), fixtures::policy());
    assert!(matches!(observed.witness, Witness::Nobody));
    let mut other = fixtures::instance();
    other.namespace = "elsewhere".to_owned();
    let observed = world.inventory.observe(&other).await.unwrap();
    assert!(observed.deployment.is_none() && observed.policy.is_none());
}

/// Whatever a release is decided by is read for it.
#[tokio::test]
async fn a_release_sees_the_files_as_they_are_now() {
    let world = world();
    let claims = fixtures::claims();
    let mut image = fixtures::image();
    image.spec.lifecycle.state = LifecycleState::Revoked;
    write(&world.path("images/web-1.yml"), &image);
    assert_eq!(world.image_state(), Some(LifecycleState::Active));
    let observed = world.inventory.observe_release(claims.instance()).await;
    let observed = observed.unwrap();
    assert_eq!(
        observed.image.unwrap().spec.lifecycle.state,
        LifecycleState::Revoked
    );
    fs::remove_file(world.path("deployment.yaml")).unwrap();
    let observed = world.inventory.observe_release(claims.instance()).await;
    let observed = observed.unwrap();
    assert!(observed.deployment.is_none() && observed.policy.is_none());
}

#[test]
fn an_invalid_file_leaves_in_force_what_it_said() {
    let world = world();
    let path = world.path("images/web-1.yml");
    let mut image = fixtures::image();
    let mut revoked = serde_json::json!(image);
    revoked["spec"]["lifecyle"] = serde_json::json!({ "state": "Revoked" });
    write(&path, &revoked);
    for round in 1..=2 {
        let reading = world.inventory.objects.reload();
        let error = Chain(&reading.errors[&path]).to_string();
        assert!(error.contains("spec.lifecyle: is no field"), "{error}");
        assert_eq!(world.image_state(), Some(LifecycleState::Active));
        assert_eq!(world.inventory.objects.invalid_files(), 1);
        assert_eq!(
            world.inventory.objects.reload_failures(),
            1,
            "round {round}"
        );
    }
    // What other files say meanwhile holds.
    fs::remove_file(world.path("policy.json")).unwrap();
    let reading = world.inventory.objects.reload();
    assert_eq!(reading.objects, 2);
    assert_eq!(
        reading.notes,
        [
            "ConfidentialDeployment shop/web: spec.policyRef: there is no AttestationPolicy \
             shop/standard"
        ]
    );
    // And a mended file does.
    image.spec.lifecycle.state = LifecycleState::Revoked;
    write(&path, &image);
    assert!(world.inventory.objects.reload().errors.is_empty());
    assert_eq!(world.image_state(), Some(LifecycleState::Revoked));
    assert_eq!(world.inventory.objects.invalid_files(), 0);
}

/// A file that is new and invalid says nothing.
#[test]
fn an_object_in_two_files_stays_as_it_was() {
    let world = world();
    let (early, late) = (world.path("a.yaml"), world.path("images/z.yaml"));
    let mut image = fixtures::image();
    image.spec.lifecycle.state = LifecycleState::Deprecated;
    write(&early, &image);
    let reading = world.inventory.objects.reload();
    let error = &reading.errors[&world.path("images/web-1.yml")];
    assert!(matches!(error, ReadError::Duplicate { .. }), "{error:?}");
    assert_eq!(world.image_state(), Some(LifecycleState::Active));
    fs::remove_file(&early).unwrap();
    assert!(world.inventory.objects.reload().errors.is_empty());

    // Contested from the start it is nobody's.
    image.metadata.name = Some("web-2".to_owned());
    write(&early, &image);
    write(&late, &image);
    let reading = world.inventory.objects.reload();
    assert!(reading.errors.contains_key(&late));
    let contested = world.inventory.objects.current().image("shop", "web-2");
    assert_eq!(contested, None);
    fs::write(&late, "a: [").unwrap();
    assert_eq!(world.inventory.objects.reload().errors.len(), 1);
}

#[test]
fn a_directory_that_cannot_be_listed_leaves_everything_in_force() {
    let world = world();
    let objects = world.directory.path().join("objects");
    fs::rename(&objects, world.directory.path().join("moved")).unwrap();
    let reading = world.inventory.objects.reload();
    assert!(reading.errors.contains_key(&objects));
    assert_eq!(reading.objects, 3);
    assert_eq!(world.image_state(), Some(LifecycleState::Active));
}

#[test]
fn what_is_no_file_of_objects_is_told() {
    let world = world();
    let large = world.path("large.yaml");
    let length = usize::try_from(MAX_FILE).unwrap() + 1;
    fs::write(&large, vec![b'#'; length]).unwrap();
    let binary = world.path("binary.yaml");
    fs::write(&binary, [0xff, 0xfe]).unwrap();
    let reading = world.inventory.objects.reload();
    assert!(matches!(reading.errors[&large], ReadError::TooLarge));
    assert!(matches!(reading.errors[&binary], ReadError::Text));
    fs::remove_file(&large).unwrap();
    fs::remove_file(&binary).unwrap();
    let mut deep = world.path("deep");
    for _ in 0..=MAX_DEPTH {
        deep = deep.join("er");
    }
    fs::create_dir_all(&deep).unwrap();
    let reading = world.inventory.objects.reload();
    let mut errors = reading.errors.values();
    assert!(matches!(errors.next(), Some(ReadError::TooDeep)));
    assert_eq!(reading.objects, 3);
}
