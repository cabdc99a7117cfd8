//! HTTPS to the verifier, and to nobody else.
//!
//! One request per connection, TLS 1.3 only, no name resolution, no proxies, no
//! redirects, and no trust anchors but those of the instance data. Responses
//! are bounded in size and time. Cookies and retries are the session's.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_protocol::guest::{HttpRequest, HttpResponse};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// How long one address may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a whole exchange may take. A verifier may have to fetch
/// endorsements from the vendor before it answers.
const EXCHANGE: Duration = Duration::from_mins(1);
/// Longest status line and header section.
const MAX_HEAD: usize = 16 * 1024;
/// Most header fields.
const MAX_HEADERS: usize = 64;
/// Longest body: a token or a resource, with room to spare.
const MAX_BODY: usize = 4 * 1024 * 1024;
/// Longest line between chunks.
const MAX_CHUNK_LINE: usize = 1024;

/// Where a server is and how to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    server_name: ServerName<'static>,
    authority: String,
    base_path: String,
    addresses: Vec<SocketAddr>,
    authorities: Vec<CertificateDer<'static>>,
}

/// A server cannot be addressed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// The URL is not `https://host[:port][/path]`.
    #[error("not a URL of the form https://host[:port][/path]: {got:?}")]
    Url {
        /// The URL given.
        got: String,
    },
    /// There is no address to connect to.
    #[error("no address to connect to")]
    NoAddress,
    /// There is no usable certificate authority.
    #[error("the certificate authorities are not PEM certificates")]
    Authorities,
}

impl Endpoint {
    /// Checks a base URL, the addresses to reach it at, and the PEM of its
    /// certificate authorities.
    ///
    /// # Errors
    /// When one of the three is unusable.
    pub fn new(url: &str, addresses: Vec<SocketAddr>, ca: &str) -> Result<Self, EndpointError> {
        let error = || EndpointError::Url {
            got: url.to_owned(),
        };
        let rest = url.strip_prefix("https://").ok_or_else(error)?;
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        if !rest.bytes().all(|b| b.is_ascii_graphic()) || rest.contains(['@', '?', '#', '\\']) {
            return Err(error());
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (authority, None),
        };
        if port.is_some_and(|port| port.parse::<u16>().is_err()) {
            return Err(error());
        }
        let host = host
            .strip_prefix('[')
            .and_then(|h| h.strip_suffix(']'))
            .unwrap_or(host);
        let server_name = ServerName::try_from(host.to_owned()).map_err(|_| error())?;
        if addresses.is_empty() {
            return Err(EndpointError::NoAddress);
        }
        let authorities: Vec<_> = CertificateDer::pem_slice_iter(ca.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|_| EndpointError::Authorities)?;
        if trust_anchors(&authorities).is_none_or(|roots| roots.is_empty()) {
            return Err(EndpointError::Authorities);
        }
        Ok(Self {
            server_name,
            authority: authority.to_owned(),
            base_path: path.trim_end_matches('/').to_owned(),
            addresses,
            authorities,
        })
    }
}

