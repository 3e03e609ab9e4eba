//! A server that answers every request after the same time, for benches: `steady ADDRESS DELAY_US`.
//!
//! What it takes is known to the microsecond and does not depend on what else it is asked, so what two load generators measure of
//! it can be compared: all differences are their own.

use std::net::SocketAddr;
use std::time::Duration;

use mainstay_drill::load::timer::Timer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A request that waits for its time.
type Waiting = (Instant, oneshot::Sender<()>);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().collect();
    let [_, address, delay_us] = words.as_slice() else { return Err("usage: steady ADDRESS DELAY_US".into()) };
    let (address, delay): (SocketAddr, _) = (address.parse()?, Duration::from_micros(delay_us.parse()?));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(tokio::task::LocalSet::new().block_on(&runtime, serve(address, delay))?)
}

async fn serve(address: SocketAddr, delay: Duration) -> std::io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let (queue, mut waiting) = mpsc::unbounded_channel::<Waiting>();
    let timer = Timer::new()?;
    // All wait equally long, so who came first goes first.
    tokio::task::spawn_local(async move {
        while let Some((due, answer)) = waiting.recv().await {
            let _ = timer.sleep(due.saturating_duration_since(Instant::now())).await;
            let _ = answer.send(());
        }
    });
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::task::spawn_local(connection(stream, delay, queue.clone()));
    }
}

/// Requests without bodies, one after the other.
async fn connection(mut stream: TcpStream, delay: Duration, queue: mpsc::UnboundedSender<Waiting>) {
    let _ = stream.set_nodelay(true);
    let (mut buffer, mut read) = ([0_u8; 4096], 0);
    while let Ok(more @ 1..) = stream.read(&mut buffer[read..]).await {
        read += more;
        if !buffer[..read].ends_with(b"\r\n\r\n") {
            continue;
        }
        read = 0;
        let (answer, told) = oneshot::channel();
        if queue.send((Instant::now() + delay, answer)).is_err() || told.await.is_err() {
            return;
        }
        if stream.write_all(ANSWER).await.is_err() {
            return;
        }
    }
}
