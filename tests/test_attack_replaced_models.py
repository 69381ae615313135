"""Models and adapters replaced under a run, a server and a resumed run: what is said by one model
is never kept, nor written, as another's."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import ModelChanged, PenstockError
from penstock_demo import CHECKPOINT
from stages.models import describe
from stages.models.halves.load import load_half
from tests.support.adapters import adapter_of
from tests.support.pipeline import Place
from tests.support.replaced_models import (
    WEIGHTS,
    Models,
    place_in,
    run_disturbed,
    undisturbed,
)

pytestmark = pytest.mark.slow

AGAIN = "it is planned again, from the model as it is now"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Two models, which are copied for each attack."""
    return Models.below(tmp_path_factory.mktemp("models"))


@pytest.fixture
def models(kept: Models, tmp_path: Path) -> Models:
    folder = tmp_path / "model"
    shutil.copytree(kept.first, folder)
    return Models(folder=folder, first=kept.first, second=kept.second)


@pytest.fixture
def place(models: Models, tmp_path: Path) -> Place:
    return place_in(tmp_path, models.folder)


@pytest.fixture(scope="module")
def said(kept: Models, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each model says of the clip when nobody disturbs it."""
    found = {}
    for name, folder in (("first", kept.first), ("second", kept.second)):
        root = tmp_path_factory.mktemp(name)
        place = place_in(root, folder)
        run_disturbed(place, {})
        (found[name],) = captions(place)
    assert found["first"] != found["second"]
    return found


def captions(place: Place) -> list[str]:
    return [line["caption"] for line in place.captions()]


def is_of(place: Place, model: Path, root: Path, **options: Any) -> None:
    """The files that people get are those of an undisturbed run of a model, to the byte."""
    wanted = undisturbed(place, model, root, **options)
    found = (place.out / "captions.jsonl").read_bytes()
    assert found.replace(str(place.model).encode(), str(model).encode()) == wanted


def apart_from(place: Place, root: Path, **options: Any) -> list[str]:
    """What a run of the same says that has a store and a folder of its own."""
    apart = replace(place, out=root / "out", store=root / "store")
    run_disturbed(apart, {}, **options)
    return captions(apart)


REPLACED: dict[str, Callable[[Models], object]] = {
    "renamed in": lambda models: models.rename_in(models.second),
    "overwritten, its time set back": lambda models: models.overwrite(models.second),
    "a link": lambda models: link_in(models, models.second / WEIGHTS),
    "a hard link": lambda models: hard_link_in(models, models.second / WEIGHTS),
}


def link_in(models: Models, target: Path) -> None:
    (models.folder / WEIGHTS).unlink()
    (models.folder / WEIGHTS).symlink_to(target)


def hard_link_in(models: Models, target: Path) -> None:
    copy = models.folder.parent / "linked"
    shutil.copy(target, copy)
    (models.folder / WEIGHTS).unlink()
    os.link(copy, models.folder / WEIGHTS)


@pytest.mark.parametrize("stage", ["encode", "decode"])
@pytest.mark.parametrize("way", REPLACED)
def test_weights_replaced_before_a_stage_loads_are_planned_anew(
    models: Models, place: Place, said: dict[str, str], way: str, stage: str
) -> None:
    ran = run_disturbed(place, {stage: [lambda: REPLACED[way](models)]})
    assert captions(place) == [said["second"]]
    assert ran.said.count(AGAIN) == 1 and WEIGHTS in ran.said
    assert ran.started.count("encode") == 2, "features are of the model that captions"


def test_outputs_are_to_the_byte_those_of_the_new_model(
    models: Models, place: Place, tmp_path: Path
) -> None:
    options = {"format": ("jsonl", "txt", "vtt")}
    run_disturbed(place, {"decode": [lambda: models.rename_in(models.second)]}, **options)
    is_of(place, models.second, tmp_path / "apart", **options)
    for name in ("clip-01.txt", "clip-01.vtt"):
        found = (place.out / name).read_bytes()
        assert found == (tmp_path / "apart" / "out" / name).read_bytes()


def test_what_the_old_model_made_stays_under_its_key(
    models: Models, place: Place, said: dict[str, str]
) -> None:
    run_disturbed(place, {})
    before = {kind: place.stored(kind) for kind in ("features", "captions")}
    (place.clips / "more.mp4").write_bytes((place.clips / "clip-01.mp4").read_bytes() + b"\0")
    run_disturbed(place, {"decode": [lambda: models.rename_in(models.second)]})
    after = {kind: place.stored(kind) for kind in before}
    for kind, rows in before.items():
        assert rows.items() <= after[kind].items(), f"{kind} of the old model were touched"
    assert captions(place) == [said["second"]] * 2
    models.rename_in(models.first)
    ran = run_disturbed(place, {})
    assert captions(place)[0] == said["first"], "the old model still answers from the store"
    assert AGAIN not in ran.said


def test_the_old_model_put_back_at_once_is_not_what_was_loaded(
    models: Models, place: Place, said: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rename another file in while a half is loaded, and the old one back before anybody looks."""
    load, times = load_half, iter([True])

    def swapped(*arguments: Any, **options: Any) -> Any:
        if not next(times, False):
            return load(*arguments, **options)
        old = models.move_out()
        try:
            return load(*arguments, **options)
        finally:
            models.move_back(old)

    monkeypatch.setattr("stages.models.loading.load_half", swapped)
    ran = run_disturbed(place, {})
    assert captions(place) == [said["first"]] and AGAIN in ran.said
    assert len(place.stored("features")) == 1, "nothing of the other model is stored"
    monkeypatch.undo()
    shutil.rmtree(place.out)
    assert run_disturbed(place, {}).started == []
    assert captions(place) == [said["first"]]


def test_bytes_put_back_with_their_time_are_seen(
    models: Models, place: Place, said: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
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
    run_disturbed(place, {})
    assert captions(place) == [said["first"]] and len(place.stored("features")) == 1


def test_a_second_change_ends_the_run_in_one_line(models: Models, place: Place) -> None:
    swaps: list[Callable[[], object]] = [
        lambda: models.rename_in(models.second),
        lambda: models.rename_in(models.first),
    ]
    with pytest.raises(ModelChanged) as caught:
        run_disturbed(place, {"encode": swaps})
    assert caught.value.exit_code == 5 and "\n" not in str(caught.value)
    assert "twice" in caught.value.message and WEIGHTS in caught.value.message
    assert not (place.out / "captions.jsonl").exists()
    assert not place.stored("features") and not place.stored("captions")


def test_a_model_that_is_removed_is_named(models: Models, place: Place) -> None:
    with pytest.raises(PenstockError) as caught:
        run_disturbed(place, {"encode": [lambda: (models.folder / WEIGHTS).unlink()]})
    assert caught.value.exit_code in (2, 5) and "weights" in str(caught.value)
    assert not place.stored("features")


def test_a_whole_folder_that_is_exchanged_is_planned_anew(
    models: Models, place: Place, said: dict[str, str], tmp_path: Path
) -> None:
    def exchange() -> None:
        models.folder.rename(tmp_path / "old")
        shutil.copytree(models.second, models.folder)

    run_disturbed(place, {"decode": [exchange]})
    assert captions(place) == [said["second"]]


def test_a_link_to_a_folder_that_leads_elsewhere_is_planned_anew(
    models: Models, place: Place, said: dict[str, str], tmp_path: Path
) -> None:
    models.folder.rename(tmp_path / "versions")
    models.folder.symlink_to(tmp_path / "versions")

    def exchange() -> None:
        models.folder.unlink()
        models.folder.symlink_to(models.second)

    run_disturbed(place, {"encode": [exchange]})
    assert captions(place) == [said["second"]]


def template(models: Models) -> None:
    """Another chat template: the same turn, with a word before it."""
    path = models.folder / "chat_template.jinja"
    path.write_text("Please. " + path.read_text())


def tokenizer(models: Models) -> None:
    path = models.folder / "tokenizer.json"
    value = json.loads(path.read_text())
    value["added_tokens"].append(
        {**value["added_tokens"][-1], "content": "<|another|>", "id": 1_000}
    )
    path.write_text(json.dumps(value))


def settings(name: str, **changes: Any) -> Callable[[Models], None]:
    def change(models: Models) -> None:
        path = models.folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def added(models: Models) -> None:
    """A file that was not there, and that the loader reads."""
    (models.folder / "special_tokens_map.json").write_text("{}")


SMALL: dict[str, Callable[[Models], None]] = {
    "chat template": template,
    "tokenizer": tokenizer,
    "tokenizer's settings": settings("tokenizer_config.json", another=1),
    "configuration": settings("config.json", another=1),
    "generation settings": settings("generation_config.json", another=1),
    "a file that is added": added,
}


@pytest.mark.parametrize("what", SMALL)
def test_a_small_file_that_changes_before_decoding_is_planned_anew(
    models: Models, place: Place, what: str
) -> None:
    ran = run_disturbed(place, {"decode": [lambda: SMALL[what](models)]})
    assert ran.said.count(AGAIN) == 1
    assert len(place.stored("captions")) == 1, "nothing was said with the files of before"
    again = run_disturbed(place, {})
    assert again.started == [], "what is stored is of the files as they are now"


def test_another_chat_template_says_what_it_says_undisturbed(
    models: Models, place: Place, tmp_path: Path
) -> None:
    run_disturbed(place, {"decode": [lambda: template(models)]})
    shutil.copytree(models.folder, tmp_path / "now")
    is_of(place, tmp_path / "now", tmp_path / "apart")


def test_a_file_that_no_loader_reads_disturbs_nothing(models: Models, place: Place) -> None:
    ran = run_disturbed(place, {"decode": [lambda: (models.folder / "notes.md").write_text("x")]})
    assert AGAIN not in ran.said and ran.started.count("decode") == 1


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root, profile = tmp_path_factory.mktemp("adapters"), describe(CHECKPOINT)
    return adapter_of(root / "one", profile, 0.14), adapter_of(root / "two", profile, 0.2)


def weights_of(one: Path, two: Path) -> None:
    shutil.copy(two / "adapter_model.safetensors", one / "new")
    os.replace(one / "new", one / "adapter_model.safetensors")


def strength_of(one: Path, _: Path) -> None:
    path = one / "adapter_config.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "lora_alpha": 2 * value["lora_alpha"]}))


@pytest.mark.parametrize("change", [weights_of, strength_of])
def test_an_adapter_that_is_replaced_before_it_is_loaded_is_planned_anew(
    place: Place,
    adapters: tuple[Path, Path],
    tmp_path: Path,
    change: Callable[[Path, Path], None],
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(adapters[0], folder)
    ran = run_disturbed(
        place, {"decode": [lambda: change(folder, adapters[1])]}, adapter=str(folder)
    )
    assert ran.said.count(AGAIN) == 1 and ran.started.count("encode") == 1
    found = captions(place)
    assert found == apart_from(place, tmp_path / "apart", adapter=str(folder))
    assert len(place.stored("captions")) == 1, "nothing was said with the adapter of before"
