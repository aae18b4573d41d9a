//! What a brief says: its points by what they are about, and the things that it speaks of.

use super::prompt::Asked;

/// A brief, taken apart.
#[derive(Debug, Default)]
pub(super) struct Brief {
    pub(super) title: String,
    /// The paragraphs before the first points.
    pub(super) introduction: String,
    /// What it must do.
    pub(super) requirements: Vec<Point>,
    pub(super) users: Vec<Point>,
    pub(super) quality: Vec<Point>,
    pub(super) constraints: Vec<Point>,
    pub(super) excluded: Vec<Point>,
    /// The things that it speaks of, the most important first; never empty.
    pub(super) entities: Vec<Entity>,
}

/// One point of a brief.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Point {
    /// A name to refer to it by, such as `R1`.
    pub(super) id: String,
    pub(super) text: String,
}

/// A thing that the brief speaks of, such as a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entity {
    /// One of it: `task`.
    pub(super) one: String,
    /// Many of it: `tasks`.
    pub(super) many: String,
    /// What is known of each: `title`, `due_date`.
    pub(super) fields: Vec<String>,
}

impl Entity {
    /// As a type's name: `Task`.
    pub(super) fn type_name(&self) -> String {
        let mut chars = self.one.chars();
        chars.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(chars).collect()
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Topic {
    Requirements,
    Users,
    Quality,
    Constraints,
    Excluded,
}

impl Topic {
    fn of_heading(heading: &str) -> Topic {
        let heading = heading.to_ascii_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| heading.contains(word));
        if has(&["not wanted", "out of scope", "non-goal", "not in scope", "excluded"]) {
            Topic::Excluded
        } else if has(&["quality", "non-functional", "performance", "service level"]) {
            Topic::Quality
        } else if has(&["constraint", "limit", "budget", "technolog", "stack"]) {
            Topic::Constraints
        } else if has(&["user", "role", "persona", "actor", "audience", "stakeholder"]) {
            Topic::Users
        } else {
            Topic::Requirements
        }
    }
}

impl Brief {
    pub(super) fn read(asked: &Asked) -> Brief {
        let mut brief = Brief::default();
        let mut topic = Topic::Requirements;
        let mut heading = String::new();
        for line in asked.brief.lines().map(str::trim) {
            if let Some(text) = heading_of(line) {
                if brief.title.is_empty() {
                    text.clone_into(&mut brief.title);
                } else {
                    topic = Topic::of_heading(text);
                }
                text.clone_into(&mut heading);
            } else if let Some(text) = bullet_of(line) {
                brief.add(topic, text);
            } else if !line.is_empty() && brief.requirements.is_empty() && brief.users.is_empty() {
                if !brief.introduction.is_empty() {
                    brief.introduction.push(' ');
                }
                brief.introduction.push_str(line);
            }
        }
        if !asked.project.is_empty() {
            brief.title.clone_from(&asked.project);
        }
        if brief.title.is_empty() {
            brief.title = "Project".to_owned();
        }
        if brief.requirements.is_empty() {
            // A brief without points still asks for something: each sentence is one.
            let sentences: Vec<String> =
                brief.introduction.split_inclusive(['.', '!', '?']).map(|s| s.trim().to_owned()).collect();
            for sentence in sentences.iter().filter(|sentence| !sentence.is_empty()) {
                brief.add(Topic::Requirements, sentence);
            }
        }
        brief.entities = entities(&brief, &asked.brief);
        brief
    }

