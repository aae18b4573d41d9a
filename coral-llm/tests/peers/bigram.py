"""Writes a tiny language model that llama-server runs and whose answers are known beforehand.

It is a table, not a trained network: every token's embedding is its own axis, the one layer adds nothing, and the
output matrix holds what follows what. So the next token depends on the last one alone: after a line break it says
"Hi." and ends, and under a grammar (a JSON schema, a tool call) it prefers the shortest way to a valid end.

usage: bigram.py FILE
"""

import struct
import sys

CONTROL, USER_DEFINED, UNUSED, BYTE, NORMAL_UNKNOWN = 3, 4, 5, 6, 2
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9

TEMPLATE = (
    "{%- if tools %}<|im_start|>system\nAnswer with <tool_call>{\"name\": ..., \"arguments\": ...}</tool_call>, tools:"
    "{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}\n<tool_call>\n"
    "{\"name\": \"{{ call.function.name }}\", \"arguments\": {{ call.function.arguments | tojson }}}\n</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vocabulary():
    tokens = [("<unk>", NORMAL_UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
    tokens += [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    tokens += [("<|im_start|>", CONTROL), ("<|im_end|>", CONTROL)]
    tokens += [(text, USER_DEFINED) for text in ("<tool_call>", "</tool_call>", "<think>", "</think>")]
    while len(tokens) % 32:
        tokens.append((f"<|unused{len(tokens)}|>", UNUSED))
    return tokens


TOKENS = vocabulary()
SIZE = len(TOKENS)
HEADS = 4
NUMBER = {text: number for number, (text, _) in enumerate(TOKENS)}
END = NUMBER["<|im_end|>"]


def char(c):
    return NUMBER[f"<0x{ord(c):02X}>"]


def follows():
    """How much each token (inner index) is wanted after each token (outer index)."""
    row = [-2.0] * SIZE
    for code in range(0x21, 0x7F):
        row[char(chr(code))] = 0.0
    for c in "abcdefghijklmnopqrstuvwxyz0123456789":
        row[char(c)] = 0.5
    # Where a grammar leaves a choice, what closes is wanted most, a string before all, and blanks least.
    row[char(",")], row[char("]")], row[char("}")], row[char('"')] = 0.9, 1.0, 1.1, 1.2
    for blank in " \t\r\n":
        row[char(blank)] = -1.0
    table = [list(row) for _ in range(SIZE)]
    for last, following, wanted in [
        (char("\n"), char("H"), 3.0),
        (char("\n"), char("{"), 2.5),
        (char("H"), char("i"), 3.0),
        (char("i"), char("."), 2.0),
        (char("."), END, 3.0),
        (char("."), NUMBER["<tool_call>"], 2.5),
        (char("}"), END, 3.0),
        (char("}"), char("\n"), 2.0),
        (NUMBER["<tool_call>"], char("\n"), 3.0),
        (NUMBER["</tool_call>"], END, 3.0),
    ]:
        table[last][following] = wanted
    return table


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def field(key, kind, value):
    if kind == STRING:
        data = string(value)
    elif kind == ARRAY:
        inner, items = value
        data = struct.pack("<IQ", inner, len(items))
        if inner == STRING:
            data += b"".join(string(item) for item in items)
        else:
            data += struct.pack(f"<{len(items)}{'f' if inner == FLOAT32 else 'i'}", *items)
    else:
        data = struct.pack({UINT32: "<I", FLOAT32: "<f", BOOL: "<?"}[kind], value)
    return string(key) + struct.pack("<I", kind) + data


def fields():
    head = SIZE // HEADS
    return [
        field("general.architecture", STRING, "llama"),
        field("general.name", STRING, "coral bigram"),
        field("general.file_type", UINT32, 0),
        field("llama.context_length", UINT32, 32768),
        field("llama.embedding_length", UINT32, SIZE),
        field("llama.block_count", UINT32, 1),
        field("llama.feed_forward_length", UINT32, 32),
        field("llama.attention.head_count", UINT32, HEADS),
        field("llama.attention.head_count_kv", UINT32, 1),
        field("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-6),
        field("llama.rope.dimension_count", UINT32, head),
        field("llama.vocab_size", UINT32, SIZE),
        field("tokenizer.ggml.model", STRING, "llama"),
        field("tokenizer.ggml.pre", STRING, "default"),
        field("tokenizer.ggml.tokens", ARRAY, (STRING, [text for text, _ in TOKENS])),
        field("tokenizer.ggml.scores", ARRAY, (FLOAT32, [0.0] * SIZE)),
        field("tokenizer.ggml.token_type", ARRAY, (INT32, [kind for _, kind in TOKENS])),
        field("tokenizer.ggml.bos_token_id", UINT32, 1),
        field("tokenizer.ggml.eos_token_id", UINT32, END),
        field("tokenizer.ggml.unknown_token_id", UINT32, 0),
        field("tokenizer.ggml.add_bos_token", BOOL, False),
        field("tokenizer.ggml.add_space_prefix", BOOL, False),
        field("tokenizer.chat_template", STRING, TEMPLATE),
    ]


def tensors():
    """Each tensor's name, its shape with the fastest axis first, and its values."""
    head = SIZE // HEADS
    ones = [1.0] * SIZE
    axes = [1.0 if row == column else 0.0 for row in range(SIZE) for column in range(SIZE)]
    # A normed embedding has the length sqrt(SIZE), which the scale takes out again.
    scale = 4.0 / SIZE**0.5
    table = follows()
    output = [table[last][following] * scale for following in range(SIZE) for last in range(SIZE)]
    yield "token_embd.weight", (SIZE, SIZE), axes
    yield "output_norm.weight", (SIZE,), ones
    yield "output.weight", (SIZE, SIZE), output
    yield "blk.0.attn_norm.weight", (SIZE,), ones
    yield "blk.0.ffn_norm.weight", (SIZE,), ones
    for name, columns, rows in [
        ("attn_q", SIZE, SIZE),
        ("attn_k", SIZE, head),
        ("attn_v", SIZE, head),
        ("attn_output", SIZE, SIZE),
        ("ffn_gate", SIZE, 32),
        ("ffn_up", SIZE, 32),
        ("ffn_down", 32, SIZE),
    ]:
        yield f"blk.0.{name}.weight", (columns, rows), [0.0] * (columns * rows)


def pad(data, to=32):
    return data + b"\0" * (-len(data) % to)


def main(path):
    all_fields, all_tensors = fields(), list(tensors())
    head = b"GGUF" + struct.pack("<IQQ", 3, len(all_tensors), len(all_fields)) + b"".join(all_fields)
    body = b""
    for name, shape, values in all_tensors:
        head += string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(body))
        body = pad(body + struct.pack(f"<{len(values)}f", *values))
    with open(path, "wb") as file:
        file.write(pad(head) + body)


if __name__ == "__main__":
    main(sys.argv[1])
