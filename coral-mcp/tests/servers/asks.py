"""An MCP server over stdio that asks back, reports progress, and has resources and prompts.

Its first argument is the generation of the protocol that it speaks: `old` (2025-11-25, with
`initialize`), `new` (2026-07-28, without), or `ends`, which is `new` and ends the stream of its changes at
once, again and again. It writes the methods that it receives to the file that its
second argument names.
"""

import json
import os
import sys

GENERATION, LOG = sys.argv[1], sys.argv[2]
STATE = {"id": 1000, "grown": False, "early": []}
FORM = {"type": "object", "properties": {"name": {"type": "string"}, "tone": {"type": "string", "default": "kind"}}, "required": ["name"]}
SECRET = {"type": "object", "properties": {"password": {"type": "string"}}}
SAMPLE = {"messages": [{"role": "user", "content": {"type": "text", "text": "sum up"}}], "maxTokens": 100000}
SHAPE = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def send(message):
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def read():
    if STATE["early"]:
        return STATE["early"].pop(0)
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    message = json.loads(line)
    with open(LOG, "a") as log:
        log.write(str(message.get("method")) + " " + json.dumps(message.get("params", {}).get("name")) + "\n")
    return message


def text(words, **more):
    return {"content": [{"type": "text", "text": words}], "resultType": "complete", **more}


def ask(params, key, method, wanted):
    """What the client answers, and what to answer it with until it does."""
    if GENERATION != "old":
        answers = params.get("inputResponses") or {}
        if key in answers:
            return answers[key], None
        asked = {key: {"method": method, "params": wanted}}
        return None, {"resultType": "input_required", "inputRequests": asked, "requestState": "kept as it is"}
    STATE["id"] += 1
    mine = STATE["id"]
    send({"id": mine, "method": method, "params": wanted})
    while True:
        message = read()
        if message.get("id") == mine and "method" not in message:
            return message.get("result", message.get("error")), None
        STATE["early"].append(message)


TOOLS = ["ask", "ask_secret", "ask_page", "ask_often", "sample", "roots", "work", "hang", "pid", "grow", "fits", "misfits"]


def tools():
    names = TOOLS + (["extra"] if STATE["grown"] else [])
    listed = []
    for name in names:
        tool = {"name": name, "description": name, "inputSchema": {"type": "object", "properties": {}}}
        if name in ("fits", "misfits"):
            tool["outputSchema"] = SHAPE
        listed.append(tool)
    return listed


def call(name, params):
    if name in ("ask", "ask_secret"):
        form = {"mode": "form", "message": "Who are\x1b[2J you?", "requestedSchema": FORM if name == "ask" else SECRET}
        answer, wait = ask(params, "who", "elicitation/create", form)
        return wait or text(json.dumps(answer, sort_keys=True))
    if name == "ask_page":
        page = {"mode": "url", "message": "Go there", "url": "javascript:alert(1)", "elicitationId": "1"}
        answer, wait = ask(params, "page", "elicitation/create", page)
        return wait or text(json.dumps(answer))
    if name == "ask_often":
        said = []
        for turn in range(40):
            form = {"mode": "form", "message": "Again?", "requestedSchema": FORM}
            said.append(ask(params, str(turn), "elicitation/create", form)[0]["action"])
        return text(str(said.count("accept")))
    if name == "sample":
        answer, wait = ask(params, "sample", "sampling/createMessage", SAMPLE)
        return wait or text(json.dumps(answer, sort_keys=True))
    if name == "roots":
        answer, wait = ask(params, "roots", "roots/list", {})
        return wait or text(json.dumps(answer))
    if name == "work":
        token = params["_meta"]["progressToken"]
        for step in range(1, 1001):
            send({"method": "notifications/progress", "params": {"progressToken": token, "progress": step, "total": 1000, "message": "on it\u202e"}})
        send({"method": "notifications/progress", "params": {"progressToken": "another's", "progress": 1}})
        return text("worked")
    if name == "hang":
        return None
    if name == "grow":
        STATE["grown"] = True
        if GENERATION == "old":
            send({"method": "notifications/tools/list_changed"})
        return text("grown")
    if name == "fits":
        return text("7", structuredContent={"n": 7})
    if name == "misfits":
        return text("x", structuredContent={"n": "seven"})
    return text(str(os.getpid()))


def page(items, params):
    """Two a page."""
    start = int(params.get("cursor") or 0)
    rest = {"nextCursor": str(start + 2)} if start + 2 < len(items) else {}
    return items[start : start + 2], rest


CAPABILITIES = {"tools": {"listChanged": GENERATION != "new"}, "resources": {}, "prompts": {}}


def answer(method, params):
    common = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"} if GENERATION != "old" else {}
    if method == "initialize" and GENERATION == "old":
        return {"protocolVersion": "2025-11-25", "capabilities": CAPABILITIES, "serverInfo": {"name": "asks", "version": "1"}}
    if method == "server/discover" and GENERATION != "old":
        return {"supportedVersions": ["2026-07-28"], "capabilities": CAPABILITIES, "serverInfo": {"name": "asks", "version": "1"}, **common}
    if method == "tools/list":
        listed, rest = page(tools(), params)
        return {"tools": listed, **rest, **common}
    if method == "resources/list":
        every = [{"uri": f"memo://{n}", "name": f"memo {n}"} for n in range(5)] + [{"uri": "file:///etc/hosts", "name": "hosts"}]
        listed, rest = page(every, params)
        return {"resources": listed, **rest, **common}
    if method == "resources/templates/list":
        return {"resourceTemplates": [{"uriTemplate": "memo://by/{author}", "name": "by author"}], **common}
    if method == "resources/read":
        return {"contents": [{"uri": params["uri"], "mimeType": "text/plain", "text": "read " + params["uri"]}], **common}
    if method == "prompts/list":
        return {"prompts": [{"name": "greet", "arguments": [{"name": "who", "required": True}]}], **common}
    if method == "prompts/get":
        words = "Greet " + params.get("arguments", {}).get("who", "nobody")
        return {"messages": [{"role": "user", "content": {"type": "text", "text": words}}], **common}
    return "unknown"


while True:
    message = read()
    method, request, params = message.get("method"), message.get("id"), message.get("params", {})
    if request is None or method is None:
        continue
    result = call(params["name"], params) if method == "tools/call" else answer(method, params)
    if method == "subscriptions/listen" and GENERATION == "ends":
        send({"id": request, "error": {"code": -32000, "message": "not now"}})
    elif result == "unknown":
        send({"id": request, "error": {"code": -32601, "message": "no such method"}})
    elif result is not None:
        send({"id": request, "result": result})
