"""Models, adapters and indexes replaced under runs and servers: what one model made is never
stored, written or compared as that of another; an index that is away is refused with the reason."""

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from artifacts.disk.stamps import model_stamp_of
from artifacts.errors import ModelChanged
from artifacts.index.manifest import Maker
from artifacts.index.writing import writing
from artifacts.records.model_files import ModelFiles
from flows.commands.export.options import ExportConfig
from flows.commands.export.run import export
from flows.commands.label.run import label
from flows.core.console.display import Display
from flows.core.options.commands import CaptionConfig
from flows.core.options.vectors import LabelConfig, SearchQuery
from flows.execution.run import embed
from flows.interfaces.cli.main import main
from flows.interfaces.serve.refusals import HttpRefusal
from flows.interfaces.serve.searching import ServedIndex
from penstock_demo import CHECKPOINT, CLIPS, DUAL_CHECKPOINT
from stages.models import describe
from stages.models.encoding.run import EncodeRun
from stages.models.halves.load import load_half
from tests.support.adapters import adapter_of, merged
from tests.support.builders.clip import save_clip
from tests.support.builders.words import hf
from tests.support.embedding import write_images
from tests.support.indexes import MAKER, drawn, rows
from tests.support.pipeline import PENSTOCK, Place, kill_at
from tests.support.replaced_models import (
    TOKENS,
    WEIGHTS,
    Disturbed,
    Models,
    captions,
    place_in,
    run_disturbed,
)
from tests.support.serving import Serving, a_picture, serving
from tests.support.started import until

pytestmark = pytest.mark.slow

AGAIN = "planning again with the changed model"
Change = Callable[[Models, Path], None]
Said = pytest.CaptureFixture[str]


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
def captions_(kept: Models, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
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
    expected = (root / "out" / "captions.jsonl").read_bytes()
    found = (place.out / "captions.jsonl").read_bytes()
    assert found.replace(str(place.model).encode(), str(model).encode()) == expected


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        *((Models.rename_in, stage) for stage in ("encode", "decode")),
        *((Models.overwrite, stage) for stage in ("encode", "decode")),
        (Models.link_to_blob, "decode"),
    ],
)
def test_weights_replaced_before_a_stage_loads_are_planned_anew(
    models: Models, place: Place, captions_: dict[str, str], change: Change, stage: str
) -> None:
    change(models, models.first)
    ran = run_disturbed(place, {stage: [lambda: change(models, models.second)]})
    assert captions(place) == [captions_["second"]]
    assert ran.said.count(AGAIN) == 1 and WEIGHTS in ran.said
    assert ran.started.count("encode") == 2, "features are of the model that captions"


