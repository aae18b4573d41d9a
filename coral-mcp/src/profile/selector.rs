//! Which values of a call's arguments are meant: `path`, `paths[]`, `files[].path`, `volumes{}`.

use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Key(String),
    Items,
    Keys,
}

/// A path into arguments: keys with dots between, `[]` for the items of a list, `{}` for the keys
/// of an object.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Selector(Vec<Step>);

impl TryFrom<String> for Selector {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut steps = Vec::new();
        for part in text.split('.') {
            let (key, tail) = match (part.strip_suffix("[]"), part.strip_suffix("{}")) {
                (Some(key), _) => (key, Some(Step::Items)),
                (_, Some(key)) => (key, Some(Step::Keys)),
                _ => (part, None),
            };
            if key.is_empty() || key.contains(['[', ']', '{', '}']) || steps.last() == Some(&Step::Keys) {
                return Err(format!(
                    "`{text}` does not select arguments; write `path`, `paths[]`, `files[].path` or `volumes{{}}`"
                ));
            }
            steps.push(Step::Key(key.to_owned()));
            steps.extend(tail);
        }
        Ok(Selector(steps))
    }
}

type Rewrite<'a> = dyn FnMut(&str) -> Result<String, String> + 'a;

impl Selector {
    /// Puts what `rewrite` makes of it in the place of each selected text. A value that is left
    /// out or null selects nothing; one of another type is refused.
    pub(crate) fn rewrite(
        &self,
        arguments: &mut Map<String, Value>,
        rewrite: &mut Rewrite<'_>,
    ) -> Result<(), String> {
        let Some((Step::Key(first), rest)) = self.0.split_first() else { return Ok(()) };
        match arguments.get_mut(first) {
            None | Some(Value::Null) => Ok(()),
            Some(value) => walk(value, rest, first, rewrite),
        }
    }
}

impl Selector {
    /// Looks at each selected value, whatever its type.
    pub(crate) fn visit(
        &self,
        arguments: &Map<String, Value>,
        look: &mut dyn FnMut(&Value) -> Result<(), String>,
    ) -> Result<(), String> {
        let Some((Step::Key(first), rest)) = self.0.split_first() else { return Ok(()) };
        match arguments.get(first) {
            None | Some(Value::Null) => Ok(()),
            Some(value) => look_into(value, rest, first, look),
        }
    }
}

fn look_into(
    value: &Value,
    steps: &[Step],
    name: &str,
    look: &mut dyn FnMut(&Value) -> Result<(), String>,
) -> Result<(), String> {
    let Some((step, rest)) = steps.split_first() else { return look(value) };
    match (step, value) {
        (Step::Key(key), Value::Object(map)) => match map.get(key) {
            None | Some(Value::Null) => Ok(()),
            Some(value) => look_into(value, rest, key, look),
        },
        (Step::Items, Value::Array(items)) => {
            items.iter().try_for_each(|item| look_into(item, rest, name, look))
        }
        (Step::Keys, Value::Object(map)) => {
            map.keys().try_for_each(|key| look_into(&Value::String(key.clone()), rest, name, look))
        }
        (Step::Items, _) => Err(format!("argument `{name}` must be a list")),
        (Step::Key(_) | Step::Keys, _) => Err(format!("argument `{name}` must be an object")),
    }
}

fn walk(value: &mut Value, steps: &[Step], name: &str, rewrite: &mut Rewrite<'_>) -> Result<(), String> {
    let Some((step, rest)) = steps.split_first() else {
        let Value::String(text) = value else {
            return Err(format!("argument `{name}` must be text"));
        };
        *text = rewrite(text)?;
        return Ok(());
    };
    match (step, value) {
        (Step::Key(key), Value::Object(map)) => match map.get_mut(key) {
            None | Some(Value::Null) => Ok(()),
            Some(value) => walk(value, rest, key, rewrite),
        },
        (Step::Items, Value::Array(items)) => {
            items.iter_mut().try_for_each(|item| walk(item, rest, name, rewrite))
        }
        (Step::Keys, Value::Object(map)) => {
            let mut renamed = Map::new();
            for (key, value) in std::mem::take(map) {
                if renamed.insert(rewrite(&key)?, value).is_some() {
                    return Err(format!("argument `{name}` names the same place twice"));
                }
            }
            *map = renamed;
            Ok(())
        }
        (Step::Items, _) => Err(format!("argument `{name}` must be a list")),
        (Step::Key(_) | Step::Keys, _) => Err(format!("argument `{name}` must be an object")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(selector: &str, mut arguments: Value, found: &[&str], after: Value) {
        let selector = Selector::try_from(selector.to_owned()).unwrap();
        let mut seen = Vec::new();
        selector
            .rewrite(arguments.as_object_mut().unwrap(), &mut |text| {
                seen.push(text.to_owned());
                Ok(text.to_uppercase())
            })
            .unwrap();
        assert_eq!(seen, found);
        assert_eq!(arguments, after);
    }

    #[test]
    fn values_are_found_where_they_stand() {
        check("path", json!({"path": "a", "b": 1}), &["a"], json!({"path": "A", "b": 1}));
        check("paths[]", json!({"paths": ["a", "b"]}), &["a", "b"], json!({"paths": ["A", "B"]}));
        check(
            "files[].path",
            json!({"files": [{"path": "a"}, {"text": "b"}]}),
            &["a"],
            json!({"files": [{"path": "A"}, {"text": "b"}]}),
        );
        check(
            "volumes{}",
            json!({"volumes": {"a": {"bind": "x"}}}),
            &["a"],
            json!({"volumes": {"A": {"bind": "x"}}}),
        );
        check("path", json!({"path": null}), &[], json!({"path": null}));
    }

    #[test]
    fn values_of_another_type_are_refused() {
        for (selector, arguments) in [
            ("path", json!({"path": ["a"]})),
            ("path", json!({"path": 3})),
            ("paths[]", json!({"paths": "a"})),
            ("paths[]", json!({"paths": [["a"]]})),
            ("files[].path", json!({"files": ["a"]})),
            ("volumes{}", json!({"volumes": ["a"]})),
        ] {
            let mut arguments = arguments;
            let selector = Selector::try_from(selector.to_owned()).unwrap();
            let result = selector.rewrite(arguments.as_object_mut().unwrap(), &mut |t| Ok(t.to_owned()));
            assert!(result.is_err(), "{arguments}");
        }
    }

    #[test]
    fn selectors_are_checked() {
        for bad in ["", ".", "a.", "a[]b", "[]", "a{}.b", "a[0]"] {
            assert!(Selector::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
