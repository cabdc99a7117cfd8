use assay_tee::Sha256Digest;
use assay_tee::guest_config::{GuestHardening, Process, RootFs};

use super::*;
use crate::newc::parse_newc;
use crate::oracles::Oracles;
use crate::tree::{Inode, Metadata};

fn config(root: RootFs) -> GuestConfig {
    GuestConfig {
        version: GuestConfig::VERSION,
        cmdline: "console=ttyS0".to_owned(),
        modules: vec![module_path("6.12", "kernel/fs/erofs.ko.xz")],
        root,
        hardening: GuestHardening {
            read_only_root: true,
            no_exec: true,
            writable: vec!["/tmp".to_owned()],
        },
        process: Process {
            args: vec!["/bin/true".to_owned()],
            env: Vec::new(),
            cwd: "/".to_owned(),
            uid: 0,
            gid: 0,
            additional_gids: Vec::new(),
            stop_signal: "SIGTERM".to_owned(),
        },
    }
}

#[test]
fn everything_is_there_after_its_directory() {
    let config = config(RootFs::DmVerity {
        serial: "s".to_owned(),
        block_size: 4096,
        data_blocks: 1,
        hash_start_block: 2,
        root_hash: Sha256Digest::of(b""),
        salt: String::new(),
    });
    let modules = [(config.modules[0].clone(), Bytes::from_static(b"module"))];
    let agent = Bytes::from_static(b"agent");
    let archive = encode_initramfs(&agent, &config, &modules, None).unwrap();
    let entries = parse_newc(&archive.to_bytes()).unwrap();
    let paths: Vec<_> = entries
        .iter()
        .map(|entry| (std::str::from_utf8(&entry.path).unwrap(), entry.mode))
        .collect();
    assert_eq!(
        paths,
        [
            ("dev", 0o040_755),
            ("etc", 0o040_755),
            ("etc/assay", 0o040_755),
            ("etc/assay/guest.json", 0o100_444),
            ("init", 0o100_755),
            ("lib", 0o040_755),
            ("lib/modules", 0o040_755),
            ("lib/modules/6.12", 0o040_755),
            ("lib/modules/6.12/kernel", 0o040_755),
            ("lib/modules/6.12/kernel/fs", 0o040_755),
            ("lib/modules/6.12/kernel/fs/erofs.ko.xz", 0o100_444),
            ("newroot", 0o040_755),
            ("proc", 0o040_555),
            ("run", 0o040_755),
            ("sys", 0o040_555),
            ("tmp", 0o041_777),
        ]
    );
    let written: GuestConfig = serde_json::from_slice(&entries[3].content).unwrap();
    assert_eq!(written, config);
}

