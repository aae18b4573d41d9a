//! What servers answer, as agents see it.

use coral_core::ToolOutput;
use rmcp::model::{
    CallToolResult, ContentBlock, GetPromptResult, ReadResourceResult, ResourceContents, Role,
};
use serde_json::{Value, json};

use crate::shape::Shape;
use crate::text::clean;

/// The longest address and the longest title that are shown.
const MAX_LABEL: usize = 1_000;

/// A result in the making.
///
/// Text is joined. What is not text is described in it, and kept as data: images, audio and files
/// with their bytes in base64, links with their address, which nobody follows.
struct Reading {
    content: String,
    kept: Vec<Value>,
    kept_bytes: usize,
    max_bytes: usize,
}

impl Reading {
    fn new(max_bytes: usize) -> Self {
        Reading { content: String::new(), kept: Vec::new(), kept_bytes: 0, max_bytes }
    }

    fn line(&mut self, text: &str) {
        if !self.content.is_empty() {
            self.content.push('\n');
        }
        self.content.push_str(text);
    }

    /// Keeps a part as data while there is room. Half an image is none.
    fn keep(&mut self, part: Value) {
        let bytes = part.to_string().len();
        if self.kept_bytes.saturating_add(bytes) <= self.max_bytes {
            self.kept_bytes += bytes;
            self.kept.push(part);
        }
    }

    fn bytes(&mut self, what: &str, media_type: &str, data: &str) {
        let media_type = clean(media_type, 100);
        self.line(&format!("[{what}, {media_type}, {} bytes as base64]", data.len()));
        self.keep(json!({"type": what, "media_type": media_type, "data": data}));
    }

    fn resource(&mut self, resource: &ResourceContents) {
        match resource {
            ResourceContents::TextResourceContents { uri, mime_type, text, .. } => {
                let uri = clean(uri, MAX_LABEL);
                self.line(&format!("[resource {uri}]\n{text}"));
                self.keep(json!({"type": "resource", "uri": uri, "media_type": mime_type, "text": text}));
            }
            ResourceContents::BlobResourceContents { uri, mime_type, blob, .. } => {
                let uri = clean(uri, MAX_LABEL);
                self.line(&format!("[resource {uri}, {} bytes as base64]", blob.len()));
                self.keep(json!({"type": "resource", "uri": uri, "media_type": mime_type, "data": blob}));
            }
            _ => self.line("[resource of an unknown kind]"),
        }
    }

    fn block(&mut self, block: &ContentBlock) {
        match block {
            ContentBlock::Text(text) => self.line(&text.text),
            ContentBlock::Image(image) => self.bytes("image", &image.mime_type, &image.data),
            ContentBlock::Audio(audio) => self.bytes("audio", &audio.mime_type, &audio.data),
            ContentBlock::Resource(embedded) => self.resource(&embedded.resource),
            ContentBlock::ResourceLink(link) => {
                let (uri, name) = (clean(&link.uri, MAX_LABEL), clean(&link.name, MAX_LABEL));
                self.line(&format!("[link to {uri}: {name}]"));
                self.keep(json!({
                    "type": "resource_link", "uri": uri, "name": name, "media_type": link.mime_type,
                }));
            }
            _ => self.line("[content of an unknown kind]"),
        }
    }

    fn output(self, structured: Option<Value>, is_error: bool) -> ToolOutput {
        let parts = (!self.kept.is_empty()).then(|| json!({"parts": self.kept}));
        ToolOutput {
            content: clean(self.content, self.max_bytes),
            structured: structured.or(parts),
            is_error,
        }
    }
}

/// A tool's result. With `shape`, the tool's output schema, its data must fit that.
///
/// # Errors
/// Why the result can't be what the tool promised.
pub(crate) fn of_tool(
    result: &CallToolResult,
    shape: Option<&Shape>,
    max_bytes: usize,
) -> Result<ToolOutput, String> {
    let is_error = result.is_error == Some(true);
    if let Some(shape) = shape.filter(|_| !is_error) {
        let Some(value) = &result.structured_content else {
            return Err(
                "the result lacks the structured content that the tool's output schema promises".to_owned()
            );
        };
        if let Some(problem) = shape.problem(value) {
            return Err(format!("the structured content does not fit the tool's output schema: {problem}"));
        }
    }
    let mut reading = Reading::new(max_bytes);
    for block in &result.content {
        reading.block(block);
    }
    // A result is capped as a whole; half a JSON value is none.
    let structured = result.structured_content.clone().filter(|value| value.to_string().len() <= max_bytes);
    if let (true, Some(value)) = (reading.content.is_empty(), &structured) {
        reading.content = value.to_string();
    }
    Ok(reading.output(structured, is_error))
}

