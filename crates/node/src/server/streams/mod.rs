//! What `exec` and `attach` need of a connection, however the client speaks: input and sizes in, output and a final Status
//! out.
//!
//! Flow: [`negotiate`] chooses how to speak — a WebSocket ([`websocket`]; kubectl, the Python client, browsers) or SPDY
//! ([`spdy`]; what client-go used to speak, and falls back to) — and answers with the switch of protocols; when the
//! connection has switched, [`Speech::begin`] gives a [`Session`].
//!
//! Guarantees: queues of a few messages each way, so that a slow side slows the other one down; a client that is gone is
//! noticed by a ping within [`PING`], and ends the session; one that is silent for [`IDLE`] is given up, as by the kubelet.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/api-concepts/#streaming> and, for the channels,
//! <https://github.com/kubernetes/enhancements/tree/master/keps/sig-api-machinery/4006-transition-spdy-to-websockets>.

mod dictionary;
pub(super) mod spdy;
pub(super) mod websocket;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::server::{Answer, Refusal};

/// Messages on their way to or from a slow side.
pub(super) const QUEUE: usize = 4;
/// How often the other side is asked whether it is there.
pub(super) const PING: Duration = Duration::from_secs(15);
/// How long a session may be silent both ways: the kubelet's `streaming-connection-idle-timeout`.
pub(super) const IDLE: Duration = Duration::from_secs(4 * 3600);

/// The subprotocols of WebSockets, best first.
const CHANNELS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// The protocols on SPDY, best first.
const SPDY_CHANNELS: [&str; 1] = ["v4.channel.k8s.io"];
/// How SPDY is asked for.
const SPDY: &str = "SPDY/3.1";
/// Which protocol is spoken on SPDY.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// What the client sends; the end of the queue says that it is gone.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Inbound {
    /// Input.
    Stdin(Bytes),
    /// There is no more input.
    StdinEnd,
    /// The size of its terminal.
    Resize {
        /// In characters.
        columns: u16,
        /// In lines.
        rows: u16,
    },
}

/// What the client gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outbound {
    /// Output.
    Stdout(Bytes),
    /// Error output.
    Stderr(Bytes),
    /// How it ended; the last message.
    Status(Value),
}

/// One conversation.
pub(super) struct Session {
    /// From the client.
    pub(super) input: mpsc::Receiver<Inbound>,
    /// To the client.
    pub(super) output: mpsc::Sender<Outbound>,
}

/// Which streams a client wants, and, for `exec`, of which command.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // Independent flags of a request.
pub(super) struct Wanted {
    pub(super) command: Vec<String>,
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
}

impl Wanted {
    /// From the query of a request.
    ///
    /// # Errors
    /// When no stream is wanted.
    pub(super) fn parse(query: &str) -> Result<Self, Refusal> {
        let mut wanted = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let flag = matches!(value.as_ref(), "true" | "1");
            match name.as_ref() {
                "command" => wanted.command.push(value.into_owned()),
                "stdin" | "input" => wanted.stdin = flag,
                "stdout" | "output" => wanted.stdout = flag,
                "stderr" | "error" => wanted.stderr = flag,
                "tty" => wanted.tty = flag,
                _ => {}
            }
        }
        // A terminal has one output.
        wanted.stderr &= !wanted.tty;
        if !(wanted.stdin || wanted.stdout || wanted.stderr) {
            return Err(Refusal::bad("you must specify at least 1 of stdin, stdout, stderr"));
        }
        Ok(wanted)
    }
}

