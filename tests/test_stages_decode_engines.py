"""An engine is declared once: what it adds to a key, and what is told of one that is not there."""

from dataclasses import replace
from pathlib import Path

import pytest

from artifacts.errors import UsageError
from penstock_demo import CHECKPOINT
from stages.decode.engines import ENGINES, engine_of
from tests.support.clips import PROMPTS, clips
from tests.support.waves import Wave


def test_only_the_engine_from_before_engines_had_names_adds_nothing_to_a_key() -> None:
    assert [name for name, engine in ENGINES.items() if not engine.words] == ["transformers"]
    changed = replace(ENGINES["transformers"], output_version=1)
    assert changed.words == ("transformers", 1)
    assert changed.meta == {"engine": "transformers", "engine_version": 1}


def test_an_engine_that_is_not_there_fails(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="engine is steam") as caught:
        engine_of("steam")
    assert "transformers" in caught.value.hint
    wave = Wave(tmp_path / "store", CHECKPOINT, [clips("image", 1)], engine="steam")
    with pytest.raises(UsageError, match="engine is steam"):
        wave.decode(PROMPTS)


def test_a_caption_says_by_which_engine_it_was_made(tmp_path: Path) -> None:
    wave = Wave(tmp_path / "store", CHECKPOINT, [clips("image", 1)])
    wave.encode()
    wave.decode(PROMPTS)
    (stored,) = wave.captions()
    assert set(stored) == {"caption", "tokens", "ended", "engine"}
    assert stored["engine"] == "transformers"
