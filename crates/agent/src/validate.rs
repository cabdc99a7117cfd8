//! What may be obeyed: the checks of the measured configuration and of the
//! instance data. Everything after them works on valid values only.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use assay_tee::guest_config::RootFs;
use assay_tee::instance::ResourceRequest;
use assay_tee::{GuestConfig, InstanceData};
use rustix::process::Signal;

use crate::http::{Endpoint, EndpointError};
use crate::resource::{ResourcePath, ResourcePathError};

/// A measured configuration that is fit to run, on the command line it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidGuest {
    /// The configuration.
    pub config: GuestConfig,
    /// Signal that asks the workload to stop.
    pub stop_signal: Signal,
}

/// Why a guest does not start.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestRefusal {
    /// The document has another version.
    #[error(
        "guest configuration has version {got}, this agent reads {}",
        GuestConfig::VERSION
    )]
    Version {
        /// The version found.
        got: u32,
    },
    /// The kernel was started with another command line than the measured one.
    #[error("the kernel command line is not the measured one: {got:?}")]
    Cmdline {
        /// The command line found.
        got: String,
    },
    /// A module path is not an absolute path without `..`.
    #[error("not an absolute path of a module file: {path:?}")]
    ModulePath {
        /// The path found.
        path: String,
    },
    /// The verity parameters describe no device.
    #[error("the root disk's verity parameters are not usable: {what}")]
    Verity {
        /// The parameter at fault.
        what: &'static str,
    },
    /// A directory is not an absolute path without `..`, or is the root.
    #[error("not an absolute path of a directory to keep writable: {path:?}")]
    WritablePath {
        /// The path found.
        path: String,
    },
    /// The process has no program to run, or a string that `execve` cannot carry.
    #[error("the process is not runnable: {what}")]
    Process {
        /// What is wrong.
        what: &'static str,
    },
    /// The stop signal has no number.
    #[error("not a signal: {name:?}")]
    StopSignal {
        /// The name found.
        name: String,
    },
}

/// Checks the measured configuration against itself and the running kernel.
///
/// `cmdline` is the content of `/proc/cmdline`.
///
/// # Errors
/// The first reason not to start.
pub fn validate_guest(config: GuestConfig, cmdline: &[u8]) -> Result<ValidGuest, GuestRefusal> {
    if config.version != GuestConfig::VERSION {
        return Err(GuestRefusal::Version {
            got: config.version,
        });
    }
    let running = cmdline.strip_suffix(b"\n").unwrap_or(cmdline);
    if running != config.cmdline.as_bytes() {
        return Err(GuestRefusal::Cmdline {
            got: String::from_utf8_lossy(running).into_owned(),
        });
    }
    for path in &config.modules {
        if !is_plain_absolute(path) {
            return Err(GuestRefusal::ModulePath { path: path.clone() });
        }
    }
    validate_root(&config.root)?;
    for path in &config.hardening.writable {
        if !is_plain_absolute(path) {
            return Err(GuestRefusal::WritablePath { path: path.clone() });
        }
    }

    let process = &config.process;
    let refuse = |what| Err(GuestRefusal::Process { what });
    match process.args.first() {
        None => return refuse("no arguments"),
        Some(program) if program.is_empty() => return refuse("empty program name"),
        Some(_) => {}
    }
    if !process.cwd.starts_with('/') {
        return refuse("working directory is not absolute");
    }
    let strings = process
        .args
        .iter()
        .chain(&process.env)
        .chain([&process.cwd]);
    if strings.into_iter().any(|s| s.contains('\0')) {
        return refuse("a string contains NUL");
    }
    if process
        .env
        .iter()
        .any(|e| e.find('=').is_none_or(|at| at == 0))
    {
        return refuse("an environment entry is not NAME=value");
    }
    let stop_signal =
        parse_signal(&process.stop_signal).ok_or_else(|| GuestRefusal::StopSignal {
            name: process.stop_signal.clone(),
        })?;
    Ok(ValidGuest {
        config,
        stop_signal,
    })
}

