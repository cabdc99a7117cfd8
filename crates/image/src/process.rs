//! From an image's configuration to the process that a guest starts, with the
//! meanings that container runtimes give it (image-spec 1.1, `config.md`).

use std::collections::{BTreeMap, BTreeSet};

use assay_tee::guest_config::{Process, STOP_SIGNALS, is_stop_signal};
use assay_tee::program::{DEFAULT_PATH, exec_candidates};

use crate::oci::RunConfig;
use crate::tree::{Content, ResolveError, Tree};

const DEFAULT_STOP_SIGNAL: &str = "SIGTERM";

/// A configuration that names no process that can be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProcessError {
    /// Neither entrypoint nor command.
    #[error("the image has neither an entrypoint nor a command")]
    NoCommand,
    /// Something that C strings cannot hold, or a variable without a name.
    #[error("the image's {field} {value:?} is malformed")]
    Malformed {
        /// Member of the configuration.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// A user that `/etc/passwd` does not have.
    #[error("the image's user {name:?} is not in its /etc/passwd")]
    UnknownUser {
        /// The name.
        name: String,
    },
    /// A group that `/etc/group` does not have.
    #[error("the image's group {name:?} is not in its /etc/group")]
    UnknownGroup {
        /// The name.
        name: String,
    },
    /// A signal that a guest does not know.
    #[error(
        "the image's stop signal {name:?} is not known: use a number up to 31 or one of {}",
        STOP_SIGNALS.join(", ")
    )]
    StopSignal {
        /// Its name.
        name: String,
    },
    /// A program that is nowhere, or that nobody may run.
    #[error(
        "the image has no program {program:?} that can be run: its entrypoint or command leads \
         to {}",
        candidates.join(", ")
    )]
    NoProgram {
        /// As the configuration has it.
        program: String,
        /// Where it would be.
        candidates: Vec<String>,
    },
    /// A working directory that is something else.
    #[error("the image's working directory {path:?} is not one")]
    WorkingDirectory {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: ResolveError,
    },
    /// A path leads nowhere.
    #[error("cannot read the image's {path}")]
    Resolve {
        /// The file.
        path: &'static str,
        /// Why.
        #[source]
        source: ResolveError,
    },
}

/// Resolves an image's configuration against its files.
pub fn resolve_process(config: &RunConfig, tree: &Tree) -> Result<Process, ProcessError> {
    let parts = [&config.entrypoint, &config.cmd];
    let args: Vec<String> = parts.into_iter().flatten().flatten().cloned().collect();
    if args.first().is_none_or(String::is_empty) {
        return Err(ProcessError::NoCommand);
    }
    check("argument", &args, |arg| !arg.contains('\0'))?;

    let mut env = config.env.clone().unwrap_or_default();
    check("environment", &env, |variable| {
        !variable.contains('\0') && variable.find('=').is_some_and(|at| at > 0)
    })?;
    last_of_each(&mut env);

    let cwd = match config.working_dir.as_deref() {
        None | Some("") => "/".to_owned(),
        Some(cwd) => cwd.to_owned(),
    };
    check("working directory", std::slice::from_ref(&cwd), |cwd| {
        cwd.starts_with('/') && !cwd.contains('\0')
    })?;

    let user = resolve_user(config.user.as_deref().unwrap_or_default(), tree)?;
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.push(format!("PATH={DEFAULT_PATH}"));
    }
    if !env.iter().any(|variable| variable.starts_with("HOME=")) {
        env.push(format!("HOME={}", user.home));
    }
    let stop_signal = match config.stop_signal.as_deref() {
        None | Some("") => DEFAULT_STOP_SIGNAL.to_owned(),
        Some(signal) => signal.to_owned(),
    };
    if !is_stop_signal(&stop_signal) {
        return Err(ProcessError::StopSignal { name: stop_signal });
    }
    Ok(Process {
        args,
        env,
        cwd,
        uid: user.uid,
        gid: user.gid,
        additional_gids: user.additional_gids,
        stop_signal,
    })
}

