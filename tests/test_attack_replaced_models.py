"""Models and adapters replaced under a run and a resumed run: captions of one model
are never stored or written as those of another."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import ModelChanged, PenstockError
from artifacts.model_files import ModelFiles
from artifacts.stamps import model_stamp_of
from flows.console.display import Display
from flows.media.labels import label_set
from flows.options.commands import CaptionConfig
from flows.options.export_config import ExportRequest
from flows.running.export import export
from flows.running.label import LabelRequest, label
from flows.running.run import embed
from penstock_demo import CHECKPOINT, DUAL_CHECKPOINT
from stages.models import describe
from stages.models.encoding.run import EncodeRun
from stages.models.halves.load import load_half
from tests.support.adapters import adapter_of, merged
from tests.support.pipeline import Place, kill_at
from tests.support.replaced_models import (
    TOKENS,
    WEIGHTS,
    Disturbed,
    Models,
    captions,
    place_in,
    run_disturbed,
)
from tests.support.serving import a_picture

pytestmark = pytest.mark.slow

AGAIN = "planning again with the changed model"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Two models, which are copied for each attack."""
    return Models.below(tmp_path_factory.mktemp("models"))


@pytest.fixture
def models(kept: Models, tmp_path: Path) -> Models:
    shutil.copytree(kept.first, tmp_path / "model")
    return replace(kept, folder=tmp_path / "model")


@pytest.fixture
def place(models: Models, tmp_path: Path) -> Place:
    return place_in(tmp_path, models.folder)


@pytest.fixture(scope="module")
def said(kept: Models, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each model says of the clip when nobody disturbs it."""
    found = {}
    for name, folder in (("first", kept.first), ("second", kept.second)):
        place = place_in(tmp_path_factory.mktemp(name), folder)
        run_disturbed(place, {})
        (found[name],) = captions(place)
    assert found["first"] != found["second"]
    return found


def apart_from(place: Place, root: Path, **options: Any) -> list[str]:
    """What a run of the same says that has a store and a folder of its own."""
    apart = replace(place, out=root / "out", store=root / "store")
    run_disturbed(apart, {}, **options)
    return captions(apart)


def is_of(place: Place, model: Path, root: Path, **options: Any) -> None:
    """The files that people get are those of an undisturbed run of a model, to the byte."""
    apart_from(replace(place, model=str(model)), root, **options)
    for path in (root / "out").glob("clip-*.*"):
        assert (place.out / path.name).read_bytes() == path.read_bytes()
    wanted = (root / "out" / "captions.jsonl").read_bytes()
    found = (place.out / "captions.jsonl").read_bytes()
    assert found.replace(str(place.model).encode(), str(model).encode()) == wanted


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        *((Models.rename_in, stage) for stage in ("encode", "decode")),
        *((Models.overwrite, stage) for stage in ("encode", "decode")),
        (Models.link_to_blob, "decode"),
    ],
)
def test_weights_replaced_before_a_stage_loads_are_planned_anew(
    models: Models,
    place: Place,
    said: dict[str, str],
    change: Callable[[Models, Path], None],
    stage: str,
) -> None:
    change(models, models.first)
    ran = run_disturbed(place, {stage: [lambda: change(models, models.second)]})
    assert captions(place) == [said["second"]]
    assert ran.said.count(AGAIN) == 1 and WEIGHTS in ran.said
    assert ran.started.count("encode") == 2, "features are of the model that captions"


def test_the_old_model_put_back_at_once_is_not_what_was_loaded(
    models: Models, place: Place, said: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other bytes are there while a half is loaded, and the old ones again before anybody looks."""
    load, times = load_half, iter([True])

    def swapped(*arguments: Any, **options: Any) -> Any:
        if not next(times, False):
            return load(*arguments, **options)
        models.overwrite(models.second)
        try:
            return load(*arguments, **options)
        finally:
            models.overwrite(models.first)

    monkeypatch.setattr("stages.models.loading.load_half", swapped)
    ran = run_disturbed(place, {})
    assert captions(place) == [said["first"]] and AGAIN in ran.said
    assert len(place.stored("features")) == 1, "nothing of the other model is stored"
    monkeypatch.undo()
    shutil.rmtree(place.out)
    assert run_disturbed(place, {}).started == []
    assert captions(place) == [said["first"]]


def test_hard_links_that_a_backup_makes_during_a_run_change_no_model(
    models: Models, place: Place, said: dict[str, str], tmp_path: Path
) -> None:
    def link() -> None:
        for number, path in enumerate(models.folder.iterdir()):
            os.link(path, tmp_path / f"backup {number} {time.monotonic_ns()}")

    ran = run_disturbed(place, {"encode": [link], "decode": [link]})
    assert captions(place) == [said["first"]]
    assert AGAIN not in ran.said and ran.started.count("encode") == 1
    assert os.stat(models.folder / WEIGHTS).st_nlink == 3


def test_a_model_that_is_removed_is_named(models: Models, place: Place) -> None:
    with pytest.raises(PenstockError) as caught:
        run_disturbed(place, {"encode": [lambda: (models.folder / WEIGHTS).unlink()]})
    assert caught.value.exit_code in (2, 5) and "weights" in str(caught.value)
    assert not place.stored("features")


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


def with_value(name: str, value: Any) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), name: value})


