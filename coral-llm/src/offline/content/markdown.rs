//! Documents.

use std::fmt::Write as _;

use super::notice;
use crate::offline::brief::{Brief, Entity, Point};
use crate::offline::prompt::{Asked, Wanted};

pub(super) fn document(wanted: &Wanted, brief: &Brief, asked: &Asked) -> String {
    let mut doc = Doc::new(wanted, brief, asked);
    let is = |words: &[&str]| words.iter().any(|word| wanted.kind.contains(word));
    if is(&["requirements"]) {
        doc.requirements(brief);
    } else if is(&["diagram"]) {
        doc.diagrams(brief);
    } else if is(&["decision"]) {
        doc.decisions(brief);
    } else if is(&["schema", "database_design", "data_model", "database_models"]) {
        doc.data_model(brief);
    } else if is(&["threat", "security", "risk", "compliance"]) {
        doc.threats(brief);
    } else if is(&["test", "qa_"]) {
        doc.tests(brief);
    } else if is(&["runbook", "deployment", "backup", "operation", "monitoring", "infrastructure"]) {
        doc.operations(brief);
    } else if is(&["guide", "documentation", "how_to", "release_notes", "manual"]) {
        doc.guide(brief);
    } else if is(&["api", "endpoint"]) {
        doc.api(brief);
    } else {
        doc.specification(brief);
    }
    doc.finish(brief)
}

struct Doc(String);

impl Doc {
    fn new(wanted: &Wanted, brief: &Brief, asked: &Asked) -> Doc {
        let mut text = String::new();
        let title = sentence_case(&wanted.kind);
        let _ = writeln!(text, "# {}: {title}\n\n> {}\n", brief.title, notice());
        if !wanted.description.is_empty() {
            let _ = writeln!(text, "{}.\n", wanted.description.trim_end_matches('.'));
        }
        if !asked.phase.is_empty() {
            let _ = writeln!(text, "Phase: {}\n", asked.phase);
        }
        if !brief.introduction.is_empty() {
            let _ = writeln!(text, "## Purpose\n\n{}\n", brief.introduction);
        }
        if !asked.handed_over.is_empty() {
            text.push_str("## Stands on\n\n");
            for path in &asked.handed_over {
                let _ = writeln!(text, "- `{path}`");
            }
            text.push('\n');
        }
        Doc(text)
    }

    fn heading(&mut self, heading: &str) {
        let _ = writeln!(self.0, "## {heading}\n");
    }

    fn line(&mut self, line: impl AsRef<str>) {
        self.0.push_str(line.as_ref());
        self.0.push('\n');
    }

    fn points(&mut self, heading: &str, points: &[Point]) {
        if points.is_empty() {
            return;
        }
        self.heading(heading);
        for point in points {
            self.line(format!("- **{}** {}.", point.id, point.text));
        }
        self.line("");
    }

    fn requirements(&mut self, brief: &Brief) {
        self.points("Users", &brief.users);
        self.points("Functional requirements", &brief.requirements);
        self.points("Quality requirements", &brief.quality);
        self.points("Constraints", &brief.constraints);
        self.points("Out of scope", &brief.excluded);
        self.heading("Acceptance");
        self.line("| Requirement | Accepted when |\n|---|---|");
        for point in brief.requirements.iter().chain(&brief.quality) {
            self.line(format!("| {} | A person can show: {} |", point.id, cell(&point.text)));
        }
        self.line("");
        self.heading("Words");
        for entity in &brief.entities {
            self.line(format!("- **{}**: {}.", entity.type_name(), known_of(entity)));
        }
        self.line("");
    }

    fn specification(&mut self, brief: &Brief) {
        self.heading("Parts");
        self.line("| Part | Holds | Serves |\n|---|---|---|");
        for entity in &brief.entities {
            let serves = serving(entity, brief);
            self.line(format!("| {}s | {} | {serves} |", entity.type_name(), cell(&known_of(entity))));
        }
        self.line("");
        self.points("What it must do", &brief.requirements);
        self.points("How well", &brief.quality);
        self.points("Within", &brief.constraints);
    }

    fn diagrams(&mut self, brief: &Brief) {
        self.heading("Context");
        self.line("```mermaid\nflowchart LR");
        if brief.users.is_empty() {
            self.line("    user([User]) --> app[Application]");
        }
        for (index, user) in brief.users.iter().enumerate() {
            let name = user.text.split(':').next().unwrap_or("User");
            self.line(format!("    user{index}([{}]) --> app[Application]", plain(name)));
        }
        self.line("    app --> db[(Database)]\n```\n");
        self.heading("Things and their relations");
        self.line(format!("```mermaid\n{}```\n", entity_diagram(brief)));
    }

    fn decisions(&mut self, brief: &Brief) {
        for (index, point) in brief.constraints.iter().chain(&brief.quality).enumerate() {
            let n = index + 1;
            self.heading(&format!("ADR-{n}: honour {}", point.id));
            self.line(format!(
                "Status: proposed\n\nContext: the brief says \"{}\".\n\nDecision: this bounds every part; a part that breaks it \
                 is not accepted.\n\nConsequence: it is checked before each release.\n",
                point.text
            ));
        }
        if brief.constraints.is_empty() && brief.quality.is_empty() {
            self.heading("ADR-1: keep it simple");
            self.line(
                "Status: proposed\n\nContext: the brief sets no bounds.\n\nDecision: one service and one database.\n\n\
                 Consequence: a split needs a measured reason.\n",
            );
        }
    }

