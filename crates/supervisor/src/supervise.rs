//! Starts QEMU and stays with it to the end.
//!
//! Guarantees: QEMU does not outlive the launcher (when the launcher is killed,
//! the kernel ends everything in its container); the exit code is the
//! workload's, and zero only when the guest said so; a request to stop ends
//! within the grace period plus [`QUIT_TIMEOUT`].

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Command, Stdio};
use std::time::Duration;

use assay_launcher::plan::BootFiles;
use rustix::process::{Pid, WaitStatus};
use tokio::net::UnixListener;
use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, error, info, warn};

use crate::events::{self, GuestEnd, Phase, Progress};
use crate::launch::Launch;
use crate::lines::Lines;
use crate::qmp::Qmp;
use crate::reaper::Child;
use crate::simulation;

/// A guest that has said nothing for this long was most likely refused by its
/// firmware, which then loops in silence. Under emulation on a loaded machine an
/// honest guest takes a third of it.
const BOOT_DEADLINE: Duration = Duration::from_mins(1);

/// How long QEMU may take to follow `quit` before it is killed.
const QUIT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the streams of a dead QEMU may take to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Last lines of QEMU's standard error that are repeated in the final message.
const STDERR_TAIL: usize = 10;

/// What to supervise.
pub struct Supervision {
    /// QEMU, by path or by name in PATH.
    pub qemu: PathBuf,
    /// What is prepared.
    pub launch: Launch,
    /// Where the guest's console goes.
    pub console: ConsoleOutput,
    /// Time that the guest has to power off when asked to stop.
    pub grace_period: Duration,
}

/// Where the guest's console goes.
#[derive(Debug)]
pub enum ConsoleOutput {
    /// To this process's standard output, as it is.
    Inherit,
    /// Line by line to a receiver, which the guest waits for. The line's end is
    /// left out.
    Lines(mpsc::Sender<Vec<u8>>),
}

/// SIGTERM, SIGINT for a person, and SIGHUP for a terminal that closes.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl StopSignals {
    /// From now on the signals are kept until they are asked for.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next of them.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// The guest did not end by its workload's end.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// A socket cannot be made.
    #[error("cannot listen on {path:?}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// QEMU cannot be started.
    #[error("cannot start {program:?}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// QEMU's end cannot be learnt.
    #[error("cannot wait for QEMU")]
    Wait,
    /// QEMU failed.
    #[error("QEMU died unexpectedly: {status}{stderr}")]
    QemuDied {
        /// How it died.
        status: String,
        /// The last lines of its standard error, each on its own line.
        stderr: String,
    },
    /// The guest said that it cannot go on.
    #[error("the guest failed: {0:?}")]
    GuestFailed(String),
    /// The guest was ended because it did not end by itself.
    #[error("stopped before the guest reported its workload's end (last phase: {0})")]
    Stopped(Phase),
    /// The guest is gone and never said why.
    #[error(
        "the guest powered off or reset without reporting its workload's end (last phase: {0})"
    )]
    Silent(Phase),
}

/// A guest whose sockets listen and whose QEMU does not run yet.
pub struct Supervisor {
    supervision: Supervision,
    progress: watch::Receiver<Progress>,
    events: JoinHandle<io::Result<()>>,
    qmp: Qmp,
}

impl Supervisor {
    /// Listens on the sockets that QEMU will connect to, as tasks of the runtime
    /// that it is called in.
    ///
    /// # Panics
    /// Outside a runtime of tokio.
    ///
    /// # Errors
    /// When a socket cannot be made.
    pub fn listen(mut supervision: Supervision) -> Result<Self, SuperviseError> {
        let sockets = &supervision.launch.plan.sockets;
        let (progress_sender, progress) = watch::channel(Progress::default());
        let events = tokio::spawn(events::follow(listen(&sockets.events)?, progress_sender));
        let (qmp, qmp_connection) = Qmp::new(listen(&sockets.qmp)?);
        tokio::spawn(async move {
            if let Err(error) = qmp_connection.await {
                error!("{:#}", anyhow::Error::new(error));
            }
        });
        if let (Some(guest), Some(socket)) = (supervision.launch.guest.take(), &sockets.psp) {
            tokio::spawn(simulation::serve(listen(socket)?, guest));
        }
        Ok(Self {
            supervision,
            progress,
            events,
            qmp,
        })
    }

