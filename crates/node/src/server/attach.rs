//! `/attach/NAMESPACE/POD/CONTAINER`: the streams of a container's own program, as `kubectl attach` and `kubectl run -i` want
//! them.
//!
//! The shim holds the container's side; this only carries bytes, so the container goes on when the client, or this agent,
//! does not.

use std::sync::Arc;

use bytes::Bytes;
use mainstay_runtime::sandbox::{AttachReader, AttachWriter, attach};
use tokio::sync::mpsc;

use crate::context::Context;
use crate::server::streams::{self, Inbound, Outbound, Session, Wanted};
use crate::server::{Answer, Refusal, Target};

/// Answers a request to attach: checks it, switches the protocol and connects both sides.
pub(super) fn serve(
    context: &Arc<Context>,
    (namespace, pod, container): (&str, &str, &str),
    request: &mut hyper::Request<hyper::body::Incoming>,
) -> Result<Answer, Refusal> {
    let mut wanted = Wanted::parse(request.uri().query().unwrap_or_default())?;
    let target = Target::find(context, namespace, pod, container)?;
    wanted.stdin &= target.stdin;
    let (answer, speech) = streams::negotiate_channels(request)?;
    // The streams that the client opens are those it asked for, whether the container has them or not.
    let opened = Wanted::parse(request.uri().query().unwrap_or_default())?;
    tokio::spawn(async move {
        let Some(Session { input, output }) = speech.begin(&opened).await else { return };
        let status = match attach(target.dir.root(), &target.container_id, wanted.stdin).await {
            Ok((reader, writer)) => {
                let feeding = tokio::spawn(feed(input, writer));
                let through = tell(reader, &output, &wanted, feeding).await;
                if !through {
                    return;
                }
                streams::success()
            }
            Err(error) => streams::internal(&format!("unable to attach: {error}")),
        };
        let _ = output.send(Outbound::Status(status)).await;
    });
    Ok(answer)
}

/// From the client to the container; returns when either is gone.
async fn feed(mut input: mpsc::Receiver<Inbound>, mut writer: AttachWriter) {
    while let Some(inbound) = input.recv().await {
        let there = match inbound {
            Inbound::Stdin(bytes) => writer.write(&bytes).await,
            Inbound::StdinEnd => writer.end().await,
            Inbound::Resize { columns, rows } => writer.resize(columns, rows).await,
        };
        if !there {
            // The container is through; the reader says so when all of its output is read.
            std::future::pending::<()>().await;
        }
    }
}

/// From the container to the client; true when the container is through, false when the client is gone.
async fn tell(
    mut reader: AttachReader,
    output: &mpsc::Sender<Outbound>,
    wanted: &Wanted,
    mut feeding: tokio::task::JoinHandle<()>,
) -> bool {
    let through = loop {
        let next = tokio::select! {
            next = reader.next() => next,
            _ = &mut feeding => break false,
            () = output.closed() => break false,
        };
        let Some((is_error, bytes)) = next else { break true };
        let message = match (is_error, wanted.stdout, wanted.stderr) {
            (false, true, _) => Outbound::Stdout(Bytes::from(bytes)),
            (true, _, true) => Outbound::Stderr(Bytes::from(bytes)),
            _ => continue,
        };
        if output.send(message).await.is_err() {
            break false;
        }
    };
    feeding.abort();
    through
}
