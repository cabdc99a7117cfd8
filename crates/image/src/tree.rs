//! A file system tree in memory, with inodes so that hard links stay links.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::tarball::Owner;

/// Index of an inode in its [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(usize);

/// What every kind of inode has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits with set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub owner: Owner,
    /// Extended attributes by their whole names (xattr(7)).
    pub attributes: Attributes,
}

impl Metadata {
    /// Owned by root, without extended attributes.
    pub fn root(mode: u32) -> Self {
        Self {
            mode,
            owner: Owner::ROOT,
            attributes: Attributes::new(),
        }
    }
}

/// Extended attributes that say who may do what (acl(5)).
pub const ACCESS_LISTS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
/// The extended attribute that gives a program rights (capabilities(7)).
pub const CAPABILITY: &[u8] = b"security.capability";

/// Values of extended attributes by name.
pub type Attributes = BTreeMap<Bytes, Bytes>;

/// A directory's entries by name, sorted by bytes.
pub type Entries = BTreeMap<Bytes, InodeId>;

/// Content of an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A directory.
    Directory(Entries),
    /// A regular file.
    File(Bytes),
    /// A symbolic link's target.
    Symlink(Bytes),
}

/// A directory, file or symbolic link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Mode, owner and extended attributes.
    pub metadata: Metadata,
    /// Content.
    pub content: Content,
}

/// A tree of directories, files and symbolic links.
#[derive(Debug, Clone)]
pub struct Tree {
    inodes: Vec<Inode>,
}

/// Most symbolic links that are followed for one path, as in Linux.
const MAX_SYMLINKS: usize = 40;

