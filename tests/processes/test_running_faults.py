"""An item on which the model's own code raises fails by name, and the others go on."""

from pathlib import Path
from typing import Any

import pytest

from flows.core.job import pass_mode
from tests.support.inside import Ran, run_inside
from tests.support.media import write_video
from tests.support.pipeline import Place, place_below
from tests.support.raising import UNKNOWN, mistral3, write_dot, write_images
from tests.support.serving import REAL, serving


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mistral3(tmp_path_factory.mktemp("mistral3"))


@pytest.fixture(autouse=True)
def one_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each picture pass the encoder alone: this one raises on a dot that does."""
    monkeypatch.setattr(pass_mode, "_images_per_row", lambda model, device: 0)


@pytest.fixture
def place(tmp_path: Path, model: Path) -> Place:
    return place_below(tmp_path, model=model)


def run(place: Place, **options: Any) -> Ran:
    fixed = {"max_new_tokens": 4, "batch_size": 4}
    return run_inside(place, **{**fixed, **options})


def failed(place: Place) -> list[tuple[str, str, str]]:
    return [(row["media_path"], row["stage"], row["error"]) for row in place.failures()]


def test_the_only_item_fails_by_name_and_is_not_tried_again_until_asked(place: Place) -> None:
    write_dot(place.clips)
    assert run(place).result.exit_code == 1
    assert failed(place) == [("dot.png", "encode", "model")]
    again = run(place)
    assert again.result.exit_code == 1 and "encode" not in again.started
    forced = run(place, retry_failed=True)
    assert forced.result.exit_code == 1 and "encode" in forced.started
    assert failed(place) == [("dot.png", "encode", "model")]


@pytest.mark.slow
def test_a_video_whose_summary_raises_fails_by_name_and_keeps_its_captions(place: Place) -> None:
    place.clips.mkdir()
    write_video(place.clips / "one.mp4", ticks=range(2), size=(32, 32))
    options = {"summary": True, "summary_prompt": UNKNOWN}
    assert run(place, **options).result.exit_code == 1
    assert failed(place) == [("one.mp4", "summarize", "model")] and len(place.captions()) == 1
    again = run(place, **options)
    assert again.result.exit_code == 1 and "summarize" not in again.started
    assert run(place, summary=True, summary_prompt="All of it?").result.exit_code == 0
    assert failed(place) == []


@pytest.mark.slow
def test_a_request_that_raises_ends_no_half_of_a_server(tmp_path: Path, model: Path) -> None:
    write_images(tmp_path, 1)
    write_dot(tmp_path)
    good, bad = ((tmp_path / name).read_bytes() for name in ("good0.png", "dot.png"))
    command = [*REAL, "--caption-model", str(model)]
    with serving(tmp_path, command=command) as server:

        def ask(body: bytes, prompt: str = "What?") -> int:
            return server.ask("POST", f"/v1/caption?prompt={prompt}", body).status

        assert ask(good, UNKNOWN) == 422
        assert ask(good) == 200
        assert (ask(bad), ask(good, UNKNOWN), ask(good, "Where?")) == (422, 422, 200)
        counted = server.ask("GET", "/metrics").body.decode()
    restarts = [line for line in counted.splitlines() if line.startswith("penstock_restarts")]
    assert all(line.endswith(" 0") for line in restarts)