    fn data_model(&mut self, brief: &Brief) {
        self.line(format!("```mermaid\n{}```\n", entity_diagram(brief)));
        for entity in &brief.entities {
            self.heading(&format!("Table `{}`", entity.many));
            self.line("| Column | Type | Rule |\n|---|---|---|");
            for column in super::sql::columns(entity, brief) {
                self.line(format!("| `{}` | {} | {} |", column.name, column.kind, column.rule));
            }
            self.line("");
        }
    }

    fn threats(&mut self, brief: &Brief) {
        self.heading("Threats by thing");
        self.line("| Thing | Threat | Answer |\n|---|---|---|");
        for entity in &brief.entities {
            self.line(format!(
                "| {0} | Somebody reads or changes another's {1} | Check the owner of each {1} on every request |",
                entity.type_name(),
                entity.one
            ));
            self.line(format!(
                "| {0} | Made-up input reaches the store | Parse into a typed {1}; refuse unknown fields |",
                entity.type_name(),
                entity.one
            ));
        }
        self.line("");
        self.points("Requirements that need a check of rights", &brief.requirements);
        self.points("Promises to keep", &brief.quality);
    }

    fn tests(&mut self, brief: &Brief) {
        self.heading("Cases");
        self.line("| Case | Given | When | Then | State |\n|---|---|---|---|---|");
        for point in &brief.requirements {
            self.line(format!(
                "| T-{} | a signed-in user | they try: {} | it works, and is still so after a reload | not run |",
                point.id,
                cell(&point.text)
            ));
        }
        for point in &brief.quality {
            self.line(format!(
                "| T-{} | the load of a usual day | it is measured | {} | not run |",
                point.id,
                cell(&point.text)
            ));
        }
        self.line("\nNo case has been run: these are drafts.\n");
    }

    fn operations(&mut self, brief: &Brief) {
        self.heading("Release");
        self.line(
            "1. Build the image and note its digest.\n2. Back up the database.\n3. Run the migrations.\n\
             4. Start the new version beside the old one.\n5. Check its health, then move the traffic.\n",
        );
        self.heading("Back again");
        self.line(
            "1. Move the traffic to the old version.\n2. Restore the backup if a migration lost data.\n",
        );
        self.points("To watch", &brief.quality);
        self.points("Bounds", &brief.constraints);
        self.heading("Restore test");
        self.line("Once a month: restore the last backup into an empty database and count:\n");
        for entity in &brief.entities {
            self.line(format!("- rows of `{}`", entity.many));
        }
        self.line("");
    }

    fn guide(&mut self, brief: &Brief) {
        self.points("Who this is for", &brief.users);
        for entity in &brief.entities {
            self.heading(&format!("Working with {}", entity.many));
            self.line(format!("{}: {}.\n", entity.type_name(), known_of(entity)));
            let about: Vec<&Point> =
                brief.requirements.iter().filter(|point| speaks_of(point, entity)).collect();
            for point in about {
                self.line(format!("- {} ({})", point.text, point.id));
            }
            self.line("");
        }
        self.points("Not part of it", &brief.excluded);
    }

    fn api(&mut self, brief: &Brief) {
        self.heading("Operations");
        self.line("| Operation | Method and path | Answers |\n|---|---|---|");
        for entity in &brief.entities {
            let (one, many, name) = (&entity.one, &entity.many, entity.type_name());
            self.line(format!("| list{name}s | GET /{many} | 200 |"));
            self.line(format!("| create{name} | POST /{many} | 201, 422 |"));
            self.line(format!("| get{name} | GET /{many}/{{{one}_id}} | 200, 404 |"));
            self.line(format!("| update{name} | PUT /{many}/{{{one}_id}} | 200, 404, 422 |"));
            self.line(format!("| delete{name} | DELETE /{many}/{{{one}_id}} | 204, 404 |"));
        }
        self.line("");
        self.points("Requirements served", &brief.requirements);
    }

    fn finish(mut self, brief: &Brief) -> String {
        self.heading("Open questions");
        self.line("A language model or a person should answer these before this draft is used:\n");
        for entity in &brief.entities {
            self.line(format!("- Who may see and change a {}?", entity.one));
        }
        self.0
    }
}

/// The things of a brief as a Mermaid diagram.
pub(super) fn entity_diagram(brief: &Brief) -> String {
    let mut text = String::from("erDiagram\n");
    for entity in &brief.entities {
        let _ = writeln!(text, "    {} {{", entity.one.to_ascii_uppercase());
        for column in super::sql::columns(entity, brief) {
            let _ = writeln!(text, "        {} {}", column.kind.to_ascii_lowercase(), column.name);
        }
        text.push_str("    }\n");
    }
    if let Some((root, others)) = brief.entities.split_first() {
        for other in others {
            let _ = writeln!(
                text,
                "    {} ||--o{{ {} : has",
                other.one.to_ascii_uppercase(),
                root.one.to_ascii_uppercase()
            );
        }
    }
    text
}

fn known_of(entity: &Entity) -> String {
    if entity.fields.is_empty() {
        format!("one of the {} that the brief speaks of", entity.many)
    } else {
        format!("has {}", entity.fields.join(", ").replace('_', " "))
    }
}

fn speaks_of(point: &Point, entity: &Entity) -> bool {
    point.text.to_ascii_lowercase().contains(&entity.one)
}

fn serving(entity: &Entity, brief: &Brief) -> String {
    let ids: Vec<&str> = brief
        .requirements
        .iter()
        .filter(|point| speaks_of(point, entity))
        .map(|point| point.id.as_str())
        .collect();
    if ids.is_empty() { "-".to_owned() } else { ids.join(", ") }
}

/// Text that can stand in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "/")
}

/// Text that can stand in a node of a diagram.
fn plain(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric() || *c == ' ').collect::<String>().trim().to_owned()
}

fn sentence_case(kind: &str) -> String {
    kind.replace(['_', '-'], " ")
}
