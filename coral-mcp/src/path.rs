//! Places in the project, checked by their spelling alone.

use std::fmt;
use std::str::FromStr;

use coral_core::Error;
use serde::{Deserialize, Serialize};

/// The name under which agents and permission files know the project's root directory.
pub(crate) const VIRTUAL_ROOT: &str = "/project";

const MAX_PATH: usize = 4_096;
const MAX_COMPONENT: usize = 255;

/// A file or directory of the project: `/project`, or something under it.
///
/// Whatever is spelled so that another reader could take it for another place is refused: `..`,
/// backslashes, percent-encoded separators, URLs, `~`, control and invisible characters.
/// Whether a link leads elsewhere is not visible in the spelling; the servers see to that.
///
/// ```
/// use coral_mcp::ProjectPath;
///
/// let path: ProjectPath = "docs/./api.md".parse()?;
/// assert_eq!(path.to_string(), "/project/docs/api.md");
/// assert!(path.is_within(&"/project/docs".parse()?));
/// assert!(!path.is_within(&"/project/doc".parse()?));
/// assert!("docs/../../etc/passwd".parse::<ProjectPath>().is_err());
/// # Ok::<(), coral_core::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProjectPath(String);

impl TryFrom<String> for ProjectPath {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<ProjectPath> for String {
    fn from(path: ProjectPath) -> String {
        path.to_string()
    }
}

impl ProjectPath {
    /// The project's root.
    pub fn root() -> Self {
        ProjectPath::default()
    }

    /// The path below the root, with `/` between its parts; empty for the root itself.
    pub fn relative(&self) -> &str {
        &self.0
    }

    /// Whether this is `ancestor` or lies under it.
    pub fn is_within(&self, ancestor: &ProjectPath) -> bool {
        is_prefix(&ancestor.0, &self.0)
    }

    /// As [`is_within`](Self::is_within), blind to case: what a refusal goes by, since some file
    /// systems are.
    pub(crate) fn is_within_any_case(&self, ancestor: &ProjectPath) -> bool {
        is_prefix(&ancestor.0.to_lowercase(), &self.0.to_lowercase())
    }

    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_PATH {
            return Err(format!("a path of {} bytes is longer than {MAX_PATH}", text.len()));
        }
        if let Some(c) = text.chars().find(|c| is_unseen(*c)) {
            return Err(format!("the path holds the character U+{:04X}", u32::from(c)));
        }
        let shown = text;
        if text.contains('\\') {
            return Err(format!("`{shown}` holds a backslash; parts are separated by `/`"));
        }
        let lower = text.to_ascii_lowercase();
        if ["%2e", "%2f", "%5c", "%00", "%25"].iter().any(|code| lower.contains(code)) {
            return Err(format!("`{shown}` holds percent-encoded characters"));
        }
        if text.contains("://") || lower.starts_with("file:") {
            return Err(format!("`{shown}` is a URL, not a path"));
        }
        if text.starts_with('~') {
            return Err(format!("`{shown}` begins in a home directory"));
        }
        let below = match text.strip_prefix(VIRTUAL_ROOT) {
            Some("") => "",
            Some(rest) if rest.starts_with('/') => rest.trim_start_matches('/'),
            _ if text.starts_with('/') => {
                return Err(format!("`{shown}` lies outside `{VIRTUAL_ROOT}`"));
            }
            _ => text,
        };
        let mut parts = Vec::new();
        for part in below.split('/') {
            match part {
                "" | "." => {}
                ".." => return Err(format!("`{shown}` climbs with `..`")),
                _ if part.len() > MAX_COMPONENT => {
                    return Err(format!("a part of the path is longer than {MAX_COMPONENT} bytes"));
                }
                _ if part.ends_with('.') || part.ends_with(' ') || part.starts_with(' ') => {
                    return Err(format!(
                        "`{shown}` has a part that ends in a dot or begins or ends in a space"
                    ));
                }
                _ => parts.push(part),
            }
        }
        Ok(ProjectPath(parts.join("/")))
    }
}

fn is_prefix(ancestor: &str, path: &str) -> bool {
    ancestor.is_empty()
        || path.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Control characters, and those that are not seen or turn the writing around.
pub(crate) fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{34f}'
                | '\u{61c}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

impl FromStr for ProjectPath {
    type Err = Error;

    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) for a spelling that is refused.
    fn from_str(text: &str) -> Result<Self, Error> {
        ProjectPath::parse(text).map_err(|problem| {
            Error::invalid("path", problem)
                .with_help(format!("write it relative to the project, or beginning with `{VIRTUAL_ROOT}/`"))
        })
    }
}

impl fmt::Display for ProjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(VIRTUAL_ROOT)?;
        if !self.0.is_empty() {
            write!(f, "/{}", self.0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spellings_that_stay_inside() {
        for (text, expected) in [
            ("", "/project"),
            (".", "/project"),
            ("/project", "/project"),
            ("/project/", "/project"),
            ("/project//docs///x.md", "/project/docs/x.md"),
            ("docs/./x.md", "/project/docs/x.md"),
            ("project/x", "/project/project/x"),
            (".github/a b.yml", "/project/.github/a b.yml"),
            ("größe/日本.md", "/project/größe/日本.md"),
            ("..x/...y", "/project/..x/...y"),
        ] {
            assert_eq!(ProjectPath::parse(text).unwrap().to_string(), expected, "{text:?}");
        }
    }

    #[test]
    fn spellings_that_are_refused() {
        let long = "a/".repeat(3_000);
        for text in [
            "..",
            "docs/..",
            "docs/../../etc",
            "/project/../etc",
            "/projectx/a",
            "/etc/passwd",
            "//project/a",
            "~",
            "~/x",
            "~root/x",
            "a\\..\\b",
            "docs/%2e%2e/x",
            "a%2Fb",
            "%252e",
            "a\0b",
            "a\nb",
            "file:///etc/passwd",
            "file:etc",
            "http://x/y",
            "docs\u{200b}/x",
            "docs/\u{202e}x",
            "x\u{e0041}",
            "docs./x",
            "docs /x",
            "a/...",
            &long,
            &"n".repeat(256),
        ] {
            assert!(ProjectPath::parse(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_canonical_and_inside(text in "(/project)?[a-z./~%\\\\ -]{0,40}") {
            if let Ok(path) = ProjectPath::parse(&text) {
                prop_assert!(path.relative().split('/').all(|p| p != ".." && p != "."));
                prop_assert!(!path.relative().starts_with('/'));
                prop_assert_eq!(&ProjectPath::parse(&path.to_string()).unwrap(), &path);
                prop_assert!(path.is_within(&ProjectPath::root()));
            }
        }
    }
}
