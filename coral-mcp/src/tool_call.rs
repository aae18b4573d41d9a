//! Calls of tools as nearly all are: written from where they are kept, and their answers read straight to there.
//!
//! The protocol's own types write a message by way of a copy of it, and read one by trying each kind of message and
//! of result in turn on a copy of it.

use std::fmt;
use std::marker::PhantomData;

use rmcp::RoleClient;
use rmcp::model::{
    CallToolRequest, CallToolRequestMethod, CallToolResult, ClientRequest, ContentBlock, InputResponses,
    JsonObject, JsonRpcMessage, JsonRpcVersion2_0, MetaObject, RequestId, RequestMetaObject, ResultType,
    ServerResult,
};
use rmcp::service::{RxJsonRpcMessage, TxJsonRpcMessage};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

#[derive(Serialize)]
struct Call<'a> {
    jsonrpc: JsonRpcVersion2_0,
    id: &'a RequestId,
    method: &'a CallToolRequestMethod,
    params: Params<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Params<'a> {
    #[serde(rename = "_meta", skip_serializing_if = "Option::is_none")]
    meta: Option<&'a JsonObject>,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<&'a JsonObject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_responses: Option<&'a InputResponses>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_state: Option<&'a str>,
}

/// `message` as JSON, if it is a call of a tool whose metadata is all in one place, as rmcp keeps it; `None` for all
/// else, which is to be written as what it is.
pub(crate) fn written(message: &TxJsonRpcMessage<RoleClient>) -> Option<Vec<u8>> {
    let JsonRpcMessage::Request(request) = message else { return None };
    let ClientRequest::CallToolRequest(CallToolRequest { method, params, extensions, .. }) = &request.request
    else {
        return None;
    };
    if params.meta.is_some() || extensions.get::<MetaObject>().is_some() {
        return None;
    }
    let params = Params {
        meta: extensions.get::<RequestMetaObject>().map(|meta| &meta.0.0),
        name: &params.name,
        arguments: params.arguments.as_ref(),
        input_responses: params.input_responses.as_ref(),
        request_state: params.request_state.as_deref(),
    };
    serde_json::to_vec(&Call { jsonrpc: JsonRpcVersion2_0, id: &request.id, method, params }).ok()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    #[serde(rename = "jsonrpc")]
    _version: JsonRpcVersion2_0,
    id: RequestId,
    result: Object<Told>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Told {
    result_type: Option<ResultType>,
    content: Vec<Block>,
    #[serde(default, deserialize_with = "present")]
    structured_content: Option<Value>,
    is_error: Option<bool>,
    #[serde(rename = "_meta")]
    meta: Option<MetaObject>,
}

struct Block(ContentBlock);

/// A part that is text and nothing more, as most are.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    text: String,
}

/// What is written as an object: what serde derives reads a list of its fields too.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(fields))
            }
        }

        value.deserialize_map(Fields(PhantomData)).map(Object)
    }
}

impl<'de> Deserialize<'de> for Block {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        let json = <&RawValue>::deserialize(value)?.get();
        let block = match serde_json::from_str(json) {
            Ok(Object(Plain { kind: "text", text })) => ContentBlock::text(text),
            _ => serde_json::from_str(json).map_err(D::Error::custom)?,
        };
        Ok(Block(block))
    }
}

/// A value that is there is kept as it is, `null` too.
fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(value).map(Some)
}

const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";

