"""Models and adapters replaced under a run, a server and a resumed run: what is said by one model
is never kept, nor written, as another's."""

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import ModelChanged, PenstockError
from artifacts.keys import hash_file
from artifacts.model_files import ModelFiles
from artifacts.stamps import model_stamp_of
from flows.console.display import Display
from flows.machine.launch import StageCall
from flows.media.labels import label_set
from flows.options.commands import CaptionConfig
from flows.options.export_config import ExportRequest
from flows.options.tune import TuneConfig
from flows.running.export import export
from flows.running.label import LabelRequest, label
from flows.running.run import embed
from flows.running.tune import tune
from penstock_demo import CHECKPOINT, CLIPS, DUAL_CHECKPOINT
from stages.encode.job import EncodeJob
from stages.models import describe
from stages.models.encoding.run import EncodeRun
from stages.models.halves.load import load_half
from stages.process.stage_process import Listener
from tests.support.adapters import adapter_of, merged
from tests.support.inside import Ended, InsideLauncher, Ran, run_through
from tests.support.pipeline import PENSTOCK, Place, kill_at
from tests.support.serving import Serving, a_picture, serving

pytestmark = pytest.mark.slow

AGAIN = "planning again with the changed model"
WEIGHTS = "model.safetensors"
TOKENS = 8


def other_weights(source: Path, target: Path, seed: int = 0) -> Path:
    """Write the same tensors with other numbers, in a file of the same size; returns its path."""
    import torch
    from safetensors.torch import load_file, save_file

    draw = torch.Generator().manual_seed(seed)
    tensors = load_file(source)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.ndim > 1:
            noise = torch.randn(tensor.shape, generator=draw) * tensor.float().std()
            tensors[name] = (tensor.float() + 0.6 * noise).to(tensor.dtype)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target, metadata={"format": "pt"})
    return target


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """A model in a folder, and others to put there in its place."""

    folder: Path
    """The model that runs are given."""
    first: Path
    """Copy of what it is at first."""
    second: Path
    """The same with other weights."""

    @classmethod
    def below(cls, root: Path, checkpoint: Path = CHECKPOINT) -> "Models":
        found = cls(folder=root / "model", first=root / "first", second=root / "second")
        for place in (found.folder, found.first, found.second):
            shutil.copytree(checkpoint, place)
        other_weights(checkpoint / WEIGHTS, found.second / WEIGHTS)
        return found

    def rename_in(self, source: Path) -> None:
        """Rename a copy of another model's file into its place."""
        shutil.copy(source / WEIGHTS, self.folder / "new")
        os.replace(self.folder / "new", self.folder / WEIGHTS)

    def overwrite(self, source: Path) -> None:
        """Write another file's bytes into the file as it is, and set its time back."""
        path = self.folder / WEIGHTS
        before = path.stat()
        with path.open("r+b") as file:
            file.write((source / WEIGHTS).read_bytes())
            file.truncate()
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def link_to(self, target: Path) -> None:
        (self.folder / WEIGHTS).unlink()
        (self.folder / WEIGHTS).symlink_to(target)


@dataclass(kw_only=True, slots=True)
class Disturbed(InsideLauncher):
    """Runs stages in this process; before some of them something happens."""

    happens: dict[str, list[Callable[[], object]]] = field(default_factory=dict)
    """Stage → what happens before it starts, the first time, the second time and so on."""
    altered: Callable[[StageCall], StageCall] = lambda call: call
    """What each call is made to be."""

    def start(self, call: StageCall) -> Ended:
        if not getattr(call.job, "feed", "") and (left := self.happens.get(call.name)):
            left.pop(0)()
        return InsideLauncher.start(self, self.altered(call))

    def heard(self, listen: Listener) -> "Disturbed":
        """Make a run's launcher of it."""
        self.listen = listen
        return self


def place_in(root: Path, model: Path, clips: int = 1) -> Place:
    """A place with a few clips of the demo."""
    folder = root / "clips"
    folder.mkdir(exist_ok=True)
    for path in sorted(CLIPS.glob("*.mp4"))[:clips]:
        shutil.copy(path, folder)
    return Place(clips=folder, out=root / "out", store=root / "store", model=str(model))


