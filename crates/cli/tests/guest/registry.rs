//! A registry that serves what a layout holds, over plain HTTP.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

impl Registry {
    pub(crate) fn serve(layout: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::<AtomicUsize>::default();
        let (counter, blobs) = (requests.clone(), layout.join("blobs/sha256"));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (counter, blobs) = (counter.clone(), blobs.clone());
                thread::spawn(move || answer(&stream.unwrap(), &blobs, &counter));
            }
        });
        Self { address, requests }
    }

    /// Requests since the last call.
    pub(crate) fn requests(&self) -> usize {
        self.requests.swap(0, Ordering::Relaxed)
    }
}

fn answer(stream: &TcpStream, blobs: &Path, counter: &AtomicUsize) {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().unwrap().unwrap();
    // The headers say nothing that matters.
    while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
    counter.fetch_add(1, Ordering::Relaxed);
    let path = request.split(' ').nth(1).unwrap();
    let content = match path.rsplit_once("sha256:") {
        Some((_, digest)) => fs::read(blobs.join(digest)).ok(),
        None => (path == "/v2/").then(Vec::new),
    };
    let (status, content) = match content {
        Some(content) => ("200 OK", content),
        None => ("404 Not Found", Vec::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {MANIFEST}\r\nContent-Length: {}\r\nConnection: \
         close\r\n\r\n",
        content.len()
    );
    let mut stream = stream;
    // A client that breaks off has its reasons.
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(&content);
}
