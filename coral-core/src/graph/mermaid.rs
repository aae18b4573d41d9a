//! The graph as a drawing.

use std::collections::BTreeMap;

use super::{GraphData, StepKind};

impl GraphData {
    /// The graph as a Mermaid flowchart; a step that holds steps is a box around them. `class_of` may give each step
    /// a class name, such as its state in a run; the name of a step inside of another is `OUTER/INNER`.
    pub fn mermaid<'a>(&'a self, class_of: impl Fn(&str) -> Option<&'a str>) -> String {
        let mut out = String::from("flowchart TD\n");
        self.draw(&mut out, 1, "s", "", &class_of);
        out
    }

    /// Draws the steps, whose ids begin with `id` and whose names are behind `path`.
    fn draw<'a>(
        &'a self,
        out: &mut String,
        depth: usize,
        id: &str,
        path: &str,
        class_of: &dyn Fn(&str) -> Option<&'a str>,
    ) {
        let indent = "    ".repeat(depth);
        for (i, step) in self.steps.iter().enumerate() {
            let runs = step.kind.label().replace('"', "'");
            let mut label =
                if *runs == *step.name { step.name.to_string() } else { format!("{}<br/>{runs}", step.name) };
            // A condition stands on the edges; a step that takes nothing has none.
            if let Some(when) = step.when.as_ref().filter(|_| step.inputs.is_empty()) {
                label.push_str(&format!("<br/>if {}", when.replace('"', "'")));
            }
            let path = format!("{path}{}", step.name);
            let class = class_of(&path);
            match &step.kind {
                StepKind::Workflow(body) | StepKind::Map { body, .. } | StepKind::Loop { body, .. } => {
                    out.push_str(&format!("{indent}subgraph {id}{i}[\"{label}\"]\n"));
                    body.draw(out, depth + 1, &format!("{id}{i}_"), &format!("{path}/"), class_of);
                    out.push_str(&format!("{indent}end\n"));
                    if let Some(class) = class {
                        out.push_str(&format!("{indent}class {id}{i} {class}\n"));
                    }
                }
                _ => {
                    let class = class.map(|class| format!(":::{class}")).unwrap_or_default();
                    out.push_str(&format!("{indent}{id}{i}[\"{label}\"]{class}\n"));
                }
            }
        }
        let index: BTreeMap<&str, usize> =
            self.steps.iter().enumerate().map(|(i, s)| (&*s.name, i)).collect();
        for (i, step) in self.steps.iter().enumerate() {
            let condition = step.when.as_ref().map(|when| when.replace('"', "'"));
            for input in &step.inputs {
                let Some(from) = index.get(&*input.step) else { continue };
                let arrow = if input.optional { "-.->" } else { "-->" };
                match &condition {
                    Some(when) => {
                        out.push_str(&format!("{indent}{id}{from} {arrow}|\"{when}\"| {id}{i}\n"));
                    }
                    None => out.push_str(&format!("{indent}{id}{from} {arrow} {id}{i}\n")),
                }
            }
            for before in &step.after {
                if let Some(from) = index.get(&**before) {
                    out.push_str(&format!("{indent}{id}{from} -.- {id}{i}\n"));
                }
            }
            for reviewed in step.reviews.iter().filter_map(|step| index.get(&**step)) {
                out.push_str(&format!("{indent}{id}{i} -.->|sends back| {id}{reviewed}\n"));
            }
        }
    }
}
