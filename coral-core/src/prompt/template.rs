//! Named templates, strict about what they use and bounded in what they may be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use minijinja::value::{Serde, Value as Jinja};
use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;

use crate::condition::explain;
use crate::error::{Error, nearest};

/// Functions of the template language, and what it names by itself.
const BUILT_IN: [&str; 8] = ["range", "dict", "namespace", "debug", "loop", "caller", "self", "super"];

/// Pieces of templates that agents share: `{% include "name" %}`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Partials(BTreeMap<String, String>);

impl Partials {
    /// No pieces.
    pub fn new() -> Self {
        Partials::default()
    }

    /// Adds a piece; one of the same name is replaced.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.0.insert(name.into(), text.into());
        self
    }

    /// The text of a piece.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All pieces, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// Those that `texts` include, directly or through others.
    pub(crate) fn reached_from<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> Partials {
        let mut reached = BTreeMap::new();
        let mut next: Vec<&str> = texts.into_iter().flat_map(includes).collect();
        while let Some(name) = next.pop() {
            if let Some((name, text)) = self.0.get_key_value(name)
                && !reached.contains_key(name)
            {
                reached.insert(name.clone(), text.clone());
                next.extend(includes(text));
            }
        }
        Partials(reached)
    }
}

impl<N: Into<String>, T: Into<String>> FromIterator<(N, T)> for Partials {
    fn from_iter<I: IntoIterator<Item = (N, T)>>(pieces: I) -> Self {
        Partials(pieces.into_iter().map(|(name, text)| (name.into(), text.into())).collect())
    }
}

/// Named templates, compiled once.
///
/// The language is that of minijinja: values, filters, loops, conditions and includes, no I/O. A variable that is not
/// there is an error, with the nearest name that is, and a template that could overflow the stack of its parser is
/// refused. Cloning shares what is compiled.
///
/// ```
/// use coral_core::Templates;
/// use serde_json::json;
///
/// let mut templates = Templates::new();
/// templates.add("sign", "-- {{ author }}")?;
/// templates.add("letter", "Dear {{ reader.name }},\n{% include 'sign' %}")?;
/// assert_eq!(templates.variables("letter")?.into_iter().collect::<Vec<_>>(), ["author", "reader.name"]);
///
/// let scope = json!({"reader": {"name": "Ada"}, "author": "Bo"});
/// assert_eq!(templates.render("letter", &scope)?, "Dear Ada,\n-- Bo");
///
/// let error = templates.render("letter", &json!({"reader": {"nmae": "Ada"}, "author": "Bo"})).unwrap_err();
/// assert!(error.to_string().ends_with("`reader.name` is undefined; did you mean `nmae`? (line 1 of `letter`)"), "{error}");
/// # Ok::<(), coral_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Templates {
    env: Arc<Environment<'static>>,
}

impl Default for Templates {
    fn default() -> Self {
        Templates::new()
    }
}

impl Templates {
    /// No templates.
    pub fn new() -> Self {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        // For the names in errors; it costs nothing while there are none.
        env.set_debug(true);
        Templates { env: Arc::new(env) }
    }

    /// Adds a template; one of the same name is replaced.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) with the line, if it can't be read.
    pub fn add(&mut self, name: impl Into<String>, text: impl Into<String>) -> Result<(), Error> {
        let name = name.into();
        let place = format!("template `{}`", shown(&name));
        self.add_at(&place, name, text.into())
    }

    pub(crate) fn add_at(&mut self, place: &str, name: String, text: String) -> Result<(), Error> {
        bounded(&text).map_err(|problem| Error::invalid(place, problem))?;
        Arc::make_mut(&mut self.env).add_template_owned(name, text).map_err(|error| bad(place, &error))
    }