    fn add(&mut self, topic: Topic, text: &str) {
        let (letter, points) = match topic {
            Topic::Requirements => ('R', &mut self.requirements),
            Topic::Users => ('U', &mut self.users),
            Topic::Quality => ('Q', &mut self.quality),
            Topic::Constraints => ('C', &mut self.constraints),
            Topic::Excluded => ('X', &mut self.excluded),
        };
        let text = text.trim_end_matches(['.', ';']).to_owned();
        points.push(Point { id: format!("{letter}{}", points.len() + 1), text });
    }
}

fn heading_of(line: &str) -> Option<&str> {
    let text = line.trim_start_matches('#');
    (text.len() < line.len()).then(|| text.trim()).filter(|text| !text.is_empty())
}

fn bullet_of(line: &str) -> Option<&str> {
    if let Some(text) = ["- ", "* ", "+ "].iter().find_map(|mark| line.strip_prefix(mark)) {
        return Some(text.trim());
    }
    let (number, text) = line.split_once(". ")?;
    (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.trim())
}

/// Things that a project deals with are seldom among these.
const NOT_THINGS: [&str; 59] = [
    "access",
    "across",
    "address",
    "always",
    "analysis",
    "answers",
    "basis",
    "belongs",
    "boss",
    "browsers",
    "bus",
    "business",
    "campus",
    "class",
    "countries",
    "currencies",
    "days",
    "developers",
    "does",
    "email",
    "focus",
    "gives",
    "goes",
    "has",
    "hours",
    "https",
    "its",
    "keeps",
    "kilometres",
    "lens",
    "less",
    "loss",
    "makes",
    "milliseconds",
    "minutes",
    "months",
    "needs",
    "news",
    "others",
    "pass",
    "people",
    "percentiles",
    "plus",
    "process",
    "progress",
    "results",
    "seconds",
    "sees",
    "series",
    "shows",
    "status",
    "success",
    "systems",
    "takes",
    "terms",
    "this",
    "uses",
    "was",
    "years",
];

/// What people do with the things of a project.
const VERBS: [&str; 34] = [
    "add", "answer", "archive", "assign", "book", "browse", "build", "cancel", "complete", "create",
    "delete", "edit", "export", "filter", "group", "import", "keep", "list", "manage", "open", "order",
    "publish", "record", "register", "reject", "schedule", "search", "send", "share", "show", "store",
    "track", "upload", "view",
];

/// Verbs that are no nouns: "creates" is not a thing.
const ONLY_VERBS: [&str; 14] = [
    "add", "answer", "assign", "browse", "cancel", "complete", "create", "delete", "edit", "keep", "manage",
    "reject", "send", "show",
];

const MAX_ENTITIES: usize = 5;

fn entities(brief: &Brief, whole: &str) -> Vec<Entity> {
    let all = words(whole);
    let mut found: Vec<(usize, usize, Entity)> = Vec::new();
    for point in brief.requirements.iter().chain(&brief.users) {
        let words = words(&point.text);
        for (place, word) in words.iter().enumerate() {
            let Some(one) = singular(word) else { continue };
            if found.iter().any(|(.., entity)| entity.one == one) {
                continue;
            }
            let mentions = all.iter().filter(|known| **known == one || *known == word).count();
            let acted_on = words
                .get(place.saturating_sub(3)..place)
                .is_some_and(|before| before.iter().any(|word| VERBS.contains(&word.as_str())));
            let score = mentions + if acted_on { 3 } else { 0 };
            found.push((
                score,
                found.len(),
                Entity { one, many: word.clone(), fields: fields_of(word, brief) },
            ));
        }
    }
    // The highest score first; among equals the one that was named first.
    found.sort_by_key(|(score, place, _)| (std::cmp::Reverse(*score), *place));
    let mut entities: Vec<Entity> = found.into_iter().map(|(.., entity)| entity).take(MAX_ENTITIES).collect();
    // What is a field of one thing is not a thing of its own beside it.
    let fields: Vec<String> = entities.iter().flat_map(|entity| entity.fields.clone()).collect();
    entities.retain(|entity| !fields.contains(&entity.many) && !fields.contains(&entity.one));
    if entities.is_empty() {
        entities.push(Entity { one: "item".to_owned(), many: "items".to_owned(), fields: Vec::new() });
    }
    entities
}

fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_ascii_alphabetic())
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect()
}

fn singular(word: &str) -> Option<String> {
    if word.len() < 4
        || NOT_THINGS.contains(&word)
        || word.ends_with("ss")
        || word.ends_with("us")
        || word.ends_with("is")
    {
        return None;
    }
    let stem = word.strip_suffix('s')?;
    if ONLY_VERBS.contains(&stem) {
        return None;
    }
    Some(match stem.strip_suffix("ie") {
        Some(stem) => format!("{stem}y"),
        None if ["sse", "xe", "che", "she"].iter().any(|end| stem.ends_with(end)) => {
            stem.trim_end_matches('e').to_owned()
        }
        None => stem.to_owned(),
    })
}

/// The list after "things with", such as "tasks with title, due date and labels".
fn fields_of(many: &str, brief: &Brief) -> Vec<String> {
    let marker = format!("{many} with ");
    let Some(list) = brief.requirements.iter().find_map(|point| {
        let text = point.text.to_ascii_lowercase();
        text.split_once(&marker).map(|(_, list)| list.to_owned())
    }) else {
        return Vec::new();
    };
    let end = list.find(['.', ';', ':', '(']).unwrap_or(list.len());
    let list = list.get(..end).unwrap_or(&list).replace(" and ", ", ");
    list.split(',')
        .map(|field| words(field.trim().trim_start_matches("a ").trim_start_matches("an ")).join("_"))
        .filter(|field| !field.is_empty() && field.len() <= 40)
        .take(8)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brief(text: &str) -> Brief {
        Brief::read(&Asked { brief: text.to_owned(), ..Default::default() })
    }

    #[test]
    fn points_go_where_their_heading_says() {
        let brief = brief(
            "# TaskManager\n\nA task list.\n\n## Users\n- Lead: creates projects.\n## What it must do\n\
             - Create, edit and delete tasks with title, notes, due date and labels.\n- Group tasks in projects.\n\
             ## Quality\n1. Fast.\n## Constraints\n* One server.\n## Not wanted\n- Chat.\n",
        );
        assert_eq!(brief.title, "TaskManager");
        assert_eq!(brief.introduction, "A task list.");
        assert_eq!(brief.requirements.len(), 2);
        assert_eq!(
            (brief.users.len(), brief.quality.len(), brief.constraints.len(), brief.excluded.len()),
            (1, 1, 1, 1)
        );
        let named: Vec<&str> = brief.entities.iter().map(|entity| entity.one.as_str()).collect();
        assert_eq!(named, ["task", "project"]);
        assert_eq!(brief.entities[0].fields, ["title", "notes", "due_date", "labels"]);
        assert_eq!(brief.entities[0].type_name(), "Task");
    }

    #[test]
    fn a_brief_without_points_still_says_something() {
        let brief = brief("Track the deliveries of a bakery. Bakers need to see the day's orders!");
        assert_eq!(brief.requirements.len(), 2);
        assert_eq!(brief.entities[0].one, "delivery");
        assert_eq!(self::brief("").entities[0].one, "item");
    }
}
