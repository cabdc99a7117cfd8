//! A client of the QEMU Machine Protocol (QEMU `docs/interop/qmp-spec.rst`):
//! commands without arguments, and a log of events.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::{debug, info};

use crate::lines::Lines;

/// How long QEMU may take to answer. Its main loop answers in milliseconds; a
/// loop that is stuck for seconds is what a liveness probe is to find.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// QEMU does not do as it is told.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The connection is gone or was never made.
    #[error("QEMU's monitor is not connected")]
    Disconnected,
    /// No answer in time.
    #[error("QEMU's monitor does not answer")]
    Timeout,
    /// QEMU refuses the command.
    #[error("QEMU refuses {command}: {description}")]
    Refused {
        /// The command.
        command: &'static str,
        /// What QEMU says.
        description: String,
    },
    /// The peer does not speak QMP.
    #[error("QEMU's monitor broke the protocol: {0}")]
    Protocol(&'static str),
    /// The connection broke.
    #[error("connection to QEMU's monitor broke")]
    Io(#[from] io::Error),
}

struct Request {
    command: &'static str,
    answer: oneshot::Sender<Result<(), QmpError>>,
}

/// Sends commands to the connection's task.
#[derive(Debug, Clone)]
pub struct Qmp(mpsc::Sender<Request>);

impl Qmp {
    /// A client, and the task that serves it: accepts QEMU's connection on
    /// `listener` and runs until QEMU closes it.
    pub(crate) fn new(
        listener: UnixListener,
    ) -> (Self, impl Future<Output = Result<(), QmpError>> + Send) {
        let (sender, requests) = mpsc::channel(16);
        (Self(sender), serve(listener, requests))
    }

    /// Runs a command without arguments.
    ///
    /// # Errors
    /// When QEMU refuses it, or does not answer in time.
    pub async fn execute(&self, command: &'static str) -> Result<(), QmpError> {
        let exchange = async {
            let (answer, answered) = oneshot::channel();
            let request = Request { command, answer };
            self.0
                .send(request)
                .await
                .map_err(|_| QmpError::Disconnected)?;
            answered.await.map_err(|_| QmpError::Disconnected)?
        };
        timeout(ANSWER_TIMEOUT, exchange)
            .await
            .map_err(|_| QmpError::Timeout)?
    }
}

/// A line from QEMU.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Message {
    Greeting {
        #[serde(rename = "QMP")]
        _greeting: Value,
    },
    Event {
        event: String,
        #[serde(default)]
        data: Value,
    },
    Error {
        error: ErrorBody,
        id: Option<u64>,
    },
    Return {
        #[serde(rename = "return")]
        _value: Value,
        id: Option<u64>,
    },
}

#[derive(Debug, Deserialize)]
struct ErrorBody {
    desc: String,
}

async fn serve(
    listener: UnixListener,
    mut requests: mpsc::Receiver<Request>,
) -> Result<(), QmpError> {
    let (stream, _) = listener.accept().await?;
    let (reader, mut writer) = stream.into_split();
    let mut lines = Lines::new(reader);
    match next_message(&mut lines).await? {
        Some(Message::Greeting { .. }) => {}
        _ => return Err(QmpError::Protocol("no greeting")),
    }
    send(&mut writer, "qmp_capabilities", 0).await?;

    // Commands wait until QEMU has left capabilities negotiation: it answers
    // them in order.
    let mut last_id = 0;
    let mut pending: HashMap<u64, Request> = HashMap::new();
    loop {
        tokio::select! {
            Some(request) = requests.recv() => {
                last_id += 1;
                send(&mut writer, request.command, last_id).await?;
                // Requests that were given up are forgotten with the next one.
                pending.retain(|_, request| !request.answer.is_closed());
                pending.insert(last_id, request);
            }
            message = next_message(&mut lines) => match message? {
                // QEMU is gone; what that means is told by its exit status.
                None => return Ok(()),
                Some(Message::Greeting { .. }) => {
                    return Err(QmpError::Protocol("second greeting"));
                }
                Some(Message::Event { event, data }) => info!(%event, %data, "QEMU"),
                Some(Message::Return { id, .. }) => answer(&mut pending, id, None),
                Some(Message::Error { error, id }) => answer(&mut pending, id, Some(error.desc)),
            },
        }
    }
}

fn answer(pending: &mut HashMap<u64, Request>, id: Option<u64>, refusal: Option<String>) {
    let Some(request) = id.and_then(|id| pending.remove(&id)) else {
        if let Some(description) = refusal {
            info!(description, "QEMU refuses a command that nobody waits for");
        }
        return;
    };
    let command = request.command;
    let result = match refusal {
        None => Ok(()),
        Some(description) => Err(QmpError::Refused {
            command,
            description,
        }),
    };
    if request.answer.send(result).is_err() {
        debug!(command, "answer came too late");
    }
}

async fn send(writer: &mut OwnedWriteHalf, command: &str, id: u64) -> io::Result<()> {
    let line = format!("{}\n", json!({ "execute": command, "id": id }));
    writer.write_all(line.as_bytes()).await
}

async fn next_message(lines: &mut Lines<OwnedReadHalf>) -> Result<Option<Message>, QmpError> {
    match lines.next().await {
        Ok(Some(line)) => serde_json::from_slice(&line)
            .map(Some)
            .map_err(|_| QmpError::Protocol("a line that is no message")),
        Ok(None) => Ok(None),
        // QEMU ended with a command unread, such as the one after `quit`.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
        Err(error) => Err(error.into()),
    }
}
