//! URLs, IP addresses and ranges of them.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/cel/#kubernetes-url-library> and the sections after it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use super::super::value::{Val, map_of};
use super::{EvalError, NO_OVERLOAD, Price, Row, function, method};

const PART: &[&str] = &["URL -> string"];
const IP_TEST: &[&str] = &["IP -> bool"];

pub(super) const ROWS: &[Row] = &[
    function("url", &["string -> URL"], Price::Scan, |args, _| match args {
        [Val::Text(text)] => Url::parse(text).map(|url| Val::Url(Rc::new(url))).ok_or_else(|| {
            EvalError::Other(format!(
                "URL parse error during conversion from string: parse {:?}: invalid URI for request",
                &**text
            ))
        }),
        _ => Err(NO_OVERLOAD),
    }),
    function("isURL", &["string -> bool"], Price::Scan, |args, _| text_test(args, |text| Url::parse(text).is_some())),
    method("getScheme", PART, Price::Step, |args, _| url_part(args, |url| url.scheme.clone())),
    method("getHost", PART, Price::Step, |args, _| url_part(args, |url| url.host.clone())),
    method("getHostname", PART, Price::Step, |args, _| url_part(args, |url| url.host_and_port().0.to_owned())),
    method("getPort", PART, Price::Step, |args, _| url_part(args, |url| url.host_and_port().1.to_owned())),
    method("getEscapedPath", PART, Price::Step, |args, _| url_part(args, |url| url.path.clone())),
    method("getQuery", &["URL -> map<string, list<string>>"], Price::Step, |args, _| match args {
        [Val::Url(url)] => query(&url.query),
        _ => Err(NO_OVERLOAD),
    }),
    function("ip", &["string -> IP"], Price::Scan, |args, _| match args {
        [Val::Text(text)] => parse_ip(text).map(Val::Ip),
        _ => Err(NO_OVERLOAD),
    }),
    function("isIP", &["string -> bool"], Price::Scan, |args, _| text_test(args, |text| parse_ip(text).is_ok())),
    function("ip.isCanonical", &["string -> bool"], Price::Scan, |args, _| match args {
        [Val::Text(text)] => Ok(Val::Bool(parse_ip(text)?.to_string() == **text)),
        _ => Err(NO_OVERLOAD),
    }),
    method("family", &["IP -> int"], Price::Step, |args, _| match args {
        [Val::Ip(ip)] => Ok(Val::Int(if ip.is_ipv4() { 4 } else { 6 })),
        _ => Err(NO_OVERLOAD),
    }),
    method("isUnspecified", IP_TEST, Price::Step, |args, _| ip_test(args, IpAddr::is_unspecified)),
    method("isLoopback", IP_TEST, Price::Step, |args, _| ip_test(args, IpAddr::is_loopback)),
    method("isLinkLocalMulticast", IP_TEST, Price::Step, |args, _| ip_test(args, is_link_local_multicast)),
    method("isLinkLocalUnicast", IP_TEST, Price::Step, |args, _| ip_test(args, is_link_local_unicast)),
    method("isGlobalUnicast", IP_TEST, Price::Step, |args, _| {
        ip_test(args, |ip| {
            let broadcast = *ip == IpAddr::V4(Ipv4Addr::BROADCAST);
            !(broadcast || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || is_link_local_unicast(ip))
        })
    }),
    function("cidr", &["string -> CIDR"], Price::Scan, |args, _| match args {
        [Val::Text(text)] => parse_cidr(text).map(Val::Cidr),
        _ => Err(NO_OVERLOAD),
    }),
    function("isCIDR", &["string -> bool"], Price::Scan, |args, _| text_test(args, |text| parse_cidr(text).is_ok())),
    method("containsIP", &["CIDR, string -> bool", "CIDR, IP -> bool"], Price::Scan, |args, _| match args {
        [Val::Cidr(cidr), Val::Ip(ip)] => Ok(Val::Bool(cidr.contains(*ip))),
        [Val::Cidr(cidr), Val::Text(text)] => Ok(Val::Bool(cidr.contains(parse_ip(text)?))),
        _ => Err(NO_OVERLOAD),
    }),
    method("containsCIDR", &["CIDR, string -> bool", "CIDR, CIDR -> bool"], Price::Scan, |args, _| {
        let (outer, inner) = match args {
            [Val::Cidr(outer), Val::Cidr(inner)] => (outer, *inner),
            [Val::Cidr(outer), Val::Text(text)] => (outer, parse_cidr(text)?),
            _ => return Err(NO_OVERLOAD),
        };
        Ok(Val::Bool(outer.bits <= inner.bits && outer.contains(inner.address)))
    }),
    method("ip", &["CIDR -> IP"], Price::Step, |args, _| match args {
        [Val::Cidr(cidr)] => Ok(Val::Ip(cidr.address)),
        _ => Err(NO_OVERLOAD),
    }),
    method("masked", &["CIDR -> CIDR"], Price::Step, |args, _| match args {
        [Val::Cidr(cidr)] => Ok(Val::Cidr(cidr.masked())),
        _ => Err(NO_OVERLOAD),
    }),
    method("prefixLength", &["CIDR -> int"], Price::Step, |args, _| match args {
        [Val::Cidr(cidr)] => Ok(Val::Int(i64::from(cidr.bits))),
        _ => Err(NO_OVERLOAD),
    }),
];

