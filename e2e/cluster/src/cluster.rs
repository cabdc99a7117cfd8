//! Starting, stopping and looking at the cluster.

use crate::cache::{Cache, remove_tree};
use crate::command;
use crate::components::{self, Component, Programs};
use crate::layout::{BRIDGE, CGROUP, HOST_ADDRESS, Layout, NODE, PAUSE_IMAGE, REGISTRY_PORT};
use crate::machine::{self, Footprint};
use crate::packages;
use crate::pause;
use crate::pki;
use crate::process::{self, POLL, Record};
use crate::programs;
use crate::progress::say;
use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Longest wait for one wave of components. A cold start on a loaded two-core
/// machine takes a third of it.
const WAVE_DEADLINE: Duration = Duration::from_mins(2);
/// How long a component may take to end when asked.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// The cluster that commands work on: an existing one when
/// `ASSAY_USE_KUBECONFIG=1`, and otherwise ours, brought up.
///
/// An existing cluster is named by `KUBECONFIG`, and a registry that it and this
/// machine reach over plain HTTP by `ASSAY_REGISTRY` (host and port).
pub fn connect() -> Result<Kubeconfig> {
    let named = std::env::var_os("KUBECONFIG")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from);
    if !wants_existing(std::env::var_os("ASSAY_USE_KUBECONFIG").as_deref())? {
        let cluster = Cluster::open()?;
        if let Some(path) = named.filter(|path| *path != cluster.layout.kubeconfig()) {
            say(format!(
                "KUBECONFIG={} is not used: this is about the local cluster, unless \
                 ASSAY_USE_KUBECONFIG=1 and ASSAY_REGISTRY are set",
                path.display()
            ));
        }
        return cluster.up();
    }
    let path = named
        .filter(|path| path.is_file())
        .context("ASSAY_USE_KUBECONFIG=1 needs KUBECONFIG to name a file")?;
    let registry = std::env::var("ASSAY_REGISTRY").context(
        "ASSAY_USE_KUBECONFIG=1 needs ASSAY_REGISTRY, the host:port of a registry over plain HTTP",
    )?;
    let mut kubectl = std::process::Command::new(Cache::open()?.kubectl()?);
    kubectl
        .arg("--kubeconfig")
        .arg(&path)
        .args(["get", "--raw", "/readyz"]);
    command::output(&mut kubectl).context("ask the existing cluster whether it is ready")?;
    say(format!("using the cluster of {}", path.display()));
    Ok(Kubeconfig {
        path,
        registry,
        ours: false,
    })
}

/// What the value of `ASSAY_USE_KUBECONFIG` says.
fn wants_existing(value: Option<&OsStr>) -> Result<bool> {
    match value.map(OsStr::to_string_lossy).as_deref() {
        None | Some("" | "0") => Ok(false),
        Some("1") => Ok(true),
        Some(other) => {
            bail!("ASSAY_USE_KUBECONFIG is {other:?}: say 1 to use the cluster of KUBECONFIG, or 0")
        }
    }
}

/// How to reach a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubeconfig {
    /// The kubeconfig file.
    pub path: PathBuf,
    /// Host and port of a registry that this machine, the cluster's nodes and
    /// its pods all reach by this name, over plain HTTP.
    pub registry: String,
    /// Whether it is the local cluster, which we may stop.
    pub ours: bool,
}

impl Kubeconfig {
    /// Lines for a shell: the cluster, and kubectl and helm as far as they are
    /// built.
    pub fn exports(&self, cache: &Cache) -> String {
        let path: Vec<String> = [&programs::KUBERNETES, &programs::HELM]
            .into_iter()
            .filter_map(|recipe| cache.built(recipe))
            .map(|bin| bin.display().to_string())
            .chain(["$PATH".to_owned()])
            .collect();
        format!(
            "export KUBECONFIG={}\nexport PATH={}\n",
            self.path.display(),
            path.join(":")
        )
    }
}

/// The cluster of this machine and user, whether it runs or not.
#[derive(Debug, Clone)]
pub struct Cluster {
    layout: Layout,
    cache: Cache,
}

