//! How many requests each client has in flight.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Most requests of one client at a time. A node's guests may share an address.
pub(super) const MAX_PER_CLIENT: usize = 32;

/// Requests in flight by client. An IPv6 network of 64 bits is one client: whoever
/// has one of its addresses has them all.
#[derive(Clone, Default)]
pub(super) struct Clients(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// A request in flight; it ends with this value.
pub(super) struct Admission {
    clients: Clients,
    client: IpAddr,
}

impl Clients {
    /// Admits a request, unless its client has too many.
    pub(super) fn admit(&self, address: IpAddr) -> Option<Admission> {
        let client = match address.to_canonical() {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => {
                Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
            }
        };
        let mut requests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = requests.entry(client).or_default();
        if *count == MAX_PER_CLIENT {
            return None;
        }
        *count += 1;
        Some(Admission {
            clients: self.clone(),
            client,
        })
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let requests = &self.clients.0;
        let mut requests = requests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = requests.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                requests.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_its_share_and_no_more() {
        let clients = Clients::default();
        let admit = |address: &str| clients.admit(address.parse().unwrap());
        for (first, same, other) in [
            ("10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2"),
            ("2001:db8::1", "2001:db8::ffff:0:0:2", "2001:db8:0:1::1"),
        ] {
            let mut admitted: Vec<_> = (0..MAX_PER_CLIENT).map(|_| admit(first)).collect();
            assert!(admitted.iter().all(Option::is_some));
            assert!(admit(first).is_none());
            assert!(admit(same).is_none());
            assert!(admit(other).is_some());
            admitted.pop();
            assert!(admit(same).is_some());
            drop(admitted);
            assert!(clients.0.lock().unwrap().is_empty());
        }
    }
}
