//! Events that differ from the one before in their text alone, as most of a stream do.

/// An event that said a text and nothing else, without that text.
///
/// Where another text without quotes, backslashes and control characters stands in the same place, the event is the
/// same JSON but for that string, so that what it says is known without reading it.
#[derive(Default)]
pub(super) struct Alike {
    before: String,
    after: String,
}

impl Alike {
    /// Keeps `event`, of which all that it says is `text`, a part of it that has no escapes.
    pub(super) fn keep(&mut self, event: &str, text: &str) {
        let at = text.as_ptr().addr().wrapping_sub(event.as_ptr().addr());
        let parts =
            event.split_at_checked(at).and_then(|(before, rest)| Some((before, rest.strip_prefix(text)?)));
        let (before, after) = parts.unwrap_or_default();
        before.clone_into(&mut self.before);
        after.clone_into(&mut self.after);
    }

    /// What `event` says, if it is like the one that was kept.
    pub(super) fn text<'a>(&self, event: &'a str) -> Option<&'a str> {
        if self.before.is_empty() {
            return None;
        }
        let text = event.strip_prefix(&*self.before)?.strip_suffix(&*self.after)?;
        let is_plain = |byte: u8| !matches!(byte, b'"' | b'\\' | ..b' ');
        text.bytes().all(is_plain).then_some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_alike_is_read_and_what_is_not_is_left() {
        let first = r#"{"a":"x","t":"one","z":[]}"#;
        let mut alike = Alike::default();
        assert_eq!(alike.text(first), None);
        alike.keep(first, first.get(14..17).unwrap());
        assert_eq!(alike.text(r#"{"a":"x","t":"zwölf","z":[]}"#), Some("zwölf"));
        assert_eq!(alike.text(r#"{"a":"x","t":"","z":[]}"#), Some(""));
        for other in [
            r#"{"a":"x","t":"o","y":"","z":[]}"#,
            r#"{"a":"x","t":"o\"","z":[]}"#,
            "{\"a\":\"x\",\"t\":\"o\n\",\"z\":[]}",
            r#"{"a":"y","t":"one","z":[]}"#,
            r#"{"a":"x","t":"one","z":[] }"#,
            r#"{"a":"x","t":"#,
        ] {
            assert_eq!(alike.text(other), None, "{other}");
        }
        // A text from elsewhere is no part of the event.
        alike.keep(first, "one");
        assert_eq!(alike.text(first), None);
    }
}
