//! JSON values as YAML that people can read, every text quoted as JSON quotes it.

use serde_json::Value;

/// `value` in block style.
pub(super) fn write(value: &Value) -> String {
    let mut out = String::new();
    block(value, 0, &mut out);
    out
}

/// Writes `value` from the present position on, ending the line.
fn block(value: &Value, depth: usize, out: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (i, (key, value)) in map.iter().enumerate() {
                if i > 0 {
                    indent(depth, out);
                }
                out.push_str(&Value::String(key.clone()).to_string());
                out.push(':');
                child(value, depth + 1, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    indent(depth, out);
                }
                out.push_str("- ");
                block(item, depth + 1, out);
            }
        }
        scalar => {
            out.push_str(&scalar.to_string());
            out.push('\n');
        }
    }
}

/// Writes what stands after a key.
fn child(value: &Value, depth: usize, out: &mut String) {
    let nested = match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    };
    if nested {
        out.push('\n');
        indent(depth, out);
    } else {
        out.push(' ');
    }
    block(value, depth, out);
}

fn indent(depth: usize, out: &mut String) {
    out.extend(std::iter::repeat_n("  ", depth));
}

#[cfg(feature = "yaml")]
pub(super) fn parse(text: &str) -> Result<super::Archive, String> {
    let value: Value = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    serde_json::from_value(value).map_err(|e| e.to_string())
}

#[cfg(not(feature = "yaml"))]
pub(super) fn parse(_: &str) -> Result<super::Archive, String> {
    Err("YAML is not supported without the feature `yaml`".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_blocks() {
        let value = serde_json::json!({
            "a": [1, {"b": "x: y\n", "c": []}, [true, null]], "d": {}, "e": {"f": 0.5},
        });
        let text = "\"a\":\n  - 1\n  - \"b\": \"x: y\\n\"\n    \"c\": []\n  - - true\n    - null\n\"d\": {}\n\"e\":\n  \"f\": 0.5\n";
        assert_eq!(write(&value), text);
    }
}
