//! Sets of networks in CIDR notation.

use std::net::IpAddr;

/// Networks; each an address and the length of its prefix in bits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Networks(Vec<(u128, u128)>);

impl Networks {
    /// Reads `10.0.0.0/8`, `fd00::/8`, or a single address.
    ///
    /// # Errors
    /// The first that is none of these.
    pub(crate) fn parse(texts: &[String]) -> Result<Self, String> {
        texts
            .iter()
            .map(|text| {
                parse(text)
                    .ok_or_else(|| format!("{text:?} is not a network; write 10.0.0.0/8, fd00::/8 or an address"))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the address is in one of them.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let bits = bits(address);
        self.0.iter().any(|(network, mask)| bits & mask == *network)
    }
}

/// An IPv4 address is compared as the IPv6 address that maps it (RFC 4291, 2.5.5.2).
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn parse(text: &str) -> Option<(u128, u128)> {
    let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
    let address: IpAddr = address.parse().ok()?;
    let width = if address.is_ipv4() { 32 } else { 128 };
    let length: u32 = length.map_or(Ok(width), str::parse).ok()?;
    let mask = (length <= width).then(|| u128::MAX.checked_shl(width - length).unwrap_or(0))?;
    Some((bits(address) & mask, mask))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_are_found_in_their_networks() {
        let networks = Networks::parse(&["10.1.0.0/16".into(), "::1".into(), "192.0.2.7".into()]).unwrap();
        for (address, inside) in [
            ("10.1.2.3", true),
            ("10.2.0.0", false),
            ("::1", true),
            ("::2", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("::ffff:10.1.0.1", true),
        ] {
            assert_eq!(networks.contains(address.parse().unwrap()), inside, "{address}");
        }
        assert!(Networks::parse(&["0.0.0.0/0".into()]).unwrap().contains("8.8.8.8".parse().unwrap()));
        assert!(!Networks::parse(&["0.0.0.0/0".into()]).unwrap().contains("2001:db8::1".parse().unwrap()));
        for text in ["10.0.0.0/33", "a", "", "10.0.0.0/-1", "::/129"] {
            assert!(Networks::parse(&[text.into()]).is_err(), "{text}");
        }
    }
}
