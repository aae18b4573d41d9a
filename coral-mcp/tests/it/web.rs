//! Servers behind addresses.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{CallContext, Caller, Error, ToolCall, ToolFault, Toolbox};
use coral_mcp::{
    AuditEvent, Consent, ConsentRequest, LoopbackConsent, MemoryTokenStore, SandboxBuilder, Servers,
    TokenStore, Variables,
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

use crate::desk::Desk;
use crate::programs::{public_servers, python, script};

const PERMISSIONS: &str = r#"
permission_model:
  agents:
    dev:
      mcp_servers: [web]
      operations: [read, write, execute]
      paths: ["/project"]
      after_untrusted: allow
    reader:
      mcp_servers: [web]
      operations: [read]
      paths: ["/project"]
servers:
  web: { timeout_s: 5, connection: { start_s: 5 } }
"#;

/// The tests' own web server, with a listener of its own to which nothing may come.
pub(crate) struct Web {
    child: Child,
    port: u16,
    log: PathBuf,
    elsewhere: TcpListener,
    _dir: tempfile::TempDir,
}

impl Drop for Web {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Web {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "").unwrap();
        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        elsewhere.set_nonblocking(true).unwrap();
        let away = format!("http://{}/mcp", elsewhere.local_addr().unwrap());
        let mut child = Command::new(&python()[0])
            .arg(script("web.py"))
            .arg(&log)
            .arg(away)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Web { child, port: line.trim().parse().unwrap(), log, elsewhere, _dir: dir }
    }

    pub(crate) fn address(&self, mode: &str) -> String {
        format!("http://127.0.0.1:{}/{mode}", self.port)
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    async fn desk(
        &self,
        mode: &str,
        more: Value,
        build: impl FnOnce(SandboxBuilder) -> SandboxBuilder,
    ) -> Desk {
        let mut entry = json!({"type": "http", "url": self.address(mode)});
        entry.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        let config = json!({"mcpServers": {"web": entry}}).to_string();
        let variables = Variables::new().with("TOKEN", "static-token-1234");
        let servers = Servers::from_json(&config, ".mcp.json", &variables).unwrap();
        Desk::with(PERMISSIONS, |b| build(b.servers(servers))).await
    }
}

async fn said(desk: &Desk) -> String {
    Desk::ok(desk.call("dev", "web__echo", json!({})).await).lines().nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn headers_of_the_servers_file_are_sent_and_their_secrets_hidden() {
    let web = Web::start();
    let headers = json!({"headers": {"Authorization": "Bearer ${TOKEN}", "X-Extra": "more"}});
    let desk = web.desk("guarded", headers, |b| b).await;
    assert_eq!(said(&desk).await, "session-1 with [secret] and more");
    assert!(web.log().contains("Bearer static-token-1234"));
    let without = web.desk("guarded", json!({}), |b| b).await;
    let error = without.call("dev", "web__echo", json!({})).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("Auth required"), "{error}");
}

#[tokio::test]
async fn a_session_that_is_lost_is_begun_again() {
    let web = Web::start();
    let desk = web.desk("forgets", json!({}), |b| b).await;
    assert_eq!(said(&desk).await, "session-2 with  and None");
    assert_eq!(
        web.log()
            .matches(
                " initialize
"
            )
            .count(),
        2,
        "{}",
        web.log()
    );
}

#[tokio::test]
async fn nobody_is_sent_elsewhere() {
    let web = Web::start();
    let desk = web.desk("moved", json!({"headers": {"X-Key": "${TOKEN}"}}), |b| b).await;
    assert!(desk.call("dev", "web__echo", json!({})).await.is_err());
    let error = web.elsewhere.accept().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "nothing came");
}

