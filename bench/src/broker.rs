//! One replica of the broker, as guests meet it: a TLS connection for each request,
//! evidence of a simulated processor, a record for each guest.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use assay_broker::config::Config;
use assay_broker::service::Clock;
use assay_broker::standalone::Standalone;
use assay_protocol::guest::{GuestSession, HttpRequest, HttpResponse};
use assay_protocol::messages::SnpEvidence;
use assay_psp_sim::{Authority, KeyTemplate, Processor};
use assay_tee::guest_message::{ReportRequest, ReportResponse};
use assay_tee::instance::{Network, PodIdentity, VerifierEndpoint};
use assay_tee::page_info::{PAGE_SIZE, PageType};
use assay_tee::{GuestPolicy, InstanceData, LaunchDigest, Product, TcbVersion};
use jiff::{SignedDuration, Timestamp};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::table::{duration, figure, heading, mebibytes, percentile};

/// Guests of one replica.
const GUESTS: usize = 10_000;
/// How often each attests.
const INTERVAL_SECONDS: u32 = 300;
const INTERVAL: Duration = Duration::from_secs(INTERVAL_SECONDS as u64);
/// How long they are observed at their own pace.
const OBSERVED: Duration = Duration::from_secs(30);
/// Guests that attest at the same time.
const AT_ONCE: usize = 16;
/// Hours that the clock is turned by, and the guests that attest meanwhile.
const HOURS: usize = 30;
const GUESTS_IN_HOURS: usize = 100;

const SERVER_NAME: &str = "broker.example";
/// Name of the threads whose time is the broker's.
const THREAD: &str = "bench-broker";

/// Runs the benchmark.
pub(crate) fn run() -> Result<()> {
    heading("Attestations: one replica of the broker over TLS 1.3");
    let world = World::start()?;

    let (start, before) = (Instant::now(), broker_time()?);
    let latencies = world.attest_all(GUESTS, AT_ONCE, |_| None)?;
    let (wall, spent) = (start.elapsed(), broker_time()?.saturating_sub(before));
    figure("attestations per second", &per_second(GUESTS, wall));
    figure(
        "attestations per second of the broker's time",
        &per_second(GUESTS, spent),
    );
    figure(
        &format!("latency of {AT_ONCE} at once, p50 and p99"),
        &quantiles(latencies),
    );

    let pause = INTERVAL / u32::try_from(GUESTS).context("the number of guests")?;
    let count = usize::try_from(OBSERVED.as_nanos() / pause.as_nanos().max(1))
        .context("the number of attestations")?;
    let (start, before) = (Instant::now(), broker_time()?);
    let due = |number: usize| Some(start + pause * u32::try_from(number).unwrap_or(u32::MAX));
    let latencies = world.attest_all(count, AT_ONCE, due)?;
    let share = broker_time()?.saturating_sub(before).as_secs_f64() / start.elapsed().as_secs_f64();
    let load = format!("{GUESTS} guests, each every {INTERVAL_SECONDS} s");
    figure(
        &format!("{load}: latency, p50 and p99"),
        &quantiles(latencies),
    );
    figure(
        &format!("{load}: of one core"),
        &format!("{:.1} %", 100.0 * share),
    );

    let mut memory = Vec::new();
    let rounds_an_hour = Duration::from_hours(1).as_secs() / INTERVAL.as_secs();
    for _ in 0..HOURS {
        for _ in 0..rounds_an_hour {
            world.turn_clock(INTERVAL)?;
            world.attest_all(GUESTS_IN_HOURS, AT_ONCE, |_| None)?;
        }
        memory.push(resident()?);
    }
    let (Some(first), Some(last)) = (memory.first(), memory.last()) else {
        return Err(anyhow!("no hour has passed"));
    };
    figure(
        &format!("memory after 1 and {HOURS} simulated hours"),
        &format!("{}, {}", mebibytes(*first), mebibytes(*last)),
    );
    Ok(())
}

