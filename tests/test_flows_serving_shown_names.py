"""What clients are told of models, indexes and files: names, and not where they lie."""

import pytest

from flows.serving.refusals import Refused
from flows.serving.shown_names import shown_name, without_paths


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/home/ann/models/qwen", "qwen"),
        ("../models/qwen/", "qwen"),
        ("~/qwen", "qwen"),
        ("org/name", "org/name"),
        ("demo", "demo"),
        ("", ""),
    ],
)
def test_folders_are_known_by_their_own_names(place: str, name: str) -> None:
    assert shown_name(place) == name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "the index /home/ann/photos cannot be read (gone)",
            "the index photos cannot be read (gone)",
        ),
        ("/data/a/model.safetensors: damaged", "model.safetensors: damaged"),
        ("'/data/a'", "'a'"),
        ("Ask /v1/models, see /openapi.json", "Ask /v1/models, see /openapi.json"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("16/9 or 4/3, and/or", "16/9 or 4/3, and/or"),
    ],
)
def test_texts_hold_no_absolute_paths(text: str, shown: str) -> None:
    assert without_paths(text) == shown


def test_no_refusal_holds_an_absolute_path() -> None:
    why = Refused(503, "the index /home/ann/photos is away", "Build /home/ann/photos again")
    assert "/home" not in str(why.to_json()) + str(why.to_json("/v1/chat/completions"))