/// The parts of a URL that was given as an absolute URI or an absolute path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    text: String,
    scheme: String,
    host: String,
    path: String,
    query: String,
}

impl Url {
    /// Reads a URL the way Go's `url.ParseRequestURI` does.
    pub fn parse(text: &str) -> Option<Self> {
        let bad = |c: char| c.is_control() || c == ' ' || c == '"' || c == '<' || c == '>' || c == '\\' || c == '^';
        if text.is_empty() || text.chars().any(bad) {
            return None;
        }
        let (scheme, rest) = match text.find(':') {
            Some(end) if !text.starts_with('/') && is_scheme(&text[..end]) => {
                (text[..end].to_lowercase(), &text[end + 1..])
            }
            _ => (String::new(), text),
        };
        if scheme.is_empty() && !rest.starts_with('/') {
            return None;
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, path) = match rest.strip_prefix("//") {
            Some(rest) if !scheme.is_empty() => {
                let end = rest.find('/').unwrap_or(rest.len());
                let authority = &rest[..end];
                let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
                (host, &rest[end..])
            }
            _ => ("", rest),
        };
        let url = Self {
            text: text.to_owned(),
            scheme,
            host: host.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
        };
        let (name, port) = url.host_and_port();
        let good_port = port.bytes().all(|b| b.is_ascii_digit());
        let good_host = !name.contains(':') || name.parse::<Ipv6Addr>().is_ok();
        (good_port && good_host && good_escapes(text)).then_some(url)
    }

    fn host_and_port(&self) -> (&str, &str) {
        if let Some((name, rest)) = self.host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            return (name, rest.strip_prefix(':').unwrap_or_default());
        }
        self.host.rsplit_once(':').unwrap_or((&self.host, ""))
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
}

fn good_escapes(text: &str) -> bool {
    text.split('%').skip(1).all(|rest| rest.len() >= 2 && rest.bytes().take(2).all(|b| b.is_ascii_hexdigit()))
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let code = text.get(i + 1..i + 3).filter(|_| bytes[i] == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok());
        decoded.push(code.unwrap_or(if bytes[i] == b'+' { b' ' } else { bytes[i] }));
        i += if code.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn query<'a>(text: &str) -> Result<Val<'a>, EvalError> {
    let mut all: Vec<(String, Vec<Val<'a>>)> = Vec::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (percent_decode(key), Val::text(percent_decode(value)));
        match all.iter_mut().find(|(existing, _)| *existing == key) {
            Some((_, values)) => values.push(value),
            None => all.push((key, vec![value])),
        }
    }
    map_of(all.into_iter().map(|(key, values)| (Val::text(key), Val::list(values))).collect())
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    pub(super) address: IpAddr,
    pub(super) bits: u8,
}

impl Cidr {
    fn masked(self) -> Self {
        let address = match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from(u32::from(address) & mask))
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(u128::from(address) & mask))
            }
        };
        Self { address, bits: self.bits }
    }

    fn contains(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == self.address.is_ipv4() && Self { address: ip, bits: self.bits }.masked() == self.masked()
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

fn parse_ip(text: &str) -> Result<IpAddr, EvalError> {
    let failed =
        |why: &str| EvalError::Other(format!("IP Address {text:?} parse error during conversion from string: {why}"));
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) if address.to_ipv4_mapped().is_some() => {
            Err(failed("IPv4-mapped IPv6 address is not allowed"))
        }
        Ok(ip) => Ok(ip),
        Err(_) => Err(failed(&format!("ParseAddr({text:?}): unable to parse IP"))),
    }
}

fn parse_cidr(text: &str) -> Result<Cidr, EvalError> {
    let failed = || EvalError::Other(format!("network address parse error during conversion from string: {text:?}"));
    let (address, bits) = text.split_once('/').ok_or_else(failed)?;
    let address = parse_ip(address).map_err(|_| failed())?;
    let plain = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
    let bits = bits.parse().ok().filter(|bits| plain && *bits <= if address.is_ipv4() { 32 } else { 128 });
    Ok(Cidr { address, bits: bits.ok_or_else(failed)? })
}

fn is_link_local_multicast(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    }
}

fn is_link_local_unicast(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn text_test<'a>(args: &[Val<'a>], good: fn(&str) -> bool) -> Result<Val<'a>, EvalError> {
    match args {
        [Val::Text(text)] => Ok(Val::Bool(good(text))),
        _ => Err(NO_OVERLOAD),
    }
}

fn ip_test<'a>(args: &[Val<'a>], good: fn(&IpAddr) -> bool) -> Result<Val<'a>, EvalError> {
    match args {
        [Val::Ip(ip)] => Ok(Val::Bool(good(ip))),
        _ => Err(NO_OVERLOAD),
    }
}

fn url_part<'a>(args: &[Val<'a>], part: fn(&Url) -> String) -> Result<Val<'a>, EvalError> {
    match args {
        [Val::Url(url)] => Ok(Val::text(part(url))),
        _ => Err(NO_OVERLOAD),
    }
}
