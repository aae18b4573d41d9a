"""Runs the shapes of Coral's durability bench on LangGraph with its SQLite checkpointer.

Reads one JSON order per line from standard input and answers each with one line, as the Rust peers do: what one
workflow cost, how much memory a waiting one takes, or why the order can't be carried out. The first argument is
a directory for the database.
"""

import asyncio
import gc
import itertools
import json
import operator
import os
import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, TypedDict

from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph

WIDTH = 100


class State(TypedDict):
    text: str
    done: Annotated[int, operator.add]


def step(_state):
    return {"done": 1}


def chain(length=6):
    graph = StateGraph(State)
    names = [f"step-{n}" for n in range(length)]
    for name in names:
        graph.add_node(name, step)
    for before, after in zip([START, *names], [*names, END]):
        graph.add_edge(before, after)
    return graph


def fan_out():
    graph = StateGraph(State)
    branches = [f"branch-{n}" for n in range(WIDTH)]
    graph.add_node("join", step)
    for name in branches:
        graph.add_node(name, step)
        graph.add_edge(START, name)
    graph.add_edge(branches, "join")
    graph.add_edge("join", END)
    return graph


def checkpointer(directory):
    conn = sqlite3.connect(os.path.join(directory, "langgraph.db"), check_same_thread=False)
    saver = SqliteSaver(conn)
    saver.setup()
    mode = conn.execute("PRAGMA journal_mode").fetchone()[0]
    sync = conn.execute("PRAGMA synchronous").fetchone()[0]
    if (mode, sync) != ("wal", 2):
        raise RuntimeError(f"expected WAL and FULL, found {mode} and {sync}")
    return saver


def resident_bytes():
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def waiting(count):
    """Runs that each wait in their first step, without a checkpointer: bytes for each."""
    reached, release = 0, asyncio.Event()

    async def wait(_state):
        nonlocal reached
        reached += 1
        await release.wait()
        return {"done": 1}

    graph = StateGraph(State)
    graph.add_node("wait", wait)
    graph.add_edge(START, "wait")
    graph.add_edge("wait", END)
    graph = graph.compile()
    gc.collect()
    before = resident_bytes()
    runs = [asyncio.ensure_future(graph.ainvoke({"text": "", "done": 0})) for _ in range(count)]
    while reached < count:
        await asyncio.sleep(0)
    used = resident_bytes() - before
    release.set()
    await asyncio.gather(*runs)
    return used / count


def main():
    saver = checkpointer(sys.argv[1])
    graphs = {"chain": chain().compile(checkpointer=saver), "fan-out": fan_out().compile(checkpointer=saver)}
    numbers = itertools.count()

    def run(name):
        config = {"configurable": {"thread_id": f"run-{next(numbers)}"}, "max_concurrency": None}
        output = graphs[name].invoke({"text": "", "done": 0}, config, durability="sync")
        expected = {"chain": 6, "fan-out": WIDTH + 1}[name]
        if output["done"] != expected:
            raise RuntimeError(f"expected {expected} steps, found {output['done']}")

    def carry_out(order):
        if "waiting" in order:
            return {"bytes": asyncio.run(waiting(order["waiting"]))}
        count = order["times"] * order["in_flight"]
        cpu, wall = time.process_time(), time.perf_counter()
        if order["in_flight"] == 1:
            for _ in range(count):
                run(order["shape"])
        else:
            with ThreadPoolExecutor(order["in_flight"]) as threads:
                list(threads.map(run, [order["shape"]] * count))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return {"cost": {"cpu_us": cpu * 1e6 / count, "wall_us": wall * 1e6 / count}}

    for line in sys.stdin:
        try:
            answer = carry_out(json.loads(line))
        except Exception as error:  # noqa: BLE001 - the bench is told, and goes on
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
