"""Makes catalogue.json from the price list in LiteLLM's wheel (MIT): facts about models, with our tiers.

usage: pip download --no-deps litellm==1.109.1 && unzip -o litellm-*.whl 'litellm/model_prices*' &&
       python3 generate.py litellm/model_prices_and_context_window_backup.json 2026-11-22 >catalogue.json
"""

import json
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


def per_million(facts, key):
    value = facts.get(key)
    return None if value is None else float(round(Decimal(str(value)) * 1_000_000, 6))


def main(path, date):
    with open(path) as file:
        known = json.load(file)
    models = []
    for name, (tier, speed) in MODELS.items():
        provider, _, short = name.partition("/")
        facts = known.get(name) or known[short]
        price = {"input": per_million(facts, "input_cost_per_token"), "output": per_million(facts, "output_cost_per_token")}
        # Where a provider asks nothing special for cached input, it is input.
        price["cache_read"] = per_million(facts, "cache_read_input_token_cost") or price["input"]
        price["cache_write"] = per_million(facts, "cache_creation_input_token_cost") or price["input"]
        capabilities = [ours for theirs, ours in CAPABILITIES.items() if facts.get(theirs)]
        if facts["max_input_tokens"] >= 200_000:
            capabilities.append("long_context")
        models.append({
            "provider": provider, "id": short, "tier": tier, "speed": speed,
            "context_tokens": facts["max_input_tokens"], "max_output_tokens": facts["max_output_tokens"],
            "price": price, "capabilities": sorted(capabilities),
        })
    lines = ",\n".join("    " + json.dumps(model) for model in models)
    print(f'{{\n  "format": 1,\n  "date": "{date}",\n  "models": [\n{lines}\n  ]\n}}')


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
