//! The life of PID 1, from the first mount to the power switch.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::thread;
use std::time::Duration;

use assay_tee::GuestConfig;
use assay_tee::guest_config::GUEST_CONFIG_PATH;
use assay_tee::guest_event::GuestEvent;
use assay_tee::instance::INSTANCE_FW_CFG_NAME;
use rustix::process::{Resource, Rlimit};
use rustix::system::RebootCommand;

use crate::attest::{self, Released};
use crate::backoff;
use crate::events;
use crate::evidence::{self, EvidenceError, Provider};
use crate::exec::{self, StepError};
use crate::failure::describe;
use crate::http::{Client, HttpError};
use crate::plan;
use crate::power;
use crate::resource::{self, PlaceError};
use crate::validate::{
    GuestRefusal, InstanceRefusal, ValidGuest, ValidInstance, validate_guest, validate_instance,
};
use crate::workload::{self, Stopped, Supervisor, WorkloadError};

/// Longest document that is read: measured or not, it is a page of text.
const MAX_DOCUMENT: u64 = 1 << 20;
/// How long the event port may take to appear. Nothing depends on it.
const EVENT_PORT_PATIENCE: Duration = Duration::from_secs(1);
/// Open files: what service managers give (systemd's defaults).
const OPEN_FILES: Rlimit = Rlimit {
    current: Some(1024),
    maximum: Some(524_288),
};

/// Why a guest ends before its workload does.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A signal mask or a limit cannot be set.
    #[error("cannot set up the process")]
    Process(#[source] io::Error),
    /// A step of a plan failed.
    #[error("{phase}")]
    Step {
        /// Which plan.
        phase: &'static str,
        /// The step and its cause.
        #[source]
        source: StepError,
    },
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The measured configuration is not a document.
    #[error("cannot parse the guest configuration")]
    ParseConfig(#[source] serde_json::Error),
    /// The measured configuration is refused.
    #[error("refused")]
    Guest(#[source] GuestRefusal),
    /// The instance data is refused.
    #[error("refused")]
    Instance(#[source] InstanceRefusal),
    /// The processor does not bind the instance data.
    #[error("the instance data is not proven")]
    Evidence(#[source] EvidenceError),
    /// No client can be made for the verifier.
    #[error("cannot talk to the verifier")]
    Client(#[source] HttpError),
    /// A resource cannot be written.
    #[error("a resource cannot be placed")]
    Place(#[source] PlaceError),
    /// The workload does not start.
    #[error("the workload does not start")]
    Workload(#[source] WorkloadError),
}

/// Runs as PID 1. Powers the machine off at the end, whatever the end is.
pub fn run() -> ! {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic
            .location()
            .map_or_else(String::new, ToString::to_string);
        end(GuestEvent::Failed {
            message: format!("the agent panicked at {place}"),
        });
    }));
    match boot() {
        Ok(code) => end(GuestEvent::Exited { code }),
        Err(error) => end(GuestEvent::Failed {
            message: describe(&error),
        }),
    }
}

/// Reports how it ended and powers off. PID 1 must not return: the kernel would
/// panic.
fn end(event: GuestEvent) -> ! {
    events::emit(event);
    events::flush(EVENT_PORT_PATIENCE);
    rustix::fs::sync();
    loop {
        if let Err(error) = rustix::system::reboot(RebootCommand::PowerOff) {
            events::say(&format!("cannot power off: {error}"));
        }
        thread::sleep(Duration::from_mins(1));
    }
}

fn run_steps(phase: &'static str, steps: &[crate::step::Step]) -> Result<(), BootError> {
    exec::run(steps).map_err(|source| BootError::Step { phase, source })
}

fn read(path: &str) -> Result<Vec<u8>, BootError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_DOCUMENT).read_to_end(&mut bytes))
        .map_err(|source| BootError::Read {
            path: path.to_owned(),
            source,
        })?;
    Ok(bytes)
}

/// Boots the guest and stays to the workload's end; its exit status.
fn boot() -> Result<i32, BootError> {
    let supervisor = set_up_process().map_err(BootError::Process)?;
    run_steps("early mounts", &plan::plan_early())?;
    events::emit(GuestEvent::Booted);

    let config: GuestConfig =
        serde_json::from_slice(&read(GUEST_CONFIG_PATH)?).map_err(BootError::ParseConfig)?;
    let guest = validate_guest(config, &read("/proc/cmdline")?).map_err(BootError::Guest)?;
    run_steps("kernel modules", &plan::plan_platform(&guest))?;
    events::flush(EVENT_PORT_PATIENCE);
    power::watch();

    let (instance, provider) = prove_instance()?;
    run_steps(
        "network and root file system",
        &plan::plan_guest(&guest, &instance),
    )?;

    let client = Client::new(instance.verifier.clone()).map_err(BootError::Client)?;
    let mut attester = Attester {
        client,
        provider,
        instance,
    };
    let (attester, released) = match supervisor.wait_for_work(move || {
        let released = attester.attest_first();
        (attester, released)
    }) {
        Ok(done) => done,
        // Nothing was started: the status of a process that SIGTERM ended.
        Err(Stopped) => return Ok(128 + libc::SIGTERM),
    };
    place(&guest, released)?;

    let steps = plan::plan_container(&guest, &attester.instance);
    let workload = workload::start(&steps).map_err(BootError::Workload)?;
    events::emit(GuestEvent::Running);
    thread::spawn(move || attester.attest_again());
    Ok(supervisor.wait_for_end(&workload, guest.stop_signal))
}

fn set_up_process() -> io::Result<Supervisor> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, none)?;
    rustix::process::setrlimit(Resource::Nofile, OPEN_FILES)?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    workload::hold_signals()
}

