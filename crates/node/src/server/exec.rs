//! `GET /exec/NAMESPACE/POD/CONTAINER`: a command in a container over a WebSocket, as `kubectl exec` speaks it.
//!
//! Every binary message begins with its channel: 0 standard input, 1 output, 2 error, 3 the final Status, 4 the
//! terminal's size (JSON), and in version 5 255, which closes the channel that the next byte names.
//!
//! Source: <https://github.com/kubernetes/enhancements/tree/master/keps/sig-api-machinery/4006-transition-spdy-to-websockets>.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use mainstay_runtime::exec::{Exec, ExecConfig, Pty, Streams};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::context::Context;
use crate::pod::dir::PodDir;
use crate::server::{Answer, Refusal};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// The subprotocols, best first.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// The largest message a client may send.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Output read and sent at a time.
const PIECE_BYTES: usize = 16 * 1024;
/// Messages on their way to a slow client.
const QUEUE: usize = 4;
/// How long output is waited for after the command ended: what it left running may hold the pipes open.
const DRAIN: Duration = Duration::from_secs(1);

/// What is to be run.
#[derive(Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // Independent flags of a request.
struct Wanted {
    command: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    fn parse(query: &str) -> Self {
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
        wanted
    }
}

/// The subprotocol to speak with a client that offers these.
fn protocol(offered: &str) -> Option<&'static str> {
    PROTOCOLS.into_iter().find(|known| offered.split(',').any(|name| name.trim() == *known))
}

/// Answers a request to run a command: checks it, switches the protocol and runs it.
pub(super) fn serve(
    context: &Arc<Context>,
    namespace: &str,
    pod: &str,
    container: &str,
    request: &mut hyper::Request<hyper::body::Incoming>,
) -> Result<Answer, Refusal> {
    let wanted = Wanted::parse(request.uri().query().unwrap_or_default());
    if wanted.command.is_empty() {
        return Err(Refusal::bad("you must specify at least one command for the container"));
    }
    let view = context.view(namespace, pod).ok_or_else(|| Refusal::no_pod(pod))?;
    let state = view.containers.get(container).ok_or_else(|| Refusal::no_container(pod, container))?;
    let Some(container_id) = state.running.clone() else {
        return Err(Refusal::bad(format!("container \"{container}\" in pod \"{pod}\" is not running")));
    };
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let speak = protocol(header("sec-websocket-protocol"));
    let (key, upgrade) = (header("sec-websocket-key").to_owned(), header("upgrade").eq_ignore_ascii_case("websocket"));
    let Some(speak) = speak.filter(|_| upgrade && !key.is_empty()) else {
        return Err(Refusal::bad(format!("exec needs a WebSocket that speaks one of {}", PROTOCOLS.join(", "))));
    };
    let dir = PodDir::new(&context.config.data_dir, view.pod.metadata.uid.as_deref().unwrap_or_default());
    let config = ExecConfig {
        dir: dir.root().to_owned(),
        exe: context.config.exe.clone(),
        container_id,
        command: wanted.command.clone(),
        env: if wanted.tty { vec![("TERM".to_owned(), "xterm".to_owned())] } else { Vec::new() },
        tty: wanted.tty,
        stdin: wanted.stdin,
    };
    tokio::spawn(session(hyper::upgrade::on(request), config, wanted));
    Ok(Answer::switch(derive_accept_key(key.as_bytes()), speak))
}

type Socket = WebSocketStream<TokioIo<Upgraded>>;

async fn session(upgrade: OnUpgrade, config: ExecConfig, wanted: Wanted) {
    let Ok(upgraded) = upgrade.await else { return };
    let mut limits = WebSocketConfig::default();
    (limits.max_message_size, limits.max_frame_size) = (Some(MESSAGE_BYTES_MAX), Some(MESSAGE_BYTES_MAX));
    let socket: Socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(limits)).await;
    let (sink, source) = socket.split();
    let (sender, receiver) = mpsc::channel(QUEUE);
    let writer = tokio::spawn(forward(receiver, sink));
    let status = match Exec::spawn(&config) {
        Ok((exec, streams)) => run(exec, streams, source, &sender, &wanted).await,
        Err(error) => Some(internal(&format!("cannot run the command: {error}"))),
    };
    if let Some(status) = status {
        let _ = sender.send(message(ERROR, status.to_string().as_bytes())).await;
    }
    drop(sender);
    let _ = writer.await;
}

