//! Personal data in texts: finding it, and putting something else in its place.

mod check;
mod json;
mod model;
mod policy;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod subject;

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use coral_core::Error;
use regex::{Match, Regex};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::crypto::{MasterKey, Pseudonyms};

use self::json::each_text;
pub use self::model::PrivateModel;
pub use self::policy::{PrivacyPolicy, PrivateWriter, Treatment};
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub use self::subject::{Subject, SubjectBlob, SubjectErasure, SubjectExport, SubjectFinding};

/// What kind of personal data a text holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum PiiKind {
    /// An e-mail address.
    Email,
    /// A bank account by its IBAN, with a right check sum.
    Iban,
    /// A payment card's number, with a right check digit.
    Card,
    /// A national id, with right check digits where it has some: US social security, UK national
    /// insurance, Canadian SIN, Spanish DNI and NIE, French NIR, Italian codice fiscale, German tax
    /// id, Swiss AHV, Swedish personnummer, Polish PESEL, Brazilian CPF, Indian Aadhaar.
    NationalId,
    /// An IP address, version 4 or 6.
    Ip,
    /// A telephone number.
    Phone,
    /// A name of the dictionary that the [`Detector`] was given.
    Name,
    /// What a [finder](Detector::with_finder) of the embedder's own found.
    Other,
}

impl PiiKind {
    /// The kind as a word, such as `email`.
    pub fn as_str(self) -> &'static str {
        match self {
            PiiKind::Email => "email",
            PiiKind::Iban => "iban",
            PiiKind::Card => "card",
            PiiKind::NationalId => "national_id",
            PiiKind::Ip => "ip",
            PiiKind::Phone => "phone",
            PiiKind::Name => "name",
            PiiKind::Other => "other",
        }
    }
}

/// Personal data found in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PiiFinding {
    /// What it is.
    pub kind: PiiKind,
    /// Where it is, in bytes.
    pub range: Range<usize>,
}

impl PiiFinding {
    /// What a finder says that it found.
    pub fn new(kind: PiiKind, range: Range<usize>) -> Self {
        PiiFinding { kind, range }
    }
}

/// The length of what is truly meant, from the beginning of a match; `None` if nothing is.
type Confirm = fn(&str) -> Option<usize>;

struct Pattern {
    kind: PiiKind,
    regex: Regex,
    confirm: Confirm,
}

/// In the order of preference where two of the same length overlap.
static PATTERNS: LazyLock<Vec<Pattern>> = LazyLock::new(|| {
    let whole: Confirm = |text| Some(text.len());
    let patterns: [(PiiKind, &str, Confirm); 17] = [
        (PiiKind::Email, r"(?i)\b[a-z0-9][a-z0-9._%+-]*@(?:[a-z0-9-]+\.)+[a-z]{2,24}\b", whole),
        (PiiKind::Iban, r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b", check::iban),
        (PiiKind::NationalId, r"\b\d{3}-\d{2}-\d{4}\b", check::social_security),
        (PiiKind::NationalId, r"\b[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]\b", whole),
        (PiiKind::NationalId, r"\b(?:[XYZ]-?)?\d{7,8}-?[A-Z]\b", check::dni),
        (
            PiiKind::NationalId,
            r"\b[12] ?\d{2} ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d{2}|2A|2B) ?\d{3} ?\d{3} ?\d{2}\b",
            check::nir,
        ),
        (
            PiiKind::NationalId,
            r"(?i)\b[A-Z]{6}\d{2}[A-EHLMPR-T]\d{2}[A-Z]\d{3}[A-Z]\b",
            check::codice_fiscale,
        ),
        (PiiKind::NationalId, r"\b756[. ]?\d{4}[. ]?\d{4}[. ]?\d{2}\b", check::ahv),
        (PiiKind::NationalId, r"\b\d{3}\.\d{3}\.\d{3}-\d{2}\b", check::cpf),
        (PiiKind::NationalId, r"\b\d{3}[ -]\d{3}[ -]\d{3}\b", check::sin),
        (PiiKind::NationalId, r"\b(?:19|20)?\d{6}[-+]\d{4}\b", check::personnummer),
        (PiiKind::NationalId, r"\b[2-9]\d{3} ?\d{4} ?\d{4}\b", check::aadhaar),
        (PiiKind::NationalId, r"\b\d{2} ?\d{3} ?\d{3} ?\d{3}\b", check::eleven_digits),
        (PiiKind::Card, r"\b\d(?:[ -]?\d){12,18}\b", check::card),
        (
            PiiKind::Ip,
            r"(?:\b\d{1,3}(?:\.\d{1,3}){3}\b|(?i)[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}(?:(?:\.\d{1,3}){3}\b)?)",
            check::ip,
        ),
        (
            PiiKind::Phone,
            r"(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){6,12}|\(\d{3}\) ?\d{3}-\d{4}|\b\d{3}-\d{3}-\d{4})\b",
            whole,
        ),
        (PiiKind::Phone, r"\b(?:\d{3}\.\d{3}\.\d{4}|\d{3} \d{3} \d{4}|0\d{1,4}[ /-]\d{5,9})\b", whole),
    ];
    patterns
        .into_iter()
        .filter_map(|(kind, pattern, confirm)| {
            Some(Pattern { kind, regex: Regex::new(pattern).ok()?, confirm })
        })
        .collect()
});

/// Finds personal data by patterns and check sums.
///
/// It finds what has a form; what only a reader of the sentence would know, it does not. So it
/// lowers a risk and does not end it.
///
/// ```
/// use coral_state::{Detector, PiiKind};
///
/// let detector = Detector::new().with_names(["Ada Lovelace"])?;
/// let found = detector.find("Ask ada lovelace <ada@example.org>, card 4111 1111 1111 1111.");
/// let kinds: Vec<_> = found.iter().map(|finding| finding.kind).collect();
/// assert_eq!(kinds, [PiiKind::Name, PiiKind::Email, PiiKind::Card]);
/// # Ok::<(), coral_core::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Detector {
    without: Vec<PiiKind>,
    names: Option<Regex>,
    finders: Vec<Arc<Finder>>,
}