    /// The names of all templates.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let mut names: Vec<&str> = self.env.templates().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.into_iter()
    }

    /// The text of a template.
    pub fn source(&self, name: &str) -> Option<String> {
        self.env.get_template(name).ok().map(|template| template.source().to_owned())
    }

    /// The variables that a template asks for, attributes included (`brief.text`), its own and those of what it
    /// includes.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid) if it is not there.
    pub fn variables(&self, name: &str) -> Result<BTreeSet<String>, Error> {
        let template = self
            .env
            .get_template(name)
            .map_err(|error| bad(&format!("template `{}`", shown(name)), &error))?;
        let mut seen = BTreeSet::from([name.to_owned()]);
        let mut variables = BTreeSet::new();
        self.collect(template.source(), &template, &BTreeSet::new(), &mut seen, &mut variables);
        Ok(variables)
    }

    /// Whether a template asks for nothing but `names`, as far as can be known: not if it includes by a variable.
    pub(crate) fn asks_only_for(&self, name: &str, names: &[&str]) -> Result<bool, Error> {
        let known = self.variables(name)?.iter().all(|variable| names.contains(&first_of(variable)));
        let mut seen = BTreeSet::new();
        let mut next = vec![name.to_owned()];
        while let Some(name) = next.pop() {
            let text = self.source(&name).unwrap_or_default();
            let literal: Vec<String> = includes(&text).map(str::to_owned).collect();
            if literal.len() != tags(&text).filter(|(_, tag)| named_by(tag).is_some()).count() {
                return Ok(false);
            }
            if seen.insert(name) {
                next.extend(literal);
            }
        }
        Ok(known)
    }

    /// Whether a template, or one that it includes, asks whether `path` is there (`is defined`), or has something to put in
    /// its place (`|default`).
    pub(crate) fn asks_whether(&self, name: &str, path: &str) -> bool {
        let asks = |text: &str| {
            text.match_indices(path).any(|(at, _)| {
                let behind = text.get(at + path.len()..).unwrap_or_default().trim_start();
                let filter = behind.strip_prefix('|').map(str::trim_start);
                let test =
                    behind.strip_prefix("is ").map(|test| test.trim_start_matches("not ").trim_start());
                filter.is_some_and(|filter| filter.starts_with("default") || filter.starts_with("d("))
                    || test.is_some_and(|test| test.starts_with("defined") || test.starts_with("undefined"))
            })
        };
        let mut seen = BTreeSet::new();
        let mut next = vec![name.to_owned()];
        while let Some(name) = next.pop() {
            let text = self.source(&name).unwrap_or_default();
            if asks(&text) {
                return true;
            }
            if seen.insert(name) {
                next.extend(includes(&text).map(str::to_owned));
            }
        }
        false
    }

    /// What is declared by an including template (a loop's variable) is not asked for by the included one.
    fn collect(
        &self,
        text: &str,
        template: &minijinja::Template<'_, '_>,
        outer: &BTreeSet<String>,
        seen: &mut BTreeSet<String>,
        variables: &mut BTreeSet<String>,
    ) {
        variables.extend(template.undeclared_variables(true).into_iter().filter(|variable| {
            let first = first_of(variable);
            !BUILT_IN.contains(&first) && !outer.contains(first)
        }));
        let mut declared = outer.clone();
        declared.extend(declares(text));
        for include in includes(text) {
            if seen.insert(include.to_owned())
                && let Ok(template) = self.env.get_template(include)
            {
                self.collect(template.source(), &template, &declared, seen, variables);
            }
        }
    }

    /// Renders a template.
    ///
    /// # Errors
    /// [`Invalid`](crate::ErrorKind::Invalid), which names the variable that is not there and the nearest that is,
    /// or what else went wrong, with the line.
    pub fn render(&self, name: &str, scope: &impl Serialize) -> Result<String, Error> {
        self.render_value(name, &Jinja::from(Serde(scope)))
    }

    pub(crate) fn render_value(&self, name: &str, scope: &Jinja) -> Result<String, Error> {
        let place = || format!("template `{}`", shown(name));
        let template = self.env.get_template(name).map_err(|error| bad(&place(), &error))?;
        template.render(scope.clone()).map_err(|error| bad_in(&place(), &error, Some(scope)))
    }
}

/// The name of a template as people know it.
fn shown(name: &str) -> &str {
    name.trim_start_matches('@')
}

/// The name that a path such as `brief.text` or `inputs[0]` begins with.
pub(crate) fn first_of(variable: &str) -> &str {
    variable.split(['.', '[']).next().unwrap_or(variable)
}

/// The names that a template includes as literals.
pub(crate) fn includes(text: &str) -> impl Iterator<Item = &str> {
    tags(text).filter_map(|(_, tag)| {
        let name = named_by(tag)?;
        let quote = name.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        name.get(1..)?.split(quote).next()
    })
}

/// What stands behind the word of a tag that names another template.
fn named_by(tag: &str) -> Option<&str> {
    let words = ["include", "import", "extends", "from"];
    Some(words.iter().find_map(|word| tag.strip_prefix(word))?.trim_start())
}