impl Cluster {
    /// The cluster in the user's state directory.
    pub fn open() -> Result<Self> {
        Ok(Self {
            layout: Layout::open()?,
            cache: Cache::open()?,
        })
    }

    /// Where it keeps its files.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The programs it uses.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Brings the cluster up, or finds it up.
    ///
    /// # Guarantees
    /// - Returns only when the node is Ready, DNS answers, the registry
    ///   answers and pods can be created.
    /// - A second call starts only what died or whose configuration changed.
    ///
    /// # Errors
    /// When a program cannot be had, or a component does not answer in time:
    /// then with the end of its log.
    pub fn up(&self) -> Result<Kubeconfig> {
        require_root()?;
        let started = Instant::now();
        packages::ensure(packages::CLUSTER)?;
        let programs = self.programs()?;
        let _lock = self.lock()?;
        self.make_directories()?;
        self.remember_machine()?;
        pki::ensure(&self.layout)?;
        machine::prepare()?;
        for wave in components::waves(&self.layout, &programs) {
            self.start_wave(&wave, &programs)?;
        }
        say(format!(
            "cluster is up ({:.1} s)",
            started.elapsed().as_secs_f64()
        ));
        Ok(self.kubeconfig())
    }

    /// How to reach the cluster that [`Cluster::up`] starts.
    pub fn kubeconfig(&self) -> Kubeconfig {
        Kubeconfig {
            path: self.layout.kubeconfig(),
            registry: format!("{HOST_ADDRESS}:{REGISTRY_PORT}"),
            ours: true,
        }
    }

