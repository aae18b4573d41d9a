//! What holds for every input, not only for those that somebody thought of.

use std::collections::BTreeSet;

use coral_core::{
    Deliverable, Error, ErrorKind, Graph, GraphData, HandoffMessage, Input, MessageContext, MessageType,
    ModelFault, RetryPolicy, Schema, StepData, StepKind,
};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

fn model_error(fault: ModelFault, retry_after_ms: Option<u64>) -> Error {
    let error = Error::new(ErrorKind::Model { fault, model: "m".into(), problem: "p".into() });
    match retry_after_ms {
        Some(ms) => error.with_retry_after_ms(ms),
        None => error,
    }
}

prop_compose! {
    fn retry_policy()(
        max_attempts in prop_oneof![0_u32..10, any::<u32>()],
        backoff_ms in prop_oneof![0_u64..5_000, any::<u64>()],
        max_backoff_ms in prop_oneof![0_u64..100_000, any::<u64>()],
    ) -> RetryPolicy {
        RetryPolicy { max_attempts, backoff_ms, max_backoff_ms }
    }
}

proptest! {
    /// A wait is between half and the whole of its ceiling, which doubles up to a bound.
    #[test]
    fn a_wait_before_a_retry_keeps_its_bounds(
        policy in retry_policy(),
        attempt in prop_oneof![1_u32..70, any::<u32>()],
        jitter: u64,
    ) {
        let delay = policy.delay_ms(attempt, &model_error(ModelFault::Overloaded, None), jitter);
        if attempt >= policy.max_attempts {
            prop_assert_eq!(delay, None);
            return Ok(());
        }
        let doublings = attempt.saturating_sub(1).min(64);
        let ceiling = (u128::from(policy.backoff_ms) << doublings).min(policy.max_backoff_ms.into());
        let delay = u128::from(delay.unwrap());
        prop_assert!(delay <= ceiling, "{delay} of {ceiling}");
        prop_assert!(delay >= ceiling / 2, "{delay} of {ceiling}");
    }

    /// `Retry-After` is kept to the millisecond, or ends the tries; it never shortens or stretches.
    #[test]
    fn retry_after_is_kept_exactly(policy in retry_policy(), attempt in 1_u32..10, after: u64, jitter: u64) {
        let delay = policy.delay_ms(attempt, &model_error(ModelFault::RateLimited, Some(after)), jitter);
        let waits = attempt < policy.max_attempts && after <= policy.max_backoff_ms;
        prop_assert_eq!(delay, waits.then_some(after));
    }

    #[test]
    fn what_is_not_transient_is_never_tried_again(
        policy in retry_policy(),
        attempt: u32,
        after in prop::option::of(any::<u64>()),
        fault in select(vec![
            ModelFault::Authentication,
            ModelFault::InvalidRequest,
            ModelFault::Timeout,
            ModelFault::Truncated,
            ModelFault::QuotaExhausted,
        ]),
    ) {
        prop_assert_eq!(policy.delay_ms(attempt, &model_error(fault, after), 7), None);
    }
}

#[test]
fn jitter_reaches_both_ends_of_its_range() {
    let policy = RetryPolicy { backoff_ms: 10, ..RetryPolicy::attempts(9) };
    let error = model_error(ModelFault::Connect, None);
    let waits: BTreeSet<u64> = (0..100).filter_map(|jitter| policy.delay_ms(1, &error, jitter)).collect();
    assert_eq!(waits, (5..=10).collect());
}

/// Names that a graph may have or not.
fn names() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[a-z][a-z0-9_-]{0,3}", 1 => Just("input".to_owned()), 1 => any::<String>()]
}

/// Text that is a condition, nearly one, or none at all.
fn conditions() -> impl Strategy<Value = String> {
    let word = select(vec![
        "facts", "input", "steps", "x", "and", "or", "not", "in", "is", "if", "else", "true", "none",
        "defined", "length", "1", "2.5", "'a'", "\"", "(", ")", "[", "]", "{", "}", ".", ",", ":", "|", "~",
        "+", "-", "*", "/", "//", "%", "**", "==", "!=", "<", ">=", "=", "{{", "}}", "{%", "#}", "\\",
        "\u{0}", "é",
    ]);
    prop_oneof![
        3 => prop::collection::vec(word, 0..25).prop_map(|words| words.join(" ")),
        1 => any::<String>(),
        1 => (select(vec!["(", "[", "not ", "-", "{'a':", "x.", "x|"]), 1_usize..3_000)
            .prop_map(|(text, times)| text.repeat(times)),
    ]
}