/// The names that a template declares: by `set`, in loops, as macros.
pub(crate) fn declares(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_, tag) in tags(text) {
        let (word, rest) = tag.split_once(char::is_whitespace).unwrap_or((tag, ""));
        let declared = match word {
            "for" => rest.split(" in ").next(),
            "set" | "with" => rest.split('=').next(),
            "macro" => Some(rest),
            _ => None,
        };
        let words = declared.unwrap_or_default().split(|c: char| !c.is_alphanumeric() && c != '_');
        names.extend(words.filter(|word| !word.is_empty()).map(str::to_owned));
    }
    names
}

/// The block tags of a template: the line of each, and what is in it.
fn tags(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut line = 1;
    text.split("{%").enumerate().filter_map(move |(i, piece)| {
        let at = line;
        line += piece.matches('\n').count();
        let tag = piece.split("%}").next()?.trim_start_matches(['-', '+']).trim_start();
        (i > 0).then_some((at, tag.trim_end_matches(['-', '+']).trim_end()))
    })
}

/// The first line in which a tag of `text` uses the variable or attribute path `name`.
pub(crate) fn line_of(text: &str, name: &str) -> Option<usize> {
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let opens = text.match_indices("{{").chain(text.match_indices("{%"));
    let mut lines: Vec<usize> = opens
        .filter_map(|(at, open)| {
            let rest = text.get(at..)?;
            let close = if open == "{{" { "}}" } else { "%}" };
            let tag = rest.get(..rest.find(close)?)?;
            let found = tag.match_indices(name).any(|(start, _)| {
                let before = tag.get(..start).and_then(|before| before.chars().next_back());
                let after = tag.get(start + name.len()..).and_then(|after| after.chars().next());
                !is_word(before) && before != Some('.') && !is_word(after)
            });
            found.then(|| text.get(..at).map_or(1, |before| before.matches('\n').count() + 1))
        })
        .collect();
    lines.sort_unstable();
    lines.first().copied()
}

/// The parser of templates recurses for each operator of a tag and each branch of an `if`; a
/// template from outside must not be able to overflow its stack.
fn bounded(text: &str) -> Result<(), String> {
    const TAG: usize = 1_000;
    const BRANCHES: usize = 200;
    let is_long = |at: usize| {
        let tag = text.as_bytes().get(at..at + TAG);
        tag.is_some_and(|tag| !tag.windows(2).any(|end| end == b"%}" || end == b"}}"))
    };
    let opens = text.match_indices("{%").chain(text.match_indices("{{"));
    if let Some((at, _)) = opens.clone().find(|(at, _)| is_long(*at)) {
        let line = text.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
        return Err(format!("the tag in line {line} is longer than {TAG} bytes"));
    }
    if text.matches("elif").count() > BRANCHES
        || text.matches("{% if").count() + text.matches("{%- if").count() > BRANCHES
    {
        return Err(format!("it has more than {BRANCHES} branches"));
    }
    if opens.filter(|(_, tag)| *tag == "{%").count() > 1_000 {
        return Err("it has more than 1,000 block tags".to_owned());
    }
    Ok(())
}

pub(super) fn bad(place: &str, error: &minijinja::Error) -> Error {
    bad_in(place, error, None)
}

/// The error of this crate for one of a template, whose scope says which names there are.
fn bad_in(place: &str, error: &minijinja::Error, scope: Option<&Jinja>) -> Error {
    let mut problem = in_words(error, scope);
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        problem.push_str(": ");
        match cause.downcast_ref::<minijinja::Error>() {
            Some(cause) => problem.push_str(&in_words(cause, scope)),
            None => problem.push_str(&cause.to_string()),
        }
        source = cause.source();
    }
    Error::invalid(place, problem)
}

fn in_words(error: &minijinja::Error, scope: Option<&Jinja>) -> String {
    let mut words = explain(error);
    if error.kind() == minijinja::ErrorKind::UndefinedError
        && let Some(scope) = scope
        && let Some(path) = error.detail().and_then(|detail| detail.split('`').nth(1))
        && let Some(near) = nearest_in(scope, &declares(error.template_source().unwrap_or_default()), path)
    {
        words.push_str(&format!("; did you mean `{near}`?"));
    }
    if let Some(line) = error.line() {
        words.push_str(&format!(" (line {line} of `{}`)", shown(error.name().unwrap_or_default())));
    }
    words
}