SMALL: dict[str, Callable[[Path], object]] = {
    "template": lambda f: rewrite(f / "chat_template.jinja", lambda text: f"Please. {text}"),
    "configuration": lambda f: rewrite(f / "config.json", with_value("another", 1)),
    "a file that is added": lambda f: (f / "special_tokens_map.json").write_text("{}"),
}


@pytest.mark.parametrize("what", SMALL)
def test_a_small_file_that_changes_before_decoding_is_planned_anew(
    models: Models, place: Place, tmp_path: Path, what: str
) -> None:
    ran = run_disturbed(place, {"decode": [lambda: SMALL[what](models.folder)]})
    assert ran.said.count(AGAIN) == 1
    assert len(place.stored("captions")) == 1, "nothing was said with the files of before"
    again = run_disturbed(place, {})
    assert again.started == [], "what is stored is of the files as they are now"
    if what == "template":
        shutil.copytree(models.folder, tmp_path / "now")
        is_of(place, tmp_path / "now", tmp_path / "apart")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root, profile = tmp_path_factory.mktemp("adapters"), describe(CHECKPOINT)
    return adapter_of(root / "one", profile, 0.14), adapter_of(root / "two", profile, 0.2)


def weights_of(one: Path, two: Path) -> None:
    shutil.copy(two / "adapter_model.safetensors", one / "new")
    os.replace(one / "new", one / "adapter_model.safetensors")


def strength_of(one: Path, _: Path) -> None:
    rewrite(one / "adapter_config.json", with_value("lora_alpha", 16))


@pytest.mark.parametrize("change", [weights_of, strength_of])
def test_an_adapter_that_is_replaced_before_it_is_loaded_is_planned_anew(
    place: Place,
    adapters: tuple[Path, Path],
    tmp_path: Path,
    change: Callable[[Path, Path], None],
) -> None:
    folder = shutil.copytree(adapters[0], tmp_path / "adapter")
    swap = [lambda: change(folder, adapters[1])]
    ran = run_disturbed(place, {"decode": swap}, adapter=str(folder))
    assert ran.said.count(AGAIN) == 1 and ran.started.count("encode") == 1
    found = captions(place)
    assert found == apart_from(place, tmp_path / "apart", adapter=str(folder))
    assert len(place.stored("captions")) == 1, "nothing was said with the adapter of before"


@pytest.mark.parametrize("stage", ["embed", "embed_texts"])
def test_vectors_and_labels_are_of_the_model_that_is_there(tmp_path: Path, stage: str) -> None:
    dual = Models.below(tmp_path, DUAL_CHECKPOINT)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "one.jpg").write_bytes(a_picture())
    (tmp_path / "labels.txt").write_text("a red square\na blue circle\n")
    asked = LabelRequest(labels=label_set(str(tmp_path / "labels.txt"), ""), threshold=-1.0)

    def made(config: CaptionConfig, disturbed: Disturbed) -> tuple[str, bytes]:
        heard = StringIO()
        if stage == "embed":
            embed(config, Display(to=heard), disturbed.heard)
        else:
            label(config, asked, Display(to=heard), disturbed.heard)
        name = "embeddings.npy" if stage == "embed" else "labels.jsonl"
        return heard.getvalue(), (Path(config.out) / name).read_bytes()

    config = CaptionConfig(
        sources=(str(tmp_path / "pictures"),),
        model=str(dual.folder),
        out=str(tmp_path / "out"),
        store=str(tmp_path / "store"),
    )
    disturbed = Disturbed(happens={stage: [lambda: dual.rename_in(dual.second)]})
    told, found = made(config, disturbed)
    assert told.count(AGAIN) == 1
    assert disturbed.started.count("embed") == (2 if stage == "embed" else 1)
    apart = replace(config, store=str(tmp_path / "apart"), out=str(tmp_path / "apart" / "out"))
    assert made(apart, Disturbed())[1] == found


