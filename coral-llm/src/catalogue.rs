//! What is known of models: context, price, capabilities, tier.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use coral_core::{Effort, Error, LongCache, LongInput, ModelInfo, Price, Tier};
use serde::{Deserialize, Serialize};

use crate::dialect::Dialect;

/// A dated list of models.
///
/// The built-in one is a file of facts with the date of its making; each model says where its prices are from. They
/// are list prices of the usual service level, at the hours at which they are highest, with the higher ones that
/// some providers ask for long input. A user's own file [extends](Catalogue::extended) it.
///
/// ```
/// use coral_llm::Catalogue;
///
/// let own = Catalogue::from_json(r#"{"format": 2, "date": "2026-11-22", "models": [
///     {"provider": "vllm", "id": "our-model", "tier": "standard", "speed": 2, "context_tokens": 32768,
///      "price": {"input": 0.0, "output": 0.0, "cache_read": 0.0, "cache_write": 0.0}, "capabilities": ["tools"]}
/// ]}"#)?;
/// let all = Catalogue::builtin().clone().extended(own);
/// assert!(all.find("vllm/our-model").is_some() && all.find("anthropic/claude-opus-5-5").is_some());
/// # Ok::<(), coral_core::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalogue {
    /// The version of the file's form.
    pub format: u32,
    /// The day on which the facts were gathered, `YYYY-MM-DD`.
    pub date: String,
    /// The models.
    pub models: Vec<CatalogueEntry>,
}

/// One model of a [`Catalogue`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogueEntry {
    /// The provider, as in [`Vendor`](crate::Vendor).
    pub provider: String,
    /// The provider's name for the model.
    pub id: String,
    /// What it is good enough for.
    pub tier: Tier,
    /// From 1 (slow) to 3 (fast).
    pub speed: u8,
    /// Tokens of input that fit.
    pub context_tokens: u64,
    /// Output tokens at the most, where known.
    #[serde(default)]
    pub max_output_tokens: Option<u64>,
    /// What it costs in USD per million tokens, where known.
    #[serde(default)]
    pub price: Option<Price>,
    /// What it costs when the input is long, where that is something else.
    #[serde(default)]
    pub long_input: Option<LongInput>,
    /// What it costs to keep input in the provider's cache for long, where the provider offers that.
    #[serde(default)]
    pub long_cache: Option<LongCache>,
    /// Whether marks for its provider's cache may stand in its messages, of OpenAI's models.
    #[serde(default)]
    pub cache_marks: bool,
    /// What it can do: `tools`, `vision`, `structured`, `reasoning`, `prompt_caching`, `long_context`, or a word of
    /// the user's own.
    #[serde(default)]
    pub capabilities: BTreeSet<String>,
    /// What it refuses though its wire has it: `sampling` (a temperature), `sampling_with_effort`, `effort`,
    /// `forced_tools` (to be made to call one), `prefill` (to go on from the beginning of an answer), `chat_tools` (any
    /// tool over chat completions, where Responses have them).
    #[serde(default)]
    pub refuses: BTreeSet<String>,
    /// The efforts that it knows, where that is known.
    #[serde(default)]
    pub efforts: Vec<Effort>,
    /// The page that the prices are from.
    #[serde(default)]
    pub source: Option<String>,
}

/// The form of the file that this release writes. It reads the ones before, too: 1 had no prices of long input and of
/// long caching, and no sources; 2 did not say what models refuse.
pub(crate) const FORMAT: u32 = 3;

static BUILTIN: LazyLock<Catalogue> = LazyLock::new(|| {
    // INVARIANT: a test parses the file, so that an empty list can't be released.
    Catalogue::from_json(include_str!("catalogue.json")).unwrap_or_default()
});

