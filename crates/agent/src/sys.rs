//! The system calls that `rustix` has no safe form of. The only unsafe code of
//! the agent; every function here is safe to call.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr;
use std::time::Duration;

use rustix::thread::UnshareFlags;

/// Size of `struct dm_ioctl` (Linux, `uapi/linux/dm-ioctl.h`).
pub(crate) const DM_IOCTL_LEN: usize = 312;

/// A command of the device mapper's control device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum DmCommand {
    Create = 3,
    /// Resumes a device, which puts its loaded table to use.
    Suspend = 6,
    LoadTable = 9,
}

/// Request code `_IOWR(type, number, size)` (Linux, `uapi/asm-generic/ioctl.h`).
const fn iowr(group: u8, number: u8, size: usize) -> libc::Ioctl {
    assert!(size < 1 << 14);
    ((3 << 30) | ((size as u64) << 16) | ((group as u64) << 8) | number as u64) as libc::Ioctl
}

/// Sends a command to the device mapper. `buffer` starts with a
/// `struct dm_ioctl`, whose `data_size` is set here.
pub(crate) fn dm_ioctl(
    control: BorrowedFd<'_>,
    command: DmCommand,
    buffer: &mut [u8],
) -> io::Result<()> {
    let too_short = || io::Error::from(io::ErrorKind::InvalidInput);
    if buffer.len() < DM_IOCTL_LEN {
        return Err(too_short());
    }
    let length = u32::try_from(buffer.len()).map_err(|_| too_short())?;
    buffer
        .get_mut(12..16)
        .ok_or_else(too_short)?
        .copy_from_slice(&length.to_ne_bytes());
    let request = iowr(0xfd, command as u8, DM_IOCTL_LEN);
    // SAFETY: the device mapper reads and writes `data_size` bytes at the
    // pointer, which is the buffer's length, and keeps no pointer to it.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), request, buffer.as_mut_ptr()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// `struct snp_guest_request_ioctl` (Linux, `uapi/linux/sev-guest.h`).
#[repr(C)]
struct SnpGuestRequest {
    message_version: u8,
    request: u64,
    response: u64,
    exit_info_2: u64,
}

/// `struct snp_ext_report_req` (Linux, `uapi/linux/sev-guest.h`).
#[repr(C)]
struct SnpExtendedReportRequest {
    request: [u8; 96],
    certificates: u64,
    certificates_len: u32,
}

const _: () = assert!(size_of::<SnpGuestRequest>() == 32);
const _: () = assert!(size_of::<SnpExtendedReportRequest>() == 112);

/// Size of `struct snp_report_resp`.
const SNP_RESPONSE_LEN: usize = 4000;
/// Most that a host may hand over as certificates (`SEV_FW_BLOB_MAX_SIZE`).
const SNP_CERTIFICATES_LEN: u32 = 0x4000;

/// SNP_GET_EXT_REPORT: sends a MSG_REPORT_REQ and returns MSG_REPORT_RSP and
/// the certificate table's pages.
pub(crate) fn snp_extended_report(
    device: BorrowedFd<'_>,
    message: [u8; 96],
) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut response = vec![0u8; SNP_RESPONSE_LEN];
    let mut certificates = vec![0u8; SNP_CERTIFICATES_LEN as usize];
    let extended = SnpExtendedReportRequest {
        request: message,
        certificates: certificates.as_mut_ptr().expose_provenance() as u64,
        certificates_len: SNP_CERTIFICATES_LEN,
    };
    let mut request = SnpGuestRequest {
        message_version: 1,
        request: ptr::from_ref(&extended).expose_provenance() as u64,
        response: response.as_mut_ptr().expose_provenance() as u64,
        exit_info_2: 0,
    };
    let code = iowr(b'S', 2, size_of::<SnpGuestRequest>());
    // SAFETY: all three pointers are valid for the call: `extended` is read,
    // `response` has the size of `struct snp_report_resp`, and `certificates`
    // has the length given with it.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), code, ptr::from_mut(&mut request)) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok((response, certificates))
    }
}

/// Gives the calling thread, and the processes that it starts, namespaces of
/// their own.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    assert!(
        !flags.contains(UnshareFlags::FILES),
        "file descriptors stay shared"
    );
    // SAFETY: unsafe only for CLONE_FILES, which would leave other threads with
    // descriptors that this one closes.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Signals that PID 1 waits for instead of being interrupted by them.
pub(crate) struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks `signals` in this thread and in those that it starts from now on.
    pub(crate) fn block(signals: &[i32]) -> io::Result<Self> {
        // SAFETY: a zeroed sigset_t is a valid place for sigemptyset to fill.
        let mut set = unsafe { std::mem::zeroed() };
        // SAFETY: `set` is valid for the calls, which keep no pointer to it.
        let code = unsafe {
            libc::sigemptyset(&raw mut set);
            for &signal in signals {
                libc::sigaddset(&raw mut set, signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut())
        };
        if code != 0 {
            Err(io::Error::from_raw_os_error(code))
        } else {
            Ok(Self(set))
        }
    }

    /// Waits for one of the signals, at most for `timeout`.
    pub(crate) fn wait(&self, timeout: Duration) -> Option<i32> {
        let timeout = libc::timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // SAFETY: both pointers are valid for the call; no information is asked
        // for.
        let signal =
            unsafe { libc::sigtimedwait(&raw const self.0, ptr::null_mut(), &raw const timeout) };
        (signal > 0).then_some(signal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_codes_are_those_of_the_headers() {
        assert_eq!(iowr(0xfd, 3, DM_IOCTL_LEN), 0xc138_fd03);
        assert_eq!(iowr(b'S', 2, size_of::<SnpGuestRequest>()), 0xc020_5302);
    }

    #[test]
    fn a_short_device_mapper_buffer_never_reaches_the_kernel() {
        let null = std::fs::File::open("/dev/null").expect("open");
        let control = std::os::fd::AsFd::as_fd(&null);
        let error = dm_ioctl(control, DmCommand::Create, &mut [0; 311]).expect_err("short");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
