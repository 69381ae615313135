"""A server that captions what is heard in clips, against the command on the same files."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.media import write_video
from tests.support.omni import OMNI, omni_checkpoint
from tests.support.pipeline import PENSTOCK, Place
from tests.support.serving import Serving, a_picture, serving

TONE = Path(__file__).parents[4] / "data/tone.mp4"
PROMPT = "Say what is heard."


@pytest.fixture(scope="module", params=[OMNI[0], pytest.param(OMNI[1], marks=pytest.mark.slow)])
def served(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[tuple[Serving, str]]:
    """A server of a thinker, and its model."""
    folder, model = tmp_path_factory.mktemp("served"), str(omni_checkpoint(request.param))
    command = [*PENSTOCK, "serve", "--caption-model", model]
    with serving(folder, "--store", str(folder / "store"), command=command) as server:
        yield server, model


def asked(server: Serving, body: bytes, **fields: str) -> dict[str, Any]:
    query = "&".join(f"{name}={value.replace(' ', '%20')}" for name, value in fields.items())
    answer = server.ask("POST", f"/v1/caption?{query}", body)
    assert answer.status == 200, answer.body
    return dict(json.loads(answer.body))


@pytest.fixture
def place(served: tuple[Serving, str], tmp_path: Path) -> Place:
    """What the command captions: the clip alone, with the server's model and a store of its own."""
    (tmp_path / "clips").mkdir()
    shutil.copy(TONE, tmp_path / "clips")
    return Place(
        clips=tmp_path / "clips", out=tmp_path / "out", store=tmp_path / "store", model=served[1]
    )


@pytest.mark.slow
def test_served_captions_are_those_of_commands(served: tuple[Serving, str], place: Place) -> None:
    server, found = served[0], {}
    for sound in ("auto", "off", "on"):
        assert place.run("--prompt", PROMPT, "--sound", sound).returncode == 0
        (row,) = place.captions()
        answer = asked(server, TONE.read_bytes(), prompt=PROMPT, sound=sound)
        (given,) = answer["captions"]
        assert given["caption"] == row["caption"]
        assert given.get("heard", False) is ("heard" in row) is (sound != "off")
        assert answer["precision"] == row["precision"]
        assert answer["cached"] is (sound == "on")
        found[sound] = given["caption"]
    assert found["auto"] == found["on"] != found["off"]
    (given,) = asked(server, TONE.read_bytes())["captions"]
    assert place.run().returncode == 0
    assert given["caption"] == place.captions()[0]["caption"]


@pytest.mark.slow
def test_a_server_answers_from_the_store_of_a_command(place: Place) -> None:
    silent, picture = place.clips / "silent.mp4", place.clips / "image.jpg"
    write_video(silent)
    picture.write_bytes(a_picture())
    assert place.run("--prompt", PROMPT).returncode == 0
    command = [*PENSTOCK, "serve", "--caption-model", place.model]
    with serving(place.out.parent, "--store", str(place.store), command=command) as server:
        for row in place.captions():
            body = (place.clips / row["media_path"]).read_bytes()
            answer = asked(server, body, prompt=PROMPT, sound="on")
            (given,) = answer["captions"]
            assert answer["cached"] and given["caption"] == row["caption"]
            assert ("heard" in given) is ("heard" in row) is (row["media_path"] == "tone.mp4")
            assert not asked(server, body, prompt="What else?")["cached"]


def test_sound_on_fails_if_the_model_hears_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, command=[*PENSTOCK, "serve", "--caption-model", "demo"]) as server:
        answer = server.ask("POST", "/v1/caption?sound=on", TONE.read_bytes())
        assert answer.status == 422
        assert json.loads(answer.body)["error"] == "sound is on: demo hears nothing"
        assert asked(server, a_picture(), sound="on")["captions"]
        assert asked(server, TONE.read_bytes())["captions"]
        assert server.ask("POST", "/v1/caption?sound=loud", TONE.read_bytes()).status == 422
