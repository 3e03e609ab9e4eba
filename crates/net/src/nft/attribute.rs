//! Netlink attributes, nested: length, kind, value, padded to four bytes (`man 7 netlink`, `NLA_*`).

use netlink_packet_core::NLA_F_NESTED;

/// A growing list of attributes. Numbers of nf_tables are big-endian.
#[derive(Debug, Default, Clone)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = 4 + value.len();
        // The callers bound what grows (names, bunches of elements) far below this.
        debug_assert!(u16::try_from(length).is_ok(), "attribute {kind} of {length} bytes");
        self.0.extend_from_slice(&(length as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A text with its closing NUL.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(super) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn nested(self, kind: u16, value: &Self) -> Self {
        self.bytes(kind | NLA_F_NESTED, &value.0)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_padded_and_lengths_are_not() {
        let inner = Attributes::new().text(1, "ab").number(2, 0x0102_0304);
        let outer = Attributes::new().nested(3, &inner);
        let [low, high] = 20_u16.to_ne_bytes();
        assert_eq!(outer.as_bytes()[..4], [low, high, 3, 0x80]);
        assert_eq!(outer.as_bytes()[4..], [7, 0, 1, 0, b'a', b'b', 0, 0, 8, 0, 2, 0, 1, 2, 3, 4]);
        assert_eq!(outer.len(), 20);
    }
}
