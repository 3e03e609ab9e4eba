//! Listening, serving, and going away without dropping anyone.
//!
//! # Flow
//! accept → one task per connection → told to stop: not ready, still accepting for `linger` → listener closed,
//! connections asked to finish, waited for at most `drain` → return.
//!
//! # Guarantees
//! At most [`CONNECTIONS_MAX`] connections at a time; more wait in the kernel's queue. A client that sends no request
//! head within [`HEAD_TIMEOUT`] is disconnected.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::endpoints::{Application, log};

/// Connections served at the same time.
const CONNECTIONS_MAX: usize = 1024;
/// How long a client may take to send a request head, an idle kept-alive connection included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause after a failed accept: out of file descriptors is the usual reason, and it passes.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// How a program goes away once it is told to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopping {
    /// How long new connections are still answered.
    pub(crate) linger: Duration,
    /// How long requests in flight get after that.
    pub(crate) drain: Duration,
}

/// Binds the address. `SO_REUSEADDR` is set, so that a restarted container can listen again at once.
pub(crate) async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until `told_to_stop` resolves (to the reason's name), then goes away as [`Stopping`] says.
pub(crate) async fn serve(
    listener: TcpListener,
    application: Arc<Application>,
    stopping: Stopping,
    told_to_stop: impl Future<Output = &'static str>,
) {
    let (finish, finishing) = watch::channel(false);
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    tokio::pin!(told_to_stop);
    let mut close_at: Option<Instant> = None;
    loop {
        tokio::select! {
            accepted = accept(&listener, &permits) => {
                let (stream, client, permit) = accepted;
                let connection = connection(stream, client, Arc::clone(&application), finishing.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            // Reaping keeps the set from growing over the life of the process.
            Some(_) = connections.join_next() => {}
            reason = &mut told_to_stop, if close_at.is_none() => {
                application.health.stop();
                log(format_args!("{reason}: no longer ready, finishing"));
                close_at = Some(Instant::now() + stopping.linger);
            }
            () = sleep_until(close_at.unwrap_or_else(Instant::now)), if close_at.is_some() => break,
        }
    }
    drop(listener);
    let _ = finish.send(true);
    let drained = timeout(stopping.drain, async { while connections.join_next().await.is_some() {} }).await;
    match drained {
        Ok(()) => log(format_args!("all requests finished")),
        Err(_) => log(format_args!("{} connections cut off after {:?}", connections.len(), stopping.drain)),
    }
}

/// The next connection, once there is room for it.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, Option<tokio::sync::OwnedSemaphorePermit>) {
    // The semaphore is never closed, so this is always Some.
    let permit = Arc::clone(permits).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, client)) => return (stream, client, permit),
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// One connection from its first request to its last.
async fn connection(
    stream: TcpStream,
    client: SocketAddr,
    application: Arc<Application>,
    mut finishing: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(client);
        let application = Arc::clone(&application);
        async move { Ok::<_, Infallible>(application.answer(request).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    // A client that breaks off or speaks nonsense has only itself to blame; there is nobody to tell.
    tokio::select! {
        _ = serving.as_mut() => return,
        _ = finishing.wait_for(|finish| *finish) => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