#[tokio::test]
async fn calls_end_whatever_the_server_does() {
    let web = Web::start();
    let desk = web.desk("good", json!({}), |b| b).await;
    assert_eq!(said(&desk).await, "session-1 with  and None");
    for (tool, fault) in
        [("hang", ToolFault::Timeout), ("big", ToolFault::Protocol), ("endless", ToolFault::Protocol)]
    {
        let call = ToolCall { id: "1".into(), name: format!("web__{tool}"), arguments: json!({}) };
        let time = if fault == ToolFault::Timeout { 500 } else { 20_000 };
        let cx = CallContext::new(Caller::agent("dev")).with_timeout_ms(time);
        let result =
            tokio::time::timeout(Duration::from_secs(15), desk.tools.call(&call, &cx)).await.unwrap();
        let found = Desk::fault(result);
        assert!(found == fault || found == ToolFault::Timeout, "{tool}: {found:?}");
    }
    assert!(said(&desk).await.contains("session"), "the server is used as before");
    for mode in ["busy", "junk"] {
        let desk = web.desk(mode, json!({}), |b| b).await;
        let error = desk.call("dev", "web__echo", json!({})).await.unwrap_err();
        assert!(error.is_transient(), "{mode}: {error}");
    }
}

#[tokio::test]
async fn a_call_that_is_given_up_is_cancelled_at_the_server() {
    let web = Web::start();
    let desk = web.desk("good", json!({}), |b| b).await;
    said(&desk).await;
    let call = desk.call("dev", "web__hang", json!({}));
    assert!(tokio::time::timeout(Duration::from_millis(300), call).await.is_err());
    let told = async {
        while !web.log().contains("notifications/cancelled") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), told).await.unwrap();
}

#[tokio::test]
async fn a_policy_that_denies_lets_nothing_onto_the_wire() {
    let web = Web::start();
    let desk = web.desk("good", json!({}), |b| b).await;
    Desk::denied(desk.call("stranger", "web__echo", json!({})).await);
    assert_eq!(web.log(), "", "not even a connection");
    Desk::denied(desk.call("reader", "web__echo", json!({})).await);
    assert!(web.log().contains("tools/list") && !web.log().contains("tools/call"), "{}", web.log());
}

#[tokio::test]
async fn addresses_that_servers_do_not_have_are_refused_at_once() {
    for (url, words) in [
        ("http://mcp.example.com/mcp", "must be reached by `https`"),
        ("https://10.1.2.3/mcp", "private network"),
        ("https://169.254.169.254/latest", "not an address of servers"),
        ("ftp://127.0.0.1/x", "not a way to reach a server"),
        ("https://me:secret@mcp.example.com/", "a user or a password"),
        ("nonsense", "not an address"),
    ] {
        let servers = Servers::default().http("web", url, None).unwrap();
        let permissions = coral_mcp::Permissions::from_yaml(PERMISSIONS, "p.yaml").unwrap();
        let built = coral_mcp::Sandbox::builder().permissions(permissions).servers(servers).build().await;
        let error = built.err().unwrap().to_string();
        assert!(error.contains(words) && !error.contains("secret"), "{url}: {error}");
    }
}

/// A tool is pinned by all that its server says of it, also by what the protocol has no name for.
#[tokio::test]
async fn a_tool_that_changes_in_what_nobody_reads_is_another() {
    for mode in ["drifts", "drifts-sse"] {
        let web = Web::start();
        let pins = tempfile::tempdir().unwrap();
        let desk = async || web.desk(mode, json!({}), |b| b.pins(pins.path().join("pins.json"))).await;
        said(&desk().await).await;
        let asked = Desk::asked(desk().await.call("dev", "web__echo", json!({})).await);
        assert!(asked.contains("not what it was when it was pinned"), "{mode}: {asked}");
        assert!(asked.contains("x-vendor"), "{mode}: {asked}");
    }
}

