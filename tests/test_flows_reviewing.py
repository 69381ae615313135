"""Corrections and decisions are in every file that a run writes, and in what a model learns."""

import json
from pathlib import Path
from typing import Any

import pytest

from artifacts.edits import key_of
from artifacts.errors import EnvironmentFault, UsageError
from flows.job.config import CaptionConfig
from flows.job.tune_data import examples_in
from flows.reviewing.captions import EditRefused, ReviewedCaptions
from flows.reviewing.rewriting import again
from tests.support.saying import LONG, lines, make, run, samples

pytestmark = pytest.mark.filterwarnings(r"ignore:unclosed file .*\.tar:ResourceWarning")


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    return make(tmp_path)


def review(
    config: CaptionConfig, *changes: tuple[str, float, str | None, str], does: str = "correct"
) -> dict[str, Any]:
    """Review captions by file and start."""
    captions = ReviewedCaptions(Path(config.out))
    keys = {(r["media_path"], r["start"]): key for key, r in captions.rows.items()}
    told = [
        {"of": keys[name, start], "caption": text, "review": said}
        for name, start, text, said in changes
    ]
    try:
        return captions.do({"id": f"{does} {changes}", "does": does, "changes": told})
    finally:
        captions.close()


def of_long(config: CaptionConfig) -> list[dict[str, Any]]:
    return [row for row in lines(config) if row["media_path"] == LONG]


def texts(config: CaptionConfig, form: str) -> dict[str, str]:
    return {path.name: path.read_text() for path in Path(config.out).glob(f"*.{form}")}


def test_every_output_takes_them_in_and_an_undo_gives_the_same_bytes(config: CaptionConfig) -> None:
    run(config)
    out = Path(config.out)
    kept = ("captions.jsonl", "captions.csv", "long.txt", "long.vtt", "photo.txt")
    before = {name: (out / name).read_bytes() for name in kept}
    first, second, third = of_long(config)
    photo = lines(config)[-1]
    review(
        config,
        (LONG, first["start"], "A person's words.", "accepted"),
        (LONG, second["start"], None, "rejected"),
        ("photo.PNG", 0.0, None, "rejected"),
    )
    result = run(config)
    assert "1 corrected by hand and 2 rejected" in result.line()
    now = of_long(config)
    assert now[0] == {
        **first,
        "caption": "A person's words.",
        "original": first["caption"],
        "review": "accepted",
    }
    assert now[1] == {**second, "review": "rejected"} and now[2] == third
    assert texts(config, "txt")["long.txt"].splitlines()[0] == "A person's words."
    assert len(texts(config, "txt")["long.txt"].splitlines()) == 2
    assert "photo.txt" not in texts(config, "txt"), "all that it said was rejected"
    assert "photo.vtt" not in texts(config, "vtt")
    assert "A person's words." in texts(config, "vtt")["long.vtt"]
    assert "A person's words." in (out / "captions.csv").read_text()
    found = {row["json"]["caption"] for row in samples(config)}
    assert "A person's words." in found and not {first["caption"], photo["caption"]} & found
    review(config, (LONG, first["start"], None, ""), (LONG, second["start"], None, ""))
    review(config, ("photo.PNG", 0.0, None, ""))
    run(config)
    assert {name: (out / name).read_bytes() for name in kept} == before


def test_they_hold_for_words_whatever_stands_before_them(config: CaptionConfig) -> None:
    run(config, prefix="ohwx, ", suffix=" #a")
    first = of_long(config)[0]
    captions = ReviewedCaptions(Path(config.out))
    said = first["caption"].removeprefix("ohwx, ").removesuffix(" #a")
    assert key_of(first["features"], "", first["prompt"], said) in captions.rows
    captions.close()
    review(config, (LONG, 0.0, "better", "accepted"))
    run(config, prefix="sks, ")
    assert of_long(config)[0]["caption"] == "sks, better"
    assert of_long(config)[0]["original"] == f"sks, {said}"
    run(config, prompt="Another?")
    assert "original" not in of_long(config)[0], "another question has another answer"
    run(config)
    assert of_long(config)[0]["caption"] == "better"


def test_a_model_learns_what_was_accepted_not_the_rejected(config: CaptionConfig) -> None:
    run(config)
    data, told = str(Path(config.out) / "captions.jsonl"), list[str]()
    everything = examples_in(data)
    review(config, (LONG, 0.0, None, "rejected"))
    with pytest.raises(UsageError, match=r"not in captions\.jsonl yet"):
        examples_in(data)
    run(config)
    assert len(examples_in(data, told.append)) == len(everything) - 1
    review(config, (LONG, 2.0, "mine", "accepted"))
    run(config)
    assert [each.caption for each in examples_in(data, told.append)] == ["mine"]
    assert told[-1] == f"1 of {len(everything)} captions are learned: those accepted"


def change(of: str, caption: Any, review: str = "") -> dict[str, Any]:
    changes = [{"of": of, "caption": caption, "review": review}]
    return {"id": "1", "does": "x", "changes": changes}


REFUSED: list[tuple[Any, str]] = [
    ({"id": "1", "does": "x", "changes": []}, "no caption is named"),
    (change("?", "a"), "load"),
    (change("K", " "), "reject"),
    (change("K", 1), "no text"),
    (change("K", "a", "?"), "review"),
    ({"does": "x"}, "no id"),
    ([], "no object"),
]


def test_what_cannot_be_done_is_not_written(config: CaptionConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run has written"):
        ReviewedCaptions(tmp_path / "none")
    run(config)
    captions = ReviewedCaptions(Path(config.out))
    key = next(iter(captions.rows))
    for asked, says in REFUSED:
        asked = json.loads(json.dumps(asked).replace('"K"', json.dumps(key)))
        with pytest.raises(EditRefused, match=says):
            captions.do(asked)
    assert captions.journal.path.read_bytes() == b""
    with pytest.raises(EnvironmentFault, match="another review"):
        ReviewedCaptions(Path(config.out))
    captions.close()


def test_the_same_command_writes_files_and_does_nothing_more() -> None:
    words = ["caption", "clips", "--prefect", "--format", "txt", "--retry-failed"]
    assert again(words) == ["caption", "clips", "--format", "txt"]
