//! Connections: accepted up to a limit, encrypted if the server has a certificate, and ended when the server stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_io_timeout::TimeoutStream;

use super::events::ServeEvent;
use super::service::Service;
use crate::Result;
use crate::error::Context;

/// Interval between checks of the flags.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How long a stopping server waits, after the last text, for clients to read answers or to complete requests.
const DRAIN: Duration = Duration::from_secs(5);

/// A listening socket at `address`, such as `127.0.0.1:8080`.
///
/// # Errors
/// If the server cannot listen at the address; the message names it.
pub fn bind(address: &str) -> Result<std::net::TcpListener> {
    let socket = std::net::TcpListener::bind(address).with_context(|| {
        format!("cannot listen at {address}: give a host and a free port, as --listen 127.0.0.1:8081")
    })?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The flags by which a program ends a server, or lets it read its keys and certificate again.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// Ends the server when the requests in hand are answered.
    pub stop: Arc<AtomicBool>,
    /// Lets it read keys and certificate again; it resets the flag.
    pub reread: Arc<AtomicBool>,
}

/// Serves until the flag to stop is set and all complete requests are answered. Clients that have not completed a request
/// soon after are disconnected.
///
/// # Errors
/// If the system refuses the socket.
pub fn serve(socket: std::net::TcpListener, service: &Arc<Service>, router: Router, signals: &Signals) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(socket)?;
        let connections = GracefulShutdown::new();
        let open = Arc::new(Semaphore::new(service.limits.connections));
        while !signals.stop.load(Ordering::SeqCst) {
            if signals.reread.swap(false, Ordering::SeqCst) {
                reread(service);
            }
            // Clients beyond the limit wait in the system's queue.
            let Ok(Ok(permit)) = timeout(POLL_INTERVAL, Arc::clone(&open).acquire_owned()).await else { continue };
            match timeout(POLL_INTERVAL, listener.accept()).await {
                Ok(Ok((stream, _))) => {
                    let (service, router, watcher) = (Arc::clone(service), router.clone(), connections.watcher());
                    tokio::spawn(async move {
                        service.metrics.connections().inc();
                        connection(stream, &service, router, watcher).await;
                        service.metrics.connections().dec();
                        drop(permit);
                    });
                }
                // A client that has disconnected, or too many open files: no reason to stop.
                Ok(Err(_)) => tokio::time::sleep(POLL_INTERVAL).await,
                Err(_) => {}
            }
        }
        drop((listener, router));
        let ended = connections.shutdown();
        tokio::pin!(ended);
        let mut idle = Instant::now();
        while timeout(POLL_INTERVAL, &mut ended).await.is_err() && idle.elapsed() < DRAIN {
            if service.active() > 0 {
                idle = Instant::now();
            }
        }
        Ok(())
    })
}

fn reread(service: &Service) {
    let keys = service.keys.as_ref().map_or(Ok(()), |keys| keys.reread());
    let read = keys.and_then(|()| service.tls.as_ref().map_or(Ok(()), |tls| tls.reread()));
    match read {
        Ok(()) => (service.watch)(ServeEvent::Reread),
        Err(error) => (service.watch)(ServeEvent::Warning(&format!("{}; they stay as they were", error.report()))),
    }
}

/// One connection from its first byte to its last. A failure concerns its client only.
async fn connection(stream: TcpStream, service: &Service, router: Router, watcher: Watcher) {
    // Pieces of a stream are sent when they are there.
    let _ = stream.set_nodelay(true);
    let limit = service.limits.read_timeout;
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(limit));
    let stream = Box::pin(stream);
    match &service.tls {
        None => requests(stream, limit, router, watcher).await,
        Some(tls) => {
            if let Ok(Ok(stream)) = timeout(limit, tls.acceptor().accept(stream)).await {
                requests(stream, limit, router, watcher).await;
            }
        }
    }
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    limit: Duration,
    router: Router,
    watcher: Watcher,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limit);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let _ = watcher.watch(connection).await;
}
