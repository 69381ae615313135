"""How long the host takes for the masks of a schema while a card computes a step; prints a table.

64 answers are followed token by token, over a vocabulary of Qwen's size whose tokens are made as a
tokenizer's are, by joining others. The masks of a step are computed at once, on one thread and on
two. A step of 64 rows of a model of 3 billion parameters takes a card 5 to 8 ms.

    python -m benchmarks.schema_masks [--rows 64] [--words 151936]
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks._common import cells, heads, met

GOAL_MS = 8.0
"""What the masks of a step may take on two threads."""
LONGEST = 14
MARKED, MARKS = 0.02, ('"', '",', '":', ".", ",", "-")
"""Share of tokens with a mark, as in vocabularies of Qwen."""
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 200},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 30}, "maxItems": 12},
        "people": {"type": "integer", "minimum": 0, "maximum": 99},
        "mood": {"enum": ["calm", "busy", "tense"]},
    },
    "required": ["title", "tags", "people", "mood"],
}


def tokenizer_of(count: int, rng: random.Random) -> Any:
    """A tokenizer with so many tokens, and one that ends an answer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = pre_tokenizers.ByteLevel.alphabet()
    words = dict.fromkeys([*sorted(letters), *(f"Ġ{letter}" for letter in "abcdefghijklmnop")])
    parts = list("etaoinshrdlucmfwyp")
    while len(words) < count - 1:
        joined = rng.choice(parts) + rng.choice(parts)
        if len(joined) <= LONGEST // 2:
            parts.append(joined)
        if rng.random() < MARKED:
            joined = rng.choice((joined + rng.choice(MARKS), rng.choice(MARKS) + joined))
        words[joined] = None
    made = Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


def answers(rows: int, rng: random.Random) -> list[bytes]:
    """Texts that follow the schema."""

    def words(count: int) -> str:
        return " ".join(
            "".join(rng.choices("etaoinshr", k=rng.randint(2, 8))) for _ in range(count)
        )

    given = (
        {
            "title": words(rng.randint(3, 20)),
            "tags": [words(2) for _ in range(rng.randint(1, 9))],
            "people": rng.randint(0, 99),
            "mood": "calm",
        }
        for _ in range(rows)
    )
    return [json.dumps(each, separators=(",", ":")).encode() for each in given]


def step_times(
    vocabulary: Any, texts: Sequence[bytes], end: int, threads: int
) -> list[tuple[float, float]]:
    """Milliseconds of the masks of each step, of the clock and of the CPU."""
    import torch

    from stages.decode.constraint import SchemaLogitsProcessor
    from stages.decode.json_schema import canonical

    torch.set_num_threads(threads)
    processor = SchemaLogitsProcessor(vocabulary, canonical(json.dumps(SCHEMA)), 4_000, {end})
    rows = [processor.new_row() for _ in texts]
    tokens = [vocabulary.tokens.tokenize_bytes(text) for text in texts]
    took = []
    for step in range(min(map(len, tokens))):
        started, before = time.perf_counter(), time.process_time()
        masks = processor.masks_of(rows, [each[:step] for each in tokens], len(vocabulary.bytes))
        ended = time.perf_counter(), time.process_time()
        took.append(((ended[0] - started) * 1e3, (ended[1] - before) * 1e3))
        assert not masks.faults
    return took


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=64)
    options.add_argument("--words", type=int, default=151_936)
    given = options.parse_args(arguments)
    from stages.decode.constraint import Vocabulary

    rng = random.Random(5)
    tokenizer = tokenizer_of(given.words, rng)
    vocabulary, texts = Vocabulary(tokenizer), answers(given.rows, rng)
    print(f"{given.rows} masks over {len(vocabulary.bytes):,} tokens, ms a step")
    print(heads("threads | median | 90 of 100 within | CPU, median | goal"))
    for threads in (1, 2):
        found = step_times(vocabulary, texts, tokenizer.eos_token_id, threads)
        took, cpu = (sorted(each) for each in zip(*found, strict=True))
        median = statistics.median(took)
        goal = f"{GOAL_MS:g}: {met(median <= GOAL_MS)}" if threads == 2 else ""
        times = (f"{ms:.1f}" for ms in (median, took[len(took) * 9 // 10], statistics.median(cpu)))
        print(cells([threads, *times, goal]), flush=True)


if __name__ == "__main__":
    main()
