//! Variables: those that a template does not get, those that nothing uses.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde_json::Value;

use super::{Lint, LintRules, PromptSeverity, templates_of};
use crate::error::{ErrorKind, nearest};
use crate::prompt::draft::TASK_NAMES;
use crate::prompt::template::{Partials, Templates, declares, first_of, includes, line_of};
use crate::spec::AgentSpec;
use crate::task::{Brief, Report};

impl Lint<'_> {
    pub(super) fn variables(&mut self, partials: &Partials, rules: &LintRules) {
        use PromptSeverity::{Error, Warning};
        let mut templates = Templates::new();
        for (name, text) in partials.iter() {
            // A partial that can't be read is reported where it is included.
            let _ = templates.add(name, text);
        }
        let mut used = BTreeSet::new();
        for (name, text, known) in templates_of(self.spec) {
            let place = format!("template `{name}`");
            let own = format!("@{name}");
            if let Err(error) = templates.add(&own, text) {
                let problem = match error.kind() {
                    ErrorKind::Invalid { problem, .. } => problem.clone(),
                    other => other.to_string(),
                };
                self.add(Error, place, problem, "mend the template");
                continue;
            }
            for include in includes(text) {
                if partials.get(include).is_none() {
                    let fix = match nearest(include, partials.iter().map(|(name, _)| name)) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => "add the partial".to_owned(),
                    };
                    self.add(
                        Error,
                        &place,
                        format!("it includes `{include}`, and no partial is called that"),
                        fix,
                    );
                }
            }
            let known: Vec<&str> = known
                .iter()
                .copied()
                .chain(rules.names.iter().filter(|_| known == TASK_NAMES).map(String::as_str))
                .collect();
            for path in templates.variables(&own).unwrap_or_default() {
                used.insert(first_of(&path).to_owned());
                let Some((wrong, near)) = unknown(&path, &known) else { continue };
                let at = line_of(text, &wrong).map(|line| format!("{place}, line {line}"));
                let at = at.or_else(|| {
                    let in_partial =
                        |(name, text)| Some(format!("partial `{name}`, line {}", line_of(text, &wrong)?));
                    partials.iter().find_map(in_partial)
                });
                let fix = match near {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("it gets {}", known.join(", ")),
                };
                self.add(Error, at.unwrap_or(place.clone()), format!("variable `{wrong}` is not known"), fix);
            }
        }
        let unused: Vec<(String, String)> = self
            .texts
            .iter()
            .filter(|text| text.place.starts_with("template") || text.place.starts_with("partial"))
            .flat_map(|text| unused_sets(&text.text).map(|name| (text.place.clone(), name)))
            .collect();
        for (place, name) in unused {
            self.add(Warning, place, format!("`{name}` is set and never used"), "use it or take it out");
        }
        let spec = self.spec;
        let depends = !spec.dependencies.is_empty() || !spec.optional_dependencies.is_empty();
        let names_paths = spec.outputs.iter().all(|output| spec.prompt.output_format.contains(&output.path));
        for (name, of_use, what) in [
            ("brief", !spec.prompt.task_template.is_empty(), "the model never sees what is wanted"),
            ("inputs", depends && !used.contains("available"), "the model never sees what it depends on"),
            (
                "deliverables",
                !spec.outputs.is_empty() && !names_paths,
                "the model never sees what it is to deliver",
            ),
        ] {
            if of_use && !used.contains(name) {
                let message = format!("no template uses `{name}`, so {what}");
                self.add(
                    Warning,
                    "prompt",
                    message,
                    format!("show `{{{{ {name} }}}}` in a template of the task"),
                );
            }
        }
    }
}

/// JSON Schemas of the values whose attributes are known.
static SHAPES: LazyLock<BTreeMap<&str, Value>> = LazyLock::new(|| {
    BTreeMap::from([
        ("agent", schemars::schema_for!(AgentSpec).to_value()),
        ("brief", schemars::schema_for!(Brief).to_value()),
        ("report", schemars::schema_for!(Report).to_value()),
    ])
});

/// The part of `path` that is not known, and the nearest name that is.
fn unknown(path: &str, known: &[&str]) -> Option<(String, Option<String>)> {
    let mut segments = path.split('.');
    let first = segments.next()?;
    if !known.contains(&first) {
        return Some((first.to_owned(), nearest(first, known.iter().copied()).map(str::to_owned)));
    }
    let root = SHAPES.get(first)?;
    let (mut shape, mut so_far) = (root, first.to_owned());
    for segment in segments {
        if let Some(reference) = shape.get("$ref").and_then(Value::as_str) {
            shape = root.pointer(reference.strip_prefix('#')?)?;
        }
        let properties = shape.get("properties")?.as_object()?;
        let Some(next) = properties.get(segment) else {
            let near = nearest(segment, properties.keys().map(String::as_str));
            return Some((format!("{so_far}.{segment}"), near.map(|near| format!("{so_far}.{near}"))));
        };
        so_far = format!("{so_far}.{segment}");
        shape = next;
    }
    None
}

/// Names that a text sets and uses nowhere else.
fn unused_sets(text: &str) -> impl Iterator<Item = String> {
    let sets = declares(text).into_iter().filter(|name| text.contains(&format!("set {name} ")));
    sets.filter(|name| {
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
        words.filter(|word| word == name).count() < 2
    })
}
