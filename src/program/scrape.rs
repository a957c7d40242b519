//! Serves metrics over HTTP, for Prometheus and the like to scrape.
//!
//! One request a connection, one answer, and it is closed. Whoever comes is bounded in number, in bytes
//! and in time, and shares nothing with the hub but the counters, so a slow or hostile scraper costs
//! other scrapers at most. No more HTTP than that: no TLS and no passwords; give an address that only
//! those reach who may read.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use iroh::Endpoint;
use iroh_metrics::{MetricsSource, Registry};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::say::say;

/// Where the metrics are.
const PATH: &str = "/metrics";
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How many connections are served at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 16;
/// The longest request, without a body.
const MAX_HEAD: usize = 8 * 1024;
const MAX_HEADERS: usize = 64;
/// How long a scraper may take to ask.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// How long one connection may take, from being accepted to being closed.
const LIMIT: Duration = Duration::from_secs(5);
/// How many bytes that nobody asked for are read, so that they do not cut the answer off.
const MAX_LEFT_OVER: u64 = 64 * 1024;
/// How long answers that are under way may take when the program ends.
const END_LIMIT: Duration = Duration::from_millis(500);
/// How long to wait after an accept that failed, for example for want of file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);

/// The server; it ends in order by [`end`], and at once when it is dropped.
pub(super) struct Server {
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

/// Binds the address that the command line gives, if it does, before anything else is begun.
pub(super) async fn bind(addr: Option<SocketAddr>) -> anyhow::Result<Option<TcpListener>> {
    let Some(addr) = addr else {
        return Ok(None);
    };
    let bound = TcpListener::bind(addr).await.with_context(|| {
        format!("--metrics {addr} cannot be bound; give another address, or port 0 for a free one")
    })?;
    Ok(Some(bound))
}

/// Serves what `register` registers, and the endpoint's own metrics, and says where.
pub(super) fn serve(
    bound: Option<TcpListener>,
    endpoint: &Endpoint,
    register: impl FnOnce(&mut Registry),
) -> anyhow::Result<Option<Server>> {
    let Some(bound) = bound else {
        return Ok(None);
    };
    let mut registry = Registry::default();
    register(&mut registry);
    registry
        .sub_registry_with_prefix("iroh")
        .register_all(endpoint.metrics());
    let addr = bound.local_addr().context("the metrics have no address")?;
    say(format_args!("metrics: http://{addr}{PATH}"));
    let cancel = CancellationToken::new();
    let task = tokio::spawn(accept(bound, Arc::new(registry), cancel.clone()));
    Ok(Some(Server { cancel, task }))
}

/// Lets answers that are under way finish, and serves no more.
pub(super) async fn end(server: Option<Server>) {
    if let Some(mut server) = server {
        server.cancel.cancel();
        // It bounds itself; a panic in it is no reason to fail now.
        let _ = (&mut server.task).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, registry: Arc<Registry>, cancel: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, remote)) => {
                    let answering = answer(stream, registry.clone(), cancel.clone());
                    connections.spawn(async move {
                        match timeout(LIMIT, answering).await {
                            Ok(Ok(())) => {}
                            Ok(Err(error)) => debug!(%remote, %error, "a scraper got no answer"),
                            Err(_) => debug!(%remote, "a scraper took too long"),
                        }
                    });
                }
                Err(error) => {
                    warn!(%error, "a scraper could not be accepted");
                    tokio::select! {
                        () = sleep(ACCEPT_AGAIN) => {}
                        () = cancel.cancelled() => break,
                    }
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
    drop(listener);
    let _ = timeout(END_LIMIT, async {
        while connections.join_next().await.is_some() {}
    })
    .await;
    connections.shutdown().await;
}

async fn answer(
    mut stream: TcpStream,
    registry: Arc<Registry>,
    cancel: CancellationToken,
) -> io::Result<()> {
    let asked = tokio::select! {
        asked = timeout(ASK_LIMIT, read_head(&mut stream)) => asked??,
        () = cancel.cancelled() => return Ok(()),
    };
    let answer = match asked {
        Asked::Metrics { with_body } => match registry.encode_openmetrics_to_string() {
            Ok(text) => response("200 OK", CONTENT_TYPE, &text, with_body),
            Err(error) => {
                warn!(%error, "metrics cannot be encoded");
                plain("500 Internal Server Error", "the metrics cannot be encoded")
            }
        },
        Asked::Other(answer) => answer,
        Asked::Nothing => return Ok(()),
    };
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // Closed with something unread, a TCP connection takes the answer back.
    let mut left_over = stream.take(MAX_LEFT_OVER);
    let mut nowhere = tokio::io::sink();
    tokio::select! {
        _ = tokio::io::copy(&mut left_over, &mut nowhere) => {}
        () = cancel.cancelled() => {}
    }
    Ok(())
}

/// What a request asks for.
#[derive(PartialEq, Eq, Debug)]
enum Asked {
    Metrics {
        with_body: bool,
    },
    /// Something that gets this answer.
    Other(String),
    /// The connection ended before it was said.
    Nothing,
}

async fn read_head(stream: &mut TcpStream) -> io::Result<Asked> {
    let mut head = Vec::with_capacity(1024);
    loop {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(Asked::Nothing);
        }
        if let Some(asked) = asked(&head) {
            return Ok(asked);
        }
    }
}

