//! Reading the agent files of other tools.

use std::path::Path;

use coral_core::{AgentSpec, Error};

use super::tools::{self, Meaning};
use super::{Fate, Imported, Note, not_one};
use crate::markdown;
use crate::problem::Problems;
use crate::yaml::{self, Entry, Node, Yaml};

/// The operations of a file that names no tools, which means all of them elsewhere.
const READ_ONLY: [&str; 3] = ["read_file", "search_files", "list_directory"];

const TASK: &str = "Do for {{ brief.project }} what your definition says.\n\n{% include \"brief\" %}";
const CONTEXT: &str = "{% include \"handed_over\" %}\n\n{% include \"tools\" %}";
const OUTPUT: &str = "{% include \"report\" %}";
const HANDOFF: &str = "{% include \"next_tasks\" %}";

/// Reads a sub-agent: Markdown whose front matter has `name` and `description`, and whose body is
/// the system prompt.
///
/// The body is taken word for word: what looks like a template in it stays text. The task, the
/// context and the form of the answer come from the built-in partials. Front matter that is not
/// quite YAML, as a `description` with colons in it makes it, is read line by line.
///
/// # Errors
/// [`Invalid`](coral_core::ErrorKind::Invalid) if the file is no sub-agent: no front matter, no
/// name that an id can be made of, or no text.
///
/// ```
/// use coral_agents::{Imported, import_subagent};
///
/// let text = "---\nname: code-reviewer\ndescription: Reviews code: correctness first. Use it after changes.\n\
///             tools: Read, Grep, Bash(git diff:*)\nmodel: opus\n---\nYou review code.\n";
/// let Imported::Agent { spec, notes } = import_subagent("code-reviewer.md", text)? else { unreachable!() };
/// assert_eq!(spec.id, "code_reviewer");
/// assert_eq!(spec.operations, ["read_file", "search_files", "run_code"]);
/// assert!(notes.iter().any(|note| note.to_string()
///     == "line 4: the restriction `git diff:*` of `Bash`: left out: put it into the permission file"));
/// # Ok::<(), coral_core::Error>(())
/// ```
pub fn import_subagent(file: &str, text: &str) -> Result<Imported, Error> {
    import(file, text, &[], false)
}

/// Reads a skill: a `SKILL.md`, and the paths of the files beside it, relative to its folder.
///
/// # Errors
/// As [`import_subagent`].
pub fn import_skill(file: &str, text: &str, resources: &[String]) -> Result<Imported, Error> {
    import(file, text, resources, true)
}

/// Reads an `AGENTS.md` or the like: instructions for whoever works in a project. They become a
/// partial named after the file (`agents_md`) that an agent includes: `{% include "agents_md" %}`.
///
/// # Errors
/// [`Invalid`](coral_core::ErrorKind::Invalid) if there is no text.
pub fn import_instructions(file: &str, text: &str) -> Result<Imported, Error> {
    instructions(file, &Path::new(file).file_name().unwrap_or_default().to_string_lossy(), text)
}

/// The same, named after `within`, the file's path in its project.
pub(super) fn instructions(file: &str, within: &str, text: &str) -> Result<Imported, Error> {
    let text = &text.replace("\r\n", "\n");
    let mut problems = Problems::default();
    let document = markdown::split(text, &mut problems);
    let body = document.body.trim();
    if body.is_empty() {
        return Err(not_one(file, "it has no text"));
    }
    let name = id_of(within).ok_or_else(|| not_one(file, format!("no name can be made of `{within}`")))?;
    let mut notes = Vec::new();
    if let Some((_, line)) = document.front {
        notes.push(Note::new(
            line,
            "the front matter",
            Fate::Dropped("instructions have no settings".to_owned()),
        ));
    }
    let mut ignored = Problems::default();
    for section in markdown::sections(document.body, document.body_line, &mut ignored) {
        let part = format!("section `{}`", section.title);
        notes.push(Note::new(section.line, part, Fate::Mapped(format!("partial `{name}`"))));
    }
    if notes.is_empty() {
        notes.push(Note::new(document.body_line, "the text", Fate::Mapped(format!("partial `{name}`"))));
    }
    let imports = body.lines().enumerate().filter(|(_, line)| line.starts_with('@') && !line.contains(' '));
    let first = first_line(document.body, document.body_line);
    for (i, line) in imports {
        let why = "a reference to another file is not followed".to_owned();
        notes.push(Note::new(first + i, format!("`{line}`"), Fate::Dropped(why)));
    }
    Ok(Imported::Partial { name, text: literal(body), notes })
}

