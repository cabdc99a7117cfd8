use std::os::unix::fs::PermissionsExt as _;

use futures::future::join_all;

use super::*;
use crate::fixtures;
use crate::volume::tests::{DECLARED, guest, key, request};
use crate::volume::{Opened, decide_open};

fn opened(existing: Option<&Volume>, report_id: &str) -> Opened {
    let now = fixtures::now();
    let generation = existing.and_then(|volume| volume.on_disk);
    let (guest, request) = (guest(report_id, now), request(generation, None));
    decide_open(existing, DECLARED, &guest, &request, key(), now).unwrap()
}

struct Kept {
    directory: tempfile::TempDir,
    path: ResourcePath,
}

impl Kept {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            path: fixtures::resource_path(),
        }
    }

    fn store(&self) -> VolumeDirectory {
        VolumeDirectory::new(&self.directory.path().join("volumes"))
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("volumes/shop/web/greeting.json")
    }
}

#[tokio::test]
async fn a_state_outlives_the_broker_and_is_its_own_alone() {
    let kept = Kept::new();
    let store = kept.store();
    assert!(store.read(&kept.path).await.unwrap().is_none());
    let next = opened(None, "a").next;
    store.replace(&kept.path, None, next.clone()).await.unwrap();
    let read = kept.store().read(&kept.path).await.unwrap().unwrap();
    assert_eq!(read.keys[&1].as_bytes(), next.keys[&1].as_bytes());
    assert_eq!((read.revision, read.holder), (1, next.holder));
    check_private(&kept.file()).unwrap();
    let mode = |path: &str| {
        let path = kept.directory.path().join(path);
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode("volumes"), mode("volumes/shop/web")), (0o700, 0o700));
    // Another volume is another one.
    let other = ResourcePath {
        name: "other".to_owned(),
        ..kept.path.clone()
    };
    assert!(store.read(&other).await.unwrap().is_none());
}

#[tokio::test]
async fn of_many_that_open_at_once_one_is_first() {
    let kept = Kept::new();
    let store = kept.store();
    let created = (0..16).map(|number| {
        let next = opened(None, &format!("guest-{number}")).next;
        store.replace(&kept.path, None, next)
    });
    let results = join_all(created).await;
    let conflicts = results
        .iter()
        .filter(|result| matches!(result, Err(VolumeStoreError::Conflict)));
    assert_eq!(conflicts.count(), 15);
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);

    let first = store.read(&kept.path).await.unwrap().unwrap();
    let holder = first.holder.report_id.clone();
    let renewed = (0..16).map(|_| {
        let next = opened(Some(&first), &holder).next;
        store.replace(&kept.path, Some(first.revision), next)
    });
    let results = join_all(renewed).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    let second = store.read(&kept.path).await.unwrap().unwrap();
    assert_eq!(second.revision, 2);
    assert_eq!(second.keys[&1].as_bytes(), first.keys[&1].as_bytes());
}

#[tokio::test]
async fn a_state_that_cannot_be_read_is_never_made_anew() {
    let kept = Kept::new();
    let store = kept.store();
    let next = opened(None, "a").next;
    store.replace(&kept.path, None, next.clone()).await.unwrap();
    let bytes = fs::read(kept.file()).unwrap();
    for broken in [&b""[..], b"{}", &bytes[..bytes.len() - 1]] {
        fs::write(kept.file(), broken).unwrap();
        let read = store.read(&kept.path).await;
        assert!(matches!(read, Err(VolumeStoreError::Parse { .. })));
        let written = store.replace(&kept.path, None, next.clone()).await;
        assert!(matches!(written, Err(VolumeStoreError::Parse { .. })));
        assert_eq!(fs::read(kept.file()).unwrap(), broken);
    }
    fs::write(kept.file(), &bytes).unwrap();
    fs::set_permissions(kept.file(), fs::Permissions::from_mode(0o640)).unwrap();
    let read = store.read(&kept.path).await;
    assert!(matches!(read, Err(VolumeStoreError::Private(_))));
    fs::set_permissions(kept.file(), fs::Permissions::from_mode(0o600)).unwrap();
    assert!(store.read(&kept.path).await.unwrap().is_some());
}

#[tokio::test]
async fn what_an_interrupted_write_left_is_in_nobodys_way() {
    let kept = Kept::new();
    let store = kept.store();
    let first = opened(None, "a").next;
    store
        .replace(&kept.path, None, first.clone())
        .await
        .unwrap();
    fs::write(kept.file().with_file_name("NEW"), b"{").unwrap();
    let next = opened(Some(&first), "a").next;
    store.replace(&kept.path, Some(1), next).await.unwrap();
    let read = store.read(&kept.path).await.unwrap().unwrap();
    assert_eq!(read.revision, 2);
    assert!(!kept.file().with_file_name("NEW").exists());
}