/// What a request asks for, once all of it is there.
fn asked(head: &[u8]) -> Option<Asked> {
    let too_large = || Asked::Other(plain("431 Request Header Fields Too Large", "too long"));
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(len)) if len <= MAX_HEAD => {}
        Ok(httparse::Status::Partial) if head.len() < MAX_HEAD => return None,
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Some(too_large()),
        Err(_) => return Some(Asked::Other(plain("400 Bad Request", "this is not HTTP/1"))),
    }
    let path = request.path.unwrap_or_default();
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    Some(match (path, request.method) {
        (PATH, Some("GET")) => Asked::Metrics { with_body: true },
        (PATH, Some("HEAD")) => Asked::Metrics { with_body: false },
        (PATH, _) => Asked::Other(plain(
            "405 Method Not Allowed\r\nAllow: GET, HEAD",
            "GET it",
        )),
        _ => Asked::Other(plain("404 Not Found", "the metrics are at /metrics")),
    })
}

fn plain(status: &str, words: &str) -> String {
    response(status, "text/plain; charset=utf-8", words, true)
}

fn response(status: &str, content_type: &str, body: &str, with_body: bool) -> String {
    let len = body.len();
    let body = if with_body { body } else { "" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(head: &[u8]) -> Option<String> {
        match asked(head)? {
            Asked::Metrics { with_body } => Some(format!("metrics {with_body}")),
            Asked::Other(answer) => Some(answer.split(' ').nth(1)?.to_owned()),
            Asked::Nothing => None,
        }
    }

    #[test]
    fn a_request_is_answered_once_it_is_whole() {
        let head = b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n";
        for len in 0..head.len() {
            assert_eq!(status(&head[..len]), None, "{len}");
        }
        assert_eq!(status(head).as_deref(), Some("metrics true"));
        let others = [
            ("HEAD /metrics HTTP/1.0", "metrics false"),
            ("GET / HTTP/1.1", "404"),
            ("GET /metrics/x HTTP/1.1", "404"),
            ("POST /metrics HTTP/1.1", "405"),
            ("PRI * HTTP/2.0", "400"),
            ("\x16\x03\x01", "400"),
        ];
        for (line, answer) in others {
            let head = format!("{line}\r\n\r\n");
            assert_eq!(status(head.as_bytes()).as_deref(), Some(answer), "{line}");
        }
    }

    #[test]
    fn a_request_is_bounded_in_bytes_and_headers() {
        let line = "GET /metrics HTTP/1.1\r\n";
        let long = format!("{line}A: {}", "a".repeat(MAX_HEAD));
        assert_eq!(status(long.as_bytes()).as_deref(), Some("431"));
        let whole = format!("{long}\r\n\r\n");
        assert_eq!(status(whole.as_bytes()).as_deref(), Some("431"));
        let many = format!("{line}{}\r\n", "A: a\r\n".repeat(MAX_HEADERS + 1));
        assert_eq!(status(many.as_bytes()).as_deref(), Some("431"));
    }

    fn real() -> Vec<(&'static str, Vec<u8>)> {
        let ask = |text: &str| text.as_bytes().to_vec();
        vec![
            (
                "get",
                ask("GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\n"),
            ),
            ("head", ask("HEAD /metrics HTTP/1.0\r\n\r\n")),
            (
                "other",
                ask("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"),
            ),
            ("bad-http2", ask("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")),
        ]
    }

    crate::fuzz::decoder!(scrape_request, real(), |bytes| {
        let answer = asked(bytes);
        let mut head = bytes.to_vec();
        head.resize(MAX_HEAD, b'a');
        let full = asked(&head);
        assert!(full.is_some(), "nothing is read for ever");
        if answer.is_some() {
            assert_eq!(answer, full, "what comes behind changes nothing");
        }
    });
}