/// A broker, and what its guests have.
struct World {
    _directory: TempDir,
    _runtime: Runtime,
    broker: Standalone,
    clock: Arc<Mutex<Timestamp>>,
    client: Arc<ClientConfig>,
    processor: Processor,
    policy_hash: assay_tee::Sha256Digest,
}

impl World {
    fn start() -> Result<Self> {
        let now = Timestamp::now();
        let issued = now - SignedDuration::from_hours(24);
        let authority = Authority::generate(Product::Genoa, issued)?;
        let tcb = TcbVersion {
            fmc: None,
            bootloader: 9,
            tee: 0,
            snp: 23,
            microcode: 72,
        };
        let vcek = authority.issue_vcek(&KeyTemplate::vcek(Product::Genoa, "chip", tcb))?;
        let root = vcek.chain().ark.clone();
        let processor = Processor::new(vcek)?;

        let directory = tempfile::tempdir().context("create a directory")?;
        let policy_hash = write_world(directory.path(), &launch_digest(&processor)?, &root)?;
        let config = Config::load(&directory.path().join("broker.toml"))?;
        let clock = Arc::new(Mutex::new(now));
        let reading = clock.clone();
        let now: Clock = Arc::new(move || *reading.lock().unwrap_or_else(PoisonError::into_inner));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(THREAD)
            .enable_all()
            .build()
            .context("start the broker's runtime")?;
        let broker = runtime.block_on(async { Standalone::start_at(&config, now) })?;
        let client = Arc::new(client(&broker.ca)?);
        Ok(Self {
            _directory: directory,
            _runtime: runtime,
            broker,
            clock,
            client,
            processor,
            policy_hash,
        })
    }

    fn turn_clock(&self, by: Duration) -> Result<()> {
        let by = SignedDuration::try_from(by).context("a duration")?;
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) += by;
        Ok(())
    }

    /// Lets guests attest, `at_once` at a time, none before it is `due`. Gives how
    /// long each was without its token: since then, if it was due.
    fn attest_all(
        &self,
        count: usize,
        at_once: usize,
        due: impl Fn(usize) -> Option<Instant> + Sync,
    ) -> Result<Vec<Duration>> {
        let next = AtomicUsize::new(0);
        let guests = || -> Result<Vec<Duration>> {
            let mut latencies = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(latencies);
                }
                let mut late = Duration::ZERO;
                if let Some(due) = due(number) {
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    late = due.elapsed();
                }
                latencies.push(late + self.attest(number)?);
            }
        };
        thread::scope(|scope| {
            let threads: Vec<_> = (0..at_once).map(|_| scope.spawn(guests)).collect();
            let mut latencies = Vec::new();
            for thread in threads {
                let joined = thread.join().map_err(|_| anyhow!("a guest panicked"))?;
                latencies.extend(joined?);
            }
            Ok(latencies)
        })
    }

    /// An attestation of one guest; gives how long it waited for the broker.
    fn attest(&self, number: usize) -> Result<Duration> {
        let document = self.instance(number).encode()?;
        let session = GuestSession::new()?;
        let request = session.auth_request()?;
        let start = Instant::now();
        let challenge = self.send(&request)?;
        let challenged = start.elapsed();
        let session = session.on_challenge(&challenge)?;
        let evidence = self.evidence(session.report_data()?, &document)?;
        let document = String::from_utf8(document).context("the instance data")?;
        let request = session.attest_request(evidence, &document)?;
        let start = Instant::now();
        let token = self.send(&request)?;
        let attested = start.elapsed();
        session.on_token(&token)?;
        Ok(challenged + attested)
    }

    fn instance(&self, number: usize) -> InstanceData {
        InstanceData {
            version: InstanceData::VERSION,
            namespace: "shop".to_owned(),
            deployment: "web".to_owned(),
            pod: PodIdentity {
                name: format!("web-{number}"),
                uid: format!("00000000-0000-4000-8000-{number:012}"),
            },
            node: "node-1".to_owned(),
            policy_hash: self.policy_hash,
            verifier: VerifierEndpoint {
                url: format!("https://{SERVER_NAME}:8443"),
                addresses: vec![self.broker.address.to_string()],
                ca: self.broker.ca.clone(),
            },
            network: Network {
                address: "10.0.2.15/24".to_owned(),
                gateway: "10.0.2.2".to_owned(),
                nameservers: vec![],
                hostname: "web".to_owned(),
            },
            resources: vec![],
            attestation_interval_seconds: INTERVAL_SECONDS,
        }
    }

    fn evidence(&self, report_data: [u8; 64], document: &[u8]) -> Result<SnpEvidence> {
        let guest = launch(&self.processor)?.launch_finish(InstanceData::host_data(document))?;
        let request = ReportRequest::new(report_data, 0).encode();
        let response = guest.extended_guest_request(&request)?;
        let response = ReportResponse::parse(&response)?;
        Ok(SnpEvidence {
            report: response.report.to_vec(),
            certificates: response.certificates.encode()?,
        })
    }

    /// One request on a connection of its own, as the agent sends it.
    fn send(&self, request: &HttpRequest) -> Result<HttpResponse> {
        let address: SocketAddr = self.broker.address;
        let name = ServerName::try_from(SERVER_NAME).context("the server's name")?;
        let connection = ClientConnection::new(self.client.clone(), name)?;
        let tcp = TcpStream::connect(address).context("connect")?;
        tcp.set_nodelay(true).context("connect")?;
        let mut stream = StreamOwned::new(connection, tcp);
        let mut message = format!(
            "{} {} HTTP/1.1\r\nhost: {SERVER_NAME}\r\nconnection: close\r\ncontent-length: {}\r\n",
            request.method,
            request.path,
            request.body.len()
        );
        for (name, value) in &request.headers {
            message.extend([name, ": ", value, "\r\n"]);
        }
        message.push_str("\r\n");
        let message = [message.as_bytes(), &request.body].concat();
        stream.write_all(&message).context("send")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).context("receive")?;
        parse(&answer)
    }
}

