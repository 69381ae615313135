"""`penstock review`: captions are found by what a trainer does not see of them."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image
from starlette.testclient import TestClient
from tokenizers import Tokenizer

import penstock_demo
from flows.commands.review.seen_captions import FIELD, Trained
from flows.interfaces.cli.main import main
from flows.interfaces.studio.runs import run_id
from flows.interfaces.studio.server import studio_app
from flows.interfaces.studio.session import Studio
from tests.support.media import write_video
from tests.support.saying import Saying, run
from tests.support.stand_ins import config_in
from tests.support.trainers import kohya_bucket

LONG = "a red ball and a blue box " * 20
PICTURES = {"a": (512, 512), "b": (512, 512), "c": (3072, 512), "d": (200, 200), "e": (512, 512)}
TEXTS = {
    "a": f"a picture of {LONG}",
    "b": "a ball",
    "c": "a wide field",
    "d": "ohwx, a ball",
    "e": "a ball",
}


@dataclass(frozen=True)
class Reviewed:
    """A review whose page is asked what a trainer does not see."""

    client: TestClient
    out: Path

    def ask(self, filter_: str, status: int = 200) -> dict[str, Any]:
        answer = self.client.get(f"run/{run_id(self.out)}/seen", params={"filter": filter_})
        assert answer.status_code == status, answer.text
        return cast(dict[str, Any], answer.json())

    @property
    def names(self) -> dict[str, str]:
        """Key of a caption → stem of its medium."""
        media = self.client.get(f"run/{run_id(self.out)}/captions").json()["media"]
        return {row["key"]: Path(m["name"]).stem for m in media for row in m["captions"]}

    def found(self, filter_: str) -> set[str]:
        return {self.names[key] for key in self.ask(filter_)["keys"]}

    def lost(self, stem: str, filter_: str = "all") -> dict[str, Any]:
        of = self.ask(filter_)["lost"]
        return next((value for key, value in of.items() if self.names[key] == stem), {})

    def edit(self, texts: dict[str, str], review: str = "accepted") -> None:
        keys = {stem: key for key, stem in self.names.items()} | {key: key for key in self.names}
        now = self.client.get(f"run/{run_id(self.out)}/captions").json()["edits"]
        none = {"caption": None, "review": ""}
        changes = [
            {"of": keys[stem], "caption": text, "review": review, "was": now.get(keys[stem], none)}
            for stem, text in texts.items()
        ]
        deed = {"id": os.urandom(8).hex(), "does": "correct", "changes": changes}
        answer = self.client.post(f"run/{run_id(self.out)}/edits", json=deed)
        assert answer.status_code == 200, answer.text


@contextlib.contextmanager
def review_of(root: Path, trained: Trained) -> Iterator[Reviewed]:
    out = root / "out"
    values: Any = {"config_of": None, "trained": trained, "store": str(root / "store")}
    opened = Studio(folder=root / "photos", out=out, **values)
    with contextlib.closing(opened):
        client = TestClient(studio_app(opened), f"http://127.0.0.1/{opened.token}/")
        client.headers |= {"x-penstock-token": opened.token, "origin": "http://127.0.0.1"}
        yield Reviewed(client, out)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The demo's tokenizer in the place of CLIP's."""
    folder = tmp_path_factory.mktemp("tokenizers") / "clip"
    folder.mkdir()
    shutil.copy(penstock_demo.CHECKPOINT / "tokenizer.json", folder)
    return Trained(tokenizers=folder.parent)


@pytest.fixture
def reviewed(tmp_path: Path, trained: Trained) -> Iterator[Reviewed]:
    """A review of pictures that a run wrote for kohya's SD 1.5, and whose captions were edited
    since."""
    (tmp_path / "photos").mkdir()
    for at, (stem, size) in enumerate(PICTURES.items()):
        picture = Image.linear_gradient("L").resize(size).convert("RGB")
        picture.putpixel((0, 0), (at, at, at))
        picture.save(tmp_path / "photos" / f"{stem}.png")
    config = config_in(tmp_path, tmp_path / "photos", trainer=("kohya:sd1.5",), trigger="ohwx")
    run(config, Saying())
    with review_of(tmp_path, trained) as made:
        made.edit(TEXTS)
        yield made


def tokens_of(text: str) -> int:
    """The tokens of a caption as CLIP gets it, by the library that trainers use."""
    stock = Tokenizer.from_file(str(penstock_demo.CHECKPOINT / "tokenizer.json"))
    return len(stock.encode(f"ohwx, {text}", add_special_tokens=False).ids)