/// Reads a Markdown file that stands where not only agents do, and so must say that it is one. One without front matter
/// is a text like any other.
pub(super) fn import_stray(file: &str, text: &str) -> Result<Option<Imported>, Error> {
    let Some((front, line)) = markdown::split(text, &mut Problems::default()).front else { return Ok(None) };
    let front = match yaml::parse(front, line) {
        Ok(node) if matches!(node.yaml, Yaml::Map(_)) => node,
        _ => by_lines(front, line),
    };
    let has = |key: &str| front.get(key).is_some_and(|value| !scalar(value).is_empty());
    if !has("name") || !has("description") {
        return Err(not_one(
            file,
            "outside of `.claude` and `.agents` only a file whose front matter has a `name` and a `description` is an agent",
        ));
    }
    import_subagent(file, text).map(Some)
}

fn import(file: &str, text: &str, resources: &[String], skill: bool) -> Result<Imported, Error> {
    let text = &text.replace("\r\n", "\n");
    let mut problems = Problems::default();
    let document = markdown::split(text, &mut problems);
    let Some((front, line)) = document.front else {
        if !problems.is_empty() {
            return Err(not_one(file, "its front matter is never closed: put a line `---` behind it"));
        }
        return Err(not_one(file, "it has no front matter with a `name` and a `description`"));
    };
    let mut reader = Reader { spec: AgentSpec::default(), notes: Vec::new(), skill, named_tools: false };
    let front = match yaml::parse(front, line) {
        Ok(node) if matches!(node.yaml, Yaml::Map(_)) => node,
        Ok(_) => return Err(not_one(file, "its front matter has no keys")),
        Err(problem) => {
            let why = format!("it is not YAML ({}), and is read line by line", problem.message);
            reader.notes.push(Note::new(problem.line, "the front matter as a whole", Fate::Dropped(why)));
            by_lines(front, line)
        }
    };
    reader.name(file, &front)?;
    for entry in front.entries().iter().filter(|entry| entry.key != "name") {
        reader.field(entry);
    }
    let body = document.body.trim();
    if body.is_empty() {
        return Err(not_one(file, "it has no text below the front matter"));
    }
    reader.body(body, first_line(document.body, document.body_line));
    for resource in resources {
        let why = "it stays where it is; an agent that may read files can read it there".to_owned();
        reader.notes.push(Note::new(0, format!("file `{resource}`"), Fate::Dropped(why)));
    }
    let Reader { spec, notes, .. } = reader;
    spec.validate().map_err(|error| error.at(file))?;
    Ok(Imported::Agent { spec: Box::new(spec), notes })
}

struct Reader {
    spec: AgentSpec,
    notes: Vec<Note>,
    skill: bool,
    named_tools: bool,
}

impl Reader {
    fn mapped(&mut self, line: usize, part: impl Into<String>, to: impl Into<String>) {
        self.notes.push(Note::new(line, part, Fate::Mapped(to.into())));
    }

    fn dropped(&mut self, line: usize, part: impl Into<String>, why: impl Into<String>) {
        self.notes.push(Note::new(line, part, Fate::Dropped(why.into())));
    }

    fn name(&mut self, file: &str, front: &Node<'_>) -> Result<(), Error> {
        let entry = front.entry("name").filter(|entry| !scalar(&entry.value).is_empty());
        let name = match entry {
            Some(entry) => scalar(&entry.value),
            None => {
                let path = Path::new(file);
                // A skill is named by its folder.
                let path = if self.skill { path.parent().unwrap_or(path) } else { path };
                path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
            }
        };
        let Some(id) = id_of(&name) else {
            return Err(not_one(file, format!("no id can be made of its name `{name}`")));
        };
        match entry {
            Some(entry) => self.mapped(entry.line, format!("`name: {name}`"), format!("`id: {id}`")),
            None => {
                self.notes.push(Note::new(0, "`name`", Fate::Assumed(format!("the file names it `{id}`"))));
            }
        }
        if name != id && crate::registry::is_name(&name) {
            self.spec.aliases.push(name);
        }
        let words = id.split('_').map(|word| {
            let mut letters = word.chars();
            letters
                .next()
                .map(|first| first.to_uppercase().chain(letters).collect::<String>())
                .unwrap_or_default()
        });
        self.spec.name = words.collect::<Vec<_>>().join(" ");
        self.spec.capabilities = vec![id.clone()];
        self.spec.id = id;
        "imported".clone_into(&mut self.spec.group);
        Ok(())
    }