/// A session may be of one run alone, as a process may.
#[tokio::test]
async fn runs_have_sessions_of_their_own_where_that_is_wanted() {
    let web = Web::start();
    let config = json!({"mcpServers": {"web": {"type": "http", "url": web.address("good")}}}).to_string();
    let servers = Servers::from_json(&config, ".mcp.json", &Variables::new()).unwrap();
    let permissions = PERMISSIONS.replace("start_s: 5", "start_s: 5, per: run");
    let desk = Desk::with(&permissions, |b| b.servers(servers)).await;
    let session = async |run: &str| {
        let call = ToolCall { id: "1".into(), name: "web__echo".into(), arguments: json!({}) };
        let caller = Caller { run: run.into(), ..Caller::agent("dev") };
        let said = Desk::ok(desk.tools.call(&call, &CallContext::new(caller)).await);
        said.lines().nth(1).unwrap().split(' ').next().unwrap().to_owned()
    };
    let (first, second) = (session("a").await, session("b").await);
    assert_ne!(first, second);
    assert_eq!((session("a").await, session("b").await), (first.clone(), second.clone()));
    desk.tools.forget("a");
    assert_eq!(session("b").await, second);
    assert_ne!(session("a").await, first, "what the server keeps of a run goes with it");
}

/// An answer of a few bytes that would be many is taken for what it is.
#[tokio::test]
async fn a_compressed_answer_stays_small() {
    let web = Web::start();
    let desk = web.desk("good", json!({}), |b| b).await;
    said(&desk).await;
    let call = ToolCall { id: "1".into(), name: "web__bomb".into(), arguments: json!({}) };
    let cx = CallContext::new(Caller::agent("dev")).with_timeout_ms(2_000);
    Desk::fault(desk.tools.call(&call, &cx).await);
    assert!(web.log().contains("tools/call bomb") && !web.log().contains("accepts gzip"), "{}", web.log());
    let AuditEvent::Ended { outcome, bytes, .. } = desk.last().entry.event else { panic!() };
    assert!(outcome != "ok" && bytes == 0, "{outcome}");
    assert!(said(&desk).await.contains("session"), "the server is used as before");
}

/// Opens the page as a browser would, and brings back where it was sent.
struct Browser {
    back: LoopbackConsent,
}

#[async_trait]
impl Consent for Browser {
    fn redirect_uri(&self) -> String {
        self.back.redirect_uri()
    }

    async fn authorize(&self, request: &ConsentRequest) -> Result<SecretString, Error> {
        self.back.authorize(request).await
    }
}

async fn browser() -> Browser {
    let back = LoopbackConsent::bind(0, |request| {
        let page = request.page.clone();
        tokio::spawn(async move { reqwest::get(&page).await.unwrap().text().await.unwrap() });
    });
    Browser { back: back.await.unwrap() }
}

struct Refuses;

#[async_trait]
impl Consent for Refuses {
    fn redirect_uri(&self) -> String {
        "http://127.0.0.1:1/callback".to_owned()
    }

    async fn authorize(&self, _request: &ConsentRequest) -> Result<SecretString, Error> {
        Err(Error::invalid("consent", "no"))
    }
}

#[tokio::test]
async fn tokens_are_had_by_consent_kept_refreshed_and_hidden() {
    let web = Web::start();
    let kept = Arc::new(MemoryTokenStore::default());
    let desk = web.desk("oauth", json!({}), |b| b).await;
    assert!(desk.call("dev", "web__echo", json!({})).await.is_err(), "nobody can be asked");

    let consent = browser().await;
    let desk = web.desk("oauth", json!({}), |b| b.consent(consent).token_store(Kept(kept.clone()))).await;
    assert!(said(&desk).await.contains("with [secret] and"), "the token is not shown");
    assert_eq!(web.log().matches("GET /authorize").count(), 1);
    // The server forgets its tokens: the next call has another, without a word to anybody.
    Desk::ok(desk.call("dev", "web__drop", json!({})).await);
    assert!(said(&desk).await.contains("with [secret] and"));
    assert_eq!(web.log().matches("GET /authorize").count(), 1, "it was refreshed");
    assert_eq!(web.log().matches("POST /token").count(), 2);

    // Another process finds what was kept, and asks nobody.
    let desk = web.desk("oauth", json!({}), |b| b.consent(Refuses).token_store(Kept(kept.clone()))).await;
    assert!(said(&desk).await.contains("with [secret] and"));
    // Under another address the same name has no token.
    let servers =
        Servers::default().http("web", format!("http://localhost:{}/oauth", web.port), None).unwrap();
    let store = Kept(kept.clone());
    let there = Desk::with(PERMISSIONS, |b| b.servers(servers).consent(Refuses).token_store(store)).await;
    let sent = web.log().matches("token-number").count();
    assert!(there.call("dev", "web__echo", json!({})).await.is_err());
    assert_eq!(web.log().matches("token-number").count(), sent);
    let text = kept.load("web").await.unwrap().unwrap();
    assert!(text.expose_secret().contains("token-number-2"));
}

