"""Makes catalogue.json from the price list in LiteLLM's wheel (MIT): facts about models, with our tiers.

usage: pip download --no-deps litellm==1.109.1 && unzip -o litellm-*.whl 'litellm/model_prices*' &&
       python3 generate.py litellm/model_prices_and_context_window_backup.json models.json 2026-11-22 >catalogue.json

The second list is rig-core's src/catalog/models.json (MIT, made from models.dev): what models refuse is taken from both,
and where the two do not agree on a price that is said on stderr, to be looked up at the provider.
"""

import json
import re
import sys
from decimal import Decimal

# Our judgement: what each model is good enough for. Speed is from 1 (slow) to 3 (fast).
MODELS = {
    "anthropic/claude-fable-5-1": ("strong", 1),
    "anthropic/claude-opus-5-5": ("strong", 1),
    "anthropic/claude-opus-5": ("strong", 1),
    "anthropic/claude-sonnet-5-5": ("standard", 2),
    "anthropic/claude-sonnet-5": ("standard", 2),
    "anthropic/claude-haiku-5-5": ("basic", 3),
    "anthropic/claude-haiku-4-5": ("basic", 3),
    "openai/gpt-6-astra": ("strong", 1),
    "openai/gpt-5.6-sol": ("strong", 1),
    "openai/gpt-6.1-sol": ("standard", 2),
    "openai/gpt-6.1-terra": ("standard", 2),
    "openai/gpt-5.4-mini": ("basic", 3),
    "openai/gpt-6-luna": ("basic", 3),
    "gemini/gemini-3.1-pro-preview": ("strong", 1),
    "gemini/gemini-3.8-flash": ("standard", 2),
    "gemini/gemini-3.5-flash": ("standard", 2),
    "gemini/gemini-3.5-flash-lite": ("basic", 3),
    "deepseek/deepseek-v4-pro": ("standard", 1),
    "deepseek/deepseek-v4-flash": ("basic", 2),
    "mistral/mistral-large-4": ("standard", 2),
    "mistral/mistral-medium-3-5": ("standard", 2),
    "mistral/mistral-small-2603": ("basic", 3),
    "xai/grok-4.7": ("standard", 2),
    "groq/openai/gpt-oss-120b": ("basic", 3),
    "groq/openai/gpt-oss-20b": ("basic", 3),
}

CAPABILITIES = {
    "supports_function_calling": "tools",
    "supports_vision": "vision",
    "supports_response_schema": "structured",
    "supports_reasoning": "reasoning",
    "supports_prompt_caching": "prompt_caching",
}

# What the second list calls a provider.
SECOND_NAMES = {"gemini": "gcp.gemini"}

# Where the list names no page for a model.
PAGES = {"groq": "https://groq.com/pricing"}

# Names of kept-for-long writes to the provider's cache: an hour, twelve hours.
LONG_WRITES = ["cache_creation_input_token_cost_above_1hr", "cache_creation_input_token_cost_above_12hr"]


def per_million(facts, key):
    value = facts.get(key)
    return None if value is None else float(round(Decimal(str(value)) * 1_000_000, 6))


def prices(facts, suffix=""):
    price = {
        "input": per_million(facts, "input_cost_per_token" + suffix),
        "output": per_million(facts, "output_cost_per_token" + suffix),
    }
    # Where a provider asks nothing special for cached input, it is input.
    price["cache_read"] = per_million(facts, "cache_read_input_token_cost" + suffix) or price["input"]
    price["cache_write"] = per_million(facts, "cache_creation_input_token_cost" + suffix) or price["input"]
    return price


def long_cache(facts, long):
    for name in LONG_WRITES:
        if write := per_million(facts, name):
            found = {"cache_write": write}
            if long:
                found["long_input_cache_write"] = per_million(facts, f"{name}_above_{long['above_tokens'] // 1_000}k_tokens")
            return found
    return None


def long_input(facts):
    bounds = [re.fullmatch(r"input_cost_per_token_above_(\d+)k_tokens", key) for key in facts]
    bounds = [int(bound[1]) for bound in bounds if bound]
    if not bounds:
        return None
    (bound,) = bounds
    suffix = f"_above_{bound}k_tokens"
    return {"above_tokens": bound * 1_000, "price": prices(facts, suffix)}


def refused(facts, theirs):
    """What the model refuses though its wire has it: a list of the words of `CatalogueEntry::refuses`."""
    known = theirs.get("rig", {})
    words = []
    if known.get("chat_tools") in ("never", "reasoning_off") and known.get("reasoning_default"):
        words.append("chat_tools")
    if theirs.get("reasoning_options") and not efforts(theirs):
        words.append("effort")
    if facts.get("supports_forced_tool_use") is False or known.get("rejects_forced_tool_choice"):
        words.append("forced_tools")
    if facts.get("supports_assistant_prefill") is False:
        words.append("prefill")
    never = facts.get("supports_sampling_params") is False or theirs.get("temperature") is False
    if never or (known.get("sampling") == "reasoning_off" and known.get("reasoning_default")):
        words.append("sampling")
    elif known.get("sampling") == "reasoning_off":
        words.append("sampling_with_effort")
    return words


def efforts(theirs):
    values = [option.get("values", []) for option in theirs.get("reasoning_options", []) if option["type"] == "effort"]
    return [effort for effort in sum(values, []) if effort != "none"]


def compare(name, model, theirs):
    cost, limit = theirs.get("cost", {}), theirs.get("limit", {})
    for what, ours, found in [
        *[(kind, model["price"][kind], cost.get(kind)) for kind in model["price"]],
        ("output tokens", model["max_output_tokens"], limit.get("output")),
    ]:
        if found is not None and float(found) != float(ours):
            print(f"{name}: {what} is {ours} here and {found} there", file=sys.stderr)


def main(path, second, date):
    with open(path) as file:
        known = json.load(file)
    with open(second) as file:
        other = json.load(file)
    models = []
    for name, (tier, speed) in MODELS.items():
        provider, _, short = name.partition("/")
        facts = known.get(name) or known[short]
        capabilities = [ours for theirs, ours in CAPABILITIES.items() if facts.get(theirs)]
        if facts["max_input_tokens"] >= 200_000:
            capabilities.append("long_context")
        model = {
            "provider": provider, "id": short, "tier": tier, "speed": speed,
            "context_tokens": facts["max_input_tokens"], "max_output_tokens": facts["max_output_tokens"],
            "price": prices(facts),
        }
        long = long_input(facts)
        if long:
            model["long_input"] = long
        if kept := long_cache(facts, long):
            model["long_cache"] = kept
        model["capabilities"] = sorted(capabilities)
        theirs = other.get(SECOND_NAMES.get(provider, provider), {}).get("models", {}).get(short, {})
        if words := refused(facts, theirs):
            model["refuses"] = words
        if levels := efforts(theirs):
            model["efforts"] = levels
        model["source"] = facts.get("source") or PAGES[provider]
        compare(name, model, theirs)
        models.append(model)
    lines = ",\n".join("    " + json.dumps(model) for model in models)
    print(f'{{\n  "format": 3,\n  "date": "{date}",\n  "models": [\n{lines}\n  ]\n}}')


if __name__ == "__main__":
    main(*sys.argv[1:])