/// What `line` says, if that is the result of a tool in its usual form and nothing else; `None` for all
/// else, which the protocol's types are to be asked about.
pub(crate) fn answer(line: &str) -> Option<RxJsonRpcMessage<RoleClient>> {
    let Object(Answer { id, result: Object(told), .. }) = serde_json::from_str(line).ok()?;
    let is_other = told.result_type.as_ref().is_some_and(|kind| !kind.is_complete());
    // The end of a subscription is told by its metadata.
    if is_other || told.meta.as_ref().is_some_and(|meta| meta.contains_key(SUBSCRIPTION)) {
        return None;
    }
    let mut result = CallToolResult::default();
    result.result_type = told.result_type;
    result.content = told.content.into_iter().map(|Block(block)| block).collect();
    result.structured_content = told.structured_content;
    result.is_error = told.is_error;
    result.meta = told.meta;
    Some(JsonRpcMessage::response(ServerResult::CallToolResult(result), id))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rmcp::model::{CallToolRequestParams, PingRequest};
    use serde_json::json;

    use super::*;
    use crate::results::tests::any_json;

    /// What the protocol's types make of `line`.
    fn by_the_protocol(line: &str) -> Option<Value> {
        let message: RxJsonRpcMessage<RoleClient> = serde_json::from_str(line).ok()?;
        let is_tool = matches!(&message, JsonRpcMessage::Response(answer)
            if matches!(answer.result, ServerResult::CallToolResult(_)));
        Some(json!([is_tool, serde_json::to_value(message).unwrap()]))
    }

    #[test]
    fn usual_answers_are_read_at_once() {
        for result in [
            json!({"content": [{"type": "text", "text": "hello \"\u{1b}"}]}),
            json!({"content": [], "structuredContent": null, "isError": true, "_meta": {"a": 1}}),
            json!({"resultType": "complete", "content": [
                {"type": "text", "text": "a", "annotations": {"priority": 0.5}},
                {"type": "image", "data": "aGk=", "mimeType": "image/png"},
                {"type": "resource", "resource": {"uri": "mem://b", "text": "inner"}},
            ]}),
        ] {
            let line = json!({"jsonrpc": "2.0", "id": 7, "result": result}).to_string();
            let read = json!([true, serde_json::to_value(answer(&line).unwrap()).unwrap()]);
            assert_eq!(by_the_protocol(&line), Some(read), "{line}");
        }
        for other in [
            json!({"jsonrpc": "2.0", "id": 7, "result": {"content": [], "messages": []}}),
            json!({"jsonrpc": "2.0", "id": 7, "result": {"content": [], "resultType": "task"}}),
            json!({"jsonrpc": "2.0", "id": 7, "result": {"content": []}, "method": "ping"}),
            json!({"jsonrpc": "1.0", "id": 7, "result": {"content": []}}),
            json!({"jsonrpc": "2.0", "id": 7, "result": {"content": [], "_meta": {SUBSCRIPTION: 1}}}),
            json!({"jsonrpc": "2.0", "id": 7, "result": [null, [], null, null, null]}),
            json!({"jsonrpc": "2.0", "id": 7, "result": {"content": [["text", "x"]]}}),
            json!({"jsonrpc": "2.0", "id": 7, "result": {"content": [{"type": {"text": null}, "text": "x"}]}}),
            json!(["2.0", 7, {"content": []}]),
        ] {
            assert!(answer(&other.to_string()).is_none(), "{other}");
        }
    }

    #[test]
    fn no_part_of_a_call_is_unknown_here() {
        let parts = "CallToolRequestParams { meta: None, name: \"\", arguments: None, input_responses: None, request_state: None }";
        assert_eq!(format!("{:?}", CallToolRequestParams::default()), parts, "`Params` has them all");
    }

    #[test]
    fn what_is_not_the_usual_call_is_written_by_the_protocol() {
        let request = |request| TxJsonRpcMessage::<RoleClient>::request(request, RequestId::Number(1));
        assert!(written(&request(ClientRequest::PingRequest(PingRequest::default()))).is_none());
        let mut params = CallToolRequestParams::new("t");
        params.meta = Some(RequestMetaObject::default());
        assert!(written(&request(ClientRequest::CallToolRequest(CallToolRequest::new(params)))).is_none());
    }

    proptest! {
        #[test]
        fn what_is_written_at_once_is_what_the_protocol_writes(
            (arguments, meta, answers) in (any_json(), any_json(), any_json()),
            (name, state) in ("[a-zé\"]{0,4}", prop::option::of("[a-z\n]{0,4}")),
        ) {
            let mut params = CallToolRequestParams::new(name);
            params.arguments = arguments.as_object().cloned();
            params.input_responses = serde_json::from_value(answers).ok();
            params.request_state = state;
            let mut call = CallToolRequest::new(params);
            if let Some(meta) = meta.as_object() {
                call.extensions.insert(RequestMetaObject::from(meta.clone()));
            }
            let call = ClientRequest::CallToolRequest(call);
            let message = TxJsonRpcMessage::<RoleClient>::request(call, RequestId::Number(1));
            let ours: Value = serde_json::from_slice(&written(&message).unwrap()).unwrap();
            prop_assert_eq!(ours, serde_json::to_value(&message).unwrap());
        }

        #[test]
        fn what_is_read_at_once_is_what_the_protocol_says(
            mut result in any_json(),
            parts in prop::collection::vec(any_json(), 0..2),
            (text, kind, id) in (any::<bool>(), prop::option::of("complete|task|other"), any::<bool>()),
        ) {
            if let Value::Object(result) = &mut result {
                let mut content = parts;
                if text {
                    content.clear();
                    content.push(json!({"type": "text", "text": "a"}));
                }
                result.insert("content".into(), content.into());
                if let Some(kind) = kind {
                    result.insert("resultType".into(), kind.into());
                }
            }
            let id = if id { json!(3) } else { json!("3") };
            let line = json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string();
            if let Some(read) = answer(&line) {
                let read = json!([true, serde_json::to_value(read).unwrap()]);
                prop_assert_eq!(by_the_protocol(&line), Some(read), "{}", line);
            }
        }
    }
}
