"""`--language-gguf`: what excludes it, that its check is remembered, and captions with it."""

from pathlib import Path
from typing import Any

import pytest

from artifacts import packages
from artifacts.errors import PenstockError, UsageError
from artifacts.records.store import FolderStore
from flows.commands.export import EXPORTS, GRAPHS
from flows.commands.tune import TUNE
from flows.core.checkpoint.models import Model, digests_in, open_model
from flows.core.console.display import Display
from flows.core.machine.launch import StageCall
from flows.core.options.commands import CaptionConfig
from flows.core.pipelines import CAPTION, LABEL, Pipeline
from flows.execution.run import caption
from penstock_demo import CHECKPOINT, DUAL_CHECKPOINT
from penstock_demo.clips import write_clips
from stages.models.half_job import DescribeJob
from stages.process.events import StageOutcome
from tests.commands.test_caption_published import stating
from tests.support.described import described
from tests.support.inside import Ended, InsideLauncher
from tests.support.pipeline import read_lines

FOUND = {"kind": "gguf-q4_k_m", "bytes": 1000, "parameters": 1_700_000, "replaced": 1_699_000}
FOUND |= {"width": 192, "inner": 512, "heads": 4, "whole": 0}


class Comparing:
    """Tells of every file that it fits."""

    def __init__(self) -> None:
        self.calls: list[StageCall] = []

    def start(self, call: StageCall) -> Ended:
        self.calls.append(call)
        assert call.name == "describe_gguf", call.name
        return Ended(outcome=StageOutcome(name=call.name, notes={"file": FOUND}))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file on a machine that looks as if the extra were installed."""
    monkeypatch.setattr(packages, "is_installed", lambda module: True)
    monkeypatch.setattr("flows.core.checkpoint.gguf.version", lambda name: "1")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    return tmp_path / "model.gguf"


def opened(store: Path, launcher: Any, file: Path, *pipelines: Pipeline, **options: Any) -> Model:
    if not store.exists():
        described(store)
    given = {"model": "demo", "language_gguf": str(file), **options}
    made, config = FolderStore(store), CaptionConfig(sources=("clip.mp4",), **given)
    machine: dict[str, Any] = {"digests": digests_in(made), "launcher": launcher, "device": "cpu"}
    return open_model(config, *(pipelines or (CAPTION,)), store=made, **machine)


def test_a_file_is_compared_once_and_keyed_by_its_content(file: Path, tmp_path: Path) -> None:
    launcher = Comparing()
    first = opened(tmp_path / "store", launcher, file)
    (call,) = launcher.calls
    assert isinstance(call.job, DescribeJob) and call.job.gguf == str(file)
    assert call.budget > 0 and call.seconds > 0 and str(file) in call.job.files.stamps
    settings = first.best("language")
    assert (settings.precision, settings.engine) == ("gguf-q4_k_m", "gguf")
    assert settings.gguf is not None and settings.gguf.digest in settings.key_fields
    demo = opened(tmp_path / "store", launcher, file, engine="gguf").best("language")
    assert demo == settings and len(launcher.calls) == 1
    # The decoder's own weights are not loaded. The others are in 32 bit on a CPU without bf16.
    each = 4 if settings.dtype == "float32" else 2
    assert settings.weight_bytes < each * (500 + 2 * first.profile.language.parameters // 100)
    file.write_bytes(b"GGUF again")
    again = opened(tmp_path / "store", launcher, file).best("language").gguf
    assert again is not None and again.digest != settings.gguf.digest
    assert len(launcher.calls) == 2
    assert again.copy != settings.gguf.copy
    assert Path(again.copy).is_relative_to(tmp_path / "store")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"engine": "inflight"}, "--engine inflight: the language half of demo is a GGUF file"),
        ({"engine": "transformers"}, "--engine transformers: the language half of demo is a GGUF"),
        ({"adapter": "A"}, "A"),
        ({"language_precision": "nf4"}, "--language-precision nf4: the language half of demo"),
        ({"language_gguf": "missing.gguf"}, "missing.gguf: there is no such file"),
        ({"language_gguf": "/dev/null"}, "/dev/null: this is no regular file"),
        ({"language_gguf": "a\0b"}, "is not a valid path"),
    ],
)
def test_options_that_exclude_it_are_refused(
    file: Path, tmp_path: Path, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(PenstockError) as raised:
        opened(tmp_path / "store", Comparing(), file, **options)
    assert text in raised.value.message and raised.value.hint


def test_it_is_not_used_for_vectors(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no language half that could be replaced"):
        opened(tmp_path / "store", InsideLauncher(), file, LABEL, model=str(DUAL_CHECKPOINT))


@pytest.mark.parametrize("pipelines", [(TUNE,), EXPORTS, GRAPHS])
def test_it_is_neither_trained_nor_exported(
    file: Path, tmp_path: Path, pipelines: tuple[Pipeline, ...]
) -> None:
    with pytest.raises(UsageError, match="cannot be trained or exported"):
        opened(tmp_path / "store", Comparing(), file, *pipelines)


def test_the_engine_without_a_file_names_the_option(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no GGUF file") as raised:
        opened(tmp_path / "store", InsideLauncher(), file, language_gguf="", engine="gguf")
    assert "--language-gguf FILE" in str(raised.value.hint)


@pytest.mark.slow
@pytest.mark.gguf
def test_a_published_file_captions_as_the_checkpoint_does(tmp_path: Path) -> None:
    from tests.support.builders.gguf_writer import write_gguf
    from tests.support.published_gguf import published, tokens_of

    write_clips(tmp_path / "clips", 6, seed=5)
    own = write_gguf(CHECKPOINT, tmp_path / "own.gguf")
    file = published(own, tmp_path / "published.gguf", tokens=tokens_of(CHECKPOINT, own))

    def rows(name: str, **options: Any) -> list[dict[str, Any]]:
        out = tmp_path / name
        where: dict[str, Any] = {"out": str(out), "store": str(tmp_path / "store")}
        config = CaptionConfig(sources=(str(tmp_path / "clips"),), **where, **options)
        assert caption(config, Display(quiet=True)).exit_code == 0
        return read_lines(out / "captions.jsonl")

    for way in (True, False):
        source = stating(CHECKPOINT, tmp_path / f"model {way}", way)
        found = rows(f"file {way}", model=source, language_gguf=str(file))
        expected = rows(f"torch {way}", model=source, language_precision="fp32")
        same = sum(a["caption"] == b["caption"] for a, b in zip(found, expected, strict=True))
        assert same >= len(found) - 1  # sums are rounded in another order
        kinds = {row["precision"]["language"] for row in found}
        assert kinds <= {"gguf-f32", "gguf-f32 as published"}
    (copy,) = (tmp_path / "store").glob("language-files/*")
    assert copy.stat().st_size < own.stat().st_size + 1000