/// How a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    /// Messages with a channel's number, of this subprotocol.
    WebSocket(&'static str),
    /// A SPDY connection, its bytes in WebSocket messages.
    Tunnel(&'static str),
    /// A SPDY connection, with this protocol on its streams.
    Spdy(&'static str),
}

/// A switch of protocols that was agreed upon.
pub(super) struct Speech {
    /// How.
    pub(super) wire: Wire,
    /// The connection to come.
    pub(super) upgrade: OnUpgrade,
}

/// Chooses among what the client offers; `websocket` are the subprotocols known (those that begin with `SPDY/` are
/// tunnels), `spdy` the protocols on SPDY's streams.
///
/// # Errors
/// When the client offers nothing known.
pub(super) fn negotiate(
    request: &mut hyper::Request<hyper::body::Incoming>,
    websocket: &[&'static str],
    spdy: &[&'static str],
) -> Result<(Answer, Speech), Refusal> {
    let (wire, answer) = agree(request.headers(), websocket, spdy)?;
    let speech = Speech { wire, upgrade: hyper::upgrade::on(request) };
    Ok((Answer::switch(&answer), speech))
}

/// [`negotiate`] for `exec` and `attach`.
pub(super) fn negotiate_channels(
    request: &mut hyper::Request<hyper::body::Incoming>,
) -> Result<(Answer, Speech), Refusal> {
    negotiate(request, &CHANNELS, &SPDY_CHANNELS)
}

type Headers = Vec<(HeaderName, HeaderValue)>;

fn agree(headers: &HeaderMap, websocket: &[&'static str], spdy: &[&'static str]) -> Result<(Wire, Headers), Refusal> {
    let values = |name: &HeaderName| -> Vec<&str> {
        let texts = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        texts.flat_map(|text| text.split(',')).map(str::trim).filter(|text| !text.is_empty()).collect()
    };
    let known = |offered: &[&str], list: &[&'static str]| list.iter().copied().find(|name| offered.contains(name));
    let upgrade = values(&header::UPGRADE).first().copied().unwrap_or_default().to_owned();
    let accepted =
        |name: &HeaderName, value: &str| HeaderValue::try_from(value).ok().map(|value| (name.clone(), value));
    let common = [(header::CONNECTION, HeaderValue::from_static("Upgrade"))];
    if upgrade.eq_ignore_ascii_case("websocket") {
        let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
            return Err(Refusal::bad("a WebSocket needs a Sec-WebSocket-Key"));
        };
        let Some(protocol) = known(&values(&header::SEC_WEBSOCKET_PROTOCOL), websocket) else {
            return Err(Refusal::bad(format!("the WebSocket must speak one of {}", websocket.join(", "))));
        };
        let wire = if protocol.starts_with("SPDY/") { Wire::Tunnel(protocol) } else { Wire::WebSocket(protocol) };
        let own = [
            accepted(&header::UPGRADE, "websocket"),
            accepted(&header::SEC_WEBSOCKET_PROTOCOL, protocol),
            accepted(&header::SEC_WEBSOCKET_ACCEPT, &derive_accept_key(key.as_bytes())),
        ];
        return Ok((wire, common.into_iter().chain(own.into_iter().flatten()).collect()));
    }
    if upgrade.eq_ignore_ascii_case(SPDY) {
        let Some(protocol) = known(&values(&STREAM_PROTOCOL), spdy) else {
            return Err(Refusal::forbidden(format!(
                "unable to upgrade: unable to negotiate protocol: server supports {}",
                spdy.join(", ")
            )));
        };
        let own = [accepted(&header::UPGRADE, SPDY), accepted(&STREAM_PROTOCOL, protocol)];
        return Ok((Wire::Spdy(protocol), common.into_iter().chain(own.into_iter().flatten()).collect()));
    }
    Err(Refusal::bad("Upgrade request required"))
}

impl Speech {
    /// Waits for the switch and begins to speak; none if the client has gone meanwhile.
    pub(super) async fn begin(self, wanted: &Wanted) -> Option<Session> {
        let connection = TokioIo::new(self.upgrade.await.ok()?);
        match self.wire {
            Wire::WebSocket(_) | Wire::Tunnel(_) => Some(websocket::session(connection).await),
            Wire::Spdy(_) => spdy::session(connection, wanted).await,
        }
    }
}

/// The Status of a command that ended.
pub(super) fn exit_status(code: i32) -> Value {
    if code == 0 {
        return success();
    }
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

/// The Status of what went well.
pub(super) fn success() -> Value {
    json!({"metadata": {}, "status": "Success"})
}

/// The Status of what could not be done.
pub(super) fn internal(message: &str) -> Value {
    json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "message": message, "code": 500})
}

/// `{"Width":80,"Height":24}`.
fn size(text: &[u8]) -> Option<Inbound> {
    let value: Value = serde_json::from_slice(text).ok()?;
    let number = |name: &str| u16::try_from(value.get(name)?.as_u64()?).ok();
    Some(Inbound::Resize { columns: number("Width")?, rows: number("Height")? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn requests_are_understood() {
        let wanted = Wanted::parse("command=sh&command=-c&command=echo+a%26b&stdin=true&stdout=1&tty=false").unwrap();
        assert_eq!(wanted.command, ["sh", "-c", "echo a&b"]);
        assert!(wanted.stdin && wanted.stdout && !wanted.stderr && !wanted.tty);
        assert!(!Wanted::parse("stdout=true&stderr=true&tty=true").unwrap().stderr, "a terminal has one output");
        assert!(Wanted::parse("command=sh").is_err());
        assert_eq!(size(br#"{"Width":80,"Height":24}"#), Some(Inbound::Resize { columns: 80, rows: 24 }));
        assert_eq!(size(b"{}"), None);
    }

    #[test]
    fn the_best_protocol_that_both_know_is_spoken() {
        let agreed = |pairs: &[(&str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
            }
            agree(&headers, &CHANNELS, &SPDY_CHANNELS).map(|(wire, _)| wire).map_err(|refusal| refusal.status.as_u16())
        };
        let key = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let websocket = ("upgrade", "websocket");
        let offer = |text| ("sec-websocket-protocol", text);
        assert_eq!(
            agreed(&[websocket, key, offer("v4.channel.k8s.io, v5.channel.k8s.io")]),
            Ok(Wire::WebSocket("v5.channel.k8s.io"))
        );
        assert_eq!(agreed(&[websocket, key, offer("v4.channel.k8s.io")]), Ok(Wire::WebSocket("v4.channel.k8s.io")));
        assert_eq!(agreed(&[websocket, key, offer("channel.k8s.io")]), Err(400));
        assert_eq!(agreed(&[websocket, offer("v4.channel.k8s.io")]), Err(400));
        let spdy = ("upgrade", "SPDY/3.1");
        let version = |text| ("x-stream-protocol-version", text);
        assert_eq!(
            agreed(&[spdy, version("v5.channel.k8s.io"), version("v4.channel.k8s.io")]),
            Ok(Wire::Spdy("v4.channel.k8s.io"))
        );
        assert_eq!(agreed(&[spdy, version("v1")]), Err(403));
        assert_eq!(agreed(&[]), Err(400));
    }

    #[test]
    fn statuses_carry_the_exit_code() {
        assert_eq!(exit_status(0)["status"], "Success");
        assert_eq!(exit_status(3)["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
    }
}
