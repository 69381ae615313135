"""Checkpoints and GGUF files that mean harm or are damaged: each ends in words, within memory and
time, and none of its code runs. GGUF files need `make gguf`.

Each of the damaged GGUF files goes through what a run does with it, in a process of its own: the
stage that compares it with the checkpoint, and if that takes it, the loading of the decode stage, a
prompt and a step. llama.cpp must never see one that would end its process.
"""

import json
import os
import pickle
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import penstock_demo
from penstock_demo.clips import write_clips
from stages.models.gguf import FILE
from stages.models.gguf.header import GgufHeader, read_header
from stages.process.job import job_fields
from tests.support.attacks import ROOT, Outcome, attacked, seeded
from tests.support.gguf_bytes import mutations
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
    "import sys; from flows.checkpoint import profile_loading; from flows.cli.main import main\n"
    "profile_loading.MOST_SECONDS = 10.0; sys.exit(main(sys.argv[1:]))",
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
    "a tokenizer with a hungry pattern": tokens(
        lambda t: t.update(
            normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"}
        )
    ),
    "a nested config": text("config.json", nested(100_000)),
    "a config of a list": text("config.json", "[]"),
    "a billion layers": config(text_config__num_hidden_layers=10**9, text_config__layer_types=None),
    "many heads": config(text_config__num_attention_heads=0),
    "a vocabulary of all words": config(text_config__vocab_size=1 << 50),
    "a patch of nothing": config(vision_config__patch_size=0),
    "less than nothing": config(text_config__hidden_size=-192, vision_config__hidden_size=-1),
    "words for numbers": config(text_config__hidden_size="many", vision_config__depth=[4]),
    "huge pictures": processor(
        image_processor__size={"longest_edge": 1 << 60, "shortest_edge": 1 << 60}
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
        name = {"config": "config.json", "tokenizer": "tokenizer_config.json"}.get(
            kind, "processor_config.json"
        )
        path = folder / name
        value = json.loads(path.read_text())
        value["auto_map"] = dict.fromkeys(
            ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor"), "own.Own"
        ) | {"AutoTokenizer": ["own.Own", "own.Own"]}
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


MUTATIONS = 200
REFUSED, TAKEN = 2, 0
USED = {"general.architecture", "general.alignment", "split.count", "tokenizer.ggml.tokens"}
"""Metadata that decides what is loaded, beside that of the architecture."""
ARCHITECTURE, UNREAD = "qwen2vl.", {"qwen2vl.context_length"}
CLOSE = 1e-6
"""Relative difference of numbers that count as the same."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid file as others publish it, with the demo's language half."""
    from stages.export.jobs import ExportJob
    from stages.export.run import run
    from tests.support.published_gguf import published, tokens_of
    from tests.support.waves import events

    folder = tmp_path_factory.mktemp("whole")
    job = ExportJob(
        model=str(penstock_demo.CHECKPOINT), recipe={}, folder=str(folder / "export"),
        kind="gguf-q4_0", parts=("language",),
    )  # fmt: skip
    with events() as (report, _):
        run(job_fields(job), report)
    own = folder / "export" / FILE
    return published(
        own, folder / "published.gguf", tokens=tokens_of(penstock_demo.CHECKPOINT, own)
    )


def ends_of(files: list[Path]) -> list[dict[str, Any]]:
    """How processes end that use these files."""
    paths = map(str, [penstock_demo.CHECKPOINT, *files])
    command = [sys.executable, "-m", "tests.support.gguf_users", *paths]
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    env = {**os.environ, **one, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, check=True)
    found: list[dict[str, Any]] = json.loads(run.stdout)
    return found


def differences(first: GgufHeader, second: GgufHeader) -> set[str]:
    """The keys of metadata that differ, and the names of tensors that lie elsewhere."""
    found = {
        key
        for key in first.values.keys() | second.values.keys()
        if not same(first.values.get(key), second.values.get(key))
    }
    both = first.tensors.keys() | second.tensors.keys()
    return found | {n for n in both if first.tensors.get(n) != second.tensors.get(n)}


def decides(key: str) -> bool:
    """Whether a key of metadata, or a tensor, changes what is computed."""
    if key.endswith((".weight", ".bias")) or key in USED:
        return True
    return key.startswith(ARCHITECTURE) and key not in UNREAD


def same(first: Any, second: Any) -> bool:
    if isinstance(first, float) and isinstance(second, float):
        return abs(first - second) <= CLOSE * abs(first)
    return type(first) is type(second) and bool(first == second)


@pytest.mark.gguf
def test_damaged_files_are_one_line_each(whole: Path, tmp_path: Path) -> None:
    """Exit code 0 is right only if no tensor moved and all metadata that decides is as it was:
    what differs is a name, a description, a template, or padding. All else must be refused."""
    content, original = whole.read_bytes(), read_header(whole)
    ways = mutations(content, original.data_start, original.tensors)
    files: dict[Path, str] = {}
    for seed in range(MUTATIONS):
        way = list(ways)[seed % len(ways)]
        if (damaged := ways[way](random.Random(seed))) != content:
            file = tmp_path / f"{seed}.gguf"
            file.write_bytes(damaged)
            files[file] = way
    valid, *found = ends_of([whole, *files])
    assert valid["code"] == TAKEN, valid
    counts: Counter[str] = Counter()
    for (file, way), end in zip(files.items(), found, strict=True):
        said = end["said"]
        assert end["code"] in (REFUSED, TAKEN), (file, way, end)
        if end["code"] == TAKEN:
            changed = differences(original, read_header(file))
            assert not any(map(decides, changed)), (file, way, changed)
            counts["taken: " + ("unused metadata" if changed else "padding")] += 1
        else:
            assert "\n" not in said and str(file) in said and len(said) < 600, (file, said)
            counts["refused: " + ("damaged" if "is damaged" in said else "does not fit")] += 1
    longest = max(end["s"] for end in found)
    sys.stderr.write(f"{dict(counts)}, longest {longest:.1f} s\n")
    assert sum(n for name, n in counts.items() if name.startswith("refused")) > MUTATIONS // 2


@pytest.mark.gguf
@pytest.mark.parametrize("way", ["cut within the header", "a negative offset", "zeros"])
def test_the_command_says_it_in_one_line(whole: Path, tmp_path: Path, way: str) -> None:
    content = whole.read_bytes()
    ways = mutations(content, 2000, ["output_norm.weight"])  # before the tokens
    file = tmp_path / "damaged.gguf"
    file.write_bytes(ways[way](random.Random(way)))
    write_clips(tmp_path / "clips", 1, seed=1)
    run = attacked(
        "caption", tmp_path / "clips", "--model", "demo", "--language-gguf", file,
        "--store", tmp_path / "store", "--out", tmp_path / "out",
    )  # fmt: skip
    run.holds(2)
    assert run.err.splitlines()[-1].startswith(f"penstock: {file} "), run.err
