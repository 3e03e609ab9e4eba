//! Maglev's lookup table (Eisenbud et al. 2016, section 3.4).

use crate::table::hash::{mix, stable};

/// Entries; prime, and more than 100 for each of up to 650 endpoints.
const SIZE: usize = 65_537;

/// A table from hash to endpoint.
#[derive(Debug)]
pub(crate) struct Maglev(Vec<u16>);

impl Maglev {
    /// A table over endpoints by name; weights are shares of turns in filling it.
    pub(crate) fn new(names: &[String], weights: &[u32]) -> Self {
        let count = names.len().min(usize::from(u16::MAX) - 1);
        let heaviest = weights.iter().copied().max().unwrap_or(1).max(1);
        let mut next: Vec<(u64, u64, u64)> = names[..count].iter().map(|name| permutation(name)).collect();
        let mut table = vec![u16::MAX; SIZE];
        let mut turns = vec![0_u64; count];
        let mut filled = 0;
        while filled < SIZE && weights.iter().take(count).any(|weight| *weight > 0) {
            for host in 0..count {
                // A host of half the heaviest weight takes every other turn.
                turns[host] += u64::from(weights.get(host).copied().unwrap_or(1));
                if turns[host] < u64::from(heaviest) || filled == SIZE {
                    continue;
                }
                turns[host] -= u64::from(heaviest);
                let (offset, skip, number) = &mut next[host];
                let slot = loop {
                    let slot = ((*offset + *number * *skip) % SIZE as u64) as usize;
                    *number += 1;
                    if table[slot] == u16::MAX {
                        break slot;
                    }
                };
                table[slot] = host as u16;
                filled += 1;
            }
        }
        Self(table)
    }

    /// The endpoint of a key; if it is not usable, that of the key's next hash, and so on.
    pub(crate) fn pick(&self, hash: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let mut hash = hash;
        for _ in 0..64 {
            let host = usize::from(self.0[(hash % SIZE as u64) as usize]);
            if usable(host) {
                return Some(host);
            }
            hash = mix(hash.wrapping_add(1));
        }
        let start = (hash % SIZE as u64) as usize;
        self.0[start..].iter().chain(&self.0[..start]).map(|host| usize::from(*host)).find(|host| usable(*host))
    }
}

fn permutation(name: &str) -> (u64, u64, u64) {
    let hash = stable(name.as_bytes());
    (hash % SIZE as u64, mix(hash) % (SIZE as u64 - 1) + 1, 0)
}