    /// Stops everything and removes every trace.
    ///
    /// # Errors
    /// When something is left that was not there before `up`; the message
    /// lists it.
    pub fn down(&self) -> Result<()> {
        if !self.layout.root().exists() {
            say("no cluster here");
            return Ok(());
        }
        require_root()?;
        packages::ensure(packages::CLUSTER)?;
        let _lock = self.lock()?;
        let before: Footprint = match fs::read(self.before_path()) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .context("read the record of the machine before the cluster")?,
            // `up` writes it before it changes anything.
            Err(_) => Footprint::observe(&self.layout)?,
        };
        self.stop_components();
        process::kill_strays(self.layout.root(), CGROUP);
        machine::restore(&self.layout, &before)?;
        let left = Footprint::observe(&self.layout)?.left_since(&before);
        if !left.is_empty() {
            // The record stays, so that `down` can be tried again.
            bail!("left on this machine:\n  {}", left.join("\n  "));
        }
        remove_tree(self.layout.root())?;
        say("cluster is down, nothing is left");
        Ok(())
    }

    /// What runs and whether it answers; none where there is no cluster.
    pub fn status(&self) -> Option<Status> {
        if !self.layout.root().exists() {
            return None;
        }
        // Only names and questions are used, so the programs' places do not matter.
        let nowhere = Programs::all_in(Path::new("/nonexistent"));
        let components = components::waves(&self.layout, &nowhere)
            .into_iter()
            .flatten()
            .map(|component| {
                let pid = self.running(&component).map(|record| record.pid);
                let problem = match pid {
                    None => Some("not running".to_owned()),
                    Some(_) => component
                        .probe
                        .ask(&self.layout)
                        .err()
                        .map(|error| format!("{error:#}")),
                };
                ComponentStatus {
                    name: component.name,
                    pid,
                    problem,
                }
            })
            .collect();
        Some(Status {
            kubeconfig: self.kubeconfig(),
            components,
        })
    }

    /// The component's process, if it was started and still runs.
    fn running(&self, component: &Component) -> Option<Record> {
        Record::read(&self.layout.record(component.name)).filter(Record::is_alive)
    }

    fn programs(&self) -> Result<Programs> {
        Ok(Programs {
            kubernetes: self.cache.programs(&programs::KUBERNETES)?,
            etcd: self.cache.programs(&programs::ETCD)?,
            containerd: self.cache.programs(&programs::CONTAINERD)?,
            cni: self.cache.programs(&programs::CNI)?,
            coredns: self.cache.programs(&programs::COREDNS)?,
            registry: self.cache.programs(&programs::REGISTRY)?,
            pause: self.cache.programs(&programs::PAUSE)?,
        })
    }

    /// One command at a time changes the cluster.
    fn lock(&self) -> Result<File> {
        // Not in the state directory, which `down` removes: whoever waits must
        // not be left with the lock of a file that is gone.
        let path = self.cache.root().join("cluster.lock");
        let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            say("another command is changing the cluster; waiting for it");
            flock(&file, FlockOperation::LockExclusive)
                .with_context(|| format!("lock {}", path.display()))?;
        }
        Ok(file)
    }

    fn before_path(&self) -> PathBuf {
        self.layout.path("before.json")
    }

    fn make_directories(&self) -> Result<()> {
        for dir in ["logs", "run", "config"] {
            let dir = self.layout.path(dir);
            fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        }
        Ok(())
    }

    /// Writes down the machine's state before the first change.
    fn remember_machine(&self) -> Result<()> {
        let path = self.before_path();
        if path.exists() {
            return Ok(());
        }
        let before = Footprint::observe(&self.layout)?;
        if before.interfaces.contains(BRIDGE) {
            bail!(
                "the machine already has an interface {BRIDGE}, perhaps of another cluster; \
                 remove it with `ip link delete {BRIDGE}` if nothing uses it"
            );
        }
        let text = serde_json::to_vec_pretty(&before).context("encode the machine's state")?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    fn start_wave(&self, wave: &[Component], programs: &Programs) -> Result<()> {
        let deadline = Instant::now() + WAVE_DEADLINE;
        for component in wave {
            self.start(component)?;
        }
        for component in wave {
            self.wait(component, deadline)?;
            if component.name == CONTAINERD {
                self.import_pause(programs, deadline)?;
            }
        }
        Ok(())
    }

    /// Starts a component unless it runs as it should.
    fn start(&self, component: &Component) -> Result<()> {
        let path = self.layout.record(component.name);
        let configuration = component.configuration();
        if let Some(record) = Record::read(&path) {
            if record.is_alive() && record.configuration == configuration {
                return Ok(());
            }
            let why = if record.is_alive() {
                "its configuration changed"
            } else {
                "it had ended"
            };
            say(format!("restarting {}: {why}", component.name));
            record.stop(STOP_PATIENCE);
        }
        for address in &component.listens {
            machine::ensure_free(address)
                .with_context(|| format!("{} cannot listen", component.name))?;
        }
        for (relative, text) in &component.files {
            let file = self.layout.path(relative);
            if let Some(dir) = file.parent() {
                fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
            }
            fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        }
        let record = process::start(
            &component.program,
            &component.args,
            &component.environment,
            &self.layout.log(component.name),
            configuration,
        )?;
        let text = serde_json::to_vec(&record).context("encode a process record")?;
        if let Err(error) = fs::write(&path, text) {
            // Unrecorded, it could never be stopped.
            record.stop(STOP_PATIENCE);
            return Err(error).with_context(|| format!("write {}", path.display()));
        }
        Ok(())
    }

    /// Waits until a component answers.
    fn wait(&self, component: &Component, deadline: Instant) -> Result<()> {
        let start = Instant::now();
        let log = self.layout.log(component.name);
        let fail = |why: &str| {
            format!(
                "{} {why}. End of {}:\n{}",
                component.name,
                log.display(),
                command::tail(&log)
            )
        };
        loop {
            if self.running(component).is_none() {
                bail!(fail("ended"));
            }
            let Err(error) = component.probe.ask(&self.layout) else {
                break;
            };
            if Instant::now() > deadline {
                return Err(error).with_context(|| fail("does not answer in time"));
            }
            thread::sleep(POLL);
        }
        if start.elapsed() > Duration::from_millis(500) {
            say(format!(
                "{} answers ({:.1} s)",
                component.name,
                start.elapsed().as_secs_f64()
            ));
        }
        Ok(())
    }

    /// Gives containerd the sandbox image. containerd answers on its socket a
    /// moment before it takes images, so this is tried again.
    fn import_pause(&self, programs: &Programs, deadline: Instant) -> Result<()> {
        let program = programs.pause.join("pause");
        let bytes = fs::read(&program).with_context(|| format!("read {}", program.display()))?;
        let archive = self.layout.path("run/pause.tar");
        fs::write(&archive, pause::archive(&bytes, PAUSE_IMAGE)?)
            .with_context(|| format!("write {}", archive.display()))?;
        loop {
            let mut ctr = std::process::Command::new(programs.containerd.join("ctr"));
            ctr.arg("--address").arg(self.layout.containerd_socket());
            ctr.args(["--namespace", "k8s.io", "images", "import"])
                .arg(&archive);
            match command::output(&mut ctr) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error).context("import the sandbox image into containerd");
                }
                Err(_) => thread::sleep(POLL),
            }
        }
    }

    /// Stops all recorded processes, the kubelet before what it would restart.
    fn stop_components(&self) {
        let nowhere = Programs::all_in(Path::new("/nonexistent"));
        let waves = components::waves(&self.layout, &nowhere);
        let mut names: Vec<_> = waves.into_iter().flatten().map(|c| c.name).collect();
        names.reverse();
        for name in names {
            if name == CONTAINERD {
                // While it runs, the shims' ends are still recorded properly.
                process::kill_strays(self.layout.root(), CGROUP);
            }
            if let Some(record) = Record::read(&self.layout.record(name)) {
                record.stop(STOP_PATIENCE);
            }
        }
    }
}

