//! Messages: the changes of a transaction, and sending them.
//!
//! Attribute numbers are those of `linux/netfilter/nf_tables.h`, named there `NFTA_<OBJECT>_<FIELD>`.

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP};

use super::{
    attribute::Attributes,
    expression::{Expression, Verdict},
};
use crate::netlink::{Netlink, NetlinkError, Request, attribute};

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
const FAMILY_IPV4: u8 = 2;
/// `struct nfgenmsg`.
const HEADER_BYTES: usize = 4;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_NEWSET: u16 = 9;
const NFT_MSG_NEWSETELEM: u16 = 12;
/// Elements of one message together, in bytes: an attribute's length is a 16-bit number.
const ELEMENTS_BYTES_MAX: usize = 48 << 10;
/// `NFT_SET_MAP`.
const SET_IS_MAP: u32 = 8;
/// `NFT_DATA_VERDICT`.
const VERDICT_TYPE: u32 = 0xffff_ff00;

/// What a base chain may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Let through or refuse.
    Filter,
    /// Translate addresses; sees the first packet of a connection only.
    Nat,
}

/// Where in a packet's path a base chain sits (`enum nf_inet_hooks`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Arriving, before routing.
    Prerouting = 0,
    /// Arriving for this namespace.
    Input = 1,
    /// Passing through.
    Forward = 2,
    /// Leaving a process of this namespace.
    Output = 3,
    /// Leaving, after routing.
    Postrouting = 4,
}

/// What makes a chain a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainHook {
    /// What it may do.
    pub kind: ChainKind,
    /// Where it sits.
    pub hook: Hook,
    /// Order among the chains of a hook; lower is earlier.
    pub priority: i32,
}

/// What a map holds for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing: the element of a set.
    None,
    /// Bytes, each field padded to four.
    Data(Vec<u8>),
    /// Where the packet goes.
    Verdict(Verdict),
}

/// One element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// The key: its fields in order, each padded to four bytes.
    pub key: Vec<u8>,
    /// What is found there.
    pub value: Value,
}

/// One change. All are about one table of family `ip`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Create the table, or keep it.
    NewTable,
    /// Delete the table with all it holds.
    DeleteTable,
    /// Create a chain; with a hook, a base chain.
    NewChain(String, Option<ChainHook>),
    /// Create a set or map for a fixed number of elements.
    NewSet {
        /// Its name.
        name: String,
        /// Bytes of a key.
        key_bytes: u32,
        /// What every element holds; its size is taken from this example.
        value: Value,
        /// How many elements it must have room for.
        size: u32,
    },
    /// Add elements to a set or map.
    NewElements(String, Vec<Element>),
    /// Append a rule to a chain.
    NewRule(String, Vec<Expression>),
}

impl Message {
    /// The requests for this change; elements are spread over several if they are many.
    fn requests(&self, table: &str) -> Vec<Request> {
        let named = Attributes::new().text(1, table);
        match self {
            Self::NewTable => {
                vec![request(NFT_MSG_NEWTABLE, NLM_F_CREATE, &named, format!("create table {table}"))]
            }
            Self::DeleteTable => vec![request(NFT_MSG_DELTABLE, 0, &named, format!("delete table {table}"))],
            Self::NewChain(chain, hook) => {
                let attributes = chain_attributes(named.text(3, chain), hook.as_ref());
                vec![request(NFT_MSG_NEWCHAIN, NLM_F_CREATE, &attributes, format!("create chain {chain}"))]
            }
            Self::NewSet { name, key_bytes, value, size } => {
                let attributes = set_attributes(named.text(2, name), *key_bytes, value, *size);
                vec![request(NFT_MSG_NEWSET, NLM_F_CREATE, &attributes, format!("create set {name}"))]
            }
            Self::NewElements(set, elements) => element_requests(table, set, elements),
            Self::NewRule(chain, expressions) => {
                let list =
                    expressions.iter().fold(Attributes::new(), |list, expression| list.nested(1, &expression.encode()));
                let attributes = named.text(2, chain).nested(4, &list);
                let what = format!("append a rule to chain {chain}");
                vec![request(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, &attributes, what)]
            }
        }
    }
}