/// Checks that the image has the program that the process runs.
pub fn check_program(process: &Process, tree: &Tree) -> Result<(), ProcessError> {
    let program = process.args.first().map_or("", String::as_str);
    let candidates = exec_candidates(program, &process.env, &process.cwd);
    let can_be_run = |path: &String| {
        let found = tree.lookup(path.as_bytes()).ok().flatten();
        found.is_some_and(|id| {
            let inode = tree.inode(id);
            matches!(inode.content, Content::File(_)) && inode.metadata.mode & 0o111 != 0
        })
    };
    if candidates.iter().any(can_be_run) {
        return Ok(());
    }
    Err(ProcessError::NoProgram {
        program: program.to_owned(),
        candidates,
    })
}

/// Of several values of a variable, the last counts, as runtimes set one after the
/// other.
fn last_of_each(env: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    let name = |variable: &str| variable.split('=').next().map(str::to_owned);
    let mut kept: Vec<_> = env.drain(..).rev().collect();
    kept.retain(|variable| seen.insert(name(variable)));
    env.extend(kept.into_iter().rev());
}

/// Directories that every workload may write to.
const WRITABLE: [&str; 3] = ["/run", "/tmp", "/var/tmp"];

/// Directories that stay writable where the root is not: those that every
/// container expects, and the image's volumes. Sorted.
pub fn writable_directories(config: &RunConfig) -> Result<Vec<String>, ProcessError> {
    let mut found: BTreeSet<String> = WRITABLE.map(str::to_owned).into();
    for volume in config.volumes.iter().flat_map(BTreeMap::keys) {
        let plain = volume.trim_end_matches('/');
        let absolute = plain.strip_prefix('/').filter(|path| {
            path.split('/')
                .all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0'))
        });
        if absolute.is_none() {
            return Err(ProcessError::Malformed {
                field: "volume",
                value: volume.clone(),
            });
        }
        found.insert(plain.to_owned());
    }
    Ok(found.into_iter().collect())
}

fn check(
    field: &'static str,
    values: &[String],
    good: impl Fn(&str) -> bool,
) -> Result<(), ProcessError> {
    match values.iter().find(|value| !good(value)) {
        Some(value) => Err(ProcessError::Malformed {
            field,
            value: value.clone(),
        }),
        None => Ok(()),
    }
}

struct User {
    uid: u32,
    gid: u32,
    additional_gids: Vec<u32>,
    home: String,
}

/// Resolves `user`, `user:group`, by name or number. A number needs no entry in
/// `/etc/passwd`; a name does.
fn resolve_user(text: &str, tree: &Tree) -> Result<User, ProcessError> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let passwd = database(tree, "/etc/passwd")?;
    let groups = database(tree, "/etc/group")?;

    // A number that is also somebody's name is the name, as for runc.
    let number = user.parse::<u32>().ok();
    let entry = passwd
        .iter()
        .find(|fields| column(fields, 0) == user)
        .or_else(|| {
            passwd
                .iter()
                .find(|fields| number.is_some() && id(fields, 2) == number)
        });
    let Some(uid) = entry.and_then(|fields| id(fields, 2)).or(number) else {
        return Err(ProcessError::UnknownUser {
            name: user.to_owned(),
        });
    };
    let name = entry.map(|fields| column(fields, 0));
    let home = entry
        .map(|fields| column(fields, 5))
        .filter(|home| home.starts_with('/'));

    let mut additional_gids = Vec::new();
    let gid = if let Some(group) = group {
        let by_name = groups.iter().find(|fields| column(fields, 0) == group);
        by_name
            .and_then(|fields| id(fields, 2))
            .or_else(|| group.parse().ok())
            .ok_or_else(|| ProcessError::UnknownGroup {
                name: group.to_owned(),
            })?
    } else {
        let member = |fields: &&Vec<String>| {
            name.is_some_and(|name| column(fields, 3).split(',').any(|user| user == name))
        };
        let ids = groups.iter().filter(member).filter_map(|f| id(f, 2));
        additional_gids.extend(ids);
        entry.and_then(|fields| id(fields, 3)).unwrap_or(0)
    };
    let home = home.unwrap_or("/").to_owned();
    Ok(User {
        uid,
        gid,
        additional_gids,
        home,
    })
}

/// Lines of a colon-separated file; none where the image has no such file.
fn database(tree: &Tree, path: &'static str) -> Result<Vec<Vec<String>>, ProcessError> {
    let content = tree
        .file(path.as_bytes())
        .map_err(|source| ProcessError::Resolve { path, source })?;
    let text = content
        .map(|content| String::from_utf8_lossy(content))
        .unwrap_or_default();
    let row = |line: &str| line.trim().split(':').map(str::to_owned).collect();
    Ok(text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(row)
        .collect())
}