#[tokio::test]
async fn a_server_lures_nobody_to_the_services_of_a_machine() {
    let web = Web::start();
    let consent = browser().await;
    let desk = web.desk("lured", json!({}), |b| b.consent(consent)).await;
    let error = desk.call("dev", "web__echo", json!({})).await.unwrap_err();
    assert!(error.to_string().contains("no token was to be had"), "{error}");
}

/// A store that two sandboxes share.
struct Kept(Arc<MemoryTokenStore>);

#[async_trait]
impl TokenStore for Kept {
    async fn load(&self, server: &str) -> Result<Option<SecretString>, Error> {
        self.0.load(server).await
    }

    async fn save(&self, server: &str, tokens: SecretString) -> Result<(), Error> {
        self.0.save(server, tokens).await
    }

    async fn clear(&self, server: &str) -> Result<(), Error> {
        self.0.clear(server).await
    }
}

/// The public server `everything`, over HTTP.
#[tokio::test]
async fn everything() {
    let index =
        public_servers().join("node/node_modules/@modelcontextprotocol/server-everything/dist/index.js");
    // It takes a port and no other: one that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut child = Command::new("node");
    child.arg(index).arg("streamableHttp").env("PORT", port.to_string());
    let child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    struct Ended(Child);
    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let _child = Ended(child);
    let up = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), up).await.unwrap();
    let rules = PERMISSIONS.replace("start_s: 5", "start_s: 20, resources: true, prompts: true");
    let rules = rules.replace("web: { timeout_s: 5,", "web: { timeout_s: 30,");
    let servers = Servers::default().http("web", format!("http://127.0.0.1:{port}/mcp"), None).unwrap();
    let desk = Desk::with(&rules, |b| b.servers(servers)).await;
    let echo = desk.call("dev", "web__echo", json!({"message": "hello"})).await;
    assert!(Desk::ok(echo).contains("Echo: hello"));
    let image = desk.call("dev", "web__get-tiny-image", json!({})).await.unwrap();
    assert!(image.content.contains("[image, image/png, "), "{}", image.content);
    assert!(image.structured.unwrap()["parts"][0]["data"].as_str().unwrap().len() > 100);
    let links = Desk::ok(desk.call("dev", "web__get-resource-links", json!({"count": 2})).await);
    assert!(links.contains("[link to "), "{links}");
    let weather =
        desk.call("dev", "web__get-structured-content", json!({"location": "Chicago"})).await.unwrap();
    assert!(weather.structured.unwrap()["temperature"].is_number());
    let resources = Desk::ok(desk.call("reader", "web__list_resources", json!({})).await);
    let first = resources.lines().find_map(|line| serde_json::from_str::<Value>(line).ok()).unwrap();
    let read = desk.call("reader", "web__read_resource", json!({"uri": first["uri"]})).await;
    assert!(Desk::ok(read).contains("[resource "));
    let prompts = Desk::ok(desk.call("reader", "web__list_prompts", json!({})).await);
    assert!(prompts.contains("simple"), "{prompts}");
}
