//! The text of a deliverable, by the type of its file.

use super::NOTICE;
use super::brief::Brief;
use super::prompt::{Asked, Wanted};

mod data;
mod deploy;
mod markdown;
mod openapi;
mod source;
mod sql;

/// The whole text of `wanted`.
pub(super) fn of(wanted: &Wanted, brief: &Brief, asked: &Asked) -> String {
    let file = wanted.path.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let extension = file.rsplit_once('.').map_or("", |(_, extension)| extension);
    let is =
        |words: &[&str]| words.iter().any(|word| wanted.kind.contains(word) || wanted.path.contains(word));
    match extension {
        "md" | "markdown" => markdown::document(wanted, brief, asked),
        "yaml" | "yml" if is(&["api", "openapi"]) => openapi::yaml(brief),
        "yaml" | "yml" if is(&["compose"]) => deploy::compose(brief),
        "yaml" | "yml" if is(&["pipeline", "workflow", "/ci/", "ci_"]) => deploy::pipeline(brief),
        "yaml" | "yml" => data::yaml(wanted, brief),
        "json" if is(&["api_spec", "openapi", "api_contract"]) => openapi::json(brief),
        "json" if is(&["schema"]) => data::json_schema(brief),
        "json" => data::json(wanted, brief),
        "toml" => data::toml(wanted, brief),
        "csv" => data::csv(wanted, brief),
        "env" => data::env(brief),
        "sql" if is(&["seed"]) => sql::seeds(brief),
        "sql" => sql::schema(brief),
        "rs" => source::rust(brief),
        "ts" | "tsx" => source::typescript(brief, extension == "tsx"),
        "js" | "jsx" | "mjs" => source::javascript(brief),
        "py" if is(&["test"]) => source::python_test(brief),
        "py" => source::python(brief),
        "html" | "htm" => source::html(brief),
        "css" => source::css(brief),
        "mmd" => format!("%% {}\n{}", notice(), markdown::entity_diagram(brief)),
        "sh" => deploy::script(brief),
        "tf" => data::terraform(wanted, brief),
        _ if file.starts_with("dockerfile") || extension == "dockerfile" => deploy::dockerfile(brief),
        _ if file == "makefile" => deploy::makefile(brief),
        _ => data::plain(wanted, brief),
    }
}

/// The notice as a sentence.
fn notice() -> String {
    let mut chars = NOTICE.chars();
    chars.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(chars).chain(['.']).collect()
}

/// Text as one line that can stand in a quoted string of any of the formats here.
fn quotable(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .map(|c| match c {
            '"' | '`' => '\'',
            '\\' => '/',
            c => c,
        })
        .filter(|c| !c.is_control())
        .collect()
}

/// A name such as `task-manager` out of `Task Manager`.
fn slug(text: &str) -> String {
    let mut slug = String::new();
    let mut last_lower = false;
    for c in text.chars() {
        if c.is_ascii_alphanumeric() {
            if c.is_ascii_uppercase() && last_lower {
                slug.push('-');
            }
            last_lower = c.is_ascii_lowercase() || c.is_ascii_digit();
            slug.push(c.to_ascii_lowercase());
        } else if !slug.ends_with('-') && !slug.is_empty() {
            slug.push('-');
            last_lower = false;
        }
    }
    let slug = slug.trim_matches('-').to_owned();
    if slug.is_empty() { "project".to_owned() } else { slug }
}
