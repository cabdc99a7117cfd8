//! The three requests of routing netlink (rtnetlink(7)) that a static network
//! needs: interface up, address, default route.

use std::io;
use std::net::Ipv4Addr;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;

const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;

/// `struct nlmsghdr`.
const HEADER_LEN: u32 = 16;

/// A request to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Brings an interface up.
    Up {
        /// Index of the interface.
        interface: u32,
    },
    /// Gives an interface an address.
    Address {
        /// Index of the interface.
        interface: u32,
        /// The address.
        address: Ipv4Addr,
        /// Prefix length of its network.
        prefix: u8,
    },
    /// Sets the default route.
    DefaultRoute {
        /// Index of the interface.
        interface: u32,
        /// The gateway.
        gateway: Ipv4Addr,
    },
}

impl Request {
    /// The message's bytes, in the machine's byte order as netlink wants.
    fn encode(&self, sequence: u32) -> Vec<u8> {
        let (kind, create, payload) = match *self {
            Self::Up { interface } => {
                // struct ifinfomsg: family, pad, type, index, flags, change
                let mut payload = vec![0; 4];
                for word in [interface, IFF_UP, IFF_UP] {
                    payload.extend_from_slice(&word.to_ne_bytes());
                }
                (RTM_NEWLINK, 0, payload)
            }
            Self::Address {
                interface,
                address,
                prefix,
            } => {
                // struct ifaddrmsg: family, prefixlen, flags, scope, index
                let mut payload = vec![AF_INET, prefix, 0, 0];
                payload.extend_from_slice(&interface.to_ne_bytes());
                push_attribute(&mut payload, IFA_LOCAL, address.octets());
                push_attribute(&mut payload, IFA_ADDRESS, address.octets());
                (RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, payload)
            }
            Self::DefaultRoute { interface, gateway } => {
                // struct rtmsg: family, dst_len, src_len, tos, table, protocol,
                // scope, type, flags
                let mut payload =
                    vec![AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST];
                payload.extend_from_slice(&[0; 4]);
                push_attribute(&mut payload, RTA_GATEWAY, gateway.octets());
                push_attribute(&mut payload, RTA_OIF, interface.to_ne_bytes());
                (RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, payload)
            }
        };
        let length = HEADER_LEN + u32::try_from(payload.len()).unwrap_or(u32::MAX - HEADER_LEN);
        let mut message = length.to_ne_bytes().to_vec();
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK | create).to_ne_bytes());
        message.extend_from_slice(&sequence.to_ne_bytes());
        message.extend_from_slice(&0u32.to_ne_bytes());
        message.extend_from_slice(&payload);
        message
    }
}

/// Appends a `struct rtattr` with a value of four bytes, which needs no padding.
fn push_attribute(payload: &mut Vec<u8>, kind: u16, value: [u8; 4]) {
    payload.extend_from_slice(&8u16.to_ne_bytes());
    payload.extend_from_slice(&kind.to_ne_bytes());
    payload.extend_from_slice(&value);
}

/// Reads the acknowledgement of request `sequence`: `None` when the message is
/// something else.
fn parse_acknowledgement(message: &[u8], sequence: u32) -> Option<Result<(), i32>> {
    let half = |at: usize| Some(u16::from_ne_bytes(*message.get(at..)?.first_chunk()?));
    let word = |at: usize| Some(u32::from_ne_bytes(*message.get(at..)?.first_chunk()?));
    if half(4)? != NLMSG_ERROR || word(8)? != sequence {
        return None;
    }
    let error = i32::from_ne_bytes(*message.get(16..)?.first_chunk()?);
    Some(if error == 0 {
        Ok(())
    } else {
        Err(error.saturating_neg())
    })
}

/// Sends the requests in order; each must be acknowledged.
///
/// # Errors
/// The kernel's error for the first request that it refuses.
pub fn apply(requests: &[Request]) -> io::Result<()> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let kernel = SocketAddrNetlink::new(0, 0);
    for (request, sequence) in requests.iter().zip(1u32..) {
        sendto(
            &socket,
            &request.encode(sequence),
            SendFlags::empty(),
            &kernel,
        )?;
        loop {
            let mut buffer = [0u8; 4096];
            let (received, _) = recv(&socket, &mut buffer, RecvFlags::empty())?;
            let message = buffer.get(..received).unwrap_or_default();
            match parse_acknowledgement(message, sequence) {
                Some(Ok(())) => break,
                Some(Err(errno)) => return Err(io::Error::from_raw_os_error(errno)),
                None => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_those_of_rtnetlink() {
        assert_eq!(
            hex::encode(Request::Up { interface: 2 }.encode(1)),
            "20000000 1000 0500 01000000 00000000 00000000 02000000 01000000 01000000"
                .replace(' ', "")
        );
        let address = Request::Address {
            interface: 2,
            address: Ipv4Addr::new(10, 0, 2, 15),
            prefix: 24,
        };
        assert_eq!(
            hex::encode(address.encode(2)),
            "28000000 1400 0506 02000000 00000000 02180000 02000000 \
             08000200 0a00020f 08000100 0a00020f"
                .replace(' ', "")
        );
        let route = Request::DefaultRoute {
            interface: 2,
            gateway: Ipv4Addr::new(10, 0, 2, 2),
        };
        assert_eq!(
            hex::encode(route.encode(3)),
            "2c000000 1800 0506 03000000 00000000 02000000 fe030001 00000000 \
             08000500 0a000202 08000400 02000000"
                .replace(' ', "")
        );
    }

    #[test]
    fn acknowledgements_belong_to_their_request() {
        let acknowledgement = |kind: u16, sequence: u32, error: i32| {
            let mut message = 36u32.to_ne_bytes().to_vec();
            message.extend_from_slice(&kind.to_ne_bytes());
            message.extend_from_slice(&[0; 2]);
            message.extend_from_slice(&sequence.to_ne_bytes());
            message.extend_from_slice(&[0; 4]);
            message.extend_from_slice(&error.to_ne_bytes());
            message
        };
        assert_eq!(
            parse_acknowledgement(&acknowledgement(2, 7, 0), 7),
            Some(Ok(()))
        );
        assert_eq!(
            parse_acknowledgement(&acknowledgement(2, 7, -17), 7),
            Some(Err(17))
        );
        assert_eq!(parse_acknowledgement(&acknowledgement(2, 6, 0), 7), None);
        assert_eq!(parse_acknowledgement(&acknowledgement(16, 7, 0), 7), None);
        assert_eq!(
            parse_acknowledgement(&acknowledgement(2, 7, 0)[..18], 7),
            None
        );
        assert_eq!(parse_acknowledgement(&[], 7), None);
    }

    /// The kernel reads the message: it refuses an interface that is not there
    /// with the errno for exactly that.
    #[test]
    fn the_kernel_answers() {
        let error = apply(&[Request::Up {
            interface: 0x7fff_0000,
        }])
        .expect_err("no interface");
        assert!(
            matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EPERM)),
            "{error}"
        );
    }
}
