//! How far a build is, for whoever asks: `status.build` of a MeasuredImage as JSON, in
//! answer to any HTTP request. A build Job has no credentials of the cluster, so it
//! cannot tell by itself.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use assay_crds::v1alpha1::measured_image::BuildStatus;

/// Longest head of a request.
const MAX_REQUEST_LEN: usize = 4096;
/// A client that is slower waits for nothing. One is served at a time.
const PATIENCE: Duration = Duration::from_secs(1);

/// Serves `state` on all addresses from a thread of its own, and returns the port.
///
/// # Errors
/// When the port is taken.
pub(super) fn serve(port: u16, state: Arc<Mutex<BuildStatus>>) -> Result<u16> {
    // The first takes both versions of IP, where the kernel has both.
    let addresses = [
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
    ];
    let listener = TcpListener::bind(&addresses[..]);
    let listener =
        listener.with_context(|| format!("cannot serve progress on port {port}: name another"))?;
    let address = listener.local_addr().context("cannot serve progress")?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Whoever asked and went is no concern of the build's.
            let _gone = answer(stream, &state);
        }
    });
    Ok(address.port())
}

fn answer(mut stream: TcpStream, state: &Mutex<BuildStatus>) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    let mut buffer = [0; 512];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let count = stream.read(&mut buffer)?;
        request.extend_from_slice(buffer.get(..count).unwrap_or_default());
        if count == 0 || request.len() > MAX_REQUEST_LEN {
            return Ok(());
        }
    }
    let state = *state.lock().unwrap_or_else(PoisonError::into_inner);
    let body = serde_json::to_string(&state)?;
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;

    use assay_crds::v1alpha1::measured_image::BuildPhase;

    use super::*;

    #[test]
    fn whoever_asks_is_told_how_far_the_build_is() {
        let state = Arc::new(Mutex::new(BuildStatus::at(BuildPhase::Flattening)));
        let port = serve(0, Arc::clone(&state)).unwrap();
        let ask = |request: &[u8]| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
            let mut answer = String::new();
            // Who is refused may learn it before all is sent.
            let _reset = stream
                .write_all(request)
                .and_then(|()| stream.shutdown(Shutdown::Write))
                .and_then(|()| stream.read_to_string(&mut answer));
            answer
        };
        let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        let answer = ask(request);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with(r#"{"phase":"Flattening"}"#), "{answer}");
        // What is no request costs the build nothing.
        assert_eq!(ask(b"GET"), "");
        assert_eq!(ask(&[b'x'; 2 * MAX_REQUEST_LEN]), "");
        *state.lock().unwrap() = BuildStatus::transfer(BuildPhase::Pushing, 3, 4);
        let body = r#"{"phase":"Pushing","transferredBytes":3,"totalBytes":4,"percent":75}"#;
        assert!(ask(request).ends_with(body));
    }
}