    fn field(&mut self, entry: &Entry<'_>) {
        let Entry { line, key, value } = entry;
        let line = *line;
        let shown = format!("`{key}`");
        match &**key {
            "description" => self.description(line, &scalar(value)),
            "tools" | "allowed-tools" | "allowed_tools" => self.tools(value),
            "disallowedTools" | "disallowed-tools" => {
                for (_, tool) in words(value) {
                    if let (Meaning::Operation(operation), None) = tools::meaning(&tool) {
                        self.spec.operations.retain(|other| other != operation);
                    }
                }
                self.dropped(
                    line,
                    shown,
                    "its tools are not asked for; a denial belongs into the permission file",
                );
            }
            "model" => self.model(line, &scalar(value)),
            "effort" => match tools::effort(&scalar(value)) {
                Some(effort) => {
                    self.spec.model.effort = Some(effort);
                    self.mapped(line, format!("`effort: {}`", scalar(value)), "`model.effort`");
                }
                None => {
                    self.dropped(line, format!("`effort: {}`", scalar(value)), "it is not a known effort");
                }
            },
            "maxTurns" | "max_turns" | "max-turns" => match value.read::<u32>() {
                Ok(turns) if turns > 0 => {
                    self.spec.limits.max_turns = turns;
                    self.mapped(line, format!("`{key}: {turns}`"), "`limits.max_turns`");
                }
                _ => self.dropped(line, shown, "it is not a number of turns"),
            },
            "temperature" => match value.read::<f32>() {
                Ok(temperature) => {
                    self.spec.model.temperature = Some(temperature);
                    self.mapped(line, shown, "`model.temperature`");
                }
                Err(_) => self.dropped(line, shown, "it is not a number"),
            },
            other => self.dropped(line, shown, why_not(other)),
        }
    }

    fn description(&mut self, line: usize, text: &str) {
        // Escaped line breaks are common where the text is one unquoted line.
        let text = text.replace("\\n", "\n");
        let (text, examples) = without_examples(&text);
        let text = text.trim();
        self.spec.summary = first_sentence(text);
        if text.is_empty() {
            return self.dropped(line, "`description`", "it says nothing");
        }
        if text.len() > self.spec.summary.len() {
            self.spec.role_description = text.to_owned();
            self.mapped(line, "`description`", "`summary` (its first sentence) and `role_description`");
        } else {
            self.mapped(line, "`description`", "`summary`");
        }
        if examples > 0 {
            let plural = if examples == 1 { "example" } else { "examples" };
            self.dropped(
                line,
                format!("{examples} {plural} of `description`"),
                "who is called when is said by the workflow",
            );
        }
    }

    fn tools(&mut self, value: &Node<'_>) {
        self.named_tools = true;
        for (line, tool) in words(value) {
            let (meaning, restriction) = tools::meaning(&tool);
            let name = tool.split('(').next().unwrap_or_default().trim().to_owned();
            match meaning {
                Meaning::Operation(operation) => {
                    self.mapped(line, format!("tool `{name}`"), format!("operation `{operation}`"));
                    if !self.spec.operations.iter().any(|other| other == operation) {
                        self.spec.operations.push(operation.to_owned());
                    }
                }
                Meaning::Agent(agent) => match id_of(agent) {
                    Some(id) => {
                        self.mapped(line, format!("tool `{tool}`"), format!("`handoff.next_agents`: `{id}`"));
                        self.spec.handoff.next_agents.push(id);
                    }
                    None => self.dropped(line, format!("tool `{tool}`"), "it names no agent"),
                },
                Meaning::None(why) => self.dropped(line, format!("tool `{name}`"), why),
            }
            if let Some(restriction) = restriction {
                let part = format!("the restriction `{restriction}` of `{name}`");
                self.dropped(line, part, "put it into the permission file");
            }
        }
    }