fn parse(answer: &[u8]) -> Result<HttpResponse> {
    let text = std::str::from_utf8(answer).context("the answer")?;
    let (head, body) = text.split_once("\r\n\r\n").context("the answer's head")?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let headers = lines.filter_map(|line| line.split_once(": "));
    Ok(HttpResponse {
        status: status.context("the answer's status")?.parse()?,
        headers: headers
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        body: body.as_bytes().to_vec(),
    })
}

fn launch(processor: &Processor) -> Result<assay_psp_sim::Launching> {
    let mut launching = processor.launch_start(GuestPolicy::default())?;
    launching.launch_update(PageType::Normal, 0, &[1; PAGE_SIZE])?;
    Ok(launching)
}

fn launch_digest(processor: &Processor) -> Result<LaunchDigest> {
    let host_data = InstanceData::host_data(b"");
    Ok(launch(processor)?.launch_finish(host_data)?.launch_digest())
}

/// Writes what the broker is to know; gives the policy's hash.
fn write_world(
    directory: &Path,
    digest: &LaunchDigest,
    root: &[u8],
) -> Result<assay_tee::Sha256Digest> {
    let write = |name: &str, content: &[u8]| {
        fs::write(directory.join(name), content).with_context(|| format!("write {name}"))
    };
    for name in ["objects", "secrets"] {
        fs::create_dir(directory.join(name)).with_context(|| format!("create {name}"))?;
    }
    let digest = serde_json::to_value(digest).context("the launch digest")?;
    let deployment = serde_json::json!({
        "apiVersion": "assay.dev/v1alpha1", "kind": "ConfidentialDeployment",
        "metadata": { "name": "web", "namespace": "shop" },
        "spec": {
            "imageRef": { "name": "web-1" }, "policyRef": { "name": "standard" },
            "machine": {
                "vcpus": 1, "memory": "512Mi", "cpuModel": "EPYC-v4", "tee": "SimulatedSNP",
            },
        },
    });
    let reference = format!("registry.example/web@sha256:{}", "0".repeat(64));
    let image = serde_json::json!({
        "apiVersion": "assay.dev/v1alpha1", "kind": "MeasuredImage",
        "metadata": { "name": "web-1", "namespace": "shop" },
        "spec": { "source": { "type": "OCI", "oci": { "reference": reference } } },
        "status": { "launchDigests": [{
            "id": "one", "firmware": "ovmf-000000000000", "cpuModel": "EPYC-v4", "vcpus": 1,
            "guestFeatures": "0x1", "tee": "SimulatedSNP", "digest": digest, "state": "Accepted",
        }] },
    });
    let policy: assay_crds::v1alpha1::AttestationPolicy =
        serde_json::from_value(serde_json::json!({
            "apiVersion": "assay.dev/v1alpha1", "kind": "AttestationPolicy",
            "metadata": { "name": "standard", "namespace": "shop" },
            "spec": {
                "tees": ["SimulatedSNP"],
                "snp": {
                    "products": [{
                        "name": "Genoa",
                        "minimumTCB": { "bootLoader": 9, "tee": 0, "snp": 23, "microcode": 72 },
                    }],
                    "crl": { "mode": "NotRequired" },
                },
            },
        }))
        .context("the policy")?;
    write("objects/deployment.json", deployment.to_string().as_bytes())?;
    write("objects/image.json", image.to_string().as_bytes())?;
    write("objects/policy.json", &serde_json::to_vec(&policy)?)?;
    write("ark.der", root)?;
    let config = format!(
        "listen = \"127.0.0.1:0\"\n\
         stateDirectory = \"state\"\n\
         simulatedRoot = \"ark.der\"\n\
         tls.names = [{SERVER_NAME:?}]\n\
         inventory.directory = \"objects\"\n\
         inventory.reloadInterval = \"1h\"\n\
         secrets.files.directory = \"secrets\"\n"
    );
    write("broker.toml", config.as_bytes())?;
    policy.spec.hash().context("the policy's hash")
}

