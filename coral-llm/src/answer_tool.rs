//! JSON answers by a tool: for models that fill in a tool's arguments by a schema, but not an answer.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use coral_core::{
    CallContext, ChatRequest, ChatResponse, Delta, EffectClass, Message, OutputFormat, Part, Role,
    StopReason, ToolChoice, ToolDef,
};
use serde_json::{Map, Value, json};

use crate::dialect::{Dialect, Structured};

/// A tool whose arguments are the answer.
pub(crate) struct AnswerTool {
    name: String,
    /// Where the schema is of no object, the one argument that is the answer.
    wrapped: bool,
}

/// The argument that holds an answer which is no object.
const ARGUMENT: &str = "answer";

impl AnswerTool {
    /// The request as it is asked, and the tool that its answer comes by, if the endpoint answers by one.
    ///
    /// A request that demands another tool, or forbids all, has its answer in words.
    pub(crate) fn of<'a>(
        request: &'a ChatRequest,
        dialect: &Dialect,
    ) -> (Cow<'a, ChatRequest>, Option<AnswerTool>) {
        let by_tool = dialect.structured == Structured::Tool;
        let Some(output) = request.output.as_ref().filter(|_| by_tool) else {
            return (Cow::Borrowed(request), None);
        };
        let others = !request.tools.is_empty();
        if matches!(request.tool_choice, ToolChoice::Required | ToolChoice::Tool(_)) && others {
            return (Cow::Borrowed(request), None);
        }
        let tool =
            AnswerTool { name: free_name(output, &request.tools), wrapped: !is_object(&output.schema) };
        let only = !others || request.tool_choice == ToolChoice::None;
        let mut asked = request.clone();
        asked.output = None;
        let offered = request.tools.iter().filter(|_| !only).cloned();
        asked.tools = offered.chain([tool.definition(output)]).collect::<Vec<_>>().into();
        asked.tool_choice = match (dialect.forced_tools, only) {
            (true, true) => ToolChoice::Tool(tool.name.clone()),
            (true, false) => ToolChoice::Required,
            (false, _) => ToolChoice::Auto,
        };
        if !dialect.forced_tools {
            tell(
                &mut asked,
                format!("Give your final answer by calling the tool `{}`, never in words.", tool.name),
            );
        }
        (Cow::Owned(asked), Some(tool))
    }

    fn definition(&self, output: &OutputFormat) -> ToolDef {
        let input_schema = if self.wrapped { wrap(&output.schema) } else { (*output.schema).clone() };
        ToolDef {
            name: self.name.clone(),
            description: "Takes the final answer. Call it once, when all is known, with the whole answer."
                .to_owned(),
            input_schema,
            effect: EffectClass::Pure,
        }
    }

    /// The terms under which the answer is heard as text.
    pub(crate) fn listen(&self, cx: &CallContext) -> CallContext {
        if !cx.streams() {
            return cx.clone();
        }
        const NONE: usize = usize::MAX;
        let (name, wrapped, listener) = (self.name.clone(), self.wrapped, cx.clone());
        let answer = Arc::new(AtomicUsize::new(NONE));
        cx.clone().on_delta(move |delta| match delta {
            Delta::ToolCall { index, name: called } if *called == name => {
                answer.store(*index, Ordering::Relaxed);
            }
            Delta::ToolArguments { index, fragment } if *index == answer.load(Ordering::Relaxed) => {
                // The wrapping is no part of the answer; it is heard when it is whole.
                if !wrapped {
                    listener.emit(&Delta::Text(fragment.clone()));
                }
            }
            other => listener.emit(other),
        })
    }

    /// Makes the call of the tool the answer that it is.
    pub(crate) fn read(&self, response: &mut ChatResponse, cx: &CallContext) {
        let parts = &mut response.message.parts;
        let is_answer = |part: &Part| matches!(part, Part::ToolCall(call) if call.name == self.name);
        let Some(at) = parts.iter().position(is_answer) else { return };
        let Part::ToolCall(call) = parts.remove(at) else { return };
        parts.retain(|part| !is_answer(part));
        if parts.iter().any(|part| matches!(part, Part::ToolCall(_))) {
            // The model waits for other tools: what it answers before their results is no answer yet.
            return;
        }
        let mut answer = call.arguments;
        if self.wrapped
            && let Some(inner) = answer.get_mut(ARGUMENT)
        {
            answer = inner.take();
        }
        // Arguments that were not JSON stand there as text; whoever asked sees what was said.
        let text = match answer {
            Value::String(text) if !self.wrapped => text,
            answer => answer.to_string(),
        };
        if self.wrapped {
            cx.emit(&Delta::Text(text.clone()));
        }
        // What a model says beside its answer would make the text no JSON.
        parts.retain(|part| !matches!(part, Part::Text { .. }));
        parts.push(Part::Text { text });
        if response.stop == StopReason::ToolCalls {
            response.stop = StopReason::End;
        }
    }
}