fn chain_attributes(named: Attributes, hook: Option<&ChainHook>) -> Attributes {
    let Some(ChainHook { kind, hook, priority }) = hook else { return named };
    let kind = match kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
    };
    let hook = Attributes::new().number(1, *hook as u32).number(2, priority.cast_unsigned());
    named.nested(4, &hook).text(7, kind)
}

fn set_attributes(named: Attributes, key_bytes: u32, value: &Value, size: u32) -> Attributes {
    let flags = if *value == Value::None { 0 } else { SET_IS_MAP };
    // The types only tell `nft list` how to print; the kernel looks at the lengths.
    let typed = named.number(3, flags).number(4, 0).number(5, key_bytes);
    let typed = match value {
        Value::None => typed,
        Value::Data(data) => typed.number(6, 0).number(7, data.len() as u32),
        Value::Verdict(_) => typed.number(6, VERDICT_TYPE).number(7, 0),
    };
    // A known size lets the kernel choose a plain hash table; an id is required, though names are used throughout.
    typed.nested(9, &Attributes::new().number(1, size.max(1))).number(10, 1)
}

fn element_requests(table: &str, set: &str, elements: &[Element]) -> Vec<Request> {
    let mut requests = Vec::new();
    let mut finish = |list: &Attributes| {
        let attributes = Attributes::new().text(1, table).text(2, set).nested(3, list);
        let what = format!("add elements to set {set}");
        requests.push(request(NFT_MSG_NEWSETELEM, NLM_F_CREATE, &attributes, what));
    };
    let mut list = Attributes::new();
    for element in elements {
        let encoded = Attributes::new().nested(1, &Attributes::new().bytes(1, &element.key));
        let encoded = match &element.value {
            Value::None => encoded,
            Value::Data(data) => encoded.nested(2, &Attributes::new().bytes(1, data)),
            Value::Verdict(verdict) => encoded.nested(2, &verdict.data()),
        };
        if list.len() + encoded.len() > ELEMENTS_BYTES_MAX {
            finish(&list);
            list = Attributes::new();
        }
        list = list.nested(1, &encoded);
    }
    if list.len() > 0 {
        finish(&list);
    }
    requests
}

fn request(kind: u16, flags: u16, attributes: &Attributes, what: String) -> Request {
    let mut body = header(FAMILY_IPV4, 0);
    body.extend_from_slice(attributes.as_bytes());
    Request { kind: SUBSYSTEM << 8 | kind, flags, body, what, tolerate: &[] }
}

/// `struct nfgenmsg`: family, version 0, resource id (big-endian).
fn header(family: u8, resource: u16) -> Vec<u8> {
    let [high, low] = resource.to_be_bytes();
    vec![family, 0, high, low]
}

/// Sends the changes to `table` as one transaction, in the calling thread's network namespace.
///
/// Only the first and the last change ask for an acknowledgement (errors come for every one): thousands of
/// acknowledgements would not fit the receive buffer.
pub fn commit(table: &str, changes: &[Message]) -> Result<(), NetlinkError> {
    let mut requests: Vec<_> = changes.iter().flat_map(|change| change.requests(table)).collect();
    if let Some(first) = requests.first_mut() {
        first.flags |= NLM_F_ACK;
    }
    if let Some(last) = requests.last_mut() {
        last.flags |= NLM_F_ACK;
    }
    let mark = |kind, what: &str| Request {
        kind,
        flags: 0,
        body: header(0, SUBSYSTEM),
        what: format!("{what} the transaction on table {table}"),
        tolerate: &[],
    };
    requests.insert(0, mark(NFNL_MSG_BATCH_BEGIN, "make"));
    requests.push(mark(NFNL_MSG_BATCH_END, "end"));
    Netlink::open_netfilter()?.transact(&requests)
}

/// The names of the `ip` tables in the calling thread's network namespace.
pub fn table_names() -> Result<Vec<String>, NetlinkError> {
    let list = Request {
        kind: SUBSYSTEM << 8 | NFT_MSG_GETTABLE,
        flags: NLM_F_DUMP,
        body: header(FAMILY_IPV4, 0),
        what: "list tables".to_owned(),
        tolerate: &[],
    };
    let replies = Netlink::open_netfilter()?.dump(list)?;
    let name = |body: &[u8]| {
        let name = attribute(body, HEADER_BYTES, 1)?;
        Some(String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned())
    };
    Ok(replies.iter().filter_map(|reply| name(&reply.body)).collect())
}