impl Catalogue {
    /// The catalogue that came with this release.
    pub fn builtin() -> &'static Catalogue {
        &BUILTIN
    }

    /// Reads a catalogue.
    ///
    /// # Errors
    /// [`Invalid`](coral_core::ErrorKind::Invalid) if it has not this form.
    pub fn from_json(text: &str) -> Result<Catalogue, Error> {
        let invalid = |problem: String| {
            Error::invalid("model catalogue", problem).with_help("see `Catalogue` for an example of the file")
        };
        let catalogue: Catalogue = serde_json::from_str(text).map_err(|error| invalid(error.to_string()))?;
        if !(1..=FORMAT).contains(&catalogue.format) {
            return Err(invalid(format!("`format` is {}, expected at most {FORMAT}", catalogue.format)));
        }
        for model in &catalogue.models {
            let long = model.long_input.map(|long| long.price);
            let mut prices = Vec::new();
            for price in model.price.iter().chain(&long) {
                prices.extend([price.input, price.output, price.cache_read, price.cache_write]);
            }
            let kept = model.long_cache;
            prices.extend(kept.map(|kept| kept.cache_write));
            prices.extend(kept.and_then(|kept| kept.long_input_cache_write));
            if let Some(bad) = prices.iter().find(|price| !price.is_finite() || **price < 0.0) {
                return Err(invalid(format!("`{}` has a price of {bad}", model.name())));
            }
        }
        Ok(catalogue)
    }

    /// This catalogue with the models of another; where both know a model, the other's facts count.
    #[must_use]
    pub fn extended(mut self, other: Catalogue) -> Catalogue {
        self.models.retain(|known| {
            !other.models.iter().any(|new| new.provider == known.provider && new.id == known.id)
        });
        self.models.extend(other.models);
        self.date = self.date.max(other.date);
        self
    }

    /// What the built-in catalogue knows of a model of `vendor`.
    pub(crate) fn known(vendor: &str, model: &str) -> Option<&'static CatalogueEntry> {
        // The same models under another wire.
        let provider = if vendor == "openai_responses" { "openai" } else { vendor };
        Self::builtin().models.iter().find(|known| known.provider == provider && known.id == model)
    }

    /// The model called `provider/id`.
    pub fn find(&self, name: &str) -> Option<&CatalogueEntry> {
        let (provider, id) = name.split_once('/')?;
        self.models.iter().find(|model| model.provider == provider && model.id == id)
    }
}

impl CatalogueEntry {
    /// The name: `provider/id`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.provider, self.id)
    }

    /// The same facts in the terms of the port.
    pub fn info(&self) -> ModelInfo {
        let mut info = ModelInfo::default();
        info.context_tokens = Some(self.context_tokens);
        info.max_output_tokens = self.max_output_tokens;
        info.price = self.price;
        info.long_input = self.long_input;
        info.long_cache = self.long_cache;
        info
    }

    /// Puts what the model refuses into the quirks of its endpoint.
    pub(crate) fn shape(&self, dialect: &mut Dialect) {
        let takes = |word: &str| !self.refuses.contains(word);
        dialect.sampling &= takes("sampling");
        dialect.sampling_with_effort &= takes("sampling_with_effort");
        dialect.effort &= takes("effort");
        dialect.forced_tools &= takes("forced_tools");
        dialect.prefill &= takes("prefill");
        dialect.chat_tools &= takes("chat_tools");
        dialect.efforts.clone_from(&self.efforts);
        dialect.cache_marks |= self.cache_marks;
    }

    /// The quirks of an endpoint for another model than the one that `dialect` was made for, whose vendor has `general`
    /// ones. `known` is what is known of the model.
    pub(crate) fn reshaped(known: Option<&Self>, dialect: &Dialect, general: &Dialect) -> Dialect {
        let mut dialect = Dialect {
            sampling: general.sampling,
            sampling_with_effort: general.sampling_with_effort,
            effort: general.effort,
            efforts: general.efforts.clone(),
            forced_tools: general.forced_tools,
            prefill: general.prefill,
            chat_tools: general.chat_tools,
            cache_marks: general.cache_marks,
            ..dialect.clone()
        };
        if let Some(known) = known {
            known.shape(&mut dialect);
        }
        dialect
    }

    /// The facts under the quirks of an endpoint: what is marked for long caching is paid for as that.
    pub(crate) fn info_with(&self, dialect: &Dialect) -> ModelInfo {
        let is_long = dialect.cache_ttl.as_deref().is_some_and(|ttl| ttl.ends_with('h'));
        if is_long { self.info_with_long_cache() } else { self.info() }
    }

    /// The same where the provider's cache is asked to keep input for an hour or longer.
    pub fn info_with_long_cache(&self) -> ModelInfo {
        let mut info = self.info();
        if let Some(kept) = self.long_cache {
            if let Some(price) = &mut info.price {
                price.cache_write = kept.cache_write;
            }
            if let Some((long, write)) = info.long_input.as_mut().zip(kept.long_input_cache_write) {
                long.price.cache_write = write;
            }
        }
        info
    }
}

#[cfg(test)]
mod tests {
    use coral_core::{Usage, Usd};

    use super::*;
    use crate::vendor::Vendor;

