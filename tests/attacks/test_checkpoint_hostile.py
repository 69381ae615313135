"""Checkpoints that mean harm or are damaged: each ends in words, within memory and time, and none
of its code runs."""

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import penstock_demo
from tests.support.attacks import Outcome, attacked, seeded
from tests.support.hostile import (
    DOUBLING,
    NESTED,
    copy_of_demo,
    exploding,
    header,
    nested,
    updated,
    with_json,
    with_template,
)

pytestmark = pytest.mark.slow
BRIEF = [
    sys.executable,
    "-c",
    "import sys; from flows.core.checkpoint import profile_loading\n"
    "from flows.interfaces.cli.main import main\n"
    "profile_loading.MAX_SECONDS = 10.0; sys.exit(main(sys.argv[1:]))",
]
"""Penstock with less patience, so that what never ends does so before the test does."""
Make = Callable[[Path], Path]


def planned(folder: Path, *more: str) -> Outcome:
    """How a plan of this checkpoint ends, which describes it or says why it cannot be."""
    ended = attacked("plan", "--model", folder, "--memory", "1GiB", *more, command=BRIEF)
    ended.holds(0, 2, 3, 5)
    assert "unexpected error" not in ended.text, ended.text
    assert "batch-size" not in ended.err, ended.text
    return ended


def template(text: str) -> Make:
    return lambda folder: with_template(folder, text)


def tokens(change: Callable[[Any], Any]) -> Make:
    return lambda folder: with_json(folder, "tokenizer.json", change)


def config(**values: Any) -> Make:
    return lambda folder: with_json(folder, "config.json", updated(**values))


def processor(**values: Any) -> Make:
    return lambda folder: with_json(folder, "processor_config.json", updated(**values))


def text(name: str, content: str | bytes) -> Make:
    def make(folder: Path) -> Path:
        whole = content.encode() if isinstance(content, str) else content
        (copy_of_demo(folder) / name).write_bytes(whole)
        return folder

    return make


def huge(name: str) -> Make:
    def make(folder: Path) -> Path:
        with (copy_of_demo(folder) / name).open("r+b") as file:
            file.truncate(1 << 38)
        return folder

    return make


HUNGRY = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"}
GREEDY: dict[str, Make] = {
    "a template that doubles": template(DOUBLING),
    "a template of loops": template(NESTED),
    "a template of powers": template("{{ 9 ** 9 ** 9 }}"),
    "a template of brackets": template("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"),
    "a template that includes itself": template("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
    "a template of a class": template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "a template of bytes": text("chat_template.jinja", b"\xff\xfe\x00"),
    "a tokenizer that explodes": tokens(exploding),
    "a nested tokenizer": text("tokenizer.json", nested(100_000)),
    "a tokenizer with a hungry pattern": tokens(lambda t: t.update(normalizer=HUNGRY)),
    "a nested config": text("config.json", nested(100_000)),
    "a config of a list": text("config.json", "[]"),
    "a billion layers": config(text_config__num_hidden_layers=10**9, text_config__layer_types=None),
    "many heads": config(text_config__num_attention_heads=0),
    "a vocabulary of all words": config(text_config__vocab_size=1 << 50),
    "a patch of nothing": config(vision_config__patch_size=0),
    "less than nothing": config(text_config__hidden_size=-192, vision_config__hidden_size=-1),
    "words for numbers": config(text_config__hidden_size="many", vision_config__depth=[4]),
    "huge pictures": processor(
        image_processor__size=dict.fromkeys(("longest_edge", "shortest_edge"), 1 << 60)
    ),
    "a thousand merged": processor(image_processor__merge_size=100_000),
    "a huge tokenizer": huge("tokenizer.json"),
    "a huge template": huge("chat_template.jinja"),
}


PLACE = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def weights(content: bytes) -> Make:
    return text("model.safetensors", content)


def one(**changes: Any) -> Make:
    return weights(header({"a.weight": {**PLACE, **changes}}, bytes(16)))


def index(names: Any) -> Make:
    return text("model.safetensors.index.json", json.dumps({"weight_map": names}))


WEIGHTS: dict[str, Make] = {
    "no bytes": weights(b""),
    "a length of all": weights(b"\xff" * 8 + b"{}"),
    "a sparse header": huge("model.safetensors"),
    "nested": weights(len(nested(9999)).to_bytes(8, "little") + nested(9999).encode()),
    "below zero": one(data_offsets=[-16, 0]),
    "beyond the end": one(data_offsets=[0, 1 << 62]),
    "a shape of words": one(shape=["a", "b"]),
    "a shape of everything": one(shape=[1 << 62, 1 << 62]),
    "no such numbers": one(dtype="F999"),
    "overlapping": weights(header({"a.weight": PLACE, "b.weight": PLACE}, bytes(16))),
    "an index that leads out": index({"a": "../../../../etc/passwd"}),
    "an index that leads away": index({"a": "/dev/zero"}),
    "an index of nothing": index({"a": "gone.safetensors"}),
    "a nested index": text("model.safetensors.index.json", nested(100_000)),
}


@pytest.mark.parametrize("kind", [*GREEDY, *WEIGHTS])
def test_a_greedy_or_damaged_checkpoint_ends_in_words(tmp_path: Path, kind: str) -> None:
    planned((GREEDY | WEIGHTS)[kind](tmp_path / "model"))


class Sentinel:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.made = os.mkdir, (str(path),)

    def __reduce__(self) -> Any:
        return self.made


@pytest.mark.parametrize("kind", ["config", "tokenizer", "processor", "pickle"])
def test_code_that_is_not_trusted_never_runs(tmp_path: Path, kind: str) -> None:
    folder, ran = copy_of_demo(tmp_path / "model"), tmp_path / "ran"
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(ran)!r})\nclass Own: pass\n")
    if kind == "pickle":
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Sentinel(ran)))
    else:
        path = folder / (f"{kind}.json" if kind == "config" else f"{kind}_config.json")
        value = json.loads(path.read_text())
        classes = ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor")
        value["auto_map"] = {"AutoTokenizer": ["own.Own"] * 2, **dict.fromkeys(classes, "own.Own")}
        value |= {"model_type": "of_its_own"} if kind == "config" else {}
        value |= {"processor_class": "Own", "tokenizer_class": "Own"} if kind != "config" else {}
        path.write_text(json.dumps(value))
    planned(folder)
    assert not ran.exists()


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"]
)
def test_random_damage_ends_in_words(tmp_path: Path, name: str) -> None:
    draw = seeded(name)
    path = copy_of_demo(tmp_path / "model") / name
    content = bytearray(path.read_bytes())
    within = min(len(content), 1 << 12 if name == "model.safetensors" else 1 << 20)
    for _ in range(draw.choice((1, 1, 4))):
        content[draw.randrange(within)] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    planned(tmp_path / "model")


def test_no_stage_starts_with_a_checkpoint_that_is_refused(tmp_path: Path) -> None:
    folder = with_template(tmp_path / "model", DOUBLING)
    out = tmp_path / "out"
    clip, where = penstock_demo.CLIPS / "clip-01.mp4", ("--memory", "1GiB", "--out", out)
    ended = attacked("caption", clip, "--model", folder, *where)
    ended.holds(2)
    assert "takes more than 2.00 GiB of memory" in ended.err
    assert not (out / "logs").exists()