fn validate_root(root: &RootFs) -> Result<(), GuestRefusal> {
    let RootFs::DmVerity {
        serial,
        block_size,
        data_blocks,
        hash_start_block,
        salt,
        ..
    } = root
    else {
        return Ok(());
    };
    let refuse = |what| Err(GuestRefusal::Verity { what });
    if serial.is_empty() || serial.len() > 20 {
        return refuse("serial");
    }
    // The kernel takes powers of two from 512 to the page size.
    if !block_size.is_power_of_two() || !(512..=4096).contains(block_size) {
        return refuse("block size");
    }
    if *data_blocks == 0 || data_blocks.checked_mul(u64::from(*block_size)).is_none() {
        return refuse("data blocks");
    }
    if hash_start_block < data_blocks {
        return refuse("hash start block");
    }
    // dm-verity: at most 256 bytes of salt.
    if salt.len() > 512
        || hex::decode(salt).is_err()
        || salt.bytes().any(|b| b.is_ascii_uppercase())
    {
        return refuse("salt");
    }
    Ok(())
}

fn is_plain_absolute(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|rest| {
        !rest.contains('\0') && rest.split('/').all(|part| !matches!(part, "" | "." | ".."))
    })
}

/// A signal by the names that OCI images use: `SIGTERM`, `TERM` or `15`.
fn parse_signal(name: &str) -> Option<Signal> {
    if let Ok(number) = name.parse() {
        return Signal::from_named_raw(number);
    }
    Some(match name.strip_prefix("SIG").unwrap_or(name) {
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "QUIT" => Signal::QUIT,
        "ABRT" => Signal::ABORT,
        "KILL" => Signal::KILL,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "PIPE" => Signal::PIPE,
        "ALRM" => Signal::ALARM,
        "TERM" => Signal::TERM,
        "CONT" => Signal::CONT,
        "STOP" => Signal::STOP,
        "WINCH" => Signal::WINCH,
        "PWR" => Signal::POWER,
        _ => return None,
    })
}

/// Instance data that is fit to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidInstance {
    /// Address of the guest's interface.
    pub address: Ipv4Addr,
    /// Prefix length of its network.
    pub prefix: u8,
    /// Default gateway.
    pub gateway: Ipv4Addr,
    /// Name servers.
    pub nameservers: Vec<IpAddr>,
    /// Host name, at most 63 bytes.
    pub hostname: String,
    /// Where the verifier is.
    pub verifier: Endpoint,
    /// What to ask for, and where to put it.
    pub resources: Vec<(ResourceRequest, ResourcePath)>,
    /// The document as parsed.
    pub data: InstanceData,
    /// The document as received: what HOST_DATA binds.
    pub document: String,
}

