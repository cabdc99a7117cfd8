//! Reports from `/dev/sev-guest` (Linux, `Documentation/virt/coco/sev-guest.rst`),
//! for kernels without configfs-tsm.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;

use assay_tee::guest_message::{CertificateTable, ReportRequest, ReportResponse};
use assay_tee::report::REPORT_LEN;

use super::{Evidence, EvidenceError};
use crate::sys;

pub(super) const DEVICE: &str = "/dev/sev-guest";
const INTERFACE: &str = "/dev/sev-guest";
/// MSG_REPORT_RSP up to the end of the report; the buffer behind is padding.
const RESPONSE_LEN: usize = 0x20 + REPORT_LEN;

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> EvidenceError {
    move |source| EvidenceError::Request {
        interface: INTERFACE,
        action,
        source,
    }
}

pub(super) fn request(report_data: &[u8; 64]) -> Result<Evidence, EvidenceError> {
    let device = File::options()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(failed("open the device"))?;
    let message = ReportRequest::new(*report_data, 0).encode();
    let (response, table) = sys::snp_extended_report(device.as_fd(), message)
        .map_err(failed("request an extended report"))?;
    let answer = |source| EvidenceError::Answer {
        interface: INTERFACE,
        source,
    };
    let response = response.get(..RESPONSE_LEN).unwrap_or_default();
    let report = ReportResponse::parse(response).map_err(answer)?.report;
    let certificates = CertificateTable::parse(&table).map_err(answer)?;
    Ok(Evidence {
        report,
        certificates,
    })
}