fn trust_anchors(authorities: &[CertificateDer<'static>]) -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    authorities
        .iter()
        .try_for_each(|ca| roots.add(ca.clone()))
        .ok()?;
    Some(roots)
}

/// An exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// TLS cannot be set up with this endpoint's parameters.
    #[error("cannot set up TLS")]
    Setup(#[source] rustls::Error),
    /// No connection, or the server is not the one it should be.
    #[error("cannot connect to {address}")]
    Connect {
        /// The last address tried.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A field of the request would break out of its line.
    #[error("the request has a malformed {part}")]
    Request {
        /// Which part.
        part: &'static str,
    },
    /// The request could not be sent.
    #[error("cannot send the request")]
    Send(#[source] io::Error),
    /// The response could not be received.
    #[error("cannot receive the response")]
    Receive(#[source] io::Error),
    /// The response is not HTTP/1.1 as this client reads it.
    #[error("malformed response: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
    /// The response is too large.
    #[error("the response's {part} is larger than {limit} bytes")]
    TooLarge {
        /// Which part.
        part: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
}

/// A client of one server.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
    tls: Arc<ClientConfig>,
}

type Tls = StreamOwned<ClientConnection, Deadlined>;

impl Client {
    /// A client that trusts the endpoint's certificate authorities only.
    ///
    /// # Errors
    /// When TLS refuses the parameters.
    pub fn new(endpoint: Endpoint) -> Result<Self, HttpError> {
        let roots = trust_anchors(&endpoint.authorities).unwrap_or_else(RootCertStore::empty);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(HttpError::Setup)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            endpoint,
            tls: Arc::new(tls),
        })
    }

    /// Sends a request and receives the whole response. Addresses are tried in
    /// order until one proves to be the server; from then on nothing is sent
    /// twice.
    ///
    /// # Errors
    /// When the server cannot be reached or does not prove itself, or when the
    /// response is malformed, too large or too slow.
    pub fn send(&self, request: &HttpRequest) -> Result<HttpResponse, HttpError> {
        let message = self.encode(request)?;
        let deadline = Instant::now() + EXCHANGE;
        let mut stream = self.connect(deadline)?;
        stream
            .write_all(&message)
            .and_then(|()| stream.flush())
            .map_err(HttpError::Send)?;
        receive(&mut BufReader::new(stream))
    }

    fn connect(&self, deadline: Instant) -> Result<Tls, HttpError> {
        let mut last = HttpError::Malformed { what: "no address" };
        for &address in &self.endpoint.addresses {
            match self.connect_to(address, deadline) {
                Ok(stream) => return Ok(stream),
                Err(source) => last = HttpError::Connect { address, source },
            }
        }
        Err(last)
    }

    fn connect_to(&self, address: SocketAddr, deadline: Instant) -> io::Result<Tls> {
        let socket = TcpStream::connect_timeout(&address, CONNECT)?;
        socket.set_nodelay(true)?;
        let mut connection =
            ClientConnection::new(Arc::clone(&self.tls), self.endpoint.server_name.clone())
                .map_err(io::Error::other)?;
        let mut socket = Deadlined { socket, deadline };
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(StreamOwned::new(connection, socket))
    }

    fn encode(&self, request: &HttpRequest) -> Result<Vec<u8>, HttpError> {
        let graphic = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
        if !request.path.starts_with('/') || !graphic(&request.path) {
            return Err(HttpError::Request { part: "path" });
        }
        let mut head = format!(
            "{} {}{} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n",
            request.method,
            self.endpoint.base_path,
            request.path,
            self.endpoint.authority,
            request.body.len()
        );
        for (name, value) in &request.headers {
            if name.is_empty() || !graphic(name) || name.contains(':') {
                return Err(HttpError::Request {
                    part: "header name",
                });
            }
            if !value.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
                return Err(HttpError::Request {
                    part: "header value",
                });
            }
            head.push_str(name);
            head.push_str(": ");
            head.push_str(value);
            head.push_str("\r\n");
        }
        head.push_str("\r\n");
        let mut message = head.into_bytes();
        message.extend_from_slice(&request.body);
        Ok(message)
    }
}

/// A socket whose every operation ends at one deadline.
#[derive(Debug)]
struct Deadlined {
    socket: TcpStream,
    deadline: Instant,
}

impl Deadlined {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            Err(io::ErrorKind::TimedOut.into())
        } else {
            Ok(left)
        }
    }
}

impl Read for Deadlined {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        self.socket.read(buffer)
    }
}

impl Write for Deadlined {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

/// How the end of a body is known.
#[derive(Debug, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
}

fn receive<R: Read>(reader: &mut BufReader<R>) -> Result<HttpResponse, HttpError> {
    loop {
        let (status, headers) = receive_head(reader)?;
        // Interim responses (RFC 9110, 15.2) precede the final one.
        if (100..200).contains(&status) {
            continue;
        }
        let body = if matches!(status, 204 | 304) {
            Vec::new()
        } else {
            match framing(&headers)? {
                Framing::Length(length) => receive_exactly(reader, length)?,
                Framing::Chunked => receive_chunks(reader)?,
            }
        };
        return Ok(HttpResponse {
            status,
            headers,
            body,
        });
    }
}

type Head = (u16, Vec<(String, String)>);

