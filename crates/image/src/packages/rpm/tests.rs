//! `vectors/rpm/rpmdb.sqlite.xz` is what rpm 4.18.0 wrote when it installed 32
//! packages of our own (`rpm --justdb -i`); `Packages.xz` is what `db5.3_load`
//! wrote of the same headers. Both are compressed with xz.

use std::io::Read as _;

use proptest::prelude::*;

use super::*;
use crate::packages::tests::tree;
use crate::packages::{installed_packages, package_origins, unread_databases};

fn unpack(xz: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut reader = lzma_rust2::XzReader::new(xz, true);
    reader.read_to_end(&mut plain).unwrap();
    plain
}

fn sqlite_database() -> Vec<u8> {
    unpack(include_bytes!("../../../vectors/rpm/rpmdb.sqlite.xz"))
}

fn hash_database() -> Vec<u8> {
    unpack(include_bytes!("../../../vectors/rpm/Packages.xz"))
}

/// The format as rpm's source has it: no program here writes it.
fn ndb_database(headers: &[Vec<u8>]) -> Vec<u8> {
    let mut file = b"RpmP\0\0\0\0\x01\0\0\0\x01\0\0\0".to_vec();
    file.resize(SLOTS_LEN, 0);
    for slot in file.chunks_exact_mut(16).skip(2) {
        slot[..4].copy_from_slice(b"Slot");
    }
    for (index, header) in (1_u32..).zip(headers) {
        let block = u32::try_from(file.len() / 16).unwrap();
        let slot = 16 * (usize::try_from(index).unwrap() + 3);
        file[slot + 4..slot + 8].copy_from_slice(&index.to_le_bytes());
        file[slot + 8..slot + 12].copy_from_slice(&block.to_le_bytes());
        file.extend(b"BlbS");
        file.extend(index.to_le_bytes());
        file.extend([0; 4]);
        file.extend(u32::try_from(header.len()).unwrap().to_le_bytes());
        file.extend(header);
        file.resize(file.len().next_multiple_of(16), 0);
    }
    file
}

const SLOTS_LEN: usize = 4096;

#[test]
fn the_formats_hold_the_same_packages() {
    let sqlite = sqlite_database();
    let ndb = ndb_database(&sqlite::headers(&sqlite).unwrap());
    let rows = [
        ("var/lib/rpm/rpmdb.sqlite", sqlite),
        ("usr/lib/sysimage/rpm/Packages.db", ndb),
        ("var/lib/rpm/Packages", hash_database()),
    ];
    for (path, database) in rows {
        let tree = tree(&[
            (path, &database),
            ("usr/lib64/libexample.so.1", b"one"),
            ("usr/share/doc/example/README", b"d"),
        ]);
        let packages = installed_packages(&tree);
        assert_eq!(packages.len(), 32, "{path}");
        let library = Package {
            name: "example-lib".to_owned(),
            version: "2:1.4-3.el9".to_owned(),
            architecture: Some("x86_64".to_owned()),
            source: Some("example-lib-1.4-3.el9.src.rpm".to_owned()),
            license: Some("MIT and (GPL-2.0-or-later WITH Exception)".to_owned()),
            path: None,
            kind: PackageKind::Rpm,
        };
        assert!(packages.contains(&library), "{path}: {packages:?}");
        let taken = "usr/lib64/libexample.so.1".to_owned();
        assert_eq!(package_origins(&tree, &[taken]), [library], "{path}");
        assert_eq!(unread_databases(&tree), Vec::<String>::new());
    }
}

#[test]
fn files_are_those_that_rpm_lists() {
    let headers = sqlite::headers(&sqlite_database()).unwrap();
    let files = headers.into_iter().filter_map(|blob| {
        let header = Header::parse(blob)?;
        (header.string(tag::NAME)? == "example-lib").then(|| header.files())?
    });
    let expected = [
        "/usr/lib64/example",
        "/usr/lib64/example/plugin.so",
        "/usr/lib64/libexample.so",
        "/usr/lib64/libexample.so.1",
    ];
    assert_eq!(files.collect::<Vec<_>>(), [expected]);
}

#[test]
fn a_database_that_cannot_be_read_is_named() {
    let mut cut = sqlite_database();
    cut.truncate(20_000);
    let whole = sqlite_database();
    let path = "var/lib/rpm/rpmdb.sqlite";
    let log = "var/lib/rpm/rpmdb.sqlite-wal";
    for (files, said) in [
        (
            vec![(path, cut.as_slice())],
            "cannot be read as an SQLite database",
        ),
        (
            vec![(path, b"".as_slice())],
            "cannot be read as an SQLite database",
        ),
        (
            vec![(path, whole.as_slice()), (log, b"x")],
            "has changes of the database",
        ),
        (
            vec![("var/lib/rpm/Packages", b"x".as_slice())],
            "Berkeley DB",
        ),
        (vec![("var/lib/rpm/Packages.db", b"x".as_slice())], "ndb"),
    ] {
        let unread = unread_databases(&tree(&files));
        assert!(unread.len() == 1 && unread[0].contains(said), "{unread:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Damaged pages are refused or read differently; nothing panics, and nothing
    /// grows beyond the file.
    #[test]
    fn damaged_databases_are_bounded(
        which in 0..3_usize,
        changes in proptest::collection::vec((0..20_000_usize, any::<u8>()), 1..20),
    ) {
        let sqlite = sqlite_database();
        let ndb = ndb_database(&sqlite::headers(&sqlite).unwrap());
        let (mut file, (_, _, read)) = match which {
            0 => (sqlite, FORMATS[0]),
            1 => (ndb, FORMATS[1]),
            _ => (hash_database(), FORMATS[2]),
        };
        for (at, value) in changes {
            file[at] = value;
        }
        let headers = read(&file).unwrap_or_default();
        prop_assert!(headers.iter().map(Vec::len).sum::<usize>() <= 2 * file.len());
        for header in headers.into_iter().filter_map(Header::parse) {
            let _ = (header.package(), header.files());
        }
    }
}