fn one_step(when: String) -> GraphData {
    let mut step = StepData::new("a", StepKind::Function("f".into()));
    step.when = Some(when.into());
    GraphData { name: "one".to_owned(), steps: vec![step], ..Default::default() }
}

proptest! {
    /// A condition comes from a file that anyone may have written: it is taken or refused.
    #[test]
    fn a_condition_is_parsed_or_refused(source in conditions()) {
        let data = one_step(source);
        prop_assert_eq!(data.problems().is_empty(), Graph::new(data).is_ok());
    }

    /// So is a whole graph, whatever its names and edges.
    #[test]
    fn a_graph_is_taken_or_refused(
        steps in prop::collection::vec((names(), prop::collection::vec(names(), 0..4), conditions()), 0..6),
        output in prop::option::of(names()),
    ) {
        let step = |(name, inputs, when): (String, Vec<String>, String)| StepData {
            inputs: inputs.iter().map(|name| Input::from(name.as_str())).collect(),
            when: (!when.is_empty()).then(|| when.into()),
            ..StepData::new(name, StepKind::Function("f".into()))
        };
        let data = GraphData {
            name: "any".to_owned(),
            steps: steps.into_iter().map(step).collect(),
            output: output.map(Into::into),
            ..Default::default()
        };
        let problems = data.problems();
        let _ = data.mermaid(|_| None);
        match Graph::new(data) {
            Ok(graph) => {
                prop_assert!(problems.is_empty());
                prop_assert_eq!(graph.order().len(), graph.steps().len());
            }
            Err(error) => {
                let listed: Vec<String> = problems.iter().map(ToString::to_string).collect();
                let told =
                    matches!(error.kind(), ErrorKind::Problems { problems, .. } if *problems == listed);
                prop_assert!(!listed.is_empty() && told, "{}", error);
            }
        }
    }
}

/// The edges of a random graph: for each step, those that it waits for and how.
fn edges() -> impl Strategy<Value = Vec<Vec<(usize, u8)>>> {
    (1_usize..12).prop_flat_map(|n| {
        let before = prop::collection::btree_map(0..n, 0_u8..3, 0..4.min(n + 1));
        prop::collection::vec(before.prop_map(|edges| edges.into_iter().collect()), n)
    })
}

fn graph_of(edges: &[Vec<(usize, u8)>]) -> GraphData {
    let name = |n: usize| format!("s{n}");
    let step = |(n, before): (usize, &Vec<(usize, u8)>)| {
        let mut step = StepData::new(name(n), StepKind::Function("f".into()));
        for (from, how) in before {
            match how {
                0 => step.inputs.push(Input::required(name(*from))),
                1 => step.inputs.push(Input::optional(name(*from))),
                _ => step.after.push(name(*from).into()),
            }
        }
        step
    };
    let steps = edges.iter().enumerate().map(step).collect();
    GraphData { name: "random".to_owned(), steps, ..Default::default() }
}

/// The steps that can be laid out one after another; the others go in circles or behind one.
fn layable(edges: &[Vec<(usize, u8)>]) -> BTreeSet<usize> {
    let mut done = BTreeSet::new();
    loop {
        let next = (0..edges.len())
            .find(|n| !done.contains(n) && edges[*n].iter().all(|(from, _)| done.contains(from)));
        match next {
            Some(n) => done.insert(n),
            None => return done,
        };
    }
}