def run_disturbed(
    place: Place,
    happens: dict[str, Sequence[Callable[[], object]]],
    altered: Callable[[StageCall], StageCall] = lambda call: call,
    **options: Any,
) -> Ran:
    """Caption a place's clips while things happen. Raises PenstockError."""
    told = {stage: [*each] for stage, each in happens.items()}
    launcher = Disturbed(happens=told, altered=altered)
    return run_through(
        launcher, place, **{"max_new_tokens": TOKENS, "precision": "fp32", **options}
    )


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


def captions(place: Place) -> list[str]:
    return [line["caption"] for line in place.captions()]


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


def exchange_folder(models: Models, root: Path) -> Callable[[], object]:
    def exchange() -> None:
        models.folder.rename(root / "old")
        shutil.copytree(models.second, models.folder)

    return exchange


def lead_elsewhere(models: Models, root: Path) -> Callable[[], object]:
    """The folder is a link, which comes to lead to another one."""
    models.folder.rename(root / "versions")
    models.folder.symlink_to(root / "versions")
    (root / "next").symlink_to(models.second)
    return lambda: (root / "next").replace(models.folder)


def other_commit(models: Models, root: Path) -> Callable[[], object]:
    """The file is a link into the cache of a hub, which comes to lead to another commit."""
    blobs = [root / "blobs" / hash_file(each / WEIGHTS) for each in (models.first, models.second)]
    blobs[0].parent.mkdir()
    for blob, each in zip(blobs, (models.first, models.second), strict=True):
        shutil.copy(each / WEIGHTS, blob)
    models.link_to(blobs[0])
    return lambda: models.link_to(blobs[1])


REPLACED: dict[str, Callable[[Models, Path], Callable[[], object]]] = {
    "renamed in": lambda models, _: lambda: models.rename_in(models.second),
    "overwritten, its time set back": lambda models, _: lambda: models.overwrite(models.second),
    "a link": lambda models, _: lambda: models.link_to(models.second / WEIGHTS),
    "a whole folder": exchange_folder,
    "a link to a folder": lead_elsewhere,
    "a link into a hub's cache": other_commit,
}


@pytest.mark.parametrize(
    ("way", "stage"),
    [("renamed in", "encode"), ("overwritten, its time set back", "encode")]
    + [(way, "decode") for way in REPLACED],
)
def test_weights_replaced_before_a_stage_loads_are_planned_anew(
    models: Models, place: Place, said: dict[str, str], tmp_path: Path, way: str, stage: str
) -> None:
    ran = run_disturbed(place, {stage: [REPLACED[way](models, tmp_path)]})
    assert captions(place) == [said["second"]]
    assert ran.said.count(AGAIN) == 1 and (WEIGHTS in ran.said or "folder" in way)
    assert ran.started.count("encode") == 2, "features are of the model that captions"


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


