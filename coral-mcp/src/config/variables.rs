//! References to named values in configuration.

use std::collections::BTreeMap;
use std::fmt;

/// The values that a servers file may refer to: none but those that are named here.
///
/// A value is taken as a secret, and blotted out of results and messages, unless it is said to be
/// [`plain`](Self::plain).
#[derive(Clone, Default)]
pub struct Variables {
    values: BTreeMap<String, Variable>,
}

#[derive(Clone)]
struct Variable {
    value: String,
    secret: bool,
}

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.values.keys()).finish()
    }
}

impl Variables {
    /// No variables.
    pub fn new() -> Self {
        Variables::default()
    }

    /// The variables of this process's environment that `names` lists and that are set.
    pub fn from_env<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let set = names.into_iter().filter_map(|name| Some((name, std::env::var(name).ok()?)));
        set.fold(Variables::new(), |variables, (name, value)| variables.with(name, value))
    }

    /// Adds a secret.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.values.insert(name.into(), Variable { value: value.into(), secret: true });
        self
    }

    /// Adds a value that may be shown, such as a directory.
    #[must_use]
    pub fn plain(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.values.insert(name.into(), Variable { value: value.into(), secret: false });
        self
    }

    /// Puts values in the place of `${NAME}` and `${NAME:-default}`; secrets that were put
    /// in are added to `used`. A bare `$NAME` stays as it is.
    pub(super) fn expand(&self, text: &str, used: &mut Vec<String>) -> Result<String, String> {
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            expanded.push_str(before);
            let (reference, after) = after.split_once('}').ok_or_else(|| format!("`{text}` lacks a `}}`"))?;
            let (name, default) = match reference.split_once(":-") {
                Some((name, default)) => (name, Some(default)),
                None => (reference, None),
            };
            match (self.values.get(name), default) {
                (Some(variable), _) => {
                    if variable.secret {
                        used.push(variable.value.clone());
                    }
                    expanded.push_str(&variable.value);
                }
                (None, Some(default)) => expanded.push_str(default),
                (None, None) => {
                    return Err(format!(
                        "`${{{name}}}` is not set, or not among the variables that the file may refer to"
                    ));
                }
            }
            rest = after;
        }
        expanded.push_str(rest);
        Ok(expanded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_expanded_and_nothing_else() {
        let variables = Variables::new().with("A", "1").with("EMPTY", "");
        for (text, expected) in [
            ("x${A}y${A}", Ok("x1y1")),
            ("${NONE:-d}/${EMPTY}", Ok("d/")),
            ("$A $$ {A}", Ok("$A $$ {A}")),
            ("${NONE}", Err(())),
            ("${A", Err(())),
        ] {
            let found = variables.expand(text, &mut Vec::new());
            assert_eq!(found.as_deref().map_err(|_| ()), expected, "{text}");
        }
        let mut used = Vec::new();
        let tricky = Variables::new().with("A", "${A}");
        assert_eq!(tricky.expand("${A}", &mut used).unwrap(), "${A}", "a value is not expanded again");
        assert_eq!(used, ["${A}"]);
    }
}