/// Name of the component that needs the sandbox image.
const CONTAINERD: &str = "containerd";

fn require_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    bail!("a cluster needs root: it makes network interfaces, mounts and control groups")
}

/// What runs and whether it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// How the cluster is reached.
    pub kubeconfig: Kubeconfig,
    /// The components; none when there is no cluster.
    pub components: Vec<ComponentStatus>,
}

impl Status {
    /// Whether all of it works.
    pub fn is_healthy(&self) -> bool {
        self.components
            .iter()
            .all(|component| component.problem.is_none())
    }
}

/// One component's part of [`Status`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentStatus {
    /// Its name.
    pub name: &'static str,
    /// Its process, when it runs.
    pub pid: Option<i32>,
    /// Why it does not work, when it does not.
    pub problem: Option<String>,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<26}{:<9}STATE", "COMPONENT", "PID")?;
        for component in &self.components {
            let pid = component
                .pid
                .map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            let state = component.problem.as_deref().unwrap_or("ok");
            writeln!(f, "{:<26}{pid:<9}{state}", component.name)?;
        }
        writeln!(f, "node {NODE}, registry {}", self.kubeconfig.registry)?;
        writeln!(f, "export KUBECONFIG={}", self.kubeconfig.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_existing_cluster_is_used_only_when_asked_for() {
        let wants = |value: &str| wants_existing(Some(OsStr::new(value)));
        assert!(!wants_existing(None).unwrap());
        assert!(!wants("").unwrap());
        assert!(!wants("0").unwrap());
        assert!(wants("1").unwrap());
        assert!(wants("true").unwrap_err().to_string().contains("say 1"));
    }

    #[test]
    fn exports_name_only_programs_that_are_built() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let cluster = Kubeconfig {
            path: PathBuf::from("/state/kubeconfig"),
            registry: String::new(),
            ours: true,
        };
        assert_eq!(
            cluster.exports(&cache),
            "export KUBECONFIG=/state/kubeconfig\nexport PATH=$PATH\n"
        );
        let helm = cache.entry(
            "programs",
            &crate::cache::key(&programs::HELM),
            "helm",
            |scratch| Ok(fs::create_dir(scratch.join("bin"))?),
        );
        let bin = helm.unwrap().join("bin");
        let line = format!("export PATH={}:$PATH\n", bin.display());
        assert!(cluster.exports(&cache).ends_with(&line));
    }
}
