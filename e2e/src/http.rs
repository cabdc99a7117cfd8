//! One HTTP request at a time, to addresses of this machine's cluster.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Bounds connecting, reading and writing.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Status and body of `GET http://{address}{path}`, with basic authentication
/// where `user` (`name:password`) is given.
///
/// # Errors
/// When nobody answers, or not with HTTP.
pub fn get(address: &str, path: &str, user: Option<&str>) -> Result<(u16, String)> {
    let socket = address
        .parse()
        .with_context(|| format!("parse the address {address}"))?;
    let mut stream = TcpStream::connect_timeout(&socket, TIMEOUT)
        .with_context(|| format!("connect to {address}"))?;
    stream
        .set_read_timeout(Some(TIMEOUT))
        .context("set the time-out")?;
    let authorization = user
        .map(|user| format!("Authorization: Basic {}\r\n", STANDARD.encode(user)))
        .unwrap_or_default();
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: {address}\r\n{authorization}\r\n"
    )
    .context("send the request")?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .context("read the answer")?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer is not HTTP")?;
    let status = head
        .split_whitespace()
        .nth(1)
        .context("the answer has no status")?;
    Ok((status.parse().context("parse the status")?, body.to_owned()))
}