def test_captions_are_found_by_each_rule_with_the_edits_that_no_data_set_has_yet(
    reviewed: Reviewed,
) -> None:
    counts = {stem: tokens_of(text.removeprefix("ohwx, ")) for stem, text in TEXTS.items()}
    assert counts["a"] > 75
    least = counts["c"]
    assert reviewed.found("tokens > 75") == reviewed.found("tokens") == {"a"}
    assert reviewed.found(f"tokens >= {least}") == {s for s, n in counts.items() if n >= least}
    assert reviewed.found("duplicate") == {"b", "d", "e"}  # the trigger that was typed is the run's
    assert reviewed.found("duplicate > 3") == set()
    assert reviewed.found("cropped > 20 %") == reviewed.found("cropped>20%") == {"c"}
    assert reviewed.found("cropped < 5 % and not (tokens or duplicate)") == set()
    assert reviewed.found("small") == reviewed.found("Enlarged >= 2") == {"d"}
    assert reviewed.found("any") == {"a", "b", "c", "d", "e"}
    assert reviewed.found("trigger") == reviewed.found("unseen seconds > 0") == set()
    texts = "".join(reviewed.lost("a")["texts"])
    assert texts.startswith("tokens: ") and "never seen: “" in texts and "box" in texts
    reviewed.edit({"a": "a ball on grass"})
    assert reviewed.found("tokens") == set()
    reviewed.edit({"e": "a ball"}, "rejected")
    assert reviewed.found("duplicate") == {"b", "d"}, "what was rejected is in no data set"


def test_the_crop_is_what_the_bucket_of_the_trainer_keeps(reviewed: Reviewed) -> None:
    wide, high = PICTURES["c"]
    bucket = kohya_bucket(wide, high, {"resolution": 512, "max_bucket_reso": 1024})
    scale = max(bucket[0] / wide, bucket[1] / high)
    left, top, right, bottom = reviewed.lost("c")["crop"]
    expected = bucket[0] / scale, bucket[1] / scale
    assert (right - left, bottom - top) == pytest.approx(expected, abs=1)
    assert (left, top) == (wide - right, high - bottom) and reviewed.lost("c")["size"] == [
        wide,
        high,
    ]
    assert "crop" not in reviewed.lost("a"), "all of it is trained"


WRONG = {
    "tokns > 75": f"{FIELD} cannot be read at 'tokns'",
    "tokens >": f"{FIELD} cannot be read at its end: a number should stand there",
    "small > 3": f"{FIELD} cannot be read at 'small'",
    "tokens > 'a'": "a number should stand there",
    "ärger": "cannot be read at",
    "": "cannot be read at its end",
    "tokens" * 3000: "characters of at most",
    "not " * 60 + "small": "brackets or nots",
}
"""Filter → part of the error."""


def test_a_wrong_filter_gets_one_line(reviewed: Reviewed) -> None:
    for given, says in WRONG.items():
        answer = reviewed.ask(given, status=422)
        assert says in answer["error"] and "\n" not in answer["error"], answer
        assert answer["hint"]


def test_clips_of_one_video_are_told_apart(tmp_path: Path, trained: Trained) -> None:
    """Wan, at 16 frames a second, takes 29 of the 32 frames of each chunk of 2 s."""
    (tmp_path / "photos").mkdir()
    write_video(tmp_path / "photos" / "long.mp4", ticks=range(180), size=(128, 96))
    run(config_in(tmp_path, tmp_path / "photos", trainer=("musubi:wan",), chunk=2.0), Saying())
    with review_of(tmp_path, trained) as made:
        (medium,) = made.client.get(f"run/{run_id(made.out)}/captions").json()["media"]
        keys = [row["key"] for row in medium["captions"]]
        assert len(keys) == 3 and made.ask("all")["keys"] == keys
        assert made.ask("duplicate")["keys"] == []
        made.edit({key: "a ball" for key in keys[1:]})
        assert made.ask("duplicate")["keys"] == keys[1:]


def test_a_review_names_another_trainer_and_refuses_what_there_is_not(
    tmp_path: Path, trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    write_video(tmp_path / "photos" / "long.mp4", ticks=range(240), size=(128, 96))
    config = config_in(tmp_path, tmp_path / "photos")
    run(replace(config, format=("musubi",)), Saying())
    with review_of(tmp_path, trained) as made:
        answer = made.ask("any", status=422)
        assert "does not say what is trained" in answer["error"]
        assert "start the review with --trainer" in answer["hint"]
    with review_of(tmp_path, replace(trained, trainers=("kohya:sdxl",))) as made:
        answer = made.ask("any", status=422)
        assert answer["error"].endswith("has no data set for kohya")
    with review_of(tmp_path, replace(trained, trainers=("musubi:wan",))) as made:
        assert made.found("unseen seconds > 1 or one frame") == {"long"}
        (line,) = made.ask("tokens > 5")["lines"]
        assert line.startswith("musubi:wan: 1 of 1 sample lose")
        notes = " ".join(made.ask("tokens > 5")["notes"])
        assert "tokens cannot be counted: the tokenizer of" in notes and "hf download" in notes
    assert main(["review", str(tmp_path / "out"), "--trainer", "kohya:nothing", "--port", "0"]) == 2
    assert "kohya:nothing" in capsys.readouterr().err
    assert main(["review", str(tmp_path / "out"), "--tokenizers", "/none", "--port", "0"]) == 2
    assert "/none is no folder" in capsys.readouterr().err
