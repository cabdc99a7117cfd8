//! What a guest and the key broker say to each other: the RCAR handshake of the
//! Key Broker Service protocol, version 0.4.0, and the encryption of resources.
//!
//! Everything here is values in, values out: no sockets, no clock. The guest's
//! side is [`guest`], the broker's side is [`broker`]; both share [`messages`]
//! and [`jwe`]. Randomness comes from the cryptography library, because its keys
//! cannot be made from anything else.
//!
//! The protocol protects nothing by itself. It binds a fresh nonce and the
//! guest's key into the evidence ([`messages::RuntimeData::report_data`]); who
//! may have what is decided by the verifier that reads the evidence. What became
//! of every request is kept as [`audit`] writes it. Keys that the broker makes for
//! volumes have messages of their own: [`volume`].

pub mod audit;
pub mod broker;
pub mod guest;
pub mod jwe;
pub mod messages;
pub mod svsm;
pub mod volume;