/// The name that is nearest to the last segment of `path`, which is not there: of `scope` and what the template itself
/// declares for a path of one segment, else of the value that the segments before lead to. Nothing where they lead to
/// none, as those do that begin with the variable of a loop.
fn nearest_in(scope: &Jinja, declared: &BTreeSet<String>, path: &str) -> Option<String> {
    let (before, last) = match path.rsplit_once('.') {
        Some((before, last)) => (Some(before), last),
        None => (None, path),
    };
    // An index is no name.
    if last.ends_with(']') {
        return None;
    }
    let mut value = scope.clone();
    if let Some(before) = before {
        if declared.contains(first_of(before)) {
            return None;
        }
        for segment in before.split('.') {
            value = step_into(&value, segment)?;
        }
    }
    let mut names: Vec<String> = value.try_iter().ok()?.map(|name| name.to_string()).collect();
    if before.is_none() {
        names.extend(declared.iter().cloned());
    }
    nearest(last, names.iter().map(String::as_str)).map(str::to_owned)
}

/// What `value` has under a segment of a path, such as `name` or `list[0]`.
fn step_into(value: &Jinja, segment: &str) -> Option<Jinja> {
    let (name, indices) = match segment.split_once('[') {
        Some((name, indices)) => (name, indices.strip_suffix(']')?),
        None => (segment, ""),
    };
    let mut value = value.get_attr(name).ok()?;
    for index in indices.split("][").filter(|index| !index.is_empty()) {
        value = value.get_item(&Jinja::from(index.parse::<usize>().ok()?)).ok()?;
    }
    (!value.is_undefined()).then_some(value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_template_that_would_overflow_the_parser_is_refused() {
        for text in [
            format!("{{{{ {}x }}}}", "not ".repeat(20_000)),
            format!("{{% if a %}}{}{{% endif %}}", "{% elif b %}".repeat(20_000)),
            format!("{}{}", "{% for a in b %}".repeat(20_000), "{% endfor %}".repeat(20_000)),
        ] {
            let error = Templates::new().add("long", text).unwrap_err().to_string();
            assert!(error.starts_with("template `long` is not valid:"), "{error}");
        }
    }

    #[test]
    fn an_undefined_name_is_reported_where_it_stands() {
        let mut templates = Templates::new();
        templates.add("list", "\n{% for item in breif.items %}{{ item }}{% endfor %}").unwrap();
        templates.add("page", "{% include 'list' %}").unwrap();
        templates.add("gone", "{% include 'lost' %}").unwrap();
        let scope = json!({"brief": {"items": [1]}});
        let error = templates.render("page", &scope).unwrap_err().to_string();
        assert!(
            error
                .ends_with("undefined value: `breif` is undefined; did you mean `brief`? (line 2 of `list`)"),
            "{error}"
        );
        let error = templates.render("gone", &scope).unwrap_err().to_string();
        assert!(error.contains("'lost'") && error.contains("line 1 of `gone`"), "{error}");
    }

    #[test]
    fn a_nearest_name_is_given_only_where_it_is_known_what_has_names() {
        let scope = json!({
            "inputs": [{"name": "a", "message": {"kind": "x"}}],
            "report": {"deliverables": [{"type": "t", "pth": "p"}]},
            "near": {"nme": 1},
        });
        for (text, hint) in [
            ("{% for input in inputs %}{{ input.nme }}{% endfor %}", None),
            ("{% for near in inputs %}{{ near.name }}{{ near.nmes }}{% endfor %}", None),
            ("{% for input in inputs %}{{ inptu }}{% endfor %}", Some("input")),
            ("{{ report.deliverables[0].path }}", Some("pth")),
            ("{{ report.deliverables[7].path }}", None),
            ("{{ report['deliverables'][0].path }}", None),
            ("{{ inputs[0].message.knd }}", Some("kind")),
            ("{{ reprot.deliverables }}", Some("report")),
        ] {
            let mut templates = Templates::new();
            templates.add("t", text).unwrap();
            let error = templates.render("t", &scope).unwrap_err().to_string();
            let found = error.split_once("did you mean `").and_then(|(_, rest)| rest.split('`').next());
            assert_eq!(found, hint, "{text}: {error}");
        }
    }

    #[test]
    fn what_an_including_template_declares_is_not_asked_for() {
        let mut templates = Templates::new();
        templates.add("row", "{{ item.name }}{{ unit }}").unwrap();
        templates.add("table", "{% for item in rows %}{% include 'row' %}{% endfor %}").unwrap();
        let asked: Vec<String> = templates.variables("table").unwrap().into_iter().collect();
        assert_eq!(asked, ["rows", "unit"]);
        assert_eq!(line_of("a\n{{ b }}\n{{ a.b }}{{ a }}", "a"), Some(3));
    }
}
