//! What the recorded servers are asked, and what must come of it: live, where it is recorded, and from the recording.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use coral_core::{
    CallContext, ChatModel, ChatRequest, ChatResponse, ErrorKind, Message, ModelFault, OutputFormat, Part,
    StopReason, ToolDef,
};
use coral_llm::{Protocol, Provider, Transport};
use serde_json::json;

/// A server of which a recording exists.
pub(crate) struct Recorded {
    pub(crate) name: &'static str,
    vendor: &'static str,
    protocol: Protocol,
    /// Where the server has the protocol.
    path: &'static str,
}

const fn recorded(
    name: &'static str,
    vendor: &'static str,
    protocol: Protocol,
    path: &'static str,
) -> Recorded {
    Recorded { name, vendor, protocol, path }
}

/// `aimock`, which speaks every protocol.
pub(crate) const AIMOCK: [Recorded; 5] = [
    recorded("aimock_anthropic", "anthropic", Protocol::Anthropic, ""),
    recorded("aimock_openai_chat", "openai", Protocol::OpenAiChat, "/v1"),
    recorded("aimock_openai_responses", "openai_responses", Protocol::OpenAiResponses, "/v1"),
    recorded("aimock_gemini", "gemini", Protocol::Gemini, "/v1beta"),
    recorded("aimock_ollama", "ollama", Protocol::Ollama, ""),
];

/// A real llama-server.
pub(crate) const LLAMA: [Recorded; 3] = [
    recorded("llama_anthropic", "llamacpp", Protocol::Anthropic, ""),
    recorded("llama_openai_chat", "llamacpp", Protocol::OpenAiChat, "/v1"),
    recorded("llama_openai_responses", "llamacpp", Protocol::OpenAiResponses, "/v1"),
];

/// Asks streamed and whole: both must say the same, and what was heard must be what was said.
async fn ask(name: &str, model: &Provider, request: &ChatRequest) -> ChatResponse {
    let heard = Arc::new(Mutex::new(String::new()));
    let sink = heard.clone();
    let cx = CallContext::default().on_delta(move |delta| sink.lock().unwrap().push_str(&delta.to_string()));
    let streamed =
        model.chat(request, &cx).await.map_err(|error| format!("{name} streamed: {error}")).unwrap();
    let whole = model
        .chat(request, &CallContext::default())
        .await
        .map_err(|error| format!("{name} whole: {error}"))
        .unwrap();
    assert_eq!(streamed.message.text(), whole.message.text(), "{name}");
    assert_eq!(streamed.stop, whole.stop, "{name}");
    assert_eq!(*heard.lock().unwrap(), streamed.message.text(), "{name}");
    streamed
}

impl Recorded {
    /// The file of the recording.
    pub(crate) fn file(&self) -> PathBuf {
        let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
        here.join(format!("{}.json", self.name))
    }

    fn provider(&self, url: &str, transport: Arc<dyn Transport>) -> Provider {
        let mut builder = Provider::vendor(self.vendor).unwrap().protocol(self.protocol).model("some-model");
        if self.vendor == "llamacpp" {
            builder = builder.body_field("temperature", 0);
        }
        builder
            .base_url(format!("{url}{}", self.path))
            .key("sk-recorded")
            .transport(transport)
            .build()
            .unwrap()
    }

    /// Plays what `aimock` is asked.
    pub(crate) async fn play_aimock(&self, url: &str, transport: Arc<dyn Transport>) {
        let (name, model) = (self.name, self.provider(url, transport));
        let hello = ask(name, &model, &ChatRequest::new("Be brief.", "Hello?")).await;
        assert_eq!(hello.message.text(), "Hello from a server that speaks as many.", "{name}");
        assert_eq!(hello.stop, StopReason::End, "{name}");

        let mut request = ChatRequest::user("Tell me the depth of two reefs.");
        request.tools = Arc::from([ToolDef {
            name: "reef_depth".into(),
            description: "the depth of a reef".into(),
            input_schema: json!({"type": "object", "properties": {"reef": {"type": "string"}}, "required": ["reef"]}),
            effect: Default::default(),
        }]);
        let called = ask(name, &model, &request).await;
        assert_eq!(called.stop, StopReason::ToolCalls, "{name}");
        let arguments: Vec<_> = called.message.tool_calls().map(|call| call.arguments.clone()).collect();
        assert_eq!(arguments, [json!({"reef": "Apo"}), json!({"reef": "Tubbataha"})], "{name}");
        // The ids of calls are other ones each time they are asked for, so the recording has its own.
        request.messages.push(Message { parts: called.message.parts.clone(), ..Message::assistant("") });
        for part in request.messages.iter_mut().flat_map(|message| &mut message.parts) {
            if let Part::ToolCall(call) = part {
                call.id = format!("call_{}", call.arguments["reef"].as_str().unwrap());
            }
        }
        let results: Vec<Part> = ["Apo", "Tubbataha"]
            .map(|reef| Part::ToolResult {
                call_id: format!("call_{reef}"),
                name: "reef_depth".into(),
                content: "34 m".into(),
                is_error: false,
            })
            .into();
        request.messages[1].parts.retain(|part| !matches!(part, Part::Opaque { .. }));
        request.messages.push(Message::tool_results(results));
        let last = ask(name, &model, &request).await;
        assert_eq!(last.message.text(), "Apo 34 m, Tubbataha 60 m.", "{name}");

        let schema = json!({"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}});
        let output = OutputFormat { name: "coral".into(), schema: Arc::new(schema) };
        let request = ChatRequest { output: Some(output), ..ChatRequest::user("Give me a coral as data.") };
        let data = ask(name, &model, &request).await;
        assert_eq!(data.message.text(), r#"{"name":"Acropora","age":31}"#, "{name}");

        for (text, expected) in [("too fast", ModelFault::RateLimited), ("too many", ModelFault::Overloaded)]
        {
            let error = model.chat(&ChatRequest::user(text), &CallContext::default()).await.unwrap_err();
            let found = matches!(error.kind(), ErrorKind::Model { fault, .. } if *fault == expected);
            assert!(found, "{name}: {error:?}");
        }
        let cx = CallContext::default().on_delta(|_| {});
        let cut = model.chat(&ChatRequest::user("break off"), &cx).await.unwrap_err();
        let found = matches!(cut.kind(), ErrorKind::Model { fault: ModelFault::Truncated, .. });
        assert!(found, "{name}: {cut:?}");
    }

    /// Plays what the llama-server is asked.
    pub(crate) async fn play_llama(&self, url: &str, transport: Arc<dyn Transport>) {
        let (name, model) = (self.name, self.provider(url, transport));
        let hello = ask(name, &model, &ChatRequest::new("Be brief.", "Hello?")).await;
        assert_eq!((hello.message.text().as_str(), hello.stop), ("Hi.", StopReason::End), "{name}");
        assert_eq!(hello.usage.output_tokens, 4, "{name}");
        let request = ChatRequest::user("x".repeat(20_000));
        let error = model.chat(&request, &CallContext::default()).await.unwrap_err();
        let found = matches!(error.kind(), ErrorKind::Model { fault: ModelFault::ContextTooLong, .. });
        assert!(found, "{name}: {error:?}");
    }
}