/// Why instance data is not used.
#[derive(Debug, thiserror::Error)]
pub enum InstanceRefusal {
    /// The bytes are not text.
    #[error("the instance data is not UTF-8")]
    Encoding(#[source] std::string::FromUtf8Error),
    /// The text is not the document, strictly read.
    #[error("the instance data is not a valid document")]
    Parse(#[source] serde_json::Error),
    /// The document has another version.
    #[error(
        "instance data has version {got}, this agent reads {}",
        InstanceData::VERSION
    )]
    Version {
        /// The version found.
        got: u32,
    },
    /// A field of the network configuration is malformed.
    #[error("instance data: {field} is not usable: {got:?}")]
    Network {
        /// Name of the field.
        field: &'static str,
        /// The value found.
        got: String,
    },
    /// The verifier cannot be addressed.
    #[error("instance data: the verifier cannot be addressed")]
    Verifier(#[source] EndpointError),
    /// A resource may not be placed where it is asked to be.
    #[error("instance data: resource {name:?} has no usable path")]
    Resource {
        /// Name of the resource.
        name: String,
        /// Why not.
        #[source]
        source: ResourcePathError,
    },
    /// Two resources want the same file.
    #[error("instance data: two resources are to be written to {path:?}")]
    DuplicateResource {
        /// The path.
        path: String,
    },
}

/// Parses and checks the instance document.
///
/// # Errors
/// The first reason not to use it.
pub fn validate_instance(document: Vec<u8>) -> Result<ValidInstance, InstanceRefusal> {
    let document = String::from_utf8(document).map_err(InstanceRefusal::Encoding)?;
    let data: InstanceData = serde_json::from_str(&document).map_err(InstanceRefusal::Parse)?;
    if data.version != InstanceData::VERSION {
        return Err(InstanceRefusal::Version { got: data.version });
    }
    let network = &data.network;
    let refuse = |field, got: &str| InstanceRefusal::Network {
        field,
        got: got.to_owned(),
    };

    let (address, prefix) = network
        .address
        .split_once('/')
        .and_then(|(address, prefix)| Some((address.parse().ok()?, prefix.parse().ok()?)))
        .filter(|(_, prefix)| (1..=32).contains(prefix))
        .ok_or_else(|| refuse("network.address", &network.address))?;
    let gateway = network
        .gateway
        .parse()
        .map_err(|_| refuse("network.gateway", &network.gateway))?;
    let nameservers = network
        .nameservers
        .iter()
        .map(|server| {
            server
                .parse()
                .map_err(|_| refuse("network.nameservers", server))
        })
        .collect::<Result<_, _>>()?;
    let hostname = fit_hostname(&network.hostname)
        .ok_or_else(|| refuse("network.hostname", &network.hostname))?;

    let addresses = data
        .verifier
        .addresses
        .iter()
        .map(|a| a.parse().map_err(|_| refuse("verifier.addresses", a)))
        .collect::<Result<Vec<SocketAddr>, _>>()?;
    let verifier = Endpoint::new(&data.verifier.url, addresses, &data.verifier.ca)
        .map_err(InstanceRefusal::Verifier)?;

    let mut resources: Vec<(ResourceRequest, ResourcePath)> = Vec::new();
    for request in &data.resources {
        let path =
            ResourcePath::parse(&request.path).map_err(|source| InstanceRefusal::Resource {
                name: request.name.clone(),
                source,
            })?;
        if resources.iter().any(|(_, other)| *other == path) {
            return Err(InstanceRefusal::DuplicateResource {
                path: request.path.clone(),
            });
        }
        resources.push((request.clone(), path));
    }
    Ok(ValidInstance {
        address,
        prefix,
        gateway,
        nameservers,
        hostname,
        verifier,
        resources,
        data,
        document,
    })
}

/// Cuts a pod's name to what a host name may be, as the kubelet does.
fn fit_hostname(name: &str) -> Option<String> {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    if !name.bytes().all(legal) {
        return None;
    }
    let cut = name.get(..name.len().min(63))?.trim_end_matches(['-', '.']);
    (!cut.is_empty()).then(|| cut.to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use assay_tee::Sha256Digest;
    use assay_tee::guest_config::{GuestHardening, Process};
    use assay_tee::instance::{Network, PodIdentity, VerifierEndpoint};

    use super::*;

    pub(crate) const CMDLINE: &str = "console=ttyS0 lockdown=integrity";

    pub(crate) fn good_guest() -> GuestConfig {
        GuestConfig {
            version: 1,
            cmdline: CMDLINE.to_owned(),
            modules: vec!["/lib/modules/erofs.ko.xz".to_owned()],
            root: RootFs::DmVerity {
                serial: "assay-root".to_owned(),
                block_size: 4096,
                data_blocks: 100,
                hash_start_block: 101,
                root_hash: Sha256Digest::of(b"root"),
                salt: "0011".to_owned(),
            },
            hardening: GuestHardening {
                read_only_root: true,
                no_exec: true,
                writable: vec!["/run".to_owned(), "/tmp".to_owned()],
            },
            process: Process {
                args: vec!["nginx".to_owned(), "-g".to_owned()],
                env: vec!["PATH=/usr/sbin:/usr/bin".to_owned()],
                cwd: "/srv".to_owned(),
                uid: 101,
                gid: 102,
                additional_gids: vec![103],
                stop_signal: "SIGQUIT".to_owned(),
            },
        }
    }

    pub(crate) fn test_ca() -> String {
        let key = rcgen::KeyPair::generate().expect("key");
        rcgen::CertificateParams::default()
            .self_signed(&key)
            .expect("certificate")
            .pem()
    }

    pub(crate) fn good_instance() -> InstanceData {
        InstanceData {
            version: 1,
            namespace: "shop".to_owned(),
            deployment: "web".to_owned(),
            pod: PodIdentity {
                name: "web-1".to_owned(),
                uid: "u-1".to_owned(),
            },
            node: "n1".to_owned(),
            policy_hash: Sha256Digest::of(b"policy"),
            verifier: VerifierEndpoint {
                url: "https://broker.assay.svc:8443".to_owned(),
                addresses: vec!["10.0.2.2:8443".to_owned()],
                ca: test_ca(),
            },
            network: Network {
                address: "10.0.2.15/24".to_owned(),
                gateway: "10.0.2.2".to_owned(),
                nameservers: vec!["10.0.2.3".to_owned()],
                hostname: "web-1".to_owned(),
            },
            resources: vec![ResourceRequest {
                name: "password".to_owned(),
                path: "/run/secrets/db/password".to_owned(),
            }],
            attestation_interval_seconds: 60,
        }
    }

    #[test]
    fn every_signal_that_an_image_may_name_is_known() {
        for name in assay_tee::guest_config::STOP_SIGNALS {
            for name in [name.to_owned(), format!("SIG{name}")] {
                assert!(parse_signal(&name).is_some(), "{name}");
            }
        }
        for number in 0..=u8::MAX {
            let name = number.to_string();
            let is_known = assay_tee::guest_config::is_stop_signal(&name);
            assert_eq!(parse_signal(&name).is_some(), is_known, "{name}");
        }
    }

    #[test]
    fn a_good_configuration_is_accepted_with_and_without_the_final_newline() {
        for cmdline in [CMDLINE.to_owned(), format!("{CMDLINE}\n")] {
            let valid = validate_guest(good_guest(), cmdline.as_bytes()).expect("valid");
            assert_eq!(valid.stop_signal, Signal::QUIT);
        }
    }

    #[test]
    fn a_command_line_that_differs_is_refused() {
        for cmdline in [
            format!("{CMDLINE} init=/bin/sh\n"),
            format!("{CMDLINE}\n\n"),
            format!("{CMDLINE} \n"),
            format!(" {CMDLINE}\n"),
            CMDLINE.replace("integrity", "none"),
            String::new(),
        ] {
            assert!(
                matches!(
                    validate_guest(good_guest(), cmdline.as_bytes()),
                    Err(GuestRefusal::Cmdline { .. })
                ),
                "{cmdline:?}"
            );
        }
    }

    type Mutation = (
        &'static str,
        fn(&mut GuestConfig),
        fn(&GuestRefusal) -> bool,
    );

    fn root(config: &mut GuestConfig) -> (&mut u32, &mut u64, &mut u64, &mut String, &mut String) {
        let RootFs::DmVerity {
            serial,
            block_size,
            data_blocks,
            hash_start_block,
            salt,
            ..
        } = &mut config.root
        else {
            panic!("a good guest has a disk")
        };
        (block_size, data_blocks, hash_start_block, salt, serial)
    }

    #[test]
    fn one_mutation_of_a_good_configuration_is_refused_for_its_own_reason() {
        let verity = |e: &GuestRefusal| matches!(e, GuestRefusal::Verity { .. });
        let process = |e: &GuestRefusal| matches!(e, GuestRefusal::Process { .. });
        let writable = |e: &GuestRefusal| matches!(e, GuestRefusal::WritablePath { .. });
        let module = |e: &GuestRefusal| matches!(e, GuestRefusal::ModulePath { .. });
        let rows: &[Mutation] = &[
            (
                "version",
                |c| c.version = 2,
                |e| *e == GuestRefusal::Version { got: 2 },
            ),
            (
                "relative module",
                |c| c.modules = vec!["erofs.ko".to_owned()],
                module,
            ),
            (
                "module ..",
                |c| c.modules = vec!["/lib/../x.ko".to_owned()],
                module,
            ),
            (
                "writable root",
                |c| c.hardening.writable = vec!["/".to_owned()],
                writable,
            ),
            (
                "writable ..",
                |c| c.hardening.writable = vec!["/tmp/../etc".to_owned()],
                writable,
            ),
            ("empty serial", |c| root(c).4.clear(), verity),
            ("long serial", |c| *root(c).4 = "x".repeat(21), verity),
            ("block size 0", |c| *root(c).0 = 0, verity),
            ("block size 8192", |c| *root(c).0 = 8192, verity),
            ("block size 3000", |c| *root(c).0 = 3000, verity),
            ("no data", |c| *root(c).1 = 0, verity),
            ("overflow", |c| *root(c).1 = u64::MAX / 2, verity),
            ("tree inside the data", |c| *root(c).2 = 99, verity),
            ("odd salt", |c| *root(c).3 = "0".to_owned(), verity),
            (
                "salt with space",
                |c| *root(c).3 = "00 1 x".to_owned(),
                verity,
            ),
            ("long salt", |c| *root(c).3 = "00".repeat(257), verity),
            ("no arguments", |c| c.process.args.clear(), process),
            (
                "empty program",
                |c| c.process.args = vec![String::new()],
                process,
            ),
            (
                "relative cwd",
                |c| c.process.cwd = "srv".to_owned(),
                process,
            ),
            ("NUL", |c| c.process.args.push("a\0b".to_owned()), process),
            (
                "env without =",
                |c| c.process.env.push("HOME".to_owned()),
                process,
            ),
            (
                "env without name",
                |c| c.process.env.push("=x".to_owned()),
                process,
            ),
            (
                "signal",
                |c| c.process.stop_signal = "SIGNOPE".to_owned(),
                |e| matches!(e, GuestRefusal::StopSignal { .. }),
            ),
        ];
        for (name, mutate, expected) in rows {
            let mut config = good_guest();
            mutate(&mut config);
            let refusal = validate_guest(config, CMDLINE.as_bytes()).expect_err(name);
            assert!(expected(&refusal), "{name}: {refusal:?}");
        }
    }

    #[test]
    fn signals_have_three_spellings() {
        for name in ["SIGTERM", "TERM", "15"] {
            assert_eq!(parse_signal(name), Some(Signal::TERM), "{name}");
        }
        for name in ["", "sigterm", "0", "-1", "999", "SIGSIGTERM"] {
            assert_eq!(parse_signal(name), None, "{name}");
        }
    }

    #[test]
    fn a_good_instance_is_accepted() {
        let valid = validate_instance(good_instance().encode().expect("json")).expect("valid");
        assert_eq!(valid.prefix, 24);
        assert_eq!(valid.resources.len(), 1);
    }

    #[test]
    fn one_mutation_of_a_good_instance_is_refused_for_its_own_reason() {
        type Row = (
            &'static str,
            fn(&mut InstanceData),
            fn(&InstanceRefusal) -> bool,
        );
        let network = |e: &InstanceRefusal| matches!(e, InstanceRefusal::Network { .. });
        let verifier = |e: &InstanceRefusal| matches!(e, InstanceRefusal::Verifier(_));
        let resource = |e: &InstanceRefusal| matches!(e, InstanceRefusal::Resource { .. });
        let rows: &[Row] = &[
            (
                "version",
                |d| d.version = 0,
                |e| matches!(e, InstanceRefusal::Version { got: 0 }),
            ),
            (
                "no prefix",
                |d| d.network.address = "10.0.2.15".to_owned(),
                network,
            ),
            (
                "prefix 33",
                |d| d.network.address = "10.0.2.15/33".to_owned(),
                network,
            ),
            (
                "prefix 0",
                |d| d.network.address = "10.0.2.15/0".to_owned(),
                network,
            ),
            (
                "gateway name",
                |d| d.network.gateway = "gw".to_owned(),
                network,
            ),
            (
                "name server",
                |d| d.network.nameservers.push("x\noptions".to_owned()),
                network,
            ),
            (
                "hostname newline",
                |d| d.network.hostname = "a\nb".to_owned(),
                network,
            ),
            ("hostname empty", |d| d.network.hostname.clear(), network),
            (
                "verifier by name",
                |d| d.verifier.addresses = vec!["v:1".to_owned()],
                network,
            ),
            ("no address", |d| d.verifier.addresses.clear(), verifier),
            (
                "plain http",
                |d| d.verifier.url = "http://broker".to_owned(),
                verifier,
            ),
            ("no CA", |d| d.verifier.ca.clear(), verifier),
            (
                "outside",
                |d| d.resources[0].path = "/etc/passwd".to_owned(),
                resource,
            ),
            (
                "twice",
                |d| d.resources.push(d.resources[0].clone()),
                |e| matches!(e, InstanceRefusal::DuplicateResource { .. }),
            ),
        ];
        for (name, mutate, expected) in rows {
            let mut data = good_instance();
            mutate(&mut data);
            let refusal = validate_instance(data.encode().expect("json")).expect_err(name);
            assert!(expected(&refusal), "{name}: {refusal:?}");
        }
    }

    #[test]
    fn unknown_fields_and_trailing_bytes_are_refused() {
        let text = String::from_utf8(good_instance().encode().expect("json")).expect("UTF-8");
        for bad in [
            text.replacen('{', r#"{"extra":1,"#, 1),
            format!("{text}x"),
            text[..text.len() - 1].to_owned(),
            String::new(),
        ] {
            assert!(
                matches!(
                    validate_instance(bad.clone().into_bytes()),
                    Err(InstanceRefusal::Parse(_))
                ),
                "{bad}"
            );
        }
    }

    #[test]
    fn long_pod_names_become_host_names() {
        let name = format!("{}-.{}", "a".repeat(61), "b".repeat(40));
        assert_eq!(fit_hostname(&name), Some("a".repeat(61)));
    }
}
