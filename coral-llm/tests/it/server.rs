//! A server that answers byte for byte what a test tells it to.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One answer of the server.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    pieces: Vec<Vec<u8>>,
    cut: bool,
    silent: bool,
}

impl Answer {
    /// An answer of JSON.
    pub(crate) fn json(body: &Value) -> Self {
        Answer::new("200 OK", "application/json", vec![body.to_string().into_bytes()])
    }

    /// A stream of server-sent events, cut into pieces of five bytes.
    pub(crate) fn sse(text: &str) -> Self {
        Answer::new("200 OK", "text/event-stream", text.as_bytes().chunks(5).map(<[u8]>::to_vec).collect())
    }

    /// A stream of lines of JSON, in one piece.
    pub(crate) fn lines(text: &str) -> Self {
        Answer::new("200 OK", "application/x-ndjson", vec![text.as_bytes().to_vec()])
    }

    /// An error.
    pub(crate) fn error(status: &'static str, body: &Value) -> Self {
        Answer { status, ..Answer::json(body) }
    }

    fn new(status: &'static str, content_type: &'static str, pieces: Vec<Vec<u8>>) -> Self {
        let headers = vec![("content-type", content_type.to_owned())];
        Answer { status, headers, pieces, cut: false, silent: false }
    }

    /// Sends a header along.
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// Says another `content-type`, or none.
    pub(crate) fn of_type(mut self, content_type: &str) -> Self {
        self.headers.retain(|(name, _)| *name != "content-type");
        if content_type.is_empty() { self } else { self.header("content-type", content_type) }
    }

    /// Breaks the connection in place of ending the answer.
    pub(crate) fn cut(mut self) -> Self {
        self.cut = true;
        self
    }

    /// Says nothing more in place of ending the answer, until the client goes away.
    pub(crate) fn silent(mut self) -> Self {
        self.silent = true;
        self
    }
}

/// One request that the server saw.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The request line and the headers, in lower case.
    pub head: String,
    /// The body.
    pub body: Value,
}

/// A running server. It ends with the test's runtime.
pub(crate) struct Server {
    /// Where it listens, such as `http://127.0.0.1:4000`.
    pub url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    gone: Arc<tokio::sync::Notify>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    /// Starts a server that gives `answers` in order.
    pub(crate) async fn start(answers: impl IntoIterator<Item = Answer>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let gone = Arc::new(tokio::sync::Notify::new());
        let answers = Arc::new(Mutex::new(answers.into_iter().collect::<VecDeque<_>>()));
        let connections = Arc::new(AtomicUsize::new(0));
        let server = Server { url, seen: seen.clone(), gone: gone.clone(), connections: connections.clone() };
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(socket, answers.clone(), seen.clone(), gone.clone()));
            }
        });
        server
    }

    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How many connections were opened so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Waits until a client has gone away from a silent answer.
    pub(crate) async fn client_gone(&self) {
        self.gone.notified().await;
    }
}

async fn serve(
    mut socket: TcpStream,
    answers: Arc<Mutex<VecDeque<Answer>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    gone: Arc<tokio::sync::Notify>,
) {
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut socket, &mut buffer).await {
        seen.lock().unwrap().push(request);
        let answer = answers.lock().unwrap().pop_front().expect("no answer is left");
        let mut head = format!("HTTP/1.1 {}\r\ntransfer-encoding: chunked\r\n", answer.status);
        for (name, value) in &answer.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let _ = socket.write_all(head.as_bytes()).await;
        for piece in &answer.pieces {
            let _ = socket.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await;
            let _ = socket.write_all(piece).await;
            let _ = socket.write_all(b"\r\n").await;
            let _ = socket.flush().await;
        }
        if answer.silent {
            let _ = socket.read(&mut [0; 1]).await;
            gone.notify_one();
            return;
        }
        if answer.cut {
            return;
        }
        let _ = socket.write_all(b"0\r\n\r\n").await;
    }
}

pub(crate) async fn read_request(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Seen> {
    loop {
        if let Some(end) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
            let length: usize = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"))
                .map_or(0, |length| length.trim().parse().unwrap());
            if buffer.len() >= end + 4 + length {
                let body = serde_json::from_slice(&buffer[end + 4..end + 4 + length]).unwrap_or(Value::Null);
                buffer.drain(..end + 4 + length);
                return Some(Seen { head, body });
            }
        }
        let mut bytes = [0; 4096];
        match socket.read(&mut bytes).await {
            Ok(0) | Err(_) => return None,
            Ok(n) => buffer.extend_from_slice(&bytes[..n]),
        }
    }
}
