//! Ports of this machine that are forwarded to the guest.

use std::net::{Ipv4Addr, TcpListener};
use std::str::FromStr;

use anyhow::{Context as _, Result};
use assay_crds::v1alpha1::confidential_deployment::Port;
use assay_launcher::spec::PortForward;

/// First port that needs no privileges.
const UNPRIVILEGED: u16 = 1024;

/// A port to forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Publish {
    address: Ipv4Addr,
    /// Port of this machine; 0 for any free one.
    port: u16,
    guest: u16,
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            "must be [ADDRESS:]PORT:GUEST_PORT with an IPv4 address, such as 127.0.0.1:8080:80"
                .to_owned()
        };
        let (rest, guest) = text.rsplit_once(':').ok_or_else(wrong)?;
        let (address, port) = match rest.rsplit_once(':') {
            Some((address, port)) => (address.parse().map_err(|_| wrong())?, port),
            None => (Ipv4Addr::LOCALHOST, rest),
        };
        Ok(Self {
            address,
            port: port.parse().map_err(|_| wrong())?,
            guest: guest
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(wrong)?,
        })
    }
}

/// The forwarded ports: those that were asked for, or every port of the
/// deployment on the loopback interface under its own number, where that is free.
pub(super) fn publish(ports: &[Port], asked: &[Publish]) -> Result<Vec<PortForward>> {
    if asked.is_empty() {
        let forward = |port: &Port| {
            let guest = port.container_port;
            let own = (guest >= UNPRIVILEGED).then(|| free(Ipv4Addr::LOCALHOST, guest).ok());
            let port = match own.flatten() {
                Some(port) => port,
                None => free(Ipv4Addr::LOCALHOST, 0).context("no port is free")?,
            };
            Ok(forward(Ipv4Addr::LOCALHOST, port, guest))
        };
        return ports.iter().map(forward).collect();
    }
    let forward = |publish: &Publish| {
        let Publish {
            address,
            port,
            guest,
        } = *publish;
        let port = free(address, port).with_context(|| {
            format!("--publish {address}:{port}:{guest}: cannot listen there; choose another port")
        })?;
        Ok(forward(address, port, guest))
    };
    asked.iter().map(forward).collect()
}

fn forward(address: Ipv4Addr, port: u16, guest: u16) -> PortForward {
    PortForward {
        address: Some(address),
        pod: port,
        guest,
    }
}

/// A port that is free now; QEMU takes it in a moment.
fn free(address: Ipv4Addr, port: u16) -> std::io::Result<u16> {
    Ok(TcpListener::bind((address, port))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        let publish = |address: [u8; 4], port, guest| Publish {
            address: address.into(),
            port,
            guest,
        };
        assert_eq!("8080:80".parse(), Ok(publish([127, 0, 0, 1], 8080, 80)));
        assert_eq!("0:80".parse(), Ok(publish([127, 0, 0, 1], 0, 80)));
        assert_eq!(
            "0.0.0.0:8080:80".parse(),
            Ok(publish([0, 0, 0, 0], 8080, 80))
        );
        for text in ["80", "80:", "80:0", "x:80", "localhost:80:80", "::1:80:80"] {
            assert!(text.parse::<Publish>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_port_that_is_taken_is_replaced_or_named() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let taken = listener.local_addr().unwrap().port();
        let port = |container_port| Port {
            name: "http".to_owned(),
            container_port,
        };
        let [forward] = publish(&[port(taken)], &[]).unwrap()[..] else {
            panic!("one port was expected")
        };
        assert_eq!(
            (forward.address, forward.guest),
            (Some(Ipv4Addr::LOCALHOST), taken)
        );
        assert_ne!(forward.pod, taken);
        let [privileged] = publish(&[port(80)], &[]).unwrap()[..] else {
            panic!("one port was expected")
        };
        assert_ne!(privileged.pod, 80);

        let asked = format!("{taken}:80").parse().unwrap();
        let error = publish(&[], &[asked]).unwrap_err().to_string();
        assert!(error.contains("cannot listen there"), "{error}");
        drop(listener);
        assert_eq!(publish(&[], &[asked]).unwrap()[0].pod, taken);
    }
}
