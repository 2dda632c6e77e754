//! Accepting connections: how many, from whom, and for how long they may be silent.
//!
//! HTTP/2 keepalive begins only when a connection has shown its preface, so that a silent one would
//! stay for ever; here it has to come in time. Each connection holds its place, in all and of its
//! address, from the moment it is taken until it is dropped.

use std::collections::HashMap;
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::counters::{Counters, add};
use super::limits::{Door, Limits};

/// What every HTTP/2 connection begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Connections that wait to be served.
const READY_MAX: usize = 64;
/// How long to wait when the system accepts no connection, for want of descriptors maybe.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);

/// Takes connections from `listener` until `shutdown` is done, and gives those that speak HTTP/2.
///
/// No error ends it: the stream ends with `shutdown` alone, and never gives an error.
pub fn incoming(
    listener: TcpListener,
    door: Door,
    limits: &Limits,
    counters: Arc<Counters>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> ReceiverStream<io::Result<Conn>> {
    let (ready, connections) = mpsc::channel(READY_MAX);
    let acceptor = Acceptor {
        places: Arc::new(Places::new(door, limits, counters.clone())),
        preface_timeout: limits.preface_timeout,
        counters,
        ready,
    };
    tokio::spawn(async move {
        tokio::select! {
            () = acceptor.run(&listener) => {}
            () = shutdown => {}
        }
    });
    ReceiverStream::new(connections)
}

/// A connection that has shown its preface.
#[derive(Debug)]
pub struct Conn {
    stream: TcpStream,
    /// How much of the preface is still to be read once more.
    preface_left: usize,
    _place: Place,
}

impl Connected for Conn {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.preface_left > 0 {
            let rest = &PREFACE[PREFACE.len() - self.preface_left..];
            let taken = rest.len().min(buffer.remaining());
            buffer.put_slice(&rest[..taken]);
            self.preface_left -= taken;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[derive(Debug, Clone)]
struct Acceptor {
    places: Arc<Places>,
    preface_timeout: Duration,
    counters: Arc<Counters>,
    ready: mpsc::Sender<io::Result<Conn>>,
}

impl Acceptor {
    async fn run(self, listener: &TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => self.take(stream, from),
                Err(error) => {
                    tracing::warn!(%error, "no connection can be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn take(&self, stream: TcpStream, from: SocketAddr) {
        let place = match Places::take(&self.places, from.ip()) {
            Ok(place) => place,
            Err(Full::All) => return add(&self.counters.connections_refused, 1),
            Err(Full::OfAddress) => {
                return add(&self.counters.connections_refused_of_address, 1);
            }
        };
        add(&self.counters.connections_taken, 1);
        let acceptor = self.clone();
        tokio::spawn(async move {
            let timeout = acceptor.preface_timeout;
            match tokio::time::timeout(timeout, read_preface(stream)).await {
                Ok(Ok(stream)) => {
                    let conn = Conn { stream, preface_left: PREFACE.len(), _place: place };
                    // Nobody takes it when the server is shutting down.
                    let _ = acceptor.ready.send(Ok(conn)).await;
                }
                Ok(Err(_)) | Err(_) => add(&acceptor.counters.connections_silent, 1),
            }
        });
    }
}

async fn read_preface(mut stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(TCP_KEEPALIVE).with_interval(TCP_KEEPALIVE);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    let mut read = [0; PREFACE.len()];
    let mut len = 0;
    while len < read.len() {
        let more = stream.read(&mut read[len..]).await?;
        len += more;
        if more == 0 || read[..len] != PREFACE[..len] {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(stream)
}

/// Places for connections.
#[derive(Debug)]
struct Places {
    max: usize,
    per_address_max: usize,
    taken: Mutex<Taken>,
    counters: Arc<Counters>,
}

/// Which places are all taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    All,
    OfAddress,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Places {
    fn new(door: Door, limits: &Limits, counters: Arc<Counters>) -> Self {
        let per_address_max = match door {
            Door::Clients => limits.connections_per_address_max,
            // Several nodes may share a machine.
            Door::Peers => limits.connections_max,
        };
        Self { max: limits.connections_max, per_address_max, taken: Mutex::default(), counters }
    }

    fn take(self: &Arc<Self>, address: IpAddr) -> Result<Place, Full> {
        let address = address.to_canonical();
        let mut taken = self.taken.lock().expect("nobody panics with the lock");
        let of_address = taken.by_address.get(&address).copied().unwrap_or(0);
        if taken.all >= self.max {
            return Err(Full::All);
        }
        if of_address >= self.per_address_max {
            return Err(Full::OfAddress);
        }
        taken.all += 1;
        taken.by_address.insert(address, of_address + 1);
        Ok(Place { places: self.clone(), address })
    }
}

/// A connection's place; given back when it is dropped.
#[derive(Debug)]
struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        add(&self.places.counters.connections_ended, 1);
        let mut taken = self.places.taken.lock().expect("nobody panics with the lock");
        taken.all -= 1;
        let of_address = taken.by_address.get_mut(&self.address).expect("a place was counted");
        *of_address -= 1;
        if *of_address == 0 {
            taken.by_address.remove(&self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::AsyncWriteExt as _;
    use tokio_stream::{Stream, StreamExt as _};

    use super::*;

    async fn listen(
        limits: Limits,
    ) -> (SocketAddr, Arc<Counters>, impl Stream<Item = io::Result<Conn>> + Unpin) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let counters = Arc::new(Counters::default());
        let incoming =
            incoming(listener, Door::Clients, &limits, counters.clone(), std::future::pending());
        (address, counters, Box::pin(incoming))
    }

    fn short_limits() -> Limits {
        Limits { preface_timeout: Duration::from_millis(200), ..Limits::default() }
    }

    async fn is_closed(stream: &mut TcpStream) -> bool {
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0; 1])).await;
        matches!(read, Ok(Ok(0) | Err(_)))
    }

    #[tokio::test]
    async fn a_silent_connection_is_cut() {
        let (address, counters, _incoming) = listen(short_limits()).await;
        let started = Instant::now();
        let mut silent = TcpStream::connect(address).await.unwrap();
        assert!(is_closed(&mut silent).await);
        assert!(started.elapsed() >= Duration::from_millis(150));
        assert_eq!(counters.connections_silent.load(std::sync::atomic::Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_preface_that_drips_is_cut_and_another_protocol_at_once() {
        let (address, _, _incoming) = listen(short_limits()).await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(&PREFACE[..10]).await.unwrap();
        let mut other = TcpStream::connect(address).await.unwrap();
        let started = Instant::now();
        other.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert!(is_closed(&mut other).await);
        assert!(started.elapsed() < Duration::from_millis(150));
        assert!(is_closed(&mut slow).await);
    }

    #[tokio::test]
    async fn a_preface_is_given_to_whoever_reads_the_connection() {
        let (address, _, mut incoming) = listen(short_limits()).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(&PREFACE[..5]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        client.write_all(&PREFACE[5..]).await.unwrap();
        client.write_all(b"more").await.unwrap();
        let mut conn = incoming.next().await.unwrap().unwrap();
        let mut read = [0; 28];
        conn.read_exact(&mut read[..7]).await.unwrap();
        conn.read_exact(&mut read[7..]).await.unwrap();
        assert_eq!(&read[..24], PREFACE);
        assert_eq!(&read[24..], b"more");
    }

    #[tokio::test]
    async fn an_address_has_so_many_places_and_gets_them_back() {
        let limits = Limits { connections_per_address_max: 2, ..Limits::default() };
        let (address, counters, mut incoming) = listen(limits).await;
        let mut clients = Vec::new();
        for _ in 0..2 {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(PREFACE).await.unwrap();
            clients.push((client, incoming.next().await.unwrap().unwrap()));
        }
        let mut refused = TcpStream::connect(address).await.unwrap();
        assert!(is_closed(&mut refused).await);
        assert_eq!(
            counters.connections_refused_of_address.load(std::sync::atomic::Ordering::Relaxed),
            1
        );
        clients.pop();
        let mut again = TcpStream::connect(address).await.unwrap();
        again.write_all(PREFACE).await.unwrap();
        assert!(incoming.next().await.is_some());
    }

    #[test]
    fn places_are_counted_by_address_and_in_all() {
        let limits =
            Limits { connections_max: 3, connections_per_address_max: 2, ..Limits::default() };
        let places = Arc::new(Places::new(Door::Clients, &limits, Arc::default()));
        let (one, two) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        let held = [Places::take(&places, one), Places::take(&places, mapped)];
        assert!(held.iter().all(Result::is_ok));
        assert_eq!(Places::take(&places, one).err(), Some(Full::OfAddress));
        let other = Places::take(&places, two);
        assert_eq!(Places::take(&places, two).err(), Some(Full::All));
        drop((held, other));
        assert_eq!(places.taken.lock().unwrap().all, 0);
        assert!(places.taken.lock().unwrap().by_address.is_empty());
    }
}