/// The request as it is asked of a model that can't be made to call a tool: it is asked to.
pub(crate) fn unforced<'a>(request: Cow<'a, ChatRequest>, dialect: &Dialect) -> Cow<'a, ChatRequest> {
    if dialect.forced_tools || request.tools.is_empty() {
        return request;
    }
    let told = match &request.tool_choice {
        ToolChoice::Required => "Call one of your tools now, and say nothing else.".to_owned(),
        ToolChoice::Tool(name) => format!("Call the tool `{name}` now, and say nothing else."),
        _ => return request,
    };
    let mut asked = request.into_owned();
    asked.tool_choice = ToolChoice::Auto;
    tell(&mut asked, told);
    Cow::Owned(asked)
}

/// Adds an instruction behind those that are there.
fn tell(request: &mut ChatRequest, told: String) {
    let system = request.messages.iter().take_while(|message| message.role == Role::System).count();
    request.messages.insert(system, Message::system(told));
}

fn is_object(schema: &Value) -> bool {
    schema.get("type").is_some_and(|kind| kind == "object")
}

/// A schema of an object with the schema as its one property. Definitions stay at the root, where references look.
fn wrap(schema: &Value) -> Value {
    let mut inner = schema.clone();
    let mut outer = Map::new();
    for key in ["$defs", "definitions"] {
        let definitions = inner.as_object_mut().and_then(|fields| fields.remove(key));
        outer.extend(definitions.map(|definitions| (key.to_owned(), definitions)));
    }
    outer.insert("type".to_owned(), json!("object"));
    outer.insert("properties".to_owned(), json!({ARGUMENT: inner}));
    outer.insert("required".to_owned(), json!([ARGUMENT]));
    outer.insert("additionalProperties".to_owned(), json!(false));
    Value::Object(outer)
}