    fn model(&mut self, line: usize, model: &str) {
        let part = format!("`model: {model}`");
        if let Some(tier) = tools::tier(model) {
            self.spec.model.tier = tier;
            let to = format!(
                "`model.tier: {}`",
                serde_json::to_string(&tier).unwrap_or_default().trim_matches('"')
            );
            self.mapped(line, part, to);
        } else if matches!(model, "" | "inherit" | "default") {
            self.mapped(line, part, "no model of its own");
        } else if model.contains(['-', '/', ':', '.']) {
            self.spec.model.name = Some(model.to_owned());
            self.mapped(line, part, "`model.name`");
        } else {
            self.dropped(line, part, "it is neither a model's full name nor a known nickname");
        }
    }

    fn body(&mut self, body: &str, line: usize) {
        if self.spec.summary.is_empty() {
            self.spec.summary = first_sentence(body.trim_start_matches(['#', ' ']));
            self.notes.push(Note::new(
                0,
                "`description`",
                Fate::Assumed("the text's first sentence is the summary".to_owned()),
            ));
        }
        if !self.named_tools {
            self.spec.operations = READ_ONLY.map(str::to_owned).to_vec();
            let what = "all tools elsewhere; here it may read and search".to_owned();
            let part = if self.skill { "`allowed-tools`" } else { "`tools`" };
            self.notes.push(Note::new(0, part, Fate::Assumed(what)));
        }
        let text = literal(body);
        if text != body {
            self.mapped(line, "what looks like a template in the text", "text, escaped");
        }
        for (mark, why) in [
            ("$ARGUMENTS", "nothing is put in its place; the brief is part of the task"),
            ("!`", "commands in the text are not run; give the agent the operation instead"),
        ] {
            if let Some(at) = body.lines().position(|line| line.contains(mark)) {
                self.dropped(line + at, format!("the meaning of `{mark}`"), why);
            }
        }
        self.mapped(line, "the text", "`prompt.system_instructions`");
        self.spec.prompt.system_instructions = text;
        TASK.clone_into(&mut self.spec.prompt.task_template);
        CONTEXT.clone_into(&mut self.spec.prompt.context_integration);
        OUTPUT.clone_into(&mut self.spec.prompt.output_format);
        HANDOFF.clone_into(&mut self.spec.handoff.template);
        self.spec.handoff.preserve = vec!["decisions".to_owned()];
    }
}

/// Why a key has no place here.
fn why_not(key: &str) -> &'static str {
    match key {
        "color" | "icon" => "it is for display",
        "permissionMode" | "permissions" | "sandbox" => "permissions belong into the permission file",
        "mcpServers" | "mcp-servers" | "mcp_servers" => {
            "grant the servers to this agent in the permission file"
        }
        "skills" => "import the skills as agents, or include their text",
        "hooks" => "what happens around a step belongs into the workflow",
        "memory" => "what a run remembers is its journal",
        "background" | "isolation" | "context" | "agent" => {
            "where steps run is said by the engine and the workflow"
        }
        "initialPrompt" | "argument-hint" | "arguments" => "the task comes from the brief and the workflow",
        "user-invocable" | "disable-model-invocation" | "disabled" | "proactive" => {
            "who is called when is said by the workflow"
        }
        "license" => "keep it with the text if you pass the agent on",
        "compatibility" => "see to it that the agent's tools meet it",
        "metadata" | "version" | "author" | "tags" | "category" => "there is no field for it",
        _ => "the key is not known",
    }
}

/// A plain value as text; a list's items joined.
fn scalar(node: &Node<'_>) -> String {
    match &node.yaml {
        Yaml::Text(text) => text.trim().to_owned(),
        Yaml::Null | Yaml::Map(_) => String::new(),
        Yaml::Bool(value) => value.to_string(),
        Yaml::Int(value) => value.to_string(),
        Yaml::Uint(value) => value.to_string(),
        Yaml::Float(value) => value.to_string(),
        Yaml::List(items) => items.iter().map(scalar).collect::<Vec<_>>().join(", "),
    }
}

/// The words of a list, or of a text that is one, with their lines.
fn words(node: &Node<'_>) -> Vec<(usize, String)> {
    match &node.yaml {
        Yaml::List(items) => items.iter().flat_map(words).collect(),
        _ => tools::split(&scalar(node)).into_iter().map(|word| (node.line, word.to_owned())).collect(),
    }
}