def test_the_old_model_put_back_at_once_is_not_what_was_loaded(
    models: Models, place: Place, captions_: dict[str, str], monkeypatch: pytest.MonkeyPatch
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
    assert captions(place) == [captions_["first"]] and AGAIN in ran.said
    assert len(place.stored("features")) == 1, "nothing of the other model is stored"
    monkeypatch.undo()
    shutil.rmtree(place.out)
    assert run_disturbed(place, {}).started == []
    assert captions(place) == [captions_["first"]]


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
    place: Place, adapters: tuple[Path, Path], tmp_path: Path, change: Callable[[Path, Path], None]
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

    def made(config: LabelConfig, disturbed: Disturbed) -> tuple[str, bytes]:
        heard = StringIO()
        if stage == "embed":
            embed(config, Display(to=heard), disturbed.heard)
        else:
            label(config, Display(to=heard), disturbed.heard)
        name = "embeddings.npy" if stage == "embed" else "labels.jsonl"
        return heard.getvalue(), (Path(config.out) / name).read_bytes()

    given: dict[str, Any] = {"model": str(dual.folder), "labels": str(tmp_path / "labels.txt")}
    given |= {"out": str(tmp_path / "out"), "store": str(tmp_path / "store")}
    config = LabelConfig(sources=(str(tmp_path / "pictures"),), threshold=-1.0, **given)
    disturbed = Disturbed(happens={stage: [lambda: dual.rename_in(dual.second)]})
    message, found = made(config, disturbed)
    assert message.count(AGAIN) == 1
    assert disturbed.started.count("embed") == (2 if stage == "embed" else 1)
    apart = replace(config, store=str(tmp_path / "apart"), out=str(tmp_path / "apart" / "out"))
    assert made(apart, Disturbed())[1] == found


@pytest.mark.parametrize("stage", ["judge", "export"])
def test_an_export_is_of_the_model_that_is_there(
    models: Models, place: Place, tmp_path: Path, stage: str
) -> None:
    config = CaptionConfig(sources=(str(place.clips),), model=place.model, store=str(place.store))
    made = str(tmp_path / "made")
    request = ExportConfig(model="demo", to="nf4", out=made, samples=2, accept=True)
    heard = StringIO()
    disturbed = Disturbed(happens={stage: [lambda: models.rename_in(models.second)]})
    export(config, request, Display(to=heard), disturbed.heard)
    assert heard.getvalue().count(AGAIN) == 1
    apart = replace(request, out=str(tmp_path / "apart"))
    export(config, apart, Display(quiet=True), Disturbed().heard)
    for name in (WEIGHTS, "config.json"):
        assert (request.folder / name).read_bytes() == (apart.folder / name).read_bytes()


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
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captions_: dict[str, str]
) -> None:
    """It is in memory: what it makes is of the model that it was planned with."""
    place = place_in(tmp_path, models.folder, clips=2)
    after_one_record(monkeypatch, lambda: models.rename_in(models.second))
    run_disturbed(place, {}, batch_size=1)
    assert len(place.stored("features")) == 4, "all of both models"
    assert captions(place)[0] == captions_["second"]


