//! The calls as one would make them by hand: reqwest, serde, a split at empty lines; no errors told apart. In its bare
//! form without a key and without timeouts, in its sound form with both, as Coral has them.

use serde::{Deserialize, Serialize};

#[derive(Serialize)]
struct Ask<'a> {
    model: &'a str,
    messages: [Message<'a>; 2],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stream: bool,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'a str,
    content: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    choices: Vec<Choice>,
    usage: Usage,
}

#[derive(Deserialize)]
struct Choice {
    message: Said,
    finish_reason: String,
}

#[derive(Deserialize)]
struct Said {
    content: String,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

#[derive(Deserialize)]
struct Chunk {
    choices: Vec<Piece>,
}

#[derive(Deserialize)]
struct Piece {
    delta: Delta,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
}

/// A client and what it asks.
#[derive(Clone)]
pub(crate) struct Bare {
    pub(crate) client: reqwest::Client,
    pub(crate) url: String,
    pub(crate) model: &'static str,
    pub(crate) system: &'static str,
    pub(crate) user: String,
    /// A key, where it sends one.
    pub(crate) key: Option<&'static str>,
}

impl Bare {
    async fn send(&self, stream: bool) -> reqwest::Response {
        let messages =
            [Message { role: "system", content: self.system }, Message { role: "user", content: &self.user }];
        let body = serde_json::to_vec(&Ask { model: self.model, messages, stream }).unwrap();
        let request = self.client.post(format!("{}/chat/completions", self.url));
        let request = match self.key {
            Some(key) => request.bearer_auth(key).header("accept", "application/json"),
            None => request,
        };
        request.header("content-type", "application/json").body(body).send().await.unwrap()
    }

    /// The text of a whole answer.
    pub(crate) async fn whole(&self) -> String {
        let answer: Answer = serde_json::from_slice(&self.send(false).await.bytes().await.unwrap()).unwrap();
        let choice = answer.choices.into_iter().next().unwrap();
        assert!(
            choice.finish_reason == "stop" && answer.usage.prompt_tokens < answer.usage.completion_tokens
        );
        choice.message.content
    }

    /// The text of a stream; `heard` is told of each piece.
    pub(crate) async fn stream(&self, mut heard: impl FnMut(&str)) -> String {
        let mut answer = self.send(true).await;
        let (mut text, mut rest, mut ended) = (String::new(), Vec::new(), false);
        while let Some(bytes) = answer.chunk().await.unwrap() {
            rest.extend_from_slice(&bytes);
            while let Some(end) = rest.windows(2).position(|pair| pair == b"\n\n") {
                let data = rest[..end].strip_prefix(b"data: ").unwrap();
                if data != b"[DONE]" {
                    let chunk: Chunk = serde_json::from_slice(data).unwrap();
                    for piece in chunk.choices {
                        if let Some(more) = piece.delta.content {
                            heard(&more);
                            text.push_str(&more);
                        }
                        ended |= piece.finish_reason.is_some();
                    }
                }
                rest.drain(..end + 2);
            }
        }
        assert!(ended);
        text
    }
}
