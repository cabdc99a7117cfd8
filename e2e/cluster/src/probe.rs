//! Asking components whether they work. Small blocking clients of our own: the
//! questions are few, and an async runtime would be most of this crate.

use crate::layout::{API_PORT, HOST_ADDRESS, Layout};
use anyhow::{Context, Result, bail};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// One answer may take this long; the caller asks again.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A question that a working component answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Probe {
    /// A path of a plain HTTP server answers 200.
    Http {
        /// Where it listens.
        address: String,
        /// What is asked for.
        path: &'static str,
    },
    /// The API server calls itself ready.
    ApiReady,
    /// Something accepts connections on the socket.
    Socket(PathBuf),
    /// Something accepts connections at the address.
    Listening(&'static str),
    /// The default namespace has its service account, so pods can be created.
    ServiceAccount,
    /// The DNS server at the address knows the API server's Service.
    Dns(String),
    /// The API server reports the node as Ready.
    NodeReady(&'static str),
}

impl Probe {
    pub(crate) fn ask(&self, layout: &Layout) -> Result<()> {
        match self {
            Self::Http { address, path } => {
                let stream = connect(address)?;
                expect_ok(&http_get(stream, address, path)?)
            }
            Self::ApiReady => Api::open(layout)?.get("/readyz").map(drop),
            Self::Socket(path) => UnixStream::connect(path)
                .map(drop)
                .with_context(|| format!("connect to {}", path.display())),
            Self::Listening(address) => connect(address).map(drop),
            Self::ServiceAccount => Api::open(layout)?
                .get("/api/v1/namespaces/default/serviceaccounts/default")
                .map(drop),
            Self::Dns(address) => resolve(address, "kubernetes.default.svc.cluster.local"),
            Self::NodeReady(node) => {
                let body = Api::open(layout)?.get(&format!("/api/v1/nodes/{node}"))?;
                let node: serde_json::Value =
                    serde_json::from_slice(&body).context("read the node")?;
                let ready = node["status"]["conditions"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .find(|condition| condition["type"] == "Ready");
                match ready {
                    Some(ready) if ready["status"] == "True" => Ok(()),
                    Some(ready) => bail!("the node is not Ready: {}", ready["message"]),
                    None => bail!("the node has no condition Ready yet"),
                }
            }
        }
    }
}

/// The API server, as the administrator.
pub(crate) struct Api {
    tls: Arc<ClientConfig>,
}

impl Api {
    pub(crate) fn open(layout: &Layout) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(layout.path("pki/ca.crt"))
            .context("read the authority's certificate")?;
        roots.add(ca).context("trust the authority")?;
        let certificate = CertificateDer::from_pem_file(layout.path("pki/admin.crt"))
            .context("read the administrator's certificate")?;
        let key = PrivateKeyDer::from_pem_file(layout.path("pki/admin.key"))
            .context("read the administrator's key")?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("choose TLS versions")?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)
            .context("use the administrator's certificate")?;
        Ok(Self { tls: Arc::new(tls) })
    }

    /// The body of a successful answer.
    pub(crate) fn get(&self, path: &str) -> Result<Vec<u8>> {
        let address = format!("{HOST_ADDRESS}:{API_PORT}");
        let name = ServerName::try_from(HOST_ADDRESS).context("name the API server")?;
        let connection = ClientConnection::new(self.tls.clone(), name).context("begin TLS")?;
        let stream = StreamOwned::new(connection, connect(&address)?);
        let answer = http_get(stream, &address, path)?;
        expect_ok(&answer)?;
        let end_of_head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        let body = end_of_head.and_then(|at| answer.get(at.saturating_add(4)..));
        Ok(body.unwrap_or_default().to_vec())
    }
}

fn connect(address: &str) -> Result<TcpStream> {
    let parsed: SocketAddr = address
        .parse()
        .with_context(|| format!("read the address {address}"))?;
    let stream = TcpStream::connect_timeout(&parsed, TIMEOUT)
        .with_context(|| format!("connect to {address}"))?;
    stream
        .set_read_timeout(Some(TIMEOUT))
        .context("limit the wait for an answer")?;
    stream
        .set_write_timeout(Some(TIMEOUT))
        .context("limit the wait to send")?;
    Ok(stream)
}

/// HTTP/1.0, so that the answer ends with the connection and is not chunked.
fn http_get(mut stream: impl Read + Write, host: &str, path: &str) -> Result<Vec<u8>> {
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: {host}\r\nAccept: application/json\r\n\r\n"
    )
    .and_then(|()| stream.flush())
    .with_context(|| format!("ask {host} for {path}"))?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // A TLS server may close without saying so; the status line is there.
        Err(error) if answer.is_empty() => {
            Err(error).with_context(|| format!("read the answer of {host} to {path}"))
        }
        _ => Ok(answer),
    }
}

fn expect_ok(answer: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(answer);
    let status = text.split_ascii_whitespace().nth(1).unwrap_or("none");
    if status != "200" {
        bail!(
            "HTTP status {status}: {}",
            text.lines().last().unwrap_or_default()
        );
    }
    Ok(())
}

/// The answer's code in the fourth byte of the header: zero is no error.
const RCODE: u8 = 0x0f;

/// Asks for an A record and wants at least one (RFC 1035 §4.1).
fn resolve(server: &str, name: &str) -> Result<()> {
    let mut query = vec![0x5a, 0x17, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).context("a DNS label is too long")?);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("0.0.0.0:0").context("open a UDP socket")?;
    socket
        .set_read_timeout(Some(TIMEOUT))
        .context("limit the wait for an answer")?;
    socket
        .send_to(&query, server)
        .with_context(|| format!("ask {server}"))?;
    let mut answer = [0; 512];
    let length = socket
        .recv(&mut answer)
        .with_context(|| format!("read the answer of {server}"))?;
    match answer.get(..length) {
        Some([0x5a, 0x17, _, flags, _, _, high, low, ..])
            if flags & RCODE == 0 && (*high, *low) != (0, 0) =>
        {
            Ok(())
        }
        _ => bail!("{server} does not know {name}"),
    }
}
