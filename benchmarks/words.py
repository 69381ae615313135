"""A search of 200,000 captions by their words: the size of the index beside the text, what building
it takes, and CPU time of each sort of query.

Captions are drawn: 24 words of a vocabulary of 30,000 by Zipf's law with 6 articles and such among
them, or 60 characters of 3,000, as in Chinese.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from artifacts.index.where import Condition
from artifacts.index.words import query_of
from flows.commands.search.run_texts import RunTexts
from tests.support.builders.caption_lines import write_captions
from tests.support.builders.common import cpu_seconds

LETTERS = "etaoinshrdlucmfwypvbgk"
ARTICLES = ("a", "the", "of", "in", "with", "and")
TRIES, TOP = 9, 30
SETTINGS = {"model": "demo", "prompt": "Describe this video in detail.", "features": "0" * 64}


def words() -> list[str]:
    draw = random.Random(0)
    made = ("".join(draw.choices(LETTERS, k=draw.randint(3, 9))) for _ in range(40_000))
    return [*dict.fromkeys(made)][:30_000]


def drawn(count: int, vocabulary: list[str], length: int, joint: str) -> Iterator[str]:
    draw, weights = random.Random(1), [1 / (n + 5) for n in range(len(vocabulary))]
    totals = [sum(weights[:1])]
    for weight in weights[1:]:
        totals.append(totals[-1] + weight)
    for _ in range(count):
        chosen = draw.choices(vocabulary, cum_weights=totals, k=length)
        for at in range(0, length, 4) if joint else ():
            chosen.insert(at, draw.choice(ARTICLES))
        yield joint.join(chosen)


def measure(folder: Path, name: str, captions: list[str], queries: dict[str, str]) -> None:
    """Print the size, the time to build and the time of each query."""
    run, store = folder / name, str(folder / f"{name}-store")
    write_captions(run, captions, **SETTINGS)
    built = cpu_seconds(lambda: RunTexts(run, store, lambda _: None).close())
    (path,) = Path(store).glob("words/*.sqlite")
    size, lines = path.stat().st_size, os.path.getsize(run / "captions.jsonl")
    text = sum(len(json.dumps(caption, ensure_ascii=False).encode()) - 2 for caption in captions)
    print(
        f"{name}: {len(captions):,} captions, {text / 1e6:.1f} MB of text in {lines / 1e6:.0f} MB "
        f"of lines; index {size / 1e6:.1f} MB ({size / text:.2f} of the text, {size / lines:.2f} "
        f"of the lines), built in {built:.1f} s CPU"
    )
    opened = cpu_seconds(lambda: RunTexts(run, store, lambda _: None).close())
    print(f"  {'opened':34s} {opened * 1000:7.1f} ms CPU")
    texts = RunTexts(run, store, lambda _: None)
    for sort, query in queries.items():
        find = partial(texts.find, query_of(query), TOP)
        took = statistics.median(cpu_seconds(find) for _ in range(TRIES))
        print(f"  {sort:34s} {took * 1000:7.1f} ms CPU, {len(find()):2d} hits", flush=True)
    sort, query = next(iter(queries.items()))
    for kept in ("path like '%7.png'", "path like '%77777.png'"):
        took = cpu_seconds(partial(texts.find, query_of(query), TOP, Condition(kept)))
        print(f"  {sort}, {kept}: {took * 1000:.0f} ms CPU")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--captions", type=int, default=200_000)
    count = options.parse_args().captions
    vocabulary, signs = words(), [chr(0x4E00 + n) for n in range(3000)]
    a, b, c = (vocabulary[n] for n in (0, 7, 40))
    queries = {
        "a word of nearly all captions": "a",
        "the most frequent noun": a,
        "a rare word": vocabulary[9000],
        "three words": f"{a} {b} {c}",
        "four frequent words": f"a the {a} {b}",
        "a phrase of two words": f'"{a} {b}"',
        "a prefix of three letters": f"{c[:3]}*",
        "a prefix of two letters": f"{c[:2]}*",
        "a prefix of one letter": "e*",
    }
    with tempfile.TemporaryDirectory(prefix="penstock-words-") as name:
        measure(Path(name), "English", [*drawn(count, vocabulary, 24, " ")], queries)
        queries = {
            "the most frequent character": signs[0],
            "a word of two characters": signs[3] + signs[20],
            "three words": f"{signs[1]} {signs[30]}{signs[5]} {signs[90]}",
            "a rare character": signs[2900],
        }
        measure(Path(name), "Chinese", [*drawn(count, signs, 60, "")], queries)


if __name__ == "__main__":
    main()