@pytest.mark.parametrize("stage", ["judge", "export"])
def test_an_export_is_of_the_model_that_is_there(
    models: Models, place: Place, tmp_path: Path, stage: str
) -> None:
    config = CaptionConfig(
        sources=(str(place.clips),), model=str(models.folder), store=str(place.store)
    )
    asked = ExportRequest(kind="nf4", folder=tmp_path / "made", samples=2, accept=True)
    heard = StringIO()
    disturbed = Disturbed(happens={stage: [lambda: models.rename_in(models.second)]})
    export(config, asked, Display(to=heard), disturbed.heard)
    assert heard.getvalue().count(AGAIN) == 1
    apart = replace(asked, folder=tmp_path / "apart")
    export(config, apart, Display(quiet=True), Disturbed().heard)
    for name in (WEIGHTS, "config.json"):
        assert (asked.folder / name).read_bytes() == (apart.folder / name).read_bytes()


def test_an_adapter_is_merged_into_the_model_that_is_there(
    models: Models, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    """The process that merges finds both as they were planned, or writes nothing."""
    files = [models.folder / WEIGHTS, adapters[0] / "adapter_model.safetensors"]
    planned = ModelFiles(stamps={str(path): model_stamp_of(path) for path in files})
    models.rename_in(models.second)
    with pytest.raises(ModelChanged, match=WEIGHTS):
        merged(models.folder, adapters[0], tmp_path / "merged", files=planned)
    assert not list((tmp_path / "merged").glob("*.safetensors"))


def after_one_record(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Have something happen after the first record was published."""
    stock, times = EncodeRun._publish, iter([True])

    def publish(encoding: EncodeRun, made: Any) -> None:
        stock(encoding, made)
        if next(times, False):
            happens()

    monkeypatch.setattr(EncodeRun, "_publish", publish)


def test_a_loaded_half_goes_on_when_its_files_change(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, str]
) -> None:
    """It is in memory: what it makes is of the model that it was planned with."""
    place = place_in(tmp_path, models.folder, clips=2)
    after_one_record(monkeypatch, lambda: models.rename_in(models.second))
    run_disturbed(place, {}, batch_size=1)
    assert len(place.stored("features")) == 4, "all of both models"
    assert captions(place)[0] == said["second"]


@pytest.mark.parametrize("change", [Models.rename_in, Models.overwrite])
def test_a_killed_run_goes_on_with_the_model_that_is_there(
    models: Models, tmp_path: Path, change: Callable[[Models, Path], None]
) -> None:
    place = place_in(tmp_path, models.folder, clips=2)
    more = ("--batch-size", "1", "--max-new-tokens", str(TOKENS), "--precision", "fp32")
    assert kill_at(place, "decode", 1, "group", *more) != 0
    before = place.stored("captions")
    change(models, models.second)
    done = place.run(*more, "--format", "jsonl,txt,vtt")
    assert done.returncode == 0, done.stderr
    assert before.items() <= place.stored("captions").items()
    is_of(place, models.second, tmp_path / "apart", batch_size=1, format=("jsonl", "txt", "vtt"))
    assert len([*place.out.glob("clip-*.*")]) == 4


def test_what_describes_a_model_describes_the_one_that_was_digested(
    models: Models, place: Place, said: dict[str, str]
) -> None:
    """Its profile is kept under the digests of small files, and would be wrong for ever."""
    ran = run_disturbed(place, {"describe": [lambda: SMALL["configuration"](models.folder)]})
    assert ran.started.count("describe") == 2 and AGAIN in ran.said
    assert captions(place) == [said["first"]]
    assert len(place.stored("cards")) == 1