    /// QEMU's monitor.
    pub fn qmp(&self) -> Qmp {
        self.qmp.clone()
    }

    /// How far the guest says it is.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Runs QEMU to its end, or until `stop` ends and the guest with it. Returns
    /// the workload's exit code.
    ///
    /// # Errors
    /// When QEMU does not start, and for every end but that of the workload.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<u8, SuperviseError> {
        let Self {
            supervision,
            progress,
            events,
            qmp,
        } = self;
        let Supervision {
            qemu,
            launch,
            console,
            grace_period,
        } = supervision;
        let Process {
            mut child,
            stderr,
            console,
        } = spawn(&qemu, &launch.plan.argv, console)?;
        tokio::spawn(warn_of_silence(
            progress.clone(),
            cause_of_silence(&launch.plan.boot),
        ));
        let mut stop_asked = pin!(stop);
        let mut stop = Stop::NotAsked;
        let status = loop {
            tokio::select! {
                status = child.exited() => break status.ok_or(SuperviseError::Wait)?,
                () = &mut stop_asked, if matches!(stop, Stop::NotAsked) => {
                    let phase = progress.borrow().phase;
                    stop = Stop::asked(&qmp, phase, grace_period);
                }
                () = stop.deadline() => stop = stop.expired(&qmp, &child),
            }
        };
        drain("events", events).await;
        if let Some(console) = console {
            drain("console", console).await;
        }
        let tail = drain("stderr", stderr).await.unwrap_or_default();
        let progress = progress.borrow().clone();
        verdict(status, &progress, &stop, &tail)
    }
}

/// Says so when the guest does not come up. The guest is left alone: whoever
/// reads the log decides.
async fn warn_of_silence(mut progress: watch::Receiver<Progress>, cause: &'static str) {
    let booted = progress.wait_for(|progress| progress.phase != Phase::Starting);
    if timeout(BOOT_DEADLINE, booted).await.is_err() {
        warn!(
            "guest has not booted {} s after power-on: {cause}",
            BOOT_DEADLINE.as_secs()
        );
    }
}

/// Why firmware is silent, most likely.
const fn cause_of_silence(boot: &BootFiles) -> &'static str {
    match boot {
        BootFiles::DirectKernel { .. } => {
            "its firmware refuses a UKI that does not match the measured hashes table, and says \
             nothing"
        }
        BootFiles::Igvm { .. } => {
            "its firmware does not find the UKI of the IGVM file, or has too little memory beside \
             it, and says nothing"
        }
    }
}

/// Listens on `path`, which may be left over from a former container of the
/// same pod.
fn listen(path: &Path) -> Result<UnixListener, SuperviseError> {
    let error = |source| SuperviseError::Listen {
        path: path.to_owned(),
        source,
    };
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(error(source)),
        _ => {}
    }
    UnixListener::bind(path).map_err(error)
}

/// A running QEMU and the tasks that read what it writes.
struct Process {
    child: Child,
    stderr: JoinHandle<VecDeque<String>>,
    console: Option<JoinHandle<()>>,
}

fn spawn(
    program: &Path,
    argv: &[String],
    console: ConsoleOutput,
) -> Result<Process, SuperviseError> {
    let error = |source| SuperviseError::Spawn {
        program: program.to_owned(),
        source,
    };
    debug!(?argv, "QEMU");
    let stdout = match &console {
        ConsoleOutput::Inherit => Stdio::inherit(),
        ConsoleOutput::Lines(_) => Stdio::piped(),
    };
    // Waited for by the reaper and so not by this handle.
    let mut handle = Command::new(program)
        .args(argv)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(error)?;
    let child = i32::try_from(handle.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("process id out of range"))
        .and_then(Child::watch)
        .map_err(error)?;
    let stderr = handle.stderr.take().map(OwnedFd::from);
    let stderr = stderr
        .ok_or_else(|| io::Error::other("no standard error"))
        .and_then(pipe::Receiver::from_owned_fd)
        .map_err(error)?;
    let stdout = handle.stdout.take().map(OwnedFd::from);
    let stdout = stdout.map(pipe::Receiver::from_owned_fd).transpose();
    let console = match (stdout.map_err(error)?, console) {
        (Some(stdout), ConsoleOutput::Lines(lines)) => {
            Some(tokio::spawn(follow_console(stdout, lines)))
        }
        _ => None,
    };
    Ok(Process {
        child,
        stderr: tokio::spawn(follow_stderr(stderr)),
        console,
    })
}