/// Runs the command; its Status, or none if the client has gone, which kills the command.
async fn run(
    mut exec: Exec,
    streams: Streams,
    source: SplitStream<Socket>,
    sender: &mpsc::Sender<Message>,
    wanted: &Wanted,
) -> Option<Value> {
    let (input, output): (tokio::task::JoinHandle<()>, _) = match streams {
        Streams::Pipes { stdin, stdout, stderr } => {
            let out = pump(stdout, STDOUT, sender.clone(), wanted.stdout);
            let err = pump(stderr, STDERR, sender.clone(), wanted.stderr);
            let output = tokio::spawn(async move {
                tokio::join!(out, err);
            });
            (tokio::spawn(take_input(source, stdin, |_, _| {})), output)
        }
        Streams::Terminal(pty) => {
            let terminal = Terminal(Arc::new(Mutex::new(pty)));
            let resized = terminal.clone();
            let resize = move |columns, rows| resized.resize(columns, rows);
            let output = tokio::spawn(pump(terminal.clone(), STDOUT, sender.clone(), true));
            (tokio::spawn(take_input(source, Some(terminal), resize)), output)
        }
    };
    let mut input = input;
    let code = tokio::select! {
        code = exec.wait() => code,
        // The client has gone: dropping the command kills it.
        _ = &mut input => {
            output.abort();
            return None;
        }
    };
    let mut output = output;
    if tokio::time::timeout(DRAIN, &mut output).await.is_err() {
        output.abort();
    }
    input.abort();
    Some(code.map_or_else(|error| internal(&error.to_string()), status))
}

/// What the client sends, to the command; returns when the client has gone.
async fn take_input(
    mut source: SplitStream<Socket>,
    stdin: Option<impl AsyncWrite + Unpin>,
    resize: impl Fn(u16, u16),
) {
    let mut stdin = stdin;
    while let Some(Ok(message)) = source.next().await {
        let data = match message {
            Message::Binary(data) => data,
            Message::Close(_) => return,
            _ => continue,
        };
        match data.split_first() {
            Some((&STDIN, bytes)) => {
                if let Some(pipe) = &mut stdin
                    && (pipe.write_all(bytes).await.is_err() || pipe.flush().await.is_err())
                {
                    stdin = None;
                }
            }
            Some((&RESIZE, text)) => {
                if let Some((columns, rows)) = size(text) {
                    resize(columns, rows);
                }
            }
            Some((&CLOSE, [STDIN, ..])) => stdin = None,
            _ => {}
        }
    }
}

/// `{"Width":80,"Height":24}`.
fn size(text: &[u8]) -> Option<(u16, u16)> {
    let value: Value = serde_json::from_slice(text).ok()?;
    let number = |name: &str| u16::try_from(value.get(name)?.as_u64()?).ok();
    Some((number("Width")?, number("Height")?))
}

/// What the command says, to the client; read to the end even if nobody wants it.
async fn pump(mut stream: impl AsyncRead + Unpin, channel: u8, sender: mpsc::Sender<Message>, wanted: bool) {
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if wanted && sender.send(message(channel, &buffer[..count])).await.is_err() {
            return;
        }
    }
}

/// Messages to the socket, then its end.
async fn forward(mut messages: mpsc::Receiver<Message>, mut sink: SplitSink<Socket, Message>) {
    while let Some(message) = messages.recv().await {
        if sink.send(message).await.is_err() {
            return;
        }
    }
    // With a status, or kubectl takes the end for an accident.
    let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let _ = sink.send(Message::Close(Some(frame))).await;
    let _ = sink.close().await;
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut data = Vec::with_capacity(bytes.len() + 1);
    data.push(channel);
    data.extend_from_slice(bytes);
    Message::Binary(Bytes::from(data))
}

/// The Status of a command that ended.
fn status(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

fn internal(message: &str) -> Value {
    json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "message": message, "code": 500})
}

/// A terminal that is read, written and resized from several tasks.
#[derive(Clone)]
struct Terminal(Arc<Mutex<Pty>>);

impl Terminal {
    fn resize(&self, columns: u16, rows: u16) {
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).resize(columns, rows);
    }
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, task: &mut TaskContext<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut pty = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *pty).poll_read(task, buffer)
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, task: &mut TaskContext<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut pty = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *pty).poll_write(task, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_understood() {
        let wanted = Wanted::parse("command=sh&command=-c&command=echo+a%26b&stdin=true&stdout=1&tty=false");
        assert_eq!(wanted.command, ["sh", "-c", "echo a&b"]);
        assert!(wanted.stdin && wanted.stdout && !wanted.stderr && !wanted.tty);
        assert_eq!(protocol("v4.channel.k8s.io, v5.channel.k8s.io"), Some("v5.channel.k8s.io"));
        assert_eq!(protocol("v4.channel.k8s.io"), Some("v4.channel.k8s.io"));
        assert_eq!(protocol("channel.k8s.io"), None);
        assert_eq!(size(br#"{"Width":80,"Height":24}"#), Some((80, 24)));
        assert_eq!(size(b"{}"), None);
    }

    #[test]
    fn statuses_carry_the_exit_code() {
        assert_eq!(status(0)["status"], "Success");
        assert_eq!(status(3)["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
    }
}