proptest! {
    /// A circle is reported if and only if there is one, and names steps that are in it.
    #[test]
    fn circles_are_found_and_nothing_else_is(edges in edges()) {
        let data = graph_of(&edges);
        let laid = layable(&edges);
        let problems = data.problems();
        if laid.len() == edges.len() {
            prop_assert_eq!(problems, Vec::new());
            return Ok(());
        }
        prop_assert!(!problems.is_empty());
        for problem in problems {
            let (what, names) = problem.message.split_once(": ").unwrap();
            prop_assert_eq!(what, "steps wait for each other in a circle");
            for name in names.split(", ") {
                let n: usize = name.strip_prefix('s').unwrap().parse().unwrap();
                prop_assert!(!laid.contains(&n), "{} is in no circle", name);
            }
        }
    }

    /// Each step comes after those that it waits for, and all come.
    #[test]
    fn the_order_is_topological(edges in edges()) {
        let Ok(graph) = Graph::new(graph_of(&edges)) else { return Ok(()) };
        let order = graph.order();
        let place = |n: usize| order.iter().position(|step| *step == n).unwrap();
        prop_assert_eq!(order.len(), edges.len());
        for (n, before) in edges.iter().enumerate() {
            for (from, _) in before {
                prop_assert!(place(*from) < place(n), "s{n} comes before s{from}");
            }
        }
    }

    /// With an output named, exactly the steps that it does not come from are reported.
    #[test]
    fn steps_that_nothing_uses_are_found(edges in edges(), output in any::<prop::sample::Index>()) {
        let mut data = graph_of(&edges);
        if !data.problems().is_empty() {
            return Ok(());
        }
        let output = output.index(edges.len());
        data.output = Some(format!("s{output}").into());
        let mut used = BTreeSet::from([output]);
        let mut stack = vec![output];
        while let Some(n) = stack.pop() {
            stack.extend(edges[n].iter().map(|(from, _)| *from).filter(|from| used.insert(*from)));
        }
        let reported: BTreeSet<String> =
            data.problems().iter().map(|problem| problem.step.as_deref().unwrap().to_owned()).collect();
        let unused: BTreeSet<String> =
            (0..edges.len()).filter(|n| !used.contains(n)).map(|n| format!("s{n}")).collect();
        prop_assert_eq!(reported, unused);
    }

    /// A graph is the same after a trip through JSON, and has the same digest.
    #[test]
    fn a_graph_survives_json(edges in edges(), when in conditions()) {
        let mut data = graph_of(&edges);
        data.steps[0].when = Some(when.into());
        let text = serde_json::to_string(&data).unwrap();
        let back: GraphData = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(&back, &data);
        prop_assert_eq!(back.digest().unwrap(), data.digest().unwrap());
    }
}

prop_compose! {
    fn message()(
        id in any::<String>(),
        timestamp in any::<String>(),
        from_agent in any::<String>(),
        to_agent in any::<String>(),
        message_type in select(vec![MessageType::Handoff, MessageType::Review]),
        project in any::<String>(),
        phase in any::<String>(),
        deliverables in prop::collection::vec(any::<(String, String, String)>(), 0..4),
        next_tasks in prop::collection::vec(any::<String>(), 0..4),
    ) -> HandoffMessage {
        let deliverable = |(kind, path, description)| Deliverable { kind, path, description };
        HandoffMessage {
            message_id: id,
            timestamp,
            from_agent,
            to_agent,
            message_type,
            context: MessageContext {
                project,
                phase,
                deliverables: deliverables.into_iter().map(deliverable).collect(),
            },
            next_tasks,
        }
    }
}

/// The keys of an object, as they stand in the text.
fn keys(text: &str) -> Vec<String> {
    // `Value` sorts its keys; what is asked here is the order on the wire.
    struct Keys(Vec<String>);
    impl<'de> serde::Deserialize<'de> for Keys {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Collect;
            impl<'de> serde::de::Visitor<'de> for Collect {
                type Value = Keys;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("an object")
                }
                fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                    let mut keys = Vec::new();
                    while let Some((key, _)) = map.next_entry::<String, serde::de::IgnoredAny>()? {
                        keys.push(key);
                    }
                    Ok(Keys(keys))
                }
            }
            deserializer.deserialize_map(Collect)
        }
    }
    serde_json::from_str::<Keys>(text).unwrap().0
}