#[test]
fn a_tree_has_its_names_links_and_owners() {
    let mut tree = Tree::new();
    let bin = tree.resolve_or_create(b"usr/bin").unwrap();
    let owner = Owner { uid: 7, gid: 8 };
    let mut metadata = Metadata::root(0o4755);
    metadata.owner = owner;
    let tool = tree.add(Inode {
        metadata,
        content: Content::File(Bytes::from_static(b"tool")),
    });
    let link = tree.add(Inode {
        metadata: Metadata::root(0o777),
        content: Content::Symlink(Bytes::from_static(b"usr/bin")),
    });
    for (directory, name, id) in [(Tree::ROOT, "a", tool), (bin, "z", tool)] {
        let entries = tree.entries_mut(directory).unwrap();
        entries.insert(Bytes::from_static(name.as_bytes()), id);
    }
    let root = tree.entries_mut(Tree::ROOT).unwrap();
    root.insert(Bytes::from_static(b"bin"), link);
    let agent = Bytes::from_static(b"agent");
    let config = config(RootFs::Initramfs);
    let archive = encode_initramfs(&agent, &config, &[], Some(&tree)).unwrap();
    let entries = parse_newc(&archive.to_bytes()).unwrap();
    let rows: Vec<_> = entries
        .iter()
        .filter(|entry| entry.path.starts_with(b"rootfs"))
        .map(|entry| {
            let path = std::str::from_utf8(&entry.path).unwrap();
            (path, entry.mode, entry.owner, entry.links)
        })
        .collect();
    assert_eq!(
        rows,
        [
            ("rootfs", 0o040_755, Owner::ROOT, 2),
            ("rootfs/usr", 0o040_755, Owner::ROOT, 2),
            ("rootfs/usr/bin", 0o040_755, Owner::ROOT, 2),
            ("rootfs/a", 0o104_755, owner, 2),
            ("rootfs/usr/bin/z", 0o104_755, owner, 2),
            ("rootfs/bin", 0o120_777, Owner::ROOT, 1),
        ]
    );

    let attributes = |names: &[&'static str]| {
        let value = Bytes::from_static(b"x");
        let name = |name: &&'static str| (Bytes::from_static(name.as_bytes()), value.clone());
        names.iter().map(name).collect()
    };
    for refused in ["security.capability", "system.posix_acl_access"] {
        tree.inode_mut(tool).metadata.attributes = attributes(&["user.a", refused]);
        let error = encode_initramfs(&agent, &config, &[], Some(&tree)).unwrap_err();
        let expected = format!("layout: \"/a\" has the extended attribute {refused}");
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
    tree.inode_mut(tool).metadata.attributes = attributes(&["user.a", "security.ima"]);
    let with = encode_initramfs(&agent, &config, &[], Some(&tree)).unwrap();
    assert_eq!(with.to_bytes(), archive.to_bytes());
}

/// A guest that lists [`INITRAMFS_ROOT`] and goes.
const LISTING_INIT: &str = "#!/rootfs/busybox sh\n\
    PATH=/rootfs\n\
    busybox mount -t devtmpfs dev /dev\n\
    exec >/dev/console 2>&1\n\
    cd /rootfs\n\
    busybox find . -exec busybox stat -c '%N %f %u %g %h' {} +\n\
    busybox find . -type f -exec busybox sha256sum {} +\n\
    echo done\n\
    busybox poweroff -f\n";

#[test]
fn a_booted_guest_has_the_tree() {
    let Some(oracles) = Oracles::find("the initramfs boots") else {
        return;
    };
    let mut tree = Tree::new();
    let mut put = |path: &str, mode, owner, content: Content| {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = tree.resolve_or_create(parent.as_bytes()).unwrap();
        let mut metadata = Metadata::root(mode);
        metadata.owner = owner;
        let id = tree.add(Inode { metadata, content });
        let name = Bytes::copy_from_slice(name.as_bytes());
        tree.entries_mut(parent).unwrap().insert(name, id);
        id
    };
    let other = Owner {
        uid: 4_000_000_000,
        gid: 65534,
    };
    let busybox = Content::File(oracles.file("usr/bin/busybox"));
    put("busybox", 0o755, Owner::ROOT, busybox);
    put("empty", 0o600, other, Content::File(Bytes::new()));
    let text = |text: &'static [u8]| Bytes::from_static(text);
    put("a b/c", 0o644, Owner::ROOT, Content::File(text(b"inner")));
    put("bin", 0o777, other, Content::Symlink(text(b"usr/bin")));
    put("dangling", 0o777, other, Content::Symlink(text(b"/init")));
    let tool = put("z", 0o6755, other, Content::File(text(b"tool")));
    let again = tree.resolve_or_create(b"usr/bin").unwrap();
    tree.entries_mut(again).unwrap().insert(text(b"tool"), tool);
    let closed = tree.resolve_or_create(b"closed").unwrap();
    tree.inode_mut(closed).metadata.mode = 0o1000;
    tree.inode_mut(closed).metadata.owner = other;

    let agent = Bytes::from_static(LISTING_INIT.as_bytes());
    let config = config(RootFs::Initramfs);
    let archive = encode_initramfs(&agent, &config, &[], Some(&tree)).unwrap();
    let initrd = oracles.write("initrd", &archive.to_bytes());
    let kernel = oracles.write("kernel", &oracles.kernel());
    let console = oracles.boot(&[
        "-kernel",
        &kernel,
        "-initrd",
        &initrd,
        "-append",
        "console=ttyS0 panic=-1 quiet",
    ]);
    let (listing, _) = console.split_once("\ndone").expect("the guest ended");
    let of_tree = |line: &&str| line.starts_with(". ") || line.contains("./");
    let mut listed: Vec<&str> = listing.lines().filter(of_tree).collect();
    let mut expected = expected_listing(&tree);
    listed.sort_unstable();
    expected.sort_unstable();
    assert_eq!(listed, expected, "{console}");
}

/// What the guest's `stat` and `sha256sum` say about a tree.
fn expected_listing(tree: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    let mut links: HashMap<InodeId, u32> = HashMap::new();
    let mut found = Vec::new();
    let mut pending = vec![(String::from("."), Tree::ROOT)];
    while let Some((path, id)) = pending.pop() {
        *links.entry(id).or_default() += 1;
        if let Some(entries) = tree.entries(id) {
            for (name, child) in entries {
                let name = std::str::from_utf8(name).unwrap();
                pending.push((format!("{path}/{name}"), *child));
            }
        }
        found.push((path, id));
    }
    for (path, id) in found {
        let inode = tree.inode(id);
        let (kind, name, links) = match &inode.content {
            Content::Directory(entries) => {
                let inside = entries
                    .values()
                    .filter(|child| tree.entries(**child).is_some());
                (0x4000, path, 2 + inside.count())
            }
            Content::Symlink(target) => {
                let target = std::str::from_utf8(target).unwrap();
                (
                    0xa000,
                    format!("'{path}' -> '{target}'"),
                    links[&id] as usize,
                )
            }
            Content::File(content) => {
                let sum = Sha256Digest::of(content).to_hex();
                lines.push(format!("{sum}  {path}"));
                (0x8000, path, links[&id] as usize)
            }
        };
        let Owner { uid, gid } = inode.metadata.owner;
        let mode = kind | inode.metadata.mode;
        lines.push(format!("{name} {mode:x} {uid} {gid} {links}"));
    }
    lines
}
