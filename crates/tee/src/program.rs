//! Where the program of a process is looked for: the builder says when it is nowhere,
//! the agent starts it.

/// `PATH` of a process whose image sets none (the default of OCI runtimes).
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The value of a variable: the last one wins, as in a shell.
pub fn environment_value<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    env.iter()
        .rev()
        .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

/// Paths at which the program of a process may be, in the order to try them:
/// what `execvp` does, without a user database and without a shell.
pub fn exec_candidates(program: &str, env: &[String], cwd: &str) -> Vec<String> {
    let join = |directory: &str, name: &str| format!("{}/{name}", directory.trim_end_matches('/'));
    if program.starts_with('/') {
        return vec![program.to_owned()];
    }
    if program.contains('/') {
        return vec![join(cwd, program)];
    }
    environment_value(env, "PATH")
        .unwrap_or(DEFAULT_PATH)
        .split(':')
        // An empty entry means the working directory (POSIX); no other entry
        // may be relative, as it would depend on when it is looked up.
        .filter_map(|directory| match directory {
            "" => Some(join(cwd, program)),
            d if d.starts_with('/') => Some(join(d, program)),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_up_like_execvp() {
        let path = |p: &str| vec![format!("PATH={p}")];
        let rows: &[(&str, Vec<String>, &[&str])] = &[
            ("/bin/sh", path("/x"), &["/bin/sh"]),
            ("./run", path("/x"), &["/srv/./run"]),
            ("bin/run", path("/x"), &["/srv/bin/run"]),
            ("sh", path("/a:/b/"), &["/a/sh", "/b/sh"]),
            ("sh", path("/a::rel:/b"), &["/a/sh", "/srv/sh", "/b/sh"]),
            ("sh", [path("/a"), path("/b")].concat(), &["/b/sh"]),
            (
                "sh",
                vec!["PATHS=/a".to_owned()],
                &[
                    "/usr/local/sbin/sh",
                    "/usr/local/bin/sh",
                    "/usr/sbin/sh",
                    "/usr/bin/sh",
                    "/sbin/sh",
                    "/bin/sh",
                ],
            ),
        ];
        for (program, env, expected) in rows {
            assert_eq!(
                exec_candidates(program, env, "/srv"),
                *expected,
                "{program} {env:?}"
            );
        }
    }
}