type Finder = dyn Fn(&str) -> Vec<PiiFinding> + Send + Sync;

impl fmt::Debug for Detector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detector")
            .field("without", &self.without)
            .field("names", &self.names.is_some())
            .field("finders", &self.finders.len())
            .finish()
    }
}

impl Detector {
    /// Finds every kind but names.
    pub fn new() -> Self {
        Detector::default()
    }

    /// Leaves a kind alone.
    #[must_use]
    pub fn without(mut self, kind: PiiKind) -> Self {
        self.without.push(kind);
        self
    }

    /// Also finds these names, in any case, as whole words.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if they are too many for one pattern.
    pub fn with_names<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Result<Self, Error> {
        let mut names: Vec<String> =
            names.into_iter().map(str::trim).filter(|name| !name.is_empty()).map(regex::escape).collect();
        // The longest first, so that a whole name is preferred to its part.
        names.sort_by_key(|name| std::cmp::Reverse(name.len()));
        self.names = match names.is_empty() {
            true => None,
            false => Some(
                Regex::new(&format!(r"(?i)\b(?:{})\b", names.join("|")))
                    .map_err(|e| Error::invalid("dictionary of names", e.to_string()))?,
            ),
        };
        Ok(self)
    }

    /// Also finds what `finder` does: ids of an embedder's own, or what a model recognises.
    ///
    /// ```
    /// use coral_state::{Detector, PiiFinding, PiiKind};
    ///
    /// let detector = Detector::new().with_finder(|text| {
    ///     let found = text.match_indices("patient-").map(|(at, word)| at..at + word.len() + 4);
    ///     found.map(|range| PiiFinding::new(PiiKind::Other, range)).collect()
    /// });
    /// assert_eq!(detector.find("see patient-0042").len(), 1);
    /// ```
    #[must_use]
    pub fn with_finder(mut self, finder: impl Fn(&str) -> Vec<PiiFinding> + Send + Sync + 'static) -> Self {
        self.finders.push(Arc::new(finder));
        self
    }

    /// What `text` holds, from left to right. Where findings overlap they are one, of the kind of the
    /// longest: a part of one is not left standing for having been taken for another.
    pub fn find(&self, text: &str) -> Vec<PiiFinding> {
        let wanted = |kind: &PiiKind| !self.without.contains(kind);
        let mut found: Vec<PiiFinding> = Vec::new();
        for pattern in PATTERNS.iter().filter(|pattern| wanted(&pattern.kind)) {
            pattern.find(text, |range| found.push(PiiFinding { kind: pattern.kind, range }));
        }
        for hit in self.names.iter().flat_map(|names| names.find_iter(text)) {
            found.push(PiiFinding { kind: PiiKind::Name, range: hit.range() });
        }
        let more = self.finders.iter().flat_map(|finder| finder(text));
        found.extend(more.filter(|hit| wanted(&hit.kind) && text.get(hit.range.clone()).is_some()));
        found.sort_by_key(|finding| finding.range.start);
        let mut joined: Vec<PiiFinding> = Vec::new();
        let mut longest = 0;
        for PiiFinding { kind, range } in found {
            match joined.last_mut().filter(|last| range.start < last.range.end) {
                Some(last) => {
                    if range.len() > longest {
                        (last.kind, longest) = (kind, range.len());
                    }
                    last.range.end = last.range.end.max(range.end);
                }
                None => {
                    longest = range.len();
                    joined.push(PiiFinding { kind, range });
                }
            }
        }
        joined
    }
}

