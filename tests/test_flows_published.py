"""A checkpoint of an older transformers is run as published, in captions, adapters and exports;
what was recorded or made before goes on as stock."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from artifacts.errors import UsageError
from flows.cli.main import main
from flows.deployments.caption import caption_videos
from flows.deployments.embed import embed_media
from flows.deployments.recorded import is_form_without_rule
from flows.deployments.tune import tune_captions
from flows.options.commands import CaptionConfig
from flows.options.vectors import EmbedConfig
from flows.planning.plan import figures, plan_of
from flows.results.recorded_command import repeated
from flows.results.run_record import RUN_RECORD
from penstock_demo import CHECKPOINT
from penstock_demo.clips import write_clips
from stages.models.adapters.reading import ADAPTER_WEIGHTS
from stages.models.published import FIELD
from tests.support.inside import InsideLauncher, Ran, run_inside
from tests.support.pipeline import Place

CLIPS = 2
STORED = f"{CLIPS} captions are stored as stock; --as-stock reuses them"
OTHERWISE = "is computed as its published code does"
SILENT = "does not record whether it was made as published, so it runs as stock"


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo as if transformers 4.49 had saved it."""
    made: Path = shutil.copytree(CHECKPOINT, tmp_path_factory.mktemp("older") / "model")
    config = (made / "config.json").read_text()
    assert '"transformers_version": "5.23.0"' in config
    (made / "config.json").write_text(config.replace("5.23.0", "4.49.0"))
    for path in made.iterdir():  # a plan trusts digests of files that are not new
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3600))
    return made


@pytest.fixture
def place(older: Path, tmp_path: Path) -> Place:
    write_clips(tmp_path / "clips", CLIPS, 7)
    return Place(
        clips=tmp_path / "clips", out=tmp_path / "out", store=tmp_path / "store", model=str(older)
    )


def way_of(place: Place) -> bool:
    return bool(json.loads((place.out / RUN_RECORD).read_text())["plan"]["as_published"])


def test_captions_as_stock_are_told_of_and_the_other_way_encodes_nothing_anew(
    place: Place,
) -> None:
    def run(**options: Any) -> Ran:
        return run_inside(place, fps=2.0, max_new_tokens=8, **options)

    stock = run(as_published=False)
    assert not way_of(place) and OTHERWISE not in stock.said
    before = place.captions()
    config = CaptionConfig(
        sources=(str(place.clips),),
        model=place.model,
        store=str(place.store),
        fps=2.0,
        max_new_tokens=8,
    )
    assert STORED in figures(plan_of(config, InsideLauncher()))["notes"]
    ruled = run()
    assert way_of(place) and OTHERWISE in ruled.said and STORED in ruled.said
    assert "frames" not in ruled.started or "encode" not in ruled.started
    assert {row["precision"]["language"] for row in place.captions()} == {
        before[0]["precision"]["language"] + " as published"
    }
    repeated = run(as_published=True)
    assert "decode" not in repeated.started and STORED not in repeated.said
    stock = run(as_published=False)
    assert not {"encode", "decode"} & {*stock.started}
    assert place.captions() == before


def test_a_command_that_was_recorded_before_goes_on_as_stock() -> None:
    words = ["caption", "clips", "--json"]
    assert repeated(words) == ["caption", "clips"]
    assert repeated(words, by_rule=False) == ["caption", "clips", "--as-stock"]
    published = ["caption", "clips", "--as-published"]
    assert repeated([*words, "--as-published"], by_rule=False) == published


def test_a_deployment_that_was_recorded_before_goes_on_as_stock() -> None:
    for flow in (caption_videos, tune_captions):
        form: dict[str, Any] = flow.parameters.model_dump()
        assert not is_form_without_rule(form)
        fields = next(d["properties"] for d in form["definitions"].values() if "properties" in d)
        fields["as_published"] = {"type": "boolean", "default": False}
        assert is_form_without_rule(form)
        del fields["as_published"]
        assert is_form_without_rule(form)
    assert not is_form_without_rule({})


def test_a_recorded_no_is_still_taken_by_commands_without_the_option() -> None:
    recorded = {"sources": ["clips"], "model": "clip", "as_published": False}
    taken = embed_media.validate_parameters({"config": recorded})["config"]
    assert taken == EmbedConfig(sources=("clips",), model="clip")
    with pytest.raises(UsageError, match="does not have `as_published`"):
        embed_media.validate_parameters({"config": {**recorded, "as_published": True}})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_adapter_says_which_way_it_was_trained_and_one_that_does_not_is_stock(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for clip, text in zip(sorted(place.clips.glob("*.mp4")), ("one", "two"), strict=True):
        clip.with_suffix(".txt").write_text(text)
    words = ["tune", str(place.clips), "--store", str(place.store), "--steps", "2"]
    words += ["--model", place.model]
    for name, more, way in (("a", [], "true"), ("b", ["--as-stock"], "false")):
        out = tmp_path / name
        assert main([*words, "--out", str(out), *more]) == 0
        with safe_open(out / ADAPTER_WEIGHTS, "pt") as file:
            assert file.metadata()[FIELD] == way
        for clip in place.clips.glob("*.txt"):
            clip.rename(tmp_path / clip.name)
        run_inside(place, adapter=str(out))
        assert way_of(place) is (way == "true")
        for own in tmp_path.glob("*.txt"):
            own.rename(place.clips / own.name)
    silent: Path = shutil.copytree(tmp_path / "a", tmp_path / "silent")
    (silent / "tune.json").unlink()
    save_file(load_file(silent / ADAPTER_WEIGHTS), silent / ADAPTER_WEIGHTS)
    ran = run_inside(place, adapter=str(silent))
    assert not way_of(place) and f"{silent} {SILENT}" in ran.said
    asked = run_inside(place, adapter=str(silent), as_published=True)
    assert way_of(place) and SILENT not in asked.said
    capsys.readouterr()
    # A training that goes on with such an adapter goes on as stock.
    assert main([*words, "--out", str(silent), "--resume"]) == 0
    assert f"{silent} {SILENT}" in re.sub(r"\s+", " ", capsys.readouterr().err)
    with safe_open(silent / ADAPTER_WEIGHTS, "pt") as file:
        assert file.metadata()[FIELD] == "false"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_export_says_which_way_its_model_is_run_and_one_that_does_not_is_stock(
    place: Place, tmp_path: Path
) -> None:
    out = tmp_path / "made"
    words = ["export", place.model, "--to", "nf4", "--out", str(out), "--samples", "2", "--accept"]
    words += ["--calibrate", str(place.clips), "--store", str(place.store)]
    assert main(words) == 0
    config = json.loads((out / "config.json").read_text())
    assert config[FIELD] is True and config["transformers_version"] == "4.49.0"
    exported = replace(place, model=str(out))
    run_inside(exported)
    assert way_of(place)
    del config[FIELD]
    (out / "config.json").write_text(json.dumps(config))
    ran = run_inside(exported)
    assert not way_of(place) and f"{out} {SILENT}" in re.sub(r"\s+", " ", ran.said)