@pytest.mark.parametrize("way", ["renamed", "overwritten"])
def test_the_old_model_put_back_at_once_is_not_what_was_loaded(
    models: Models, place: Place, said: dict[str, str], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file is there while a half is loaded, and the old one again before anybody looks."""
    load, times, file = load_half, iter([True]), models.folder / WEIGHTS

    def swapped(*arguments: Any, **options: Any) -> Any:
        if not next(times, False):
            return load(*arguments, **options)
        if way == "renamed":
            file.rename(file.with_suffix(".kept"))
            shutil.copy(models.second / WEIGHTS, file)
        else:
            models.overwrite(models.second)
        try:
            return load(*arguments, **options)
        finally:
            if way == "renamed":
                file.with_suffix(".kept").replace(file)
            else:
                models.overwrite(models.first)

    monkeypatch.setattr("stages.models.loading.load_half", swapped)
    ran = run_disturbed(place, {})
    assert captions(place) == [said["first"]] and AGAIN in ran.said
    assert len(place.stored("features")) == 1, "nothing of the other model is stored"
    monkeypatch.undo()
    shutil.rmtree(place.out)
    assert run_disturbed(place, {}).started == []
    assert captions(place) == [said["first"]]


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


def template(models: Models) -> None:
    """Another chat template: the same turn, with a word before it."""
    path = models.folder / "chat_template.jinja"
    path.write_text("Please. " + path.read_text())


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
    "configuration": settings("config.json", another=1),
    "a file that is added": added,
}


@pytest.mark.parametrize("what", SMALL)
def test_a_small_file_that_changes_before_decoding_is_planned_anew(
    models: Models, place: Place, tmp_path: Path, what: str
) -> None:
    ran = run_disturbed(place, {"decode": [lambda: SMALL[what](models)]})
    assert ran.said.count(AGAIN) == 1
    assert len(place.stored("captions")) == 1, "nothing was said with the files of before"
    again = run_disturbed(place, {})
    assert again.started == [], "what is stored is of the files as they are now"
    if what == "chat template":
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


def ask_until_answered(server: Serving, medium: bytes, seconds: float = 60.0) -> dict[str, Any]:
    """The answer to a medium; a server that reads its model again says 503 and when to ask."""
    until = time.monotonic() + seconds
    while True:
        answer = server.ask("POST", "/v1/caption", medium)
        assert server.ask("GET", "/healthz").status == 200, "it is alive meanwhile"
        if answer.status == 200:
            return dict(json.loads(answer.body))
        assert answer.status == 503 and int(answer.headers["retry-after"]) > 0, answer.body
        assert b"model.safetensors" in answer.body, "it says which file"
        assert time.monotonic() < until, answer.body
        time.sleep(0.1)


def words_of(answer: dict[str, Any]) -> list[str]:
    return [each["caption"] for each in answer["captions"]]


def kill_halves(server: Serving) -> None:
    for stage in ("encode", "decode"):
        for pid in server.pids(stage):
            os.kill(pid, signal.SIGKILL)


def wait_away(server: Serving) -> None:
    until = time.monotonic() + 60
    while server.pids("encode") or server.pids("decode"):
        assert time.monotonic() < until, "its halves stay"
        time.sleep(0.1)


@contextlib.contextmanager
def captioning(models: Models, root: Path, *options: str) -> Iterator[Serving]:
    root.mkdir(exist_ok=True)
    model = ["--caption-model", str(models.folder)]
    command = [*PENSTOCK, "serve"]
    with serving(root, *model, "--store", root / "store", *options, command=command) as server:
        yield server


def test_a_server_answers_by_the_new_model_after_a_death_and_after_it_was_idle(
    models: Models, tmp_path: Path
) -> None:
    seen, new, newer = (path.read_bytes() for path in sorted(CLIPS.glob("*.mp4"))[:3])
    with captioning(models, tmp_path / "first", "--idle", "0.05") as server:
        first = words_of(ask_until_answered(server, seen))
        models.rename_in(models.second)
        kill_halves(server)
        second = {each: words_of(ask_until_answered(server, each)) for each in (new, seen)}
        wait_away(server)
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


def test_a_server_whose_model_changes_on_and_on_ends_in_one_line(
    models: Models, tmp_path: Path
) -> None:
    with captioning(models, tmp_path / "first") as server:
        models.rename_in(models.second)
        kill_halves(server)
        with contextlib.suppress(OSError):
            server.ask("POST", "/v1/caption", a_picture())
        until = time.monotonic() + 90
        while server.is_up():
            models.rename_in(models.first)
            time.sleep(0.02)
            assert time.monotonic() < until, "it goes on for ever"
        last = server.log.read_text().strip().splitlines()[-1]
        assert server.process.returncode == 5 and "the model changed twice" in last


@pytest.fixture(scope="module")
def kept_dual(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models.below(tmp_path_factory.mktemp("dual"), DUAL_CHECKPOINT)


@pytest.fixture
def dual(kept_dual: Models, tmp_path: Path) -> Models:
    shutil.copytree(kept_dual.first, tmp_path / "dual")
    return replace(kept_dual, folder=tmp_path / "dual")


def vectors_config(root: Path, model: Path) -> CaptionConfig:
    pictures = root / "pictures"
    if not pictures.exists():
        pictures.mkdir()
        (pictures / "one.jpg").write_bytes(a_picture())
    return CaptionConfig(
        sources=(str(pictures),),
        model=str(model),
        out=str(root / "out"),
        store=str(root / "store"),
    )


@pytest.mark.parametrize("stage", ["embed", "embed_texts"])
def test_vectors_and_labels_are_of_the_model_that_is_there(
    dual: Models, tmp_path: Path, stage: str
) -> None:
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

    config = vectors_config(tmp_path, dual.folder)
    disturbed = Disturbed(happens={stage: [lambda: dual.rename_in(dual.second)]})
    told, found = made(config, disturbed)
    assert told.count(AGAIN) == 1
    assert disturbed.started.count("embed") == (2 if stage == "embed" else 1)
    apart = replace(config, store=str(tmp_path / "apart"), out=str(tmp_path / "apart" / "out"))
    assert made(apart, Disturbed())[1] == found


def test_a_training_begins_anew_with_the_model_that_is_there(
    models: Models, place: Place, tmp_path: Path
) -> None:
    (place.clips / "clip-01.txt").write_text("a triangle moves")
    config = TuneConfig(
        data=str(place.clips),
        model=str(models.folder),
        out=str(tmp_path / "adapter"),
        store=str(place.store),
        steps=1,
        validate=0.0,
    )
    heard = StringIO()
    disturbed = Disturbed(happens={"tune": [lambda: models.rename_in(models.second)]})
    tune(config, Display(to=heard), disturbed.heard)
    assert heard.getvalue().count(AGAIN) == 1 and disturbed.started.count("tune") == 2
    assert disturbed.started.count("encode") == 2, "features are of the model that is trained"


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


def streamed(call: StageCall) -> StageCall:
    if call.name != "encode":
        return call
    assert isinstance(call.job, EncodeJob)
    half = replace(call.job.half, offload=True)
    return replace(call, job=replace(call.job, half=half, block=1))


def test_a_streamed_half_keeps_what_it_made_before_its_files_changed(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, str]
) -> None:
    place = place_in(tmp_path, models.folder, clips=3)
    after_one_record(monkeypatch, lambda: models.rename_in(models.second))
    ran = run_disturbed(place, {}, altered=streamed, batch_size=1)
    assert ran.said.count(AGAIN) == 1 and captions(place)[0] == said["second"]
    kept = place.stored("features")
    assert 3 < len(kept) < 6, "of the first model, what was made before; of the second, all"
    monkeypatch.undo()
    models.rename_in(models.first)
    again = run_disturbed(place, {}, altered=streamed, batch_size=1)
    assert captions(place)[0] == said["first"] and AGAIN not in again.said


def test_a_loaded_half_goes_on_when_its_files_change(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, str]
) -> None:
    """It is in memory: what it makes is of the model that it was planned with."""
    place = place_in(tmp_path, models.folder, clips=2)
    after_one_record(monkeypatch, lambda: models.rename_in(models.second))
    run_disturbed(place, {}, batch_size=1)
    assert len(place.stored("features")) == 4, "all of both models"
    assert captions(place)[0] == said["second"]


@pytest.mark.parametrize("way", ["renamed in", "overwritten, its time set back"])
def test_a_killed_run_goes_on_with_the_model_that_is_there(
    models: Models, tmp_path: Path, way: str
) -> None:
    place = place_in(tmp_path, models.folder, clips=2)
    more = ("--batch-size", "1", "--max-new-tokens", str(TOKENS), "--precision", "fp32")
    assert kill_at(place, "decode", 1, "group", *more) != 0
    before = place.stored("captions")
    REPLACED[way](models, tmp_path)()
    done = place.run(*more, "--format", "jsonl,txt,vtt")
    assert done.returncode == 0, done.stderr
    assert before.items() <= place.stored("captions").items()
    is_of(place, models.second, tmp_path / "apart", batch_size=1, format=("jsonl", "txt", "vtt"))
    assert len([*place.out.glob("clip-*.*")]) == 4


def test_what_describes_a_model_describes_the_one_that_was_digested(
    models: Models, place: Place, said: dict[str, str]
) -> None:
    """Its profile is kept under the digests of small files, and would be wrong for ever."""
    ran = run_disturbed(place, {"describe": [lambda: settings("config.json", another=1)(models)]})
    assert ran.started.count("describe") == 2 and AGAIN in ran.said
    assert captions(place) == [said["first"]]
    assert len(place.stored("cards")) == 1
