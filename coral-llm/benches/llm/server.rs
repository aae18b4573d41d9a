//! The server that all clients call: a process of its own, so that only the clients' time and memory are measured.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Chunks of text in a stream.
pub(crate) const CHUNKS: usize = 100;

/// Bytes of text in an answer.
pub(crate) const ANSWER: usize = 5 * CHUNKS;

/// The model whose streams stop after their first chunk until [`RELEASE`] is asked.
pub(crate) const HELD: &str = "held";

/// The model whose call lets all streams of [`HELD`] go on.
pub(crate) const RELEASE: &str = "release";

/// A running server. It ends when it is dropped.
pub(crate) struct Server {
    pub(crate) url: String,
    process: Child,
}

impl Server {
    /// Starts this program once more, as the server.
    pub(crate) fn start() -> Server {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .arg("serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut url).unwrap();
        Server { url: url.trim().to_owned(), process }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// One event of a stream.
pub(crate) fn event(text: &str) -> String {
    let chunk = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]});
    format!("data: {chunk}\n\n")
}

/// One that is padded, as OpenAI pads its own: no two are alike beside their text.
pub(crate) fn padded(text: &str, number: usize) -> String {
    let chunk = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}],
        "obfuscation": format!("{number:016}")});
    format!("data: {chunk}\n\n")
}

/// What follows the last chunk.
pub(crate) fn end() -> String {
    let last = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
    format!("data: {last}\n\ndata: [DONE]\n\n")
}

struct Answers {
    whole: Vec<u8>,
    /// The head, a piece for each chunk, and the end.
    stream: Vec<Vec<u8>>,
    released: watch::Sender<u64>,
}

/// Serves until its standard input ends.
pub(crate) fn serve() {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let body = json!({"id": "c", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "words".repeat(CHUNKS)}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 100, "total_tokens": 110}})
    .to_string();
    let whole = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = vec![
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(),
    ];
    for text in (0..CHUNKS).map(|_| event("words")).chain([end()]) {
        stream.push(format!("{:x}\r\n{text}\r\n", text.len()).into_bytes());
    }
    stream.push(b"0\r\n\r\n".to_vec());
    let answers = Arc::new(Answers { whole: whole.into_bytes(), stream, released: watch::Sender::new(0) });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener: TcpListener = socket.listen(16_384).unwrap();
        println!("http://{}", listener.local_addr().unwrap());
        while let Ok((socket, _)) = listener.accept().await {
            socket.set_nodelay(true).unwrap();
            tokio::spawn(answer(socket, answers.clone()));
        }
    });
}

/// Answers by what it is asked: whole, or a stream in as many writes as it has events.
async fn answer(mut socket: TcpStream, answers: Arc<Answers>) -> Option<()> {
    let mut buffer = Vec::new();
    loop {
        let request = read(&mut socket, &mut buffer).await?;
        let has = |text: &str| request.windows(text.len()).any(|bytes| bytes == text.as_bytes());
        if has(&format!("\"model\":\"{RELEASE}\"")) {
            answers.released.send_modify(|times| *times += 1);
        }
        if !has("\"stream\":true") {
            socket.write_all(&answers.whole).await.ok()?;
            continue;
        }
        let mut released = answers.released.subscribe();
        let mut pieces = answers.stream.iter();
        if has(&format!("\"model\":\"{HELD}\"")) {
            for piece in pieces.by_ref().take(2) {
                socket.write_all(piece).await.ok()?;
            }
            released.changed().await.ok()?;
        }
        for piece in pieces {
            socket.write_all(piece).await.ok()?;
        }
    }
}

/// The next request, head and body.
async fn read(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    loop {
        if let Some(head) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&buffer[..head]).to_ascii_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
            let end = head + 4 + length.map_or(0, |length| length.trim().parse::<usize>().unwrap());
            if buffer.len() >= end {
                return Some(buffer.drain(..end).collect());
            }
        }
        let mut bytes = [0; 8_192];
        match socket.read(&mut bytes).await {
            Ok(0) | Err(_) => return None,
            Ok(n) => buffer.extend_from_slice(&bytes[..n]),
        }
    }
}
