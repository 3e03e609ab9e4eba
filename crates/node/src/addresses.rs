//! Which pod has which of the node's addresses. Pure; pods remember their address in their directory.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use mainstay_net::plan::Cidr;

/// The addresses of a node's pods.
#[derive(Debug)]
pub struct Addresses {
    range: Cidr,
    owners: HashMap<Ipv4Addr, String>,
    /// Where to look first: an address just freed is given out as late as possible, because others may still send to it.
    next: u32,
}

impl Addresses {
    /// All addresses of a range are free, except its first and its last.
    pub fn new(range: Cidr) -> Self {
        Self { range, owners: HashMap::new(), next: 0 }
    }

    /// An address for a pod; the one it has, if it has one. None if all are taken.
    pub fn take(&mut self, uid: &str) -> Option<Ipv4Addr> {
        if let Some((ip, _)) = self.owners.iter().find(|(_, owner)| *owner == uid) {
            return Some(*ip);
        }
        let usable = (1_u32 << (32 - u32::from(self.range.prefix).min(30))) - 2;
        let candidates = (0..usable).map(|step| (self.next + step) % usable);
        let free = |offset: &u32| !self.owners.contains_key(&self.at(*offset));
        let offset = candidates.into_iter().find(free)?;
        self.next = (offset + 1) % usable;
        let ip = self.at(offset);
        self.owners.insert(ip, uid.to_owned());
        Some(ip)
    }

    /// Notes that a pod that is adopted has this address.
    pub fn reserve(&mut self, uid: &str, ip: Ipv4Addr) {
        self.owners.insert(ip, uid.to_owned());
        let offset = ip.to_bits().wrapping_sub(self.range.address.to_bits());
        self.next = self.next.max(offset);
    }

    /// A pod needs its address no more.
    pub fn release(&mut self, uid: &str) {
        self.owners.retain(|_, owner| owner != uid);
    }

    fn at(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.range.address.to_bits() + 1 + offset)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_are_unique_and_reused_late() {
        let mut addresses = Addresses::new("10.0.2.0/29".parse().unwrap());
        let take = |addresses: &mut Addresses, uid: &str| addresses.take(uid).map(|ip| ip.octets()[3]);
        assert_eq!(take(&mut addresses, "a"), Some(1));
        assert_eq!(take(&mut addresses, "a"), Some(1));
        assert_eq!(take(&mut addresses, "b"), Some(2));
        addresses.release("a");
        assert_eq!(take(&mut addresses, "c"), Some(3));
        addresses.reserve("d", "10.0.2.4".parse().unwrap());
        assert_eq!(
            (4..8).map(|n| take(&mut addresses, &n.to_string())).collect::<Vec<_>>(),
            [Some(5), Some(6), Some(1), None]
        );
    }
}
