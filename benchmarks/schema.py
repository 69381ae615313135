"""Captions that follow a JSON Schema, over captions as the model likes; prints shares and ratios.

Both are said by the real decode stage over the same features, in turns, each in a process of its
own. So that they are as long, the model has no end of its own: it is made to end with a token that
it never says. What the form asks for, six fields, it was never trained on. It does not know what a
form costs before the first token, such as reading a tokenizer.

    python benchmarks/schema.py [--clips 200] [--tokens 160] [--repeat 3] [--only transformers]
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jsonschema

from artifacts.keys import digest_of
from artifacts.packs import RecordSet
from artifacts.store import open_store
from benchmarks._bench import Bench, Runner, batches_of
from benchmarks._common import met
from benchmarks._models import publish_clips
from benchmarks._modes import run_mode
from penstock_demo import CHECKPOINT
from stages.decode.engines import ENGINES
from stages.decode.json_schema import canonical
from tests.support.forms import SIX

NEVER_SAID = 0
"""The token of the demo's vocabulary that pads."""
BATCH = 8
PROMPT = "Describe this video in detail."


def endless(folder: Path) -> Path:
    """The demo's checkpoint, which ends no caption by itself."""
    shutil.copytree(CHECKPOINT, folder)
    path = folder / "generation_config.json"
    told = {**json.loads(path.read_text()), "eos_token_id": NEVER_SAID}
    path.write_text(json.dumps(told))
    return folder


def is_valid(text: str) -> bool:
    try:
        jsonschema.Draft202012Validator(SIX).validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


class Sides:
    """Both ways of captioning the same clips, by one engine."""

    def __init__(self, bench: Bench, engine: str) -> None:
        self._bench = bench
        self._engine = engine
        self._runs = 0
        self.texts: list[str] = []
        """Captions of a form that were said so far."""

    def seconds(self, form: str) -> float:
        """CPU seconds a token, of captions of a form (empty: of none)."""
        self._runs += 1
        namespace = digest_of([self._engine, self._runs])
        done = self._bench.run(
            "decode",
            batches_of(self._bench.members, BATCH),
            namespace=namespace,
            engine=self._engine,
            generation={"schema": form} if form else {},
        )
        self.texts += done.texts if form else ()
        made = RecordSet(open_store(self._bench.store), "captions", namespace)
        tokens: int = sum(made.meta(key)["tokens"] for key in sorted(made.keys()))
        return done.cpu_seconds / tokens


def main(arguments: Sequence[str] | None = None, runner: Runner = run_mode) -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--clips", type=int, default=200)
    options.add_argument("--tokens", type=int, default=160)
    options.add_argument("--repeat", type=int, default=3)
    options.add_argument("--only", choices=tuple(ENGINES))
    given = options.parse_args(arguments)
    form, good = canonical(json.dumps(SIX)), True
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            model=endless(Path(folder, "model")),
            store=f"{folder}/store",
            members=publish_clips(f"{folder}/store", [8] * given.clips, PROMPT),
            tokens=given.tokens,
            runner=runner,
        )
        bench.run("encode", batches_of(bench.members, BATCH))
        for engine in [given.only] if given.only else ENGINES:
            sides = Sides(bench, engine)
            pairs = [(sides.seconds(form), sides.seconds("")) for _ in range(given.repeat)]
            ratio = statistics.median(ours / plain for ours, plain in pairs)
            more = statistics.median(ours - plain for ours, plain in pairs)
            valid = sum(map(is_valid, sides.texts)) / len(sides.texts)
            good = good and valid == 1
            print(f"{engine}: {given.clips} clips, {given.repeat} pairs")
            print(f"  valid: {valid:.1%} of {len(sides.texts)}, asked for 100 %: {met(valid == 1)}")
            print(f"  CPU time a token, with the form ÷ without: {ratio:.3f}")
            print(f"  and in milliseconds: {more * 1000:+.2f}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