proptest! {
    /// The message of the protocol has exactly its fields, in their order, whatever it says.
    #[test]
    fn a_handoff_message_has_its_exact_shape(message in message()) {
        let text = serde_json::to_string(&message).unwrap();
        prop_assert_eq!(
            keys(&text),
            ["message_id", "timestamp", "from_agent", "to_agent", "message_type", "context", "next_tasks"]
        );
        let context = serde_json::to_string(&message.context).unwrap();
        prop_assert_eq!(keys(&context), ["project", "phase", "deliverables"]);
        for deliverable in &message.context.deliverables {
            prop_assert_eq!(
                keys(&serde_json::to_string(deliverable).unwrap()),
                ["type", "path", "description"]
            );
        }
        let value: Value = serde_json::from_str(&text).unwrap();
        prop_assert!(matches!(value["message_type"].as_str(), Some("handoff" | "review")));
        prop_assert!(value["next_tasks"].as_array().unwrap().iter().all(Value::is_string));
        prop_assert_eq!(serde_json::from_str::<HandoffMessage>(&text).unwrap(), message);
    }
}

/// Values that schemas have something to say about: few, so that a schema and a value that are
/// drawn apart often meet.
fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
        3 => numbers(),
        3 => texts().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(texts(), inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn numbers() -> impl Strategy<Value = Value> {
    select(vec![
        json!(-1),
        json!(0),
        json!(1),
        json!(2),
        json!(0.5),
        json!(1.0),
        json!(1.5),
        json!(2.0),
        json!(1e30),
    ])
}

fn texts() -> impl Strategy<Value = String> {
    select(vec!["", "a", "b", "a/b", "é", "a\u{301}"]).prop_map(str::to_owned)
}

/// Schemas of the keywords that [`Schema`] checks.
fn schemas() -> impl Strategy<Value = Value> {
    let kinds = || select(vec!["null", "boolean", "object", "array", "string", "number", "integer"]);
    let count = || 0_u64..3;
    let leaf = prop_oneof![
        1 => any::<bool>().prop_map(Value::from),
        4 => kinds().prop_map(|kind| json!({"type": kind})),
        1 => prop::collection::btree_set(kinds(), 1..3).prop_map(|kinds| json!({"type": kinds})),
        1 => prop::collection::vec(values(), 1..4).prop_map(|values| json!({"enum": values})),
        1 => values().prop_map(|value| json!({"const": value})),
        1 => (count(), count()).prop_map(|(a, b)| json!({"minLength": a, "maxLength": b})),
        1 => (count(), count()).prop_map(|(a, b)| json!({"minItems": a, "maxItems": b})),
        1 => (numbers(), numbers()).prop_map(|(a, b)| json!({"minimum": a, "maximum": b})),
        1 => (numbers(), numbers()).prop_map(|(a, b)| json!({"exclusiveMinimum": a, "exclusiveMaximum": b})),
        1 => prop::collection::btree_set(texts(), 0..3).prop_map(|names| json!({"required": names})),
        1 => select(vec!["#/$defs/one", "#/$defs/two"]).prop_map(|place| json!({"$ref": place})),
    ];
    leaf.prop_recursive(3, 24, 3, |inner| {
        let several = || prop::collection::vec(inner.clone(), 1..4);
        let object =
            (prop::collection::btree_map(texts(), inner.clone(), 0..4), prop::option::of(inner.clone()));
        prop_oneof![
            2 => inner.clone().prop_map(|items| json!({"items": items})),
            1 => several().prop_map(|all| json!({"allOf": all})),
            1 => several().prop_map(|any| json!({"anyOf": any})),
            3 => object.prop_map(|(properties, others)| match others {
                Some(others) => json!({"properties": properties, "additionalProperties": others}),
                None => json!({"properties": properties}),
            }),
            // Keywords of two schemas side by side.
            2 => (inner.clone(), inner.clone()).prop_map(|(mut a, b)| {
                if let (Value::Object(a), Value::Object(b)) = (&mut a, b) {
                    a.extend(b);
                }
                a
            }),
        ]
    })
}

/// A validator that passes the whole JSON Schema test suite.
struct Oracle(boon::Schemas, boon::SchemaIndex);

impl Oracle {
    fn new(schema: &Value) -> Self {
        let mut schemas = boon::Schemas::new();
        let mut compiler = boon::Compiler::new();
        compiler.set_default_draft(boon::Draft::V2020_12);
        compiler.add_resource("mem:///schema.json", schema.clone()).unwrap();
        let index = compiler.compile("mem:///schema.json", &mut schemas).unwrap();
        Oracle(schemas, index)
    }

    fn fits(&self, value: &Value) -> bool {
        self.0.validate(value, self.1).is_ok()
    }
}

/// The values that a schema names, by themselves, in a list and in an object: what is drawn apart
/// from the schema seldom meets them.
fn named(schema: &Value, found: &mut Vec<Value>) {
    match schema {
        Value::Object(map) => {
            for (keyword, inner) in map {
                match (keyword.as_str(), inner) {
                    ("const", value) => found.push(value.clone()),
                    ("enum", Value::Array(values)) => found.extend(values.iter().cloned()),
                    _ => named(inner, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| named(item, found)),
        _ => {}
    }
}

/// The same number, written as a float where it was whole, or the other way round.
fn otherwise(value: &Value) -> Option<Value> {
    match value.as_i64() {
        Some(whole) => Some(json!(whole as f64)),
        None => value.as_f64().filter(|n| n.fract() == 0.0).map(|n| json!(n as i64)),
    }
}

#[test]
fn large_whole_numbers_are_compared_exactly() {
    for (schema, value) in [
        (json!({"maximum": 1_u64 << 53}), json!((1_u64 << 53) + 1)),
        (json!({"exclusiveMinimum": u64::MAX - 1}), json!(u64::MAX - 1)),
        (json!({"const": u64::MAX}), json!(u64::MAX - 1)),
        (json!({"minimum": -9_007_199_254_740_992_i64}), json!(-9_007_199_254_740_993_i64)),
    ] {
        assert_eq!(Schema::new(schema.clone()).unwrap().problems(&value).len(), 1, "{schema} {value}");
    }
    let schema = Schema::new(json!({"exclusiveMaximum": u64::MAX})).unwrap();
    assert!(schema.problems(&json!(u64::MAX - 1)).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// A value fits by our check if and only if it fits by another, complete implementation.
    #[test]
    fn schemas_agree_with_an_oracle(
        mut schema in schemas(),
        // What `$ref` leads to refers to nothing itself, so nothing goes in circles.
        one in values(),
        two in select(vec![json!(true), json!({"type": "string"}), json!({"maxItems": 1})]),
        mut tries in prop::collection::vec(values(), 10),
    ) {
        if let Value::Object(schema) = &mut schema {
            schema.insert("$defs".to_owned(), json!({"one": {"enum": [one]}, "two": two}));
        }
        named(&schema, &mut tries);
        tries.extend(tries.iter().filter_map(otherwise).collect::<Vec<_>>());
        let (ours, oracle) = (Schema::new(schema.clone()).unwrap(), Oracle::new(&schema));
        for value in tries.iter().flat_map(|value| [value.clone(), json!([value]), json!({"a": value})]) {
            let problems = ours.problems(&value);
            prop_assert_eq!(problems.is_empty(), oracle.fits(&value), "{}: {:?}", value, problems);
        }
    }

    /// What a model sends, and what a file says a schema is, may be anything.
    #[test]
    fn no_schema_and_no_value_does_harm(schema in values(), keyword in select(KEYWORDS.to_vec()), value in values()) {
        for schema in [schema.clone(), json!({keyword: schema})] {
            match Schema::new(schema) {
                Ok(schema) => drop(schema.problems(&value)),
                Err(error) => {
                    let invalid = matches!(error.kind(), ErrorKind::Invalid { .. });
                    prop_assert!(invalid, "{}", error);
                }
            }
        }
    }
}

const KEYWORDS: [&str; 20] = [
    "type",
    "enum",
    "const",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "anyOf",
    "allOf",
    "$ref",
    "$defs",
    "pattern",
];