/// What a resource holds.
pub(crate) fn of_resource(result: &ReadResourceResult, max_bytes: usize) -> ToolOutput {
    let mut reading = Reading::new(max_bytes);
    for content in &result.contents {
        reading.resource(content);
    }
    reading.output(None, false)
}

/// The messages of a prompt.
pub(crate) fn of_prompt(result: &GetPromptResult, max_bytes: usize) -> ToolOutput {
    let mut reading = Reading::new(max_bytes);
    for message in &result.messages {
        reading.line(match message.role {
            Role::User => "user:",
            Role::Assistant => "assistant:",
        });
        reading.block(&message.content);
    }
    reading.output(None, false)
}

/// `output` without the values of `secrets`.
pub(crate) fn without(mut output: ToolOutput, secrets: &[String]) -> ToolOutput {
    output.content = redact(output.content, secrets);
    // A value is text with structure: it is shown as a whole or not at all.
    output.structured = output.structured.filter(|value| {
        let text = value.to_string();
        !secrets.iter().any(|secret| text.contains(secret.as_str()))
    });
    output
}

/// `text` without the values of `secrets`.
pub(crate) fn redact(text: String, secrets: &[String]) -> String {
    secrets.iter().fold(text, |text, secret| match text.contains(secret.as_str()) {
        true => text.replace(secret.as_str(), "[secret]"),
        false => text,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Any JSON of a moderate size.
    pub(crate) fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-z$#/:]{0,8}".prop_map(Value::from),
        ];
        let key = prop_oneof![
            "[a-z]{1,4}".prop_map(String::from),
            prop::sample::select(vec![
                "type",
                "$ref",
                "properties",
                "pattern",
                "items",
                "default",
                "content",
                "text",
                "uri",
                "mimeType",
                "resource",
                "structuredContent",
                "isError"
            ])
            .prop_map(String::from),
        ];
        leaf.prop_recursive(4, 32, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(key.clone(), inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    #[test]
    fn what_is_not_text_is_described_and_kept_as_data() {
        let result: CallToolResult = serde_json::from_value(json!({"content": [
            {"type": "text", "text": "hello"},
            {"type": "image", "data": "aGk=", "mimeType": "image/png"},
            {"type": "resource_link", "uri": "file:///a", "name": "a\u{1b}[2J"},
            {"type": "resource", "resource": {"uri": "mem://b", "text": "inner"}},
        ]}))
        .unwrap();
        let output = of_tool(&result, None, 10_000).unwrap();
        assert_eq!(
            output.content,
            "hello\n[image, image/png, 4 bytes as base64]\n[link to file:///a: a[2J]\n[resource mem://b]\ninner"
        );
        let parts = output.structured.unwrap();
        assert_eq!(parts["parts"][0]["data"], "aGk=");
        assert_eq!(parts["parts"][1]["uri"], "file:///a");
        assert_eq!(parts["parts"][2]["text"], "inner");
        let cut = of_tool(&result, None, 20).unwrap();
        assert!(cut.structured.is_none() && cut.content.contains("cut off"), "{cut:?}");
    }

    #[test]
    fn structured_content_must_fit_what_was_promised() {
        let shape = Shape::new(&json!({"type": "object", "required": ["t"]})).unwrap();
        let result = |json: Value| serde_json::from_value::<CallToolResult>(json).unwrap();
        let fits = result(json!({"structuredContent": {"t": 1}}));
        assert_eq!(of_tool(&fits, Some(&shape), 100).unwrap().content, r#"{"t":1}"#);
        for (bad, words) in [
            (json!({"content": [], "structuredContent": {}}), "does not fit"),
            (json!({"content": [{"type": "text", "text": "{\"t\":1}"}]}), "lacks the structured content"),
        ] {
            assert!(of_tool(&result(bad), Some(&shape), 100).unwrap_err().contains(words));
        }
        let failed = result(json!({"content": [{"type": "text", "text": "no"}], "isError": true}));
        assert!(of_tool(&failed, Some(&shape), 100).unwrap().is_error, "a failure owes no data");
    }

    proptest! {
        #[test]
        fn whatever_a_server_answers_stays_within_its_bounds(json in any_json(), max in 0_usize..200) {
            if let Ok(result) = serde_json::from_value::<CallToolResult>(json.clone())
                && let Ok(output) = of_tool(&result, None, max)
            {
                prop_assert!(output.content.len() <= max + 60);
                prop_assert!(output.structured.is_none_or(|v| v.to_string().len() <= max + 20));
            }
            if let Ok(result) = serde_json::from_value::<ReadResourceResult>(json.clone()) {
                prop_assert!(of_resource(&result, max).content.len() <= max + 60);
            }
            if let Ok(result) = serde_json::from_value::<GetPromptResult>(json) {
                prop_assert!(of_prompt(&result, max).content.len() <= max + 60);
            }
        }
    }
}