/// A path does not lead to where something can be found or put.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// A component other than the last is a file.
    #[error("path {path:?} leads through something that is not a directory")]
    NotADirectory {
        /// The path.
        path: String,
    },
    /// Symbolic links go in a circle.
    #[error("path {path:?} leads through more than {MAX_SYMLINKS} symbolic links")]
    TooManySymlinks {
        /// The path.
        path: String,
    },
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// The root directory's inode.
    pub const ROOT: InodeId = InodeId(0);

    /// An empty root directory with mode 0755.
    pub fn new() -> Self {
        let content = Content::Directory(Entries::new());
        Self {
            inodes: vec![Inode {
                metadata: Metadata::root(0o755),
                content,
            }],
        }
    }

    /// The inode of an identifier of this tree; the root for a foreign one.
    pub fn inode(&self, id: InodeId) -> &Inode {
        self.inodes.get(id.0).unwrap_or(&self.inodes[0])
    }

    /// As [`Tree::inode`].
    pub fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        let index = if id.0 < self.inodes.len() { id.0 } else { 0 };
        &mut self.inodes[index]
    }

    /// Entries of a directory; `None` for anything else.
    pub fn entries(&self, id: InodeId) -> Option<&Entries> {
        match &self.inode(id).content {
            Content::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    /// As [`Tree::entries`].
    pub fn entries_mut(&mut self, id: InodeId) -> Option<&mut Entries> {
        match &mut self.inode_mut(id).content {
            Content::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    /// Adds an inode that no directory names yet.
    pub fn add(&mut self, inode: Inode) -> InodeId {
        self.inodes.push(inode);
        InodeId(self.inodes.len() - 1)
    }

    /// The entry `name` of a directory.
    pub fn child(&self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        self.entries(directory)?.get(name).copied()
    }

    /// The directory of that name, made where there is none or where something
    /// else has the name.
    pub fn make_directory(&mut self, parent: InodeId, name: &Bytes, mode: u32) -> InodeId {
        if let Some(id) = self.child(parent, name)
            && self.entries(id).is_some()
        {
            return id;
        }
        let content = Content::Directory(Entries::new());
        let id = self.add(Inode {
            metadata: Metadata::root(mode),
            content,
        });
        if let Some(entries) = self.entries_mut(parent) {
            entries.insert(name.clone(), id);
        }
        id
    }

    /// Follows `path` from the root, with every symbolic link on the way and at
    /// the end, never leaving the root. `None` when it does not exist.
    pub fn lookup(&self, path: &[u8]) -> Result<Option<InodeId>, ResolveError> {
        let mut walk = Walk::new(path);
        while let Some(name) = walk.next_name() {
            if self.entries(walk.current()).is_none() {
                return Err(walk.not_a_directory());
            }
            let Some(id) = self.child(walk.current(), &name) else {
                return Ok(None);
            };
            match &self.inode(id).content {
                Content::Symlink(target) => walk.follow(target)?,
                _ => walk.enter(id),
            }
        }
        Ok(Some(walk.current()))
    }

    /// Content of the regular file at `path`, following symbolic links. `None`
    /// when there is no such file.
    pub fn file(&self, path: &[u8]) -> Result<Option<&Bytes>, ResolveError> {
        Ok(self
            .lookup(path)?
            .and_then(|id| match &self.inode(id).content {
                Content::File(content) => Some(content),
                _ => None,
            }))
    }

    /// The directory that `path` names, following symbolic links and making
    /// directories (mode 0755) that are missing.
    pub fn resolve_or_create(&mut self, path: &[u8]) -> Result<InodeId, ResolveError> {
        let mut walk = Walk::new(path);
        while let Some(name) = walk.next_name() {
            let Some(id) = self.child(walk.current(), &name) else {
                let id = self.make_directory(walk.current(), &name, 0o755);
                walk.enter(id);
                continue;
            };
            match &self.inode(id).content {
                Content::Directory(_) => walk.enter(id),
                Content::Symlink(target) => walk.follow(target)?,
                Content::File(_) => return Err(walk.not_a_directory()),
            }
        }
        Ok(walk.current())
    }
}

/// The state of following one path.
struct Walk {
    /// Directories from the root to where we are.
    trail: Vec<InodeId>,
    /// Components to come, the next one last.
    pending: Vec<Bytes>,
    followed: usize,
    path: String,
}

impl Walk {
    fn new(path: &[u8]) -> Self {
        let mut walk = Self {
            trail: vec![Tree::ROOT],
            pending: Vec::new(),
            followed: 0,
            path: String::from_utf8_lossy(path).into_owned(),
        };
        walk.push(path);
        walk
    }

    fn push(&mut self, path: &[u8]) {
        let components = path.split(|byte| *byte == b'/');
        self.pending
            .extend(components.rev().map(Bytes::copy_from_slice));
    }

    /// The next component that is a name; `.` and `..` are done on the way.
    fn next_name(&mut self) -> Option<Bytes> {
        loop {
            let name = self.pending.pop()?;
            match name.as_ref() {
                b"" | b"." => {}
                b".." => {
                    // The parent of the root is the root.
                    if self.trail.len() > 1 {
                        self.trail.pop();
                    }
                }
                _ => return Some(name),
            }
        }
    }

    fn current(&self) -> InodeId {
        self.trail.last().copied().unwrap_or(Tree::ROOT)
    }

    fn enter(&mut self, id: InodeId) {
        self.trail.push(id);
    }

    fn follow(&mut self, target: &Bytes) -> Result<(), ResolveError> {
        self.followed += 1;
        if self.followed > MAX_SYMLINKS {
            return Err(ResolveError::TooManySymlinks {
                path: self.path.clone(),
            });
        }
        if target.starts_with(b"/") {
            self.trail.truncate(1);
        }
        self.push(target);
        Ok(())
    }

    fn not_a_directory(&self) -> ResolveError {
        ResolveError::NotADirectory {
            path: self.path.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        let mut tree = Tree::new();
        let bin = tree.resolve_or_create(b"usr/bin").unwrap();
        let mut put = |directory, name: &'static str, content| {
            let id = tree.add(Inode {
                metadata: Metadata::root(0o644),
                content,
            });
            let name = Bytes::from_static(name.as_bytes());
            tree.entries_mut(directory).unwrap().insert(name, id);
        };
        let link = |target: &'static str| Content::Symlink(Bytes::from_static(target.as_bytes()));
        put(bin, "sh", Content::File(Bytes::from_static(b"shell")));
        put(Tree::ROOT, "bin", link("usr/bin"));
        put(Tree::ROOT, "out", link("../../../usr"));
        put(Tree::ROOT, "loop", link("/loop"));
        put(Tree::ROOT, "dangling", link("nowhere/at/all"));
        tree
    }

    #[test]
    fn links_are_followed_inside_the_root() {
        let tree = tree();
        for path in [
            "/usr/bin/sh",
            "bin/sh",
            "out/bin/sh",
            "./bin/../../usr/..//out/bin/./sh",
        ] {
            let found = tree.file(path.as_bytes()).unwrap();
            assert_eq!(
                found.map(Bytes::as_ref),
                Some(b"shell".as_slice()),
                "{path}"
            );
        }
        assert_eq!(tree.lookup(b"").unwrap(), Some(Tree::ROOT));
        assert_eq!(tree.lookup(b"dangling").unwrap(), None);
        assert_eq!(tree.file(b"usr").unwrap(), None);
    }

    #[test]
    fn dead_ends_are_named() {
        let mut tree = tree();
        assert!(matches!(
            tree.lookup(b"loop/x"),
            Err(ResolveError::TooManySymlinks { .. })
        ));
        assert!(matches!(
            tree.lookup(b"bin/sh/x"),
            Err(ResolveError::NotADirectory { .. })
        ));
        let error = tree.resolve_or_create(b"bin/sh/x").unwrap_err();
        assert_eq!(
            error,
            ResolveError::NotADirectory {
                path: "bin/sh/x".to_owned()
            }
        );
    }

    #[test]
    fn directories_are_made_where_links_point() {
        let mut tree = tree();
        let made = tree.resolve_or_create(b"dangling/more").unwrap();
        assert_eq!(tree.lookup(b"nowhere/at/all/more").unwrap(), Some(made));
    }
}