fn column(fields: &[String], index: usize) -> &str {
    fields.get(index).map_or("", String::as_str)
}

fn id(fields: &[String], index: usize) -> Option<u32> {
    column(fields, index).parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn volumes_stay_writable() {
        let volumes = |paths: &[&str]| {
            let volumes = paths
                .iter()
                .map(|path| ((*path).to_owned(), serde_json::json!({})));
            writable_directories(&RunConfig {
                volumes: Some(volumes.collect()),
                ..RunConfig::default()
            })
        };
        assert_eq!(
            volumes(&["/data/", "/tmp"]).unwrap(),
            ["/data", "/run", "/tmp", "/var/tmp"]
        );
        for path in ["", "/", "//", "data", "/a/../b", "/a\0b"] {
            assert!(volumes(&[path]).is_err(), "{path:?}");
        }
    }

    use bytes::Bytes;

    use super::*;
    use crate::tree::{Content, Entries, Inode, Metadata};

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        web:x:101:102:Web:/var/web:/bin/false\n\
        broken:x:abc:1::/:\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\nssl:x:110:other,web\nlogs:x:111:web\n";

    fn tree() -> Tree {
        let mut tree = Tree::new();
        let etc = tree.resolve_or_create(b"etc").unwrap();
        for (name, text) in [("passwd", PASSWD), ("group", GROUP)] {
            let content = Content::File(Bytes::from_static(text.as_bytes()));
            let id = tree.add(Inode {
                metadata: Metadata::root(0o644),
                content,
            });
            tree.entries_mut(etc)
                .unwrap()
                .insert(Bytes::from_static(name.as_bytes()), id);
        }
        tree
    }

    fn config(user: &str) -> RunConfig {
        RunConfig {
            user: Some(user.to_owned()),
            entrypoint: Some(vec!["/bin/web".to_owned()]),
            ..RunConfig::default()
        }
    }

    #[test]
    fn users_are_resolved_as_runtimes_do() {
        let web = vec![110, 111];
        let table = [
            ("", (0, 0, vec![]), "/root"),
            ("root", (0, 0, vec![]), "/root"),
            ("web", (101, 102, web.clone()), "/var/web"),
            ("101", (101, 102, web), "/var/web"),
            ("web:ssl", (101, 110, vec![]), "/var/web"),
            ("web:7", (101, 7, vec![]), "/var/web"),
            ("root:", (0, 0, vec![]), "/root"),
            ("65532", (65532, 0, vec![]), "/"),
            ("65532:65532", (65532, 65532, vec![]), "/"),
        ];
        for (user, expected, home) in table {
            let process = resolve_process(&config(user), &tree()).unwrap();
            let got = (process.uid, process.gid, process.additional_gids);
            assert_eq!(got, expected, "{user}");
            assert_eq!(
                process.env,
                [format!("PATH={DEFAULT_PATH}"), format!("HOME={home}")],
                "{user}"
            );
        }
    }

    #[test]
    fn unknown_names_are_named() {
        let error = |user| resolve_process(&config(user), &tree()).unwrap_err();
        let unknown = |name: &str| ProcessError::UnknownUser {
            name: name.to_owned(),
        };
        assert_eq!(error("nobody"), unknown("nobody"));
        assert_eq!(error("broken"), unknown("broken"));
        assert_eq!(error("-1"), unknown("-1"));
        assert_eq!(
            error("web:none"),
            ProcessError::UnknownGroup {
                name: "none".to_owned()
            }
        );
        // Without the files, numbers still work.
        resolve_process(&config("5:6"), &Tree::new()).unwrap();
    }

    #[test]
    fn a_program_that_is_not_there_is_told() {
        let mut tree = tree();
        let programs = tree.resolve_or_create(b"usr/bin").unwrap();
        let content = || Content::File(Bytes::from_static(b"#!x"));
        for (directory, name, mode, content) in [
            (programs, "web", 0o755, content()),
            (programs, "plain", 0o644, content()),
            (
                programs,
                "directory",
                0o755,
                Content::Directory(Entries::new()),
            ),
            (Tree::ROOT, "bin", 0o777, Content::Symlink("usr/bin".into())),
        ] {
            let metadata = Metadata::root(mode);
            let id = tree.add(Inode { metadata, content });
            let entries = tree.entries_mut(directory).unwrap();
            entries.insert(name.into(), id);
        }
        let check = |program: &str, path: &str, cwd: &str| {
            let process = Process {
                args: vec![program.to_owned()],
                env: vec![format!("PATH={path}")],
                cwd: cwd.to_owned(),
                ..resolve_process(&config("5"), &tree).unwrap()
            };
            check_program(&process, &tree)
        };
        for (program, path, cwd) in [
            ("/bin/web", "/x", "/"),
            ("web", "/x:/bin", "/"),
            ("web", "", "/usr/bin"),
            ("./web", "/x", "/bin"),
            ("bin/web", "/x", "/usr"),
        ] {
            assert_eq!(check(program, path, cwd), Ok(()), "{program}");
        }
        for program in ["/web", "plain", "directory", "usr/bin/web/x", "no", "-v"] {
            let error = check(program, "/bin:/usr/bin", "/").unwrap_err();
            let said = error.to_string();
            assert!(said.contains(&format!("{program:?}")), "{said}");
        }
        let error = check("no", "/bin:/sbin", "/").unwrap_err().to_string();
        assert!(error.ends_with("leads to /bin/no, /sbin/no"), "{error}");
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let config = RunConfig {
            env: Some(
                ["A=1", "PATH=/x", "B=", "A=2", "PATH=/y"]
                    .map(str::to_owned)
                    .into(),
            ),
            ..config("root")
        };
        let process = resolve_process(&config, &tree()).unwrap();
        assert_eq!(process.env, ["B=", "A=2", "PATH=/y", "HOME=/root"]);
    }

    #[test]
    fn a_signal_that_a_guest_would_refuse_is_refused_before() {
        let resolve = |signal: &str| {
            let stop_signal = Some(signal.to_owned());
            resolve_process(
                &RunConfig {
                    stop_signal,
                    ..config("root")
                },
                &tree(),
            )
        };
        for known in ["SIGTERM", "WINCH", "9"] {
            assert_eq!(resolve(known).unwrap().stop_signal, known);
        }
        for unknown in ["SIGRTMIN+3", "SIGNOPE", "0", "37"] {
            let name = unknown.to_owned();
            assert_eq!(
                resolve(unknown).unwrap_err(),
                ProcessError::StopSignal { name }
            );
        }
    }

    #[test]
    fn the_rest_of_the_configuration_is_carried_or_refused() {
        let text = |items: &[&str]| Some(items.iter().map(|item| (*item).to_owned()).collect());
        let full = RunConfig {
            entrypoint: text(&["/bin/web"]),
            cmd: text(&["-v", "x y"]),
            env: text(&["PATH=/bin", "HOME=/h", "EMPTY="]),
            working_dir: Some("/srv".to_owned()),
            stop_signal: Some("SIGQUIT".to_owned()),
            ..RunConfig::default()
        };
        let process = resolve_process(&full, &tree()).unwrap();
        assert_eq!(process.args, ["/bin/web", "-v", "x y"]);
        assert_eq!(process.env, ["PATH=/bin", "HOME=/h", "EMPTY="]);
        assert_eq!(
            (process.cwd.as_str(), process.stop_signal.as_str()),
            ("/srv", "SIGQUIT")
        );

        let only_cmd = RunConfig {
            entrypoint: None,
            ..full.clone()
        };
        assert_eq!(
            resolve_process(&only_cmd, &tree()).unwrap().args,
            ["-v", "x y"]
        );

        let refused = |config: RunConfig| resolve_process(&config, &tree()).unwrap_err();
        assert_eq!(refused(RunConfig::default()), ProcessError::NoCommand);
        let malformed = [
            RunConfig {
                env: text(&["=x"]),
                ..full.clone()
            },
            RunConfig {
                env: text(&["x"]),
                ..full.clone()
            },
            RunConfig {
                working_dir: Some("srv".to_owned()),
                ..full.clone()
            },
            RunConfig {
                cmd: text(&["a\0b"]),
                ..full
            },
        ];
        for config in malformed {
            assert!(matches!(refused(config), ProcessError::Malformed { .. }));
        }
    }
}
