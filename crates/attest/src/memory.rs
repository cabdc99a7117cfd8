//! What a verifier may remember between appraisals: that the signatures of a
//! certificate chain were once found good.
//!
//! Nothing else is remembered. A chain is named by the exact bytes of its three
//! certificates, so that names, extensions and signatures are settled; whether its
//! root is an anchor, and its dates, revocation, deny lists, TCB and chip are a
//! matter of policy, time and report, and are checked in every appraisal.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use assay_tee::report::SigningKey;
use assay_tee::{Product, Sha256Digest};

use crate::certificate::Certificate;

/// Names a chain: root, intermediate and endorsement key, byte for byte, as one of
/// a product and a kind of key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChainDigest(Sha256Digest);

impl ChainDigest {
    pub(crate) fn of(chain: [&Certificate; 3], kind: SigningKey, product: Product) -> Self {
        // Fixed lengths but for the names, which come last and are no prefix of each
        // other: no two chains give the same bytes.
        let mut bytes = Vec::with_capacity(128);
        for certificate in chain {
            bytes.extend_from_slice(certificate.fingerprint.as_bytes());
        }
        bytes.extend_from_slice(match kind {
            SigningKey::Vcek => b"VCEK ",
            SigningKey::Vlek => b"VLEK ",
            SigningKey::None => b"none ",
        });
        bytes.extend_from_slice(product.name().as_bytes());
        Self(Sha256Digest::of(&bytes))
    }
}

/// Remembers chains whose signatures were verified.
///
/// # Guarantees to keep
/// [`Self::knows`] is true only of what [`Self::remember`] was given. Forgetting is
/// always right: it costs a verification.
pub trait ChainMemory {
    /// Whether this chain was remembered.
    fn knows(&self, chain: &ChainDigest) -> bool;

    /// Remembers a chain whose signatures have been verified.
    fn remember(&self, chain: ChainDigest);
}

/// Remembers nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoMemory;

impl ChainMemory for NoMemory {
    fn knows(&self, _: &ChainDigest) -> bool {
        false
    }

    fn remember(&self, _: ChainDigest) {}
}

/// Remembers the chains that were used last, up to a number of them.
#[derive(Debug)]
pub struct VerifiedChains {
    half: usize,
    generations: Mutex<Generations>,
}

/// What was used since the last turn, and in the turn before. A full generation
/// takes the place of the one before.
#[derive(Debug, Default)]
struct Generations {
    current: HashSet<ChainDigest>,
    previous: HashSet<ChainDigest>,
}

impl VerifiedChains {
    /// A memory of at most `capacity` chains, of 32 bytes and their overhead each.
    pub fn new(capacity: usize) -> Self {
        Self {
            half: capacity / 2,
            generations: Mutex::default(),
        }
    }

    /// How many chains are remembered.
    pub fn len(&self) -> usize {
        self.with(|generations| generations.current.len() + generations.previous.len())
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn with<T>(&self, work: impl FnOnce(&mut Generations) -> T) -> T {
        // A set of digests has no state in between that a panic could leave.
        let mut generations = self
            .generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        work(&mut generations)
    }
}

impl Default for VerifiedChains {
    /// Room for a cluster: the VCEKs of four thousand nodes under two TCBs each. What
    /// is used less than the others is verified again.
    fn default() -> Self {
        Self::new(8192)
    }
}

impl Generations {
    fn keep(&mut self, chain: ChainDigest, half: usize) {
        if half == 0 || self.current.contains(&chain) {
            return;
        }
        if self.current.len() >= half {
            self.previous = std::mem::take(&mut self.current);
        }
        self.previous.remove(&chain);
        self.current.insert(chain);
    }
}

impl ChainMemory for VerifiedChains {
    fn knows(&self, chain: &ChainDigest) -> bool {
        self.with(|generations| {
            if generations.previous.contains(chain) {
                generations.keep(*chain, self.half);
                return true;
            }
            generations.current.contains(chain)
        })
    }

    fn remember(&self, chain: ChainDigest) {
        self.with(|generations| generations.keep(chain, self.half));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(number: u32) -> ChainDigest {
        ChainDigest(Sha256Digest::of(&number.to_le_bytes()))
    }

    #[test]
    fn a_flood_of_chains_is_forgotten() {
        let memory = VerifiedChains::new(64);
        for number in 0..10_000 {
            memory.remember(chain(number));
            // What is in use stays known, however many others pass.
            memory.remember(chain(7));
            assert!(
                memory.knows(&chain(number)) && memory.knows(&chain(7)),
                "{number}"
            );
            assert!(memory.len() <= 64, "{number}");
        }
        assert!(!memory.knows(&chain(5000)));
        assert!(!memory.knows(&chain(10_000)));
    }

    #[test]
    fn a_memory_without_room_knows_nothing() {
        for capacity in [0, 1] {
            let memory = VerifiedChains::new(capacity);
            memory.remember(chain(1));
            assert!(!memory.knows(&chain(1)) && memory.is_empty());
        }
    }
}
