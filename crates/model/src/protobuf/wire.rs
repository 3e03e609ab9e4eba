//! The wire format: tags, varints, lengths.
//!
//! Source: <https://protobuf.dev/programming-guides/encoding/>.

use super::ProtobufError;

/// A field as it stands on the wire.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Raw<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64([u8; 8]),
    /// Wire type 2.
    Bytes(&'a [u8]),
    /// Wire type 5, which no Kubernetes type uses.
    Fixed32,
}

/// Reads the fields of one message.
pub(super) struct Reader<'a> {
    left: &'a [u8],
    /// For errors.
    within: &'a str,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], within: &'a str) -> Self {
        Self { left: bytes, within }
    }

    fn truncated(&self) -> ProtobufError {
        ProtobufError::Truncated(self.within.to_owned())
    }

    fn malformed(&self, what: &'static str) -> ProtobufError {
        ProtobufError::Malformed { field: self.within.to_owned(), what }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], ProtobufError> {
        let (head, rest) = self.left.split_at_checked(count).ok_or_else(|| self.truncated())?;
        self.left = rest;
        Ok(head)
    }

    /// A number of up to ten bytes, seven bits each, the lowest first.
    pub(super) fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.malformed("a number is longer than ten bytes"))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// The next field with its number, or nothing at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Raw<'a>)>, ProtobufError> {
        if self.left.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| *number > 0);
        let number = number.ok_or_else(|| self.malformed("a field has an impossible number"))?;
        let raw = match tag & 7 {
            0 => Raw::Varint(self.varint()?),
            1 => {
                let bytes = self.take(8)?;
                Raw::Fixed64(bytes.try_into().map_err(|_| self.truncated())?)
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| self.truncated())?;
                Raw::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Raw::Fixed32
            }
            _ => return Err(self.malformed("a field has an unknown wire type")),
        };
        Ok(Some((number, raw)))
    }
}

/// Appends a number of up to ten bytes.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a field of wire type 0.
pub fn put_number(out: &mut Vec<u8>, field: u32, value: u64) {
    put_varint(out, u64::from(field) << 3);
    put_varint(out, value);
}

/// Appends a field of wire type 2.
pub fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    put_varint(out, u64::from(field) << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a field of wire type 1.
pub(super) fn put_double(out: &mut Vec<u8>, field: u32, value: f64) {
    put_varint(out, u64::from(field) << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}