async fn follow_console(stdout: pipe::Receiver, console: mpsc::Sender<Vec<u8>>) {
    let mut lines = Lines::new(stdout);
    while let Ok(Some(line)) = lines.next().await {
        // Nobody may be listening any more; QEMU must still be able to write.
        let _ = console.send(line).await;
    }
}

async fn follow_stderr(stderr: pipe::Receiver) -> VecDeque<String> {
    let mut lines = Lines::new(stderr);
    let mut tail = VecDeque::new();
    while let Ok(Some(line)) = lines.next().await {
        // QEMU repeats names and values of others: none shall steer a terminal.
        let line = String::from_utf8_lossy(&line).replace(char::is_control, "\u{fffd}");
        warn!("QEMU: {line}");
        if tail.len() == STDERR_TAIL {
            tail.pop_front();
        }
        tail.push_back(line);
    }
    tail
}

/// Waits for a task that ends with QEMU's end of its stream.
async fn drain<T>(name: &str, task: JoinHandle<T>) -> Option<T> {
    if let Ok(Ok(value)) = timeout(DRAIN_TIMEOUT, task).await {
        return Some(value);
    }
    debug!(name, "stream did not end with QEMU");
    None
}

/// How far a stop is.
#[derive(Debug)]
enum Stop {
    NotAsked,
    /// The guest was asked to power off.
    PowerDown(Instant),
    /// QEMU was asked to quit.
    Quit(Instant),
    Killed,
}

impl Stop {
    /// Someone asks to stop.
    fn asked(qmp: &Qmp, phase: Phase, grace_period: Duration) -> Self {
        // A guest whose agent never spoke does not hear a power button.
        if phase == Phase::Starting {
            info!("asked to stop before the guest has booted");
            return Self::quit(qmp);
        }
        info!("asked to stop: pressing the guest's power button");
        command(qmp, "system_powerdown");
        Self::PowerDown(Instant::now() + grace_period)
    }

    /// The deadline has passed.
    fn expired(self, qmp: &Qmp, child: &Child) -> Self {
        match self {
            Self::NotAsked | Self::Killed => self,
            Self::PowerDown(_) => {
                warn!("the guest did not power off in time");
                Self::quit(qmp)
            }
            Self::Quit(_) => {
                error!("QEMU does not quit: killing it");
                child.kill();
                Self::Killed
            }
        }
    }

    fn quit(qmp: &Qmp) -> Self {
        command(qmp, "quit");
        Self::Quit(Instant::now() + QUIT_TIMEOUT)
    }

    async fn deadline(&self) {
        match self {
            Self::PowerDown(deadline) | Self::Quit(deadline) => sleep_until(*deadline).await,
            Self::NotAsked | Self::Killed => std::future::pending().await,
        }
    }
}

/// Sends a command without waiting for its answer.
fn command(qmp: &Qmp, command: &'static str) {
    let qmp = qmp.clone();
    tokio::spawn(async move {
        if let Err(error) = qmp.execute(command).await {
            // `quit` may close the connection before it is answered.
            debug!(%error, command, "QEMU");
        }
    });
}

/// What the end of QEMU means.
fn verdict(
    status: WaitStatus,
    progress: &Progress,
    stop: &Stop,
    stderr: &VecDeque<String>,
) -> Result<u8, SuperviseError> {
    if status.exit_status() != Some(0) {
        let status = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => format!("{status:?}"),
        };
        let stderr = stderr.iter().flat_map(|line| ["\n  ", line]).collect();
        return Err(SuperviseError::QemuDied { status, stderr });
    }
    match &progress.end {
        // Whatever is no exit status must not become success.
        Some(GuestEnd::Exited(code)) => Ok(u8::try_from(*code).unwrap_or(1)),
        Some(GuestEnd::Failed(message)) => Err(SuperviseError::GuestFailed(message.clone())),
        None => Err(match stop {
            Stop::NotAsked => SuperviseError::Silent(progress.phase),
            Stop::PowerDown(_) | Stop::Quit(_) | Stop::Killed => {
                SuperviseError::Stopped(progress.phase)
            }
        }),
    }
}