impl Pattern {
    /// Tells `found` of all that is truly meant in `text`.
    fn find(&self, text: &str, mut found: impl FnMut(Range<usize>)) {
        let mut at = 0;
        while let Some(hit) = self.regex.find_at(text, at) {
            at = match (self.confirm)(hit.as_str()) {
                Some(length) => {
                    found(hit.start()..hit.start() + length);
                    hit.start() + length.max(1)
                }
                // What is meant may begin with a later group of what was not.
                None => next_group(&hit),
            };
        }
    }
}

fn next_group(hit: &Match<'_>) -> usize {
    let mut characters = hit.as_str().char_indices();
    let gap = characters.find(|(_, c)| !c.is_alphanumeric());
    gap.map_or(hit.end(), |(at, c)| hit.start() + at + c.len_utf8())
}

/// Puts something else in the place of personal data: `[email]`, or with a key a pseudonym such as
/// `[email~5f0c…]`, the same for the same data everywhere, which the key turns back.
///
/// ```
/// use coral_state::{Anonymizer, Detector, MasterKey};
///
/// let anonymizer = Anonymizer::new(Detector::new());
/// assert_eq!(anonymizer.text("write to ada@example.org"), "write to [email]");
///
/// let with_key = anonymizer.with_key(&MasterKey::generate()?);
/// let text = with_key.text("write to ada@example.org");
/// assert!(!text.contains("ada"));
/// assert_eq!(with_key.restore(&text), "write to ada@example.org");
/// # Ok::<(), coral_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Anonymizer {
    detector: Detector,
    pseudonyms: Option<Pseudonyms>,
}

impl Anonymizer {
    /// Replaces what `detector` finds, for good.
    pub fn new(detector: Detector) -> Self {
        Anonymizer { detector, pseudonyms: None }
    }

    /// Replaces it by pseudonyms that `key` makes and turns back.
    #[must_use]
    pub fn with_key(mut self, key: &MasterKey) -> Self {
        self.pseudonyms = Some(key.pseudonyms());
        self
    }

    /// `text` without personal data.
    pub fn text(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut at = 0;
        for PiiFinding { kind, range } in self.detector.find(text) {
            out.push_str(text.get(at..range.start).unwrap_or_default());
            let found = text.get(range.clone()).unwrap_or_default();
            let kind = kind.as_str();
            match self.pseudonyms.as_ref().and_then(|pseudonyms| pseudonyms.make(kind, found)) {
                Some(pseudonym) => out.push_str(&format!("[{kind}~{pseudonym}]")),
                None => out.push_str(&format!("[{kind}]")),
            }
            at = range.end;
        }
        out.push_str(text.get(at..).unwrap_or_default());
        out
    }

    /// `text` with its pseudonyms turned back, as far as they were made by this key.
    pub fn restore(&self, text: &str) -> String {
        static PSEUDONYM: LazyLock<Option<Regex>> =
            LazyLock::new(|| Regex::new(r"\[([a-z_]+)~([0-9a-f]{34,})\]").ok());
        let (Some(pseudonyms), Some(pattern)) = (&self.pseudonyms, &*PSEUDONYM) else {
            return text.to_owned();
        };
        let turned = pattern.replace_all(text, |hit: &regex::Captures<'_>| {
            let part = |n| hit.get(n).map_or("", |part| part.as_str());
            pseudonyms.turn_back(part(1), part(2)).unwrap_or_else(|| part(0).to_owned())
        });
        turned.into_owned()
    }

    /// `value` with every text in it replaced: strings, keys of objects, and whole numbers, which become
    /// strings.
    pub fn value(&self, value: Value) -> Value {
        each_text(value, &|text| self.text(text))
    }

    /// `data` with every text in it replaced, and every number and key that is not of its format.
    pub(crate) fn data<T: Serialize + DeserializeOwned>(&self, data: &T) -> Result<T, Error> {
        json::rewrite(data, &|text| self.text(text)).map_err(json::failed)
    }
}

impl fmt::Debug for Anonymizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Anonymizer").field("detector", &self.detector).finish_non_exhaustive()
    }
}
