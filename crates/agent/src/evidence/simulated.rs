//! Reports from the simulated processor behind a virtio-serial port.

use std::io;
use std::time::Duration;

use assay_tee::guest_event::PSP_SIM_PORT;
use assay_tee::guest_message::{ReportRequest, ReportResponse, encode_frame, parse_frame_length};

use super::{Evidence, EvidenceError};
use crate::devices;
use crate::port::Port;

const INTERFACE: &str = "simulated processor";
/// How long the port may take to appear, and each half of an exchange to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// The simulated processor. After a failure its port is opened anew, so that a
/// late answer is not taken for that to the next request.
#[derive(Debug)]
pub struct Processor(Option<Port>);

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> EvidenceError {
    move |source| EvidenceError::Request {
        interface: INTERFACE,
        action,
        source,
    }
}

fn open() -> Result<Port, EvidenceError> {
    let node = devices::serial_port(PSP_SIM_PORT, PATIENCE).map_err(EvidenceError::NoProcessor)?;
    Port::open(&node).map_err(failed("open the port"))
}

impl Processor {
    pub(super) fn detect() -> Result<Self, EvidenceError> {
        open().map(|port| Self(Some(port)))
    }

    pub(super) fn request(&mut self, report_data: &[u8; 64]) -> Result<Evidence, EvidenceError> {
        let mut port = match self.0.take() {
            Some(port) => port,
            None => open()?,
        };
        let evidence = exchange(&mut port, report_data)?;
        self.0 = Some(port);
        Ok(evidence)
    }
}

fn exchange(port: &mut Port, report_data: &[u8; 64]) -> Result<Evidence, EvidenceError> {
    let answer = |source| EvidenceError::Answer {
        interface: INTERFACE,
        source,
    };
    let frame = encode_frame(&ReportRequest::new(*report_data, 0).encode()).map_err(answer)?;
    port.write_all(&frame, PATIENCE)
        .map_err(failed("send a request"))?;
    let mut prefix = [0; 4];
    port.read_exact(&mut prefix, PATIENCE)
        .map_err(failed("receive an answer"))?;
    let mut message = vec![0; parse_frame_length(prefix).map_err(answer)?];
    port.read_exact(&mut message, PATIENCE)
        .map_err(failed("receive an answer"))?;
    let ReportResponse {
        report,
        certificates,
    } = ReportResponse::parse(&message).map_err(answer)?;
    Ok(Evidence {
        report,
        certificates,
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::thread;

    use assay_tee::guest_message::{CertificateTable, GuestMessageError};
    use assay_tee::report::AttestationReport;

    use super::super::Provider;
    use super::*;
    use crate::port::tests::pair;

    /// Asks a host that answers the request with what `respond` makes of it.
    fn ask(
        respond: impl FnOnce(ReportRequest) -> Vec<u8> + Send + 'static,
    ) -> Result<Evidence, EvidenceError> {
        let (port, mut host) = pair();
        let host = thread::spawn(move || {
            let mut frame = [0; 4 + 96];
            host.read_exact(&mut frame).expect("request");
            assert_eq!(frame[..4], [96, 0, 0, 0]);
            let request = ReportRequest::parse(&frame[4..]).expect("MSG_REPORT_REQ");
            host.write_all(&encode_frame(&respond(request)).expect("frame"))
                .expect("answer");
            host
        });
        let result = Provider::Simulated(Processor(Some(port))).request(&[7; 64]);
        drop(host.join().expect("host"));
        result
    }

    fn response(report_data: [u8; 64]) -> Vec<u8> {
        let mut report = AttestationReport::zeroed();
        report.report_data = report_data;
        let certificates = CertificateTable::default();
        ReportResponse {
            report: report.encode(),
            certificates,
        }
        .encode()
        .expect("response")
    }

    #[test]
    fn the_report_over_the_request_is_accepted() {
        let evidence = ask(|request| response(request.report_data)).expect("evidence");
        assert_eq!(evidence.report[0x50..0x90], [7; 64]);
    }

    #[test]
    fn every_other_answer_is_refused() {
        assert!(matches!(
            ask(|_| response([8; 64])),
            Err(EvidenceError::ReportData)
        ));
        assert!(matches!(
            ask(|_| ReportResponse::encode_refusal(0x16)),
            Err(EvidenceError::Answer {
                source: GuestMessageError::Status { status: 0x16 },
                ..
            })
        ));
        assert!(matches!(
            ask(|request| response(request.report_data)[..100].to_vec()),
            Err(EvidenceError::Answer {
                source: GuestMessageError::Length { .. },
                ..
            })
        ));
    }
}
