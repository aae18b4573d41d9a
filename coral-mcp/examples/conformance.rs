//! The client that the official MCP conformance suite drives, on coral-mcp's public interface alone and
//! behind a policy. The suite names the scenario in `MCP_CONFORMANCE_SCENARIO`, gives what it needs in
//! `MCP_CONFORMANCE_CONTEXT`, and appends the server's address to the command.
//!
//! With `CORAL_CONFORMANCE_POLICY=deny` the policy lets the agent read and no more, so that no tool
//! of the suite's servers, of which nothing is known, may be called. `CORAL_CONFORMANCE_PROTOCOL` is the
//! generation of the protocol that is spoken: `any`, `with_handshake` or `without_handshake`.

#![expect(
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "JSON gives null for what is missing; the suite keeps what is said"
)]

use std::process::ExitCode;

use async_trait::async_trait;
use coral_core::{
    CallContext, Caller, ChatRequest, ChatResponse, Error, ErrorKind, ToolCall, ToolDef, Toolbox,
};
use coral_mcp::{
    Consent, ConsentRequest, Counterpart, Elicitation, MemoryAudit, OAuth, Permissions, Reply, Sandbox,
    Servers,
};
use secrecy::SecretString;
use serde_json::{Map, Value, json};

/// A document about this client; the suite's authorization servers know its address.
const CLIENT_METADATA: &str = "https://conformance-test.local/client-metadata.json";

/// Agrees as a person in a browser would.
struct Agrees;

#[async_trait]
impl Consent for Agrees {
    fn redirect_uri(&self) -> String {
        "http://localhost:3000/callback".to_owned()
    }

    async fn authorize(&self, request: &ConsentRequest) -> Result<SecretString, Error> {
        let failed = |problem: String| Error::invalid("consent", problem);
        let browser = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build();
        let browser = browser.map_err(|error| failed(error.to_string()))?;
        let answer = browser.get(&request.page).send().await.map_err(|error| failed(error.to_string()))?;
        let location = answer.headers().get("location").and_then(|value| value.to_str().ok());
        location
            .map(SecretString::from)
            .ok_or_else(|| failed(format!("the page answered {}", answer.status())))
    }
}

/// Takes the defaults of every form.
struct TakesDefaults;

#[async_trait]
impl Counterpart for TakesDefaults {
    async fn elicit(&self, question: &Elicitation, _cx: &CallContext) -> Result<Reply, Error> {
        let mut answer = Map::new();
        let required = question.schema["required"].as_array().cloned().unwrap_or_default();
        for name in required.iter().filter_map(Value::as_str) {
            let property = &question.schema["properties"][name];
            if property.get("default").is_none() {
                answer.insert(name.to_owned(), example_of(property));
            }
        }
        Ok(Reply::Accept(Value::Object(answer)))
    }

    async fn sample(&self, _request: &ChatRequest, _cx: &CallContext) -> Result<ChatResponse, Error> {
        Ok(ChatResponse::text("offline", "a sample"))
    }
}

fn example_of(schema: &Value) -> Value {
    match schema["type"].as_str() {
        Some("number") => json!(1.0),
        Some("integer") => json!(1),
        Some("boolean") => json!(true),
        Some("array") => json!([]),
        Some("object") => json!({}),
        _ => json!("test"),
    }
}

fn arguments_for(tool: &ToolDef) -> Value {
    let required = tool.input_schema["required"].as_array().cloned().unwrap_or_default();
    let given = required.iter().filter_map(Value::as_str);
    given.map(|name| (name.to_owned(), example_of(&tool.input_schema["properties"][name]))).collect()
}

fn oauth(scenario: &str, context: &Value) -> OAuth {
    let text = |key: &str| context[key].as_str();
    let secret = || text("client_secret").map(SecretString::from);
    match (scenario, text("client_id")) {
        ("auth/client-credentials-basic", Some(id)) => OAuth::new().client(id, secret()).for_itself(),
        ("auth/client-credentials-jwt", Some(id)) => {
            OAuth::new().client(id, None).private_key(text("private_key_pem").unwrap_or_default().into())
        }
        ("auth/pre-registration", Some(id)) => OAuth::new().client(id, secret()),
        _ => OAuth::new().client_metadata_url(CLIENT_METADATA),
    }
}

async fn run(address: &str) -> Result<(), Error> {
    let scenario = std::env::var("MCP_CONFORMANCE_SCENARIO").unwrap_or_default();
    let context = std::env::var("MCP_CONFORMANCE_CONTEXT").unwrap_or_default();
    let context: Value = serde_json::from_str(&context).unwrap_or_default();
    let denied = std::env::var("CORAL_CONFORMANCE_POLICY").is_ok_and(|policy| policy == "deny");
    let operations = if denied { "[read]" } else { "[read, write, execute]" };
    let protocol = std::env::var("CORAL_CONFORMANCE_PROTOCOL").unwrap_or_else(|_| "any".to_owned());
    let permissions = format!(
        r#"
permission_model:
  agents:
    client:
      mcp_servers: [conformance]
      operations: {operations}
      paths: ["/project"]
      after_untrusted: allow
  security_policies: [audit_all_operations]
servers:
  conformance:
    connection: {{ elicitation: true, sampling: true, protocol: {protocol} }}
"#
    );
    let tools = Sandbox::builder()
        .permissions(Permissions::from_yaml(&permissions, "policy.yaml")?)
        .servers(Servers::default().http("conformance", address, Some(oauth(&scenario, &context)))?)
        .consent(Agrees)
        .counterpart(TakesDefaults)
        .audit(MemoryAudit::new())
        .build()
        .await?;

    let client = Caller::agent("client");
    let shown = tools.list(&client).await?;
    let mut calls: Vec<(String, Value)> = Vec::new();
    for call in
        context["toolCalls"].as_array().or_else(|| context["tool_calls"].as_array()).into_iter().flatten()
    {
        calls.push((call["name"].as_str().unwrap_or_default().to_owned(), call["arguments"].clone()));
    }
    if calls.is_empty() && denied {
        // What is not shown is asked for all the same: the model is not to be trusted.
        calls.push(("add_numbers".to_owned(), json!({"a": 1, "b": 2})));
    } else if calls.is_empty() {
        let name = |tool: &ToolDef| tool.name.trim_start_matches("conformance__").to_owned();
        calls = shown.iter().map(|tool| (name(tool), arguments_for(tool))).collect();
    }
    // The authority may change between two calls.
    let rounds = if scenario == "auth/authorization-server-migration" { 3 } else { 1 };
    for (name, arguments) in (0..rounds).flat_map(|_| calls.clone()) {
        let arguments = if arguments.is_null() { json!({}) } else { arguments };
        let call = ToolCall { id: "1".into(), name: format!("conformance__{name}"), arguments };
        match tools.call(&call, &CallContext::new(client.clone())).await {
            Ok(output) => eprintln!("{name}: {}", output.content),
            Err(error) if denied && matches!(error.kind(), ErrorKind::Denied { .. }) => {
                eprintln!("{name}: {error}");
            }
            Err(error) => {
                eprintln!("{name}: {error}");
                if !scenario.starts_with("auth/") {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[tokio::main]
pub(crate) async fn main() -> ExitCode {
    let address = std::env::args().next_back().unwrap_or_default();
    match tokio::time::timeout(std::time::Duration::from_secs(25), run(&address)).await {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
        Err(_) => {
            eprintln!("no end in 25 s");
            ExitCode::FAILURE
        }
    }
}