/// Front matter read as `key: value` lines; a line without a key goes on with the value before.
fn by_lines(front: &str, front_line: usize) -> Node<'_> {
    let mut entries: Vec<Entry<'_>> = Vec::new();
    for (i, line) in front.lines().enumerate() {
        let number = front_line + i;
        let key = line.split_once(':').filter(|(key, value)| {
            key.starts_with(|c: char| c.is_ascii_alphabetic())
                && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
                && (value.is_empty() || value.starts_with([' ', '\t']))
        });
        match (key, entries.last_mut()) {
            (Some((key, value)), _) => {
                let value = value.trim().trim_matches(['"', '\'']);
                let value = Node { line: number, yaml: Yaml::Text(value.into()) };
                if !entries.iter().any(|entry| entry.key == key) {
                    entries.push(Entry { line: number, key: key.into(), value });
                }
            }
            (None, Some(Entry { value: Node { yaml: Yaml::Text(text), .. }, .. }))
                if !line.trim().is_empty() =>
            {
                let text = text.to_mut();
                text.push('\n');
                text.push_str(line.trim());
            }
            _ => {}
        }
    }
    // A value that is YAML by itself, such as a list of tools, is taken as that.
    for Entry { line, key, value } in &mut entries {
        if !matches!(&**key, "name" | "description")
            && let Some(Ok(own)) = value.as_text().map(|text| yaml::parse(text, *line))
        {
            *value = own.into_owned();
        }
    }
    Node { line: front_line, yaml: Yaml::Map(entries) }
}

/// The line that the text in `body` begins on.
fn first_line(body: &str, body_line: usize) -> usize {
    body_line + body.chars().take_while(|c| c.is_whitespace()).filter(|c| *c == '\n').count()
}

/// An id made of a name: `Code Reviewer` and `code-reviewer` are `code_reviewer`.
fn id_of(name: &str) -> Option<String> {
    let mut id = String::new();
    for c in name.chars() {
        if c.is_ascii_alphanumeric() {
            id.push(c.to_ascii_lowercase());
        } else if !id.is_empty() && !id.ends_with('_') {
            id.push('_');
        }
    }
    let id = id.trim_end_matches('_');
    let id = if id.starts_with(|c: char| c.is_ascii_digit()) { format!("agent_{id}") } else { id.to_owned() };
    let id = id.get(..64).unwrap_or(&id).trim_end_matches('_');
    (!id.is_empty()).then(|| id.to_owned())
}

/// The text without `<example>…</example>`, and how many of those it had.
fn without_examples(text: &str) -> (String, usize) {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut count = 0;
    while let Some((before, behind)) = rest.split_once("<example>") {
        out.push_str(before);
        count += 1;
        match behind.split_once("</example>") {
            Some((_, after)) => rest = after,
            None => return (out, count),
        }
    }
    out.push_str(rest);
    // What introduced them introduces nothing now.
    let text = out.trim_end();
    let text = text.strip_suffix("Examples:").or_else(|| text.strip_suffix("Example:")).unwrap_or(text);
    (text.trim_end().to_owned(), count)
}

/// The first sentence or line, 240 characters at the most.
fn first_sentence(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default().trim();
    let end = line
        .char_indices()
        .zip(line.chars().skip(1).map(Some).chain([None]))
        .find(|((_, c), next)| matches!(c, '.' | '!' | '?') && next.is_none_or(char::is_whitespace))
        .map_or(line.len(), |((at, c), _)| at + c.len_utf8());
    let sentence = line.get(..end).unwrap_or(line);
    match sentence.char_indices().nth(240) {
        Some((at, _)) => format!("{}…", sentence.get(..at).unwrap_or_default().trim_end()),
        None => sentence.to_owned(),
    }
}

/// `text` as a template that gives `text`.
pub(super) fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = ["{{", "{%", "{#"].iter().filter_map(|mark| rest.find(mark)).min() {
        let (before, behind) = rest.split_at(at);
        let (mark, after) = behind.split_at(2);
        out.push_str(before);
        out.push_str("{{ \"");
        out.push_str(mark);
        out.push_str("\" }}");
        rest = after;
    }
    out.push_str(rest);
    out
}