@pytest.mark.parametrize("change", [Models.rename_in, Models.overwrite])
def test_a_killed_run_goes_on_with_the_model_that_is_there(
    models: Models, tmp_path: Path, change: Change
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


COUNT = 20


def build(folder: Path, maker: Maker = MAKER, seed: int = 0) -> Path:
    with writing(folder, maker, "a test") as writer:
        writer.add([(rows(COUNT), drawn(COUNT, seed))])
    return folder


def anew(folder: Path, maker: Maker = MAKER, seed: int = 0) -> None:
    shutil.rmtree(folder)
    build(folder, maker, seed)


def hits_of(index: ServedIndex, seed: int, kind: Any, top: int) -> list[Any]:
    query = SearchQuery(what="-", top=top)
    return asyncio.run(index.search(drawn(1, seed)[0], kind, (), query))


def found(index: ServedIndex, seed: int = 0) -> list[str]:
    return [hit["media_path"] for hit in hits_of(index, seed, "texts", 3)]


def test_an_index_that_was_built_anew_is_searched_and_a_hit_of_before_is_known(
    tmp_path: Path,
) -> None:
    folder = build(tmp_path / "index")
    index = ServedIndex(folder, MAKER)
    stamp = (folder / "index.json").stat()
    first = found(index, seed=1)
    anew(folder, seed=1)
    os.utime(folder / "index.json", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert found(index, seed=1) != first and found(index, seed=1)[0] == "0.jpg"
    (hit,) = hits_of(index, 0, "pictures", 1)
    anew(folder, MAKER, seed=2)
    assert asyncio.run(index.row(hit["id"])).media_path == hit["media_path"]
    anew(folder, replace(MAKER, half="x"))
    with pytest.raises(HttpRefusal) as refused:
        asyncio.run(index.row(hit["id"]))
    assert refused.value.status == 503


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, a model whose halves lie in files of their own, and an index by it."""
    indexed = tmp_path_factory.mktemp("indexes")
    (indexed / "media").mkdir()
    write_images(indexed / "media")
    clip = save_clip(indexed / "clip")
    model: Any = hf.CLIPModel.from_pretrained(clip)
    (clip / "model.safetensors").unlink()
    model.save_pretrained(clip, max_shard_size="20KB")
    options = ["--out", str(indexed / "index"), "--store", str(indexed / "store"), "--quiet"]
    assert main(["index", "build", str(indexed / "media"), "--model", str(clip), *options]) == 0
    return indexed


def other_text_weights(model: Path) -> None:
    """Change files that hold nothing of the vision half."""
    changed = 0
    for path in sorted(model.glob("*.safetensors")):
        tensors = load_file(path)
        if all(name.startswith("text") for name in tensors):
            save_file({n: t * 1.5 for n, t in tensors.items()}, path, {"format": "pt"})
            changed += 1
    assert changed


def other_tokenizer(model: Path) -> None:
    rewrite(model / "tokenizer.json", with_value("normalizer", {"type": "Lowercase"}))


@pytest.mark.parametrize("change", [other_text_weights, other_tokenizer])
def test_words_are_not_read_by_a_model_that_changed_in_its_folder(
    indexed: Path, tmp_path: Path, change: Callable[[Path], None], capsys: Said
) -> None:
    model = shutil.copytree(indexed / "clip", tmp_path / "clip")
    change(model)
    where = ["--index", str(indexed / "index"), "--store", str(tmp_path / "store")]
    capsys.readouterr()
    assert main(["search", "a dog<eos>", "--model", str(model), *where]) == 2
    err = capsys.readouterr().err
    assert "are not those that it was made with" in err and err.count("\n") == 1


def ask_until_answered(server: Serving, medium: bytes) -> dict[str, Any]:
    """The answer to a medium; a server that reads its model again says 503 and when to ask."""
    deadline = time.monotonic() + 60
    while True:
        answer = server.ask("POST", "/v1/caption", medium)
        assert server.ask("GET", "/healthz").status == 200, "it is alive meanwhile"
        if answer.status == 200:
            return dict(json.loads(answer.body))
        assert answer.status == 503 and int(answer.headers["retry-after"]) > 0, answer.body
        assert WEIGHTS.encode() in answer.body, "it says which file"
        assert time.monotonic() < deadline, answer.body
        time.sleep(0.1)


def words_of(answer: dict[str, Any]) -> list[str]:
    return [each["caption"] for each in answer["captions"]]


def kill_halves(server: Serving) -> None:
    for stage in ("encode", "decode"):
        for pid in server.pids(stage):
            os.kill(pid, signal.SIGKILL)


def captioning(models: Models, root: Path, *options: str) -> AbstractContextManager[Serving]:
    root.mkdir(exist_ok=True)
    command = [*PENSTOCK, "serve", "--caption-model", str(models.folder)]
    return serving(root, *options, command=command)


def test_a_server_answers_by_the_new_model_after_a_death_and_after_it_was_idle(
    tmp_path: Path,
) -> None:
    models = Models.below(tmp_path)
    seen, new, newer = (path.read_bytes() for path in sorted(CLIPS.glob("*.mp4"))[:3])
    with captioning(models, tmp_path / "first", "--idle", "0.05") as server:
        first = words_of(ask_until_answered(server, seen))
        models.rename_in(models.second)
        kill_halves(server)
        second = {each: words_of(ask_until_answered(server, each)) for each in (new, seen)}
        until(lambda: not (server.pids("encode") or server.pids("decode")))
        models.rename_in(models.first)
        ask_until_answered(server, newer)
        again = ask_until_answered(server, seen)
        log = server.log.read_text()
    assert words_of(again) == first and again["cached"], "what it said before is in the store"
    assert log.count("the model is read again") == 2 and "Traceback" not in log
    models.rename_in(models.second)
    with captioning(models, tmp_path / "other") as server:
        undisturbed = {each: words_of(ask_until_answered(server, each)) for each in (new, seen)}
    assert undisturbed == second and undisturbed[seen] != first


def test_a_server_whose_model_changes_on_and_on_ends_in_one_line(tmp_path: Path) -> None:
    models = Models.below(tmp_path)
    with captioning(models, tmp_path / "first") as server:
        models.rename_in(models.second)
        kill_halves(server)
        with suppress(OSError):
            server.ask("POST", "/v1/caption", a_picture())
        deadline = time.monotonic() + 90
        while server.is_up():
            models.rename_in(models.first)
            time.sleep(0.02)
            assert time.monotonic() < deadline, "it goes on for ever"
        last = server.log.read_text().strip().splitlines()[-1]
        assert server.process.returncode == 5 and "the model changed twice" in last