fn receive_head<R: Read>(reader: &mut BufReader<R>) -> Result<Head, HttpError> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        receive_line(reader, &mut head, MAX_HEAD, "header section")?;
    }
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut fields);
    let parsed = response.parse(&head);
    let (Ok(httparse::Status::Complete(_)), Some(status)) = (parsed, response.code) else {
        return Err(HttpError::Malformed {
            what: "header section",
        });
    };
    // Bytes outside UTF-8 mean nothing in any field that is read here.
    let headers = response
        .headers
        .iter()
        .map(|h| {
            (
                h.name.to_owned(),
                String::from_utf8_lossy(h.value).into_owned(),
            )
        })
        .collect();
    Ok((status, headers))
}

/// Appends one line, with its end, to `bytes`.
fn receive_line<R: Read>(
    reader: &mut BufReader<R>,
    bytes: &mut Vec<u8>,
    limit: usize,
    part: &'static str,
) -> Result<(), HttpError> {
    let room = limit.saturating_sub(bytes.len());
    let mut bounded = reader
        .by_ref()
        .take(u64::try_from(room).unwrap_or(u64::MAX));
    let read = bounded
        .read_until(b'\n', bytes)
        .map_err(HttpError::Receive)?;
    if read > 0 && bytes.ends_with(b"\n") {
        Ok(())
    } else if bytes.len() >= limit {
        Err(HttpError::TooLarge { part, limit })
    } else {
        Err(HttpError::Receive(io::ErrorKind::UnexpectedEof.into()))
    }
}

fn framing(headers: &[(String, String)]) -> Result<Framing, HttpError> {
    let malformed = |what| HttpError::Malformed { what };
    let values = |name: &'static str| {
        headers
            .iter()
            .filter(move |(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v)
    };
    let mut encodings = values("transfer-encoding");
    let mut lengths = values("content-length");
    match (encodings.next(), lengths.next()) {
        // Either of both would be believed by somebody else (RFC 9112, 6.3).
        (Some(_), Some(_)) => Err(malformed("both Content-Length and Transfer-Encoding")),
        (Some(encoding), None) => {
            if encoding.eq_ignore_ascii_case("chunked") && encodings.next().is_none() {
                Ok(Framing::Chunked)
            } else {
                Err(malformed("unknown Transfer-Encoding"))
            }
        }
        (None, Some(length)) => {
            if lengths.next().is_some() || !length.bytes().all(|b| b.is_ascii_digit()) {
                return Err(malformed("Content-Length"));
            }
            let length = length.parse().map_err(|_| malformed("Content-Length"))?;
            Ok(Framing::Length(length))
        }
        (None, None) => Err(malformed("neither Content-Length nor Transfer-Encoding")),
    }
}

fn receive_exactly<R: Read>(
    reader: &mut BufReader<R>,
    length: usize,
) -> Result<Vec<u8>, HttpError> {
    if length > MAX_BODY {
        return Err(HttpError::TooLarge {
            part: "body",
            limit: MAX_BODY,
        });
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).map_err(HttpError::Receive)?;
    Ok(body)
}

fn receive_chunks<R: Read>(reader: &mut BufReader<R>) -> Result<Vec<u8>, HttpError> {
    let malformed = || HttpError::Malformed { what: "chunk" };
    let mut body = Vec::new();
    loop {
        let size = parse_chunk_size(&chunk_line(reader)?).ok_or_else(malformed)?;
        if size == 0 {
            break;
        }
        if size > MAX_BODY - body.len() {
            return Err(HttpError::TooLarge {
                part: "body",
                limit: MAX_BODY,
            });
        }
        body.extend(receive_exactly(reader, size)?);
        if chunk_line(reader)? != b"\r\n" {
            return Err(malformed());
        }
    }
    // Trailer fields mean nothing here.
    for _ in 0..MAX_HEADERS {
        if chunk_line(reader)? == b"\r\n" {
            return Ok(body);
        }
    }
    Err(malformed())
}

fn chunk_line<R: Read>(reader: &mut BufReader<R>) -> Result<Vec<u8>, HttpError> {
    let mut line = Vec::new();
    receive_line(reader, &mut line, MAX_CHUNK_LINE, "chunk line")?;
    Ok(line)
}

/// The size at the start of a chunk; extensions are ignored.
fn parse_chunk_size(line: &[u8]) -> Option<usize> {
    let line = line.strip_suffix(b"\r\n")?;
    let digits = line.split(|&b| b == b';').next()?.trim_ascii_end();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