/// The format's name, or what no other tool is called.
fn free_name(output: &OutputFormat, tools: &[ToolDef]) -> String {
    let mut name: String = output
        .name
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
        .take(48)
        .collect();
    if name.is_empty() {
        name.push_str("answer");
    }
    while tools.iter().any(|tool| tool.name == name) {
        name.push_str("_answer");
    }
    name
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use coral_core::ToolCall;

    use super::*;

    fn by_tool(forced_tools: bool) -> Dialect {
        Dialect { structured: Structured::Tool, forced_tools, ..Dialect::default() }
    }

    fn asked_for(schema: Value) -> ChatRequest {
        let output = OutputFormat { name: "report".into(), schema: Arc::new(schema) };
        ChatRequest { output: Some(output), ..ChatRequest::new("Be brief.", "?") }
    }

    fn object() -> Value {
        json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}})
    }

    fn tool(name: &str) -> ToolDef {
        ToolDef {
            name: name.into(),
            description: String::new(),
            input_schema: json!({}),
            effect: Default::default(),
        }
    }

    fn answer(calls: &[(&str, Value)]) -> ChatResponse {
        let mut response = ChatResponse::text("m", "Here it is:");
        for (name, arguments) in calls {
            let call = ToolCall { id: (*name).into(), name: (*name).into(), arguments: arguments.clone() };
            response.message.parts.push(Part::ToolCall(call));
        }
        response.stop = StopReason::ToolCalls;
        response
    }

    #[test]
    fn the_choice_of_tools_asks_for_the_answer_and_leaves_the_others() {
        let others: Arc<[ToolDef]> = Arc::from([tool("find"), tool("report")]);
        for (tools, choice, forced, expected) in [
            (Arc::from([]), ToolChoice::Auto, true, (vec!["report"], ToolChoice::Tool("report".into()))),
            (Arc::from([]), ToolChoice::Auto, false, (vec!["report"], ToolChoice::Auto)),
            (
                others.clone(),
                ToolChoice::Auto,
                true,
                (vec!["find", "report", "report_answer"], ToolChoice::Required),
            ),
            (
                others,
                ToolChoice::None,
                true,
                (vec!["report_answer"], ToolChoice::Tool("report_answer".into())),
            ),
        ] {
            let request = ChatRequest { tools, tool_choice: choice, ..asked_for(object()) };
            let (asked, found) = AnswerTool::of(&request, &by_tool(forced));
            let names: Vec<&str> = asked.tools.iter().map(|tool| tool.name.as_str()).collect();
            assert_eq!((names, asked.tool_choice.clone()), expected);
            assert!(asked.output.is_none() && found.is_some());
            assert_eq!(asked.messages.len(), if forced { 2 } else { 3 });
        }
    }

    #[test]
    fn other_requests_stay_as_they_are() {
        let demanded = ChatRequest {
            tools: Arc::from([tool("find")]),
            tool_choice: ToolChoice::Required,
            ..asked_for(object())
        };
        for (request, dialect) in [
            (ChatRequest::user("?"), by_tool(true)),
            (asked_for(object()), Dialect::default()),
            (demanded, by_tool(true)),
        ] {
            let (asked, tool) = AnswerTool::of(&request, &dialect);
            assert!(*asked == request && tool.is_none());
        }
    }

    #[test]
    fn the_call_is_the_answer_heard_as_text() {
        let request = asked_for(object());
        let (_, tool) = AnswerTool::of(&request, &by_tool(true));
        let tool = tool.unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sink = heard.clone();
        let cx = CallContext::default().on_delta(move |delta| sink.lock().unwrap().push(delta.clone()));
        let listening = tool.listen(&cx);
        listening.emit(&Delta::Thinking("hm".into()));
        listening.emit(&Delta::ToolCall { index: 0, name: "report".into() });
        listening.emit(&Delta::ToolArguments { index: 0, fragment: "{\"a\":".into() });
        listening.emit(&Delta::ToolArguments { index: 0, fragment: "1}".into() });
        let mut response = answer(&[("report", json!({"a": 1}))]);
        tool.read(&mut response, &cx);
        assert_eq!((response.message.text().as_str(), response.stop), (r#"{"a":1}"#, StopReason::End));
        let expected =
            [Delta::Thinking("hm".into()), Delta::Text("{\"a\":".into()), Delta::Text("1}".into())];
        assert_eq!(*heard.lock().unwrap(), expected);
    }

    #[test]
    fn other_calls_go_first() {
        let request = ChatRequest { tools: Arc::from([tool("find")]), ..asked_for(object()) };
        let (_, answers) = AnswerTool::of(&request, &by_tool(true));
        let mut response = answer(&[("report", json!({"a": 1})), ("find", json!({}))]);
        answers.unwrap().read(&mut response, &CallContext::default());
        let calls: Vec<&str> = response.message.tool_calls().map(|call| call.name.as_str()).collect();
        assert_eq!((calls, response.stop), (vec!["find"], StopReason::ToolCalls));
    }

    #[test]
    fn an_answer_that_is_no_object_is_wrapped_on_the_way() {
        let list =
            json!({"type": "array", "items": {"$ref": "#/$defs/N"}, "$defs": {"N": {"type": "integer"}}});
        let request = asked_for(list);
        let (asked, tool) = AnswerTool::of(&request, &by_tool(true));
        let expected = json!({
            "type": "object", "required": ["answer"], "additionalProperties": false,
            "properties": {"answer": {"type": "array", "items": {"$ref": "#/$defs/N"}}},
            "$defs": {"N": {"type": "integer"}},
        });
        assert_eq!(asked.tools[0].input_schema, expected);
        let mut response = answer(&[("report", json!({"answer": [1, 2]}))]);
        tool.unwrap().read(&mut response, &CallContext::default());
        assert_eq!(response.message.text(), "[1,2]");
    }
}