/// Every handshake is a whole one, as that of a guest that starts.
fn client(ca: &str) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(certificate.context("the broker's authority")?)?;
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_protocol_versions(&[&rustls::version::TLS13])?
    .with_root_certificates(roots)
    .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Time that the broker's threads have taken of processors.
fn broker_time() -> Result<Duration> {
    let (mut threads, mut ticks) = (0, 0);
    for entry in fs::read_dir("/proc/self/task").context("list threads")? {
        let directory = entry.context("list threads")?.path();
        let read = |name| fs::read_to_string(directory.join(name)).unwrap_or_default();
        if read("comm").trim_end() != THREAD {
            continue;
        }
        threads += 1;
        // proc_pid_stat(5): user and kernel time are the 14th and 15th field, and
        // the name before them may hold spaces.
        let stat = read("stat");
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        let times = fields.split(' ').skip(11).take(2);
        ticks += times
            .filter_map(|time| time.parse::<u64>().ok())
            .sum::<u64>();
    }
    ensure!(threads > 0, "no thread is called {THREAD}");
    Ok(Duration::from_millis(10 * ticks))
}

/// Bytes of this process, broker and guests, that are in memory.
fn resident() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("read the memory")?;
    let kibibytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next())
        .context("the memory in use")?;
    Ok(1024 * kibibytes.parse::<u64>().context("the memory in use")?)
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn per_second(count: usize, time: Duration) -> String {
    format!("{:.0}", count as f64 / time.as_secs_f64())
}

fn quantiles(mut latencies: Vec<Duration>) -> String {
    latencies.sort_unstable();
    format!(
        "{}, {}",
        duration(percentile(&latencies, 50)),
        duration(percentile(&latencies, 99))
    )
}
