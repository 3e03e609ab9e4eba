//! `/exec/NAMESPACE/POD/CONTAINER`: a command in a container, as `kubectl exec` and `kubectl cp` want it.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::Bytes;
use mainstay_runtime::exec::{Exec, ExecConfig, Pty, Streams};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::mpsc;

use crate::context::Context;
use crate::server::streams::{self, Inbound, Outbound, Session, Wanted};
use crate::server::{Answer, Refusal, Target};

/// Output read and sent at a time.
const PIECE_BYTES: usize = 16 * 1024;
/// How long output is waited for after the command ended: what it left running may hold the pipes open.
const DRAIN: Duration = Duration::from_secs(1);

/// Answers a request to run a command: checks it, switches the protocol and runs it.
pub(super) fn serve(
    context: &Arc<Context>,
    (namespace, pod, container): (&str, &str, &str),
    request: &mut hyper::Request<hyper::body::Incoming>,
) -> Result<Answer, Refusal> {
    let wanted = Wanted::parse(request.uri().query().unwrap_or_default())?;
    if wanted.command.is_empty() {
        return Err(Refusal::bad("you must specify at least one command for the container"));
    }
    let target = Target::find(context, namespace, pod, container)?;
    let (answer, speech) = streams::negotiate_channels(request)?;
    let config = ExecConfig {
        dir: target.dir.root().to_owned(),
        exe: context.config.exe.clone(),
        container_id: target.container_id,
        command: wanted.command.clone(),
        env: if wanted.tty { vec![("TERM".to_owned(), "xterm".to_owned())] } else { Vec::new() },
        tty: wanted.tty,
        stdin: wanted.stdin,
    };
    tokio::spawn(async move {
        let Some(session) = speech.begin(&wanted).await else { return };
        let Session { input, output } = session;
        let status = match Exec::spawn(&config) {
            Ok((exec, streams)) => run(exec, streams, input, &output, &wanted).await,
            Err(error) => Some(streams::internal(&format!("cannot run the command: {error}"))),
        };
        if let Some(status) = status {
            let _ = output.send(Outbound::Status(status)).await;
        }
    });
    Ok(answer)
}

/// Runs the command; its Status, or none if the client has gone, which kills the command.
async fn run(
    mut exec: Exec,
    streams: Streams,
    input: mpsc::Receiver<Inbound>,
    sender: &mpsc::Sender<Outbound>,
    wanted: &Wanted,
) -> Option<Value> {
    let (mut input, mut output): (tokio::task::JoinHandle<()>, _) = match streams {
        Streams::Pipes { stdin, stdout, stderr } => {
            let out = pump(stdout, Outbound::Stdout, sender.clone(), wanted.stdout);
            let err = pump(stderr, Outbound::Stderr, sender.clone(), wanted.stderr);
            let output = tokio::spawn(async move {
                tokio::join!(out, err);
            });
            (tokio::spawn(take_input(input, stdin, |_, _| {})), output)
        }
        Streams::Terminal(pty) => {
            let terminal = Terminal(Arc::new(Mutex::new(pty)));
            let resized = terminal.clone();
            let resize = move |columns, rows| resized.resize(columns, rows);
            let stdin = Some(terminal.clone()).filter(|_| wanted.stdin);
            let output = tokio::spawn(pump(terminal, Outbound::Stdout, sender.clone(), true));
            (tokio::spawn(take_input(input, stdin, resize)), output)
        }
    };
    let code = tokio::select! {
        code = exec.wait() => code,
        // The client has gone: dropping the command kills it.
        () = sender.closed() => { input.abort(); output.abort(); return None; }
        _ = &mut input => { output.abort(); return None; }
    };
    if tokio::time::timeout(DRAIN, &mut output).await.is_err() {
        output.abort();
    }
    input.abort();
    Some(code.map_or_else(|error| streams::internal(&error.to_string()), streams::exit_status))
}

/// What the client sends, to the command; returns when the client has gone.
async fn take_input(
    mut input: mpsc::Receiver<Inbound>,
    mut stdin: Option<impl AsyncWrite + Unpin>,
    resize: impl Fn(u16, u16),
) {
    while let Some(inbound) = input.recv().await {
        match inbound {
            Inbound::Stdin(bytes) => {
                if let Some(pipe) = &mut stdin
                    && (pipe.write_all(&bytes).await.is_err() || pipe.flush().await.is_err())
                {
                    stdin = None;
                }
            }
            Inbound::StdinEnd => stdin = None,
            Inbound::Resize { columns, rows } => resize(columns, rows),
        }
    }
}

/// What the command says, to the client; read to the end even if nobody wants it.
async fn pump(
    mut stream: impl AsyncRead + Unpin,
    message: fn(Bytes) -> Outbound,
    sender: mpsc::Sender<Outbound>,
    wanted: bool,
) {
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if wanted && sender.send(message(Bytes::copy_from_slice(&buffer[..count]))).await.is_err() {
            return;
        }
    }
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