    #[test]
    fn the_builtin_file_is_whole() {
        let catalogue = Catalogue::from_json(include_str!("catalogue.json")).unwrap();
        assert!(catalogue.models.len() > 20);
        for model in &catalogue.models {
            let name = model.name();
            assert!(Vendor::named(&model.provider).is_ok(), "{name}");
            let price = model.price.unwrap();
            assert!(
                price.input > 0.0 && price.output >= price.input && price.cache_read <= price.input,
                "{name}"
            );
            let long = model.long_input;
            assert!(
                long.is_none_or(|long| long.above_tokens < model.context_tokens
                    && long.price.input > price.input
                    && long.price.output > price.output),
                "{name}"
            );
            assert!(model.long_cache.is_none_or(|kept| kept.cache_write > price.cache_write), "{name}");
            assert!(model.source.as_ref().is_some_and(|page| page.starts_with("https://")), "{name}");
            assert!((1..=3).contains(&model.speed) && model.context_tokens > 8_000, "{name}");
            assert_eq!(catalogue.find(&name), Some(model), "{name} stands twice");
        }
        for vendor in Vendor::all() {
            let Some(model) = &vendor.default_model else { continue };
            let known = vendor.id == "llamacpp" || Catalogue::known(&vendor.id, model).is_some();
            assert!(known, "the default model of `{}` is not in the catalogue", vendor.id);
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "{}",
            r#"{"format": 4, "date": "", "models": []}"#,
            r#"{"format": 1, "date": "", "models": [], "x": 1}"#,
            r#"{"format": 2, "date": "", "models": [{"provider": "p", "id": "m", "tier": "basic", "speed": 1,
                "context_tokens": 1, "price": {"input": -1.0, "output": 1, "cache_read": 1, "cache_write": 1}}]}"#,
            r#"{"format": 3, "date": "", "models": [{"provider": "p", "id": "m", "tier": "basic", "speed": 1,
                "context_tokens": 1, "long_cache": {"cache_write": -1.0}}]}"#,
        ] {
            assert!(Catalogue::from_json(text).is_err(), "{text}");
        }
    }

    #[test]
    fn files_of_the_first_form_are_read() {
        let text = r#"{"format": 1, "date": "2026-01-01", "models": [{"provider": "p", "id": "m", "tier": "basic",
            "speed": 1, "context_tokens": 1000, "price": {"input": 1, "output": 1, "cache_read": 1, "cache_write": 1}}]}"#;
        assert_eq!(Catalogue::from_json(text).unwrap().models[0].long_input, None);
    }

    #[test]
    fn long_input_and_long_caching_have_their_own_prices() {
        let haiku = Catalogue::builtin().find("anthropic/claude-haiku-5-5").unwrap();
        let write = |info: ModelInfo, input_tokens| {
            let usage = Usage { input_tokens, cache_write_tokens: input_tokens, ..Default::default() };
            info.cost(&usage).unwrap()
        };
        for (tokens, short, long) in [(100_000, 0.0125, 0.02), (200_000, 0.125, 0.2)] {
            assert_eq!(write(haiku.info(), tokens), Usd::from_dollars(short));
            assert_eq!(write(haiku.info_with_long_cache(), tokens), Usd::from_dollars(long));
        }
    }

    #[test]
    fn what_a_model_refuses_is_a_quirk_of_its_endpoint() {
        const WORDS: [&str; 6] =
            ["chat_tools", "effort", "forced_tools", "prefill", "sampling", "sampling_with_effort"];
        for model in &Catalogue::builtin().models {
            assert!(model.refuses.iter().all(|word| WORDS.contains(&word.as_str())), "{}", model.name());
            assert!(model.efforts.is_sorted(), "{}", model.name());
        }
        let mut dialect = Dialect::default();
        Catalogue::builtin().find("anthropic/claude-opus-5-5").unwrap().shape(&mut dialect);
        assert!(!dialect.sampling && !dialect.forced_tools && !dialect.prefill && dialect.chat_tools);
    }

    #[test]
    fn an_extension_replaces_what_it_knows_better() {
        let builtin = Catalogue::builtin().clone();
        let mut better = builtin.models[0].clone();
        better.price = None;
        let name = better.name();
        let count = builtin.models.len();
        let own = Catalogue { format: 2, date: "2027-01-01".into(), models: vec![better] };
        let all = builtin.extended(own);
        assert_eq!((all.models.len(), all.date.as_str()), (count, "2027-01-01"));
        assert_eq!(all.find(&name).unwrap().price, None);
    }
}
