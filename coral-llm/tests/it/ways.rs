//! The ways to a server: TLS, and the proxies that the environment names. Each is asked for in a process of its own,
//! since that is what has an environment.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};

use coral_core::{CallContext, ChatModel, ChatRequest};
use coral_llm::Provider;
use serde_json::json;

/// Where the other process asks; it does so only if this is set.
const ASKED: &str = "CORAL_TEST_ASKED_URL";

#[tokio::test]
async fn the_other_process() {
    let Ok(url) = std::env::var(ASKED) else { return };
    let model = Provider::openai_compatible(url).key("k").model("m").build().unwrap();
    match model.chat(&ChatRequest::user("?"), &CallContext::default()).await {
        Ok(answer) => println!("said: {}", answer.message.text()),
        Err(error) => println!("said: {error}"),
    }
}

/// What the other process says with these variables in its environment, and no others.
fn ask(url: &str, variables: &[(&str, &str)]) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ways::the_other_process", "--nocapture"])
        .env_clear()
        .env(ASKED, url)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    output.lines().find_map(|line| line.split_once("said: ")).expect(&output).1.to_owned()
}

trait Ends: Read + Write + Send {}
impl<T: Read + Write + Send> Ends for T {}

/// What is spoken over a connection that was accepted.
type Accept = Arc<dyn Fn(TcpStream) -> Box<dyn Ends> + Send + Sync>;

fn plain() -> Accept {
    Arc::new(|socket| Box::new(socket))
}

/// A server that answers every request but those for a tunnel, which it digs. It gives its port, and the heads of what
/// it was asked.
fn serve(accept: Accept) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let log = heads.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            let (accept, log) = (accept.clone(), log.clone());
            std::thread::spawn(move || answer(socket, &accept, &log));
        }
    });
    (port, heads)
}

fn answer(socket: TcpStream, accept: &Accept, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let raw = socket.try_clone()?;
    let mut ends = accept(socket);
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        ends.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    log.lock().unwrap().push(head.clone());
    if let Some(to) = head.strip_prefix("connect ") {
        let to = TcpStream::connect(to.split(' ').next().unwrap())?;
        ends.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        let (mut back, mut from) = (raw.try_clone()?, to.try_clone()?);
        std::thread::spawn(move || std::io::copy(&mut from, &mut back));
        return std::io::copy(&mut &raw, &mut &to).map(drop);
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
    ends.read_exact(&mut vec![0; length.parse().unwrap()])?;
    let body = json!({"choices": [{"finish_reason": "stop", "message": {"content": "ok"}}]}).to_string();
    let length = body.len();
    write!(
        ends,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )?;
    ends.flush()
}

#[test]
fn a_proxy_is_told_where_a_plain_request_goes() {
    let (port, heads) = serve(plain());
    let proxy = format!("http://me:secret@127.0.0.1:{port}");
    assert_eq!(ask("http://llm.invalid/v1", &[("http_proxy", &proxy)]), "ok");
    let heads = heads.lock().unwrap();
    assert!(heads[0].starts_with("post http://llm.invalid/v1/chat/completions http/1.1\r\n"), "{heads:?}");
    assert!(heads[0].contains("host: llm.invalid\r\n"), "{heads:?}");
    assert!(heads[0].contains("proxy-authorization: basic bwu6c2vjcmv0\r\n"), "{heads:?}");
}

#[test]
fn what_needs_no_proxy_goes_past_it() {
    let (port, heads) = serve(plain());
    let (elsewhere, others) = serve(plain());
    let proxy = format!("http://me:secret@127.0.0.1:{elsewhere}");
    let url = format!("http://127.0.0.1:{port}/v1");
    assert_eq!(ask(&url, &[("ALL_PROXY", &proxy), ("NO_PROXY", "127.0.0.1")]), "ok");
    let heads = heads.lock().unwrap();
    assert!(heads[0].starts_with("post /v1/chat/completions http/1.1\r\n"), "{heads:?}");
    assert!(!heads[0].contains("proxy-authorization"), "{heads:?}");
    assert!(others.lock().unwrap().is_empty());
}

#[cfg(feature = "tls")]
mod secure {
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ServerConfig, ServerConnection, StreamOwned};

    use super::*;

    /// A server's side of TLS for `localhost`, and the file of what its certificate is checked by.
    fn tls() -> (Accept, tempfile::NamedTempFile) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(made.cert.pem().as_bytes()).unwrap();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config =
            config.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let config = Arc::new(config);
        let accept: Accept = Arc::new(move |socket| {
            Box::new(StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), socket))
        });
        (accept, file)
    }

    #[test]
    fn https_goes_by_the_certificates_of_the_system() {
        let (accept, file) = tls();
        let (port, heads) = serve(accept);
        let url = format!("https://localhost:{port}/v1");
        assert_eq!(ask(&url, &[("SSL_CERT_FILE", file.path().to_str().unwrap())]), "ok");
        assert!(heads.lock().unwrap()[0].starts_with("post /v1/chat/completions http/1.1\r\n"));
        let (_, other) = tls();
        let said = ask(&url, &[("SSL_CERT_FILE", other.path().to_str().unwrap())]);
        assert!(said.contains("no connection to `localhost:") && said.contains("certificate"), "{said}");
        assert_eq!(heads.lock().unwrap().len(), 1, "nothing is said to a stranger");
    }

    #[test]
    fn https_goes_through_a_tunnel_of_which_the_proxy_sees_the_outside() {
        let (accept, file) = tls();
        let (port, heads) = serve(accept);
        let (proxy_port, proxied) = serve(plain());
        let proxy = format!("http://me:secret@127.0.0.1:{proxy_port}");
        let certificates = ("SSL_CERT_FILE", file.path().to_str().unwrap());
        let url = format!("https://localhost:{port}/v1");
        assert_eq!(ask(&url, &[certificates, ("HTTPS_PROXY", &proxy)]), "ok");
        let (heads, proxied) = (heads.lock().unwrap(), proxied.lock().unwrap());
        assert!(proxied[0].starts_with(&format!("connect localhost:{port} http/1.1\r\n")), "{proxied:?}");
        assert!(proxied[0].contains("proxy-authorization: basic bwu6c2vjcmv0\r\n"), "{proxied:?}");
        assert!(!proxied[0].contains("bearer"), "{proxied:?}");
        assert!(heads[0].contains("authorization: bearer k") && !heads[0].contains("proxy-"), "{heads:?}");
    }

    #[test]
    fn a_proxy_may_want_tls_for_itself() {
        let (accept, file) = tls();
        let (port, heads) = serve(accept);
        let proxy = format!("https://localhost:{port}");
        let certificates = ("SSL_CERT_FILE", file.path().to_str().unwrap());
        assert_eq!(ask("http://llm.invalid/v1", &[certificates, ("http_proxy", &proxy)]), "ok");
        assert!(heads.lock().unwrap()[0].starts_with("post http://llm.invalid/v1/chat/completions"));
    }
}
