//! Programs: a store in memory for each thing that the brief speaks of.

use std::fmt::Write as _;

use super::{notice, quotable};
use crate::offline::brief::{Brief, Entity};

/// The names of what is known of an entity, safe as identifiers in every language here.
fn fields(entity: &Entity) -> Vec<String> {
    let mut fields: Vec<String> =
        entity.fields.iter().map(|field| format!("{}_{field}", entity.one)).collect();
    if fields.is_empty() {
        fields.push(format!("{}_name", entity.one));
    }
    fields.dedup();
    fields
}

fn header(mark: &str, brief: &Brief) -> String {
    let mut text = format!("{mark} {}\n{mark} Project: {}\n", notice(), quotable(&brief.title));
    for point in &brief.requirements {
        let _ = writeln!(text, "{mark} {} {}", point.id, quotable(&point.text));
    }
    text
}

pub(super) fn rust(brief: &Brief) -> String {
    let mut text = header("//", brief);
    text.push_str("\nuse std::collections::BTreeMap;\n");
    for entity in &brief.entities {
        let name = entity.type_name();
        let _ = write!(
            text,
            "\n/// One of the {}.\n#[derive(Clone, Debug, Default, PartialEq, Eq)]\npub struct {name} {{\n",
            entity.many
        );
        for field in fields(entity) {
            let _ = writeln!(text, "    pub {field}: String,");
        }
        let _ = write!(
            text,
            "}}\n\n/// All {many}, in memory.\n#[derive(Debug, Default)]\npub struct {name}Store {{\n    rows: BTreeMap<u64, {name}>,\n    last_id: u64,\n}}\n\n\
             impl {name}Store {{\n    pub fn create(&mut self, row: {name}) -> u64 {{\n        self.last_id += 1;\n        self.rows.insert(self.last_id, row);\n        self.last_id\n    }}\n\n    \
             pub fn get(&self, id: u64) -> Option<&{name}> {{\n        self.rows.get(&id)\n    }}\n\n    \
             pub fn list(&self, limit: usize) -> Vec<(u64, &{name})> {{\n        self.rows.iter().take(limit).map(|(id, row)| (*id, row)).collect()\n    }}\n\n    \
             pub fn delete(&mut self, id: u64) -> bool {{\n        self.rows.remove(&id).is_some()\n    }}\n}}\n",
            many = entity.many
        );
    }
    text
}

pub(super) fn typescript(brief: &Brief, component: bool) -> String {
    let mut text = header("//", brief);
    for entity in &brief.entities {
        let name = entity.type_name();
        let _ = write!(text, "\nexport interface {name} {{\n  id: number;\n");
        for field in fields(entity) {
            let _ = writeln!(text, "  {field}: string;");
        }
        text.push_str("}\n");
        let first = fields(entity).into_iter().next().unwrap_or_default();
        let _ = if component {
            write!(
                text,
                "\nexport function {name}List({{ rows }}: {{ rows: {name}[] }}) {{\n  return (\n    <ul aria-label=\"{}\">\n      \
                 {{rows.map((row) => (\n        <li key={{row.id}}>{{row.{first}}}</li>\n      ))}}\n    </ul>\n  );\n}}\n",
                entity.many
            )
        } else {
            write!(
                text,
                "\nexport class {name}Store {{\n  private rows = new Map<number, {name}>();\n  private lastId = 0;\n\n  \
                 create(row: Omit<{name}, \"id\">): {name} {{\n    const stored = {{ ...row, id: ++this.lastId }} as {name};\n    this.rows.set(stored.id, stored);\n    return stored;\n  }}\n\n  \
                 get(id: number): {name} | undefined {{\n    return this.rows.get(id);\n  }}\n\n  \
                 list(limit = 100): {name}[] {{\n    return [...this.rows.values()].slice(0, limit);\n  }}\n\n  \
                 delete(id: number): boolean {{\n    return this.rows.delete(id);\n  }}\n}}\n"
            )
        };
    }
    text
}