/// The instance data, once the processor says that it belongs to this guest.
fn prove_instance() -> Result<(ValidInstance, Provider), BootError> {
    let path = format!("/sys/firmware/qemu_fw_cfg/by_name/{INSTANCE_FW_CFG_NAME}/raw");
    let document = read(&path)?;
    let mut provider = Provider::detect().map_err(BootError::Evidence)?;
    if !provider.is_hardware() {
        events::say("SIMULATED processor: nothing protects this guest from its host");
    }
    let evidence = provider.request(&[0; 64]).map_err(BootError::Evidence)?;
    evidence::check_host_data(&evidence, &document).map_err(BootError::Evidence)?;
    let instance = validate_instance(document).map_err(BootError::Instance)?;
    Ok((instance, provider))
}

fn place(guest: &ValidGuest, released: Vec<Released>) -> Result<(), BootError> {
    let process = &guest.config.process;
    let owner = Some((process.uid, process.gid));
    let root = Path::new(plan::RESOURCE_STAGE);
    for Released { path, content } in released {
        resource::place_resource(root, &path, &content, owner).map_err(BootError::Place)?;
    }
    Ok(())
}

/// Who attests, first until it succeeds and then for ever.
struct Attester {
    client: Client,
    provider: Provider,
    instance: ValidInstance,
}

impl Attester {
    /// Attests and fetches every resource, however often that takes.
    fn attest_first(&mut self) -> Vec<Released> {
        let mut failures = 0u32;
        loop {
            let released = self.attest_once().and_then(|session| {
                events::emit(GuestEvent::Attested);
                attest::fetch_resources(&self.client, &session, &self.instance)
            });
            match released {
                Ok(released) => return released,
                Err(error) => report(&error),
            }
            failures = failures.saturating_add(1);
            thread::sleep(backoff::retry_delay(failures, random()));
        }
    }

    /// Attests at the interval that the instance data asks for.
    fn attest_again(mut self) {
        let interval = self.instance.data.attestation_interval_seconds;
        let mut failures = 0u32;
        loop {
            thread::sleep(match failures {
                0 => backoff::interval_delay(interval, random()),
                _ => backoff::reattest_delay(interval, failures, random()),
            });
            match self.attest_once() {
                Ok(_) => {
                    if failures > 0 {
                        events::emit(GuestEvent::Attested);
                    }
                    failures = 0;
                }
                Err(error) => {
                    report(&error);
                    failures = failures.saturating_add(1);
                }
            }
        }
    }

    fn attest_once(
        &mut self,
    ) -> Result<assay_protocol::guest::AttestedSession, attest::AttestError> {
        attest::attest(&self.client, &mut self.provider, &self.instance.document)
    }
}

fn report(error: &attest::AttestError) {
    events::emit(GuestEvent::AttestationFailed {
        message: describe(error),
    });
}

/// Spread for delays. Without randomness the delay is the shortest.
fn random() -> u32 {
    let mut bytes = [0; 4];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(_) => u32::from_ne_bytes(bytes),
        Err(_) => 0,
    }
}