pub(super) fn javascript(brief: &Brief) -> String {
    let mut text = header("//", brief);
    for entity in &brief.entities {
        let name = entity.type_name();
        let _ = write!(
            text,
            "\n/** All {}, in memory. */\nexport class {name}Store {{\n  #rows = new Map();\n  #lastId = 0;\n\n  \
             create(row) {{\n    const stored = {{ ...row, id: ++this.#lastId }};\n    this.#rows.set(stored.id, stored);\n    return stored;\n  }}\n\n  \
             get(id) {{\n    return this.#rows.get(id);\n  }}\n\n  list(limit = 100) {{\n    return [...this.#rows.values()].slice(0, limit);\n  }}\n\n  \
             delete(id) {{\n    return this.#rows.delete(id);\n  }}\n}}\n",
            entity.many
        );
    }
    text
}

pub(super) fn python(brief: &Brief) -> String {
    let mut text = header("#", brief);
    text.push_str("\nfrom dataclasses import dataclass, field\n");
    for entity in &brief.entities {
        let name = entity.type_name();
        let _ =
            write!(text, "\n\n@dataclass\nclass {name}:\n    \"\"\"One of the {}.\"\"\"\n\n", entity.many);
        for field in fields(entity) {
            let _ = writeln!(text, "    {field}: str = \"\"");
        }
        let _ = write!(
            text,
            "\n\n@dataclass\nclass {name}Store:\n    \"\"\"All {many}, in memory.\"\"\"\n\n    rows: dict[int, {name}] = field(default_factory=dict)\n    last_id: int = 0\n\n    \
             def create(self, row: {name}) -> int:\n        self.last_id += 1\n        self.rows[self.last_id] = row\n        return self.last_id\n\n    \
             def get(self, row_id: int) -> {name} | None:\n        return self.rows.get(row_id)\n\n    \
             def list(self, limit: int = 100) -> list[tuple[int, {name}]]:\n        return sorted(self.rows.items())[:limit]\n\n    \
             def delete(self, row_id: int) -> bool:\n        return self.rows.pop(row_id, None) is not None\n",
            many = entity.many
        );
    }
    text
}

pub(super) fn python_test(brief: &Brief) -> String {
    let mut text = header("#", brief);
    text.push_str("\nimport unittest\n\n\nclass Requirements(unittest.TestCase):\n");
    for point in &brief.requirements {
        let _ = write!(
            text,
            "    def test_{}(self):\n        self.skipTest(\"draft: {}\")\n\n",
            point.id.to_ascii_lowercase(),
            quotable(&point.text)
        );
    }
    if brief.requirements.is_empty() {
        text.push_str("    def test_nothing_asked(self):\n        self.skipTest(\"draft: the brief asks for nothing\")\n\n");
    }
    text.push_str("\nif __name__ == \"__main__\":\n    unittest.main()\n");
    text
}

pub(super) fn html(brief: &Brief) -> String {
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let title = escape(&brief.title);
    let mut text = format!(
        "<!doctype html>\n<!-- {} -->\n<html lang=\"en\">\n<head>\n  <meta charset=\"utf-8\">\n  \
         <meta name=\"viewport\" content=\"width=device-width\">\n  <title>{title}</title>\n</head>\n<body>\n  <main>\n    <h1>{title}</h1>\n    <p>{}</p>\n",
        notice(),
        escape(&brief.introduction)
    );
    for entity in &brief.entities {
        let _ = write!(
            text,
            "    <section aria-labelledby=\"{0}\">\n      <h2 id=\"{0}\">{1}</h2>\n      <p>No {0} yet.</p>\n    </section>\n",
            entity.many,
            entity.type_name()
        );
    }
    text.push_str("  </main>\n</body>\n</html>\n");
    text
}

pub(super) fn css(brief: &Brief) -> String {
    format!(
        "/* {} Project: {} */\n:root {{ color-scheme: light dark; --space: 1rem; }}\nbody {{ font-family: system-ui, sans-serif; line-height: 1.5; margin: var(--space); }}\n\
         main {{ margin: 0 auto; max-width: 60rem; }}\n:focus-visible {{ outline: 3px solid Highlight; }}\n",
        notice(),
        quotable(&brief.title).replace("*/", "")
    )
}
