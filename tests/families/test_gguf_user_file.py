"""Files of llama.cpp's converter: taken, or refused by name. Needs `make gguf`."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from artifacts.errors import EnvironmentFault, UsageError
from stages.models.halves.features import encode
from stages.models.halves.generate import generate
from stages.models.halves.load import load_half
from stages.models.halves.model_class import config_and_class, skeleton_of
from stages.models.loading import stored_weights

pytestmark = [pytest.mark.slow, pytest.mark.gguf]
TOKENS = 12
FILE = "language.gguf"
NORM, TABLE = "blk.0.ffn_norm.weight", "token_embd.weight"


def logits_of(folder: Path, file: Path, model: Any, inputs: Any) -> torch.Tensor:
    """The logits of greedy tokens by the checkpoint in a folder with this GGUF file."""
    from stages.models.gguf.half import load_with_gguf

    config, cls = config_and_class(folder, False)
    load = partial(load_half, folder, "language", dtype=torch.float32)
    half = load_with_gguf(file, config, skeleton_of(config, cls), lambda paths: load(without=paths))
    half.generation_config.eos_token_id = None
    options: dict[str, Any] = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    found: Any = generate(half, inputs, encode(model, inputs), **options)
    return torch.stack(found.logits)


def opened(folder: Path, file: Path) -> Path:
    """The file that llama.cpp loads for a user's file, after all checks."""
    from stages.models.gguf.user_file import fitted

    config, cls = config_and_class(folder, False)
    skeleton = skeleton_of(config, cls)
    return fitted(file, config, skeleton, stored_weights(folder, skeleton), folder / "copy.gguf")


def written(variant: str, folder: Path) -> Any:
    from tests.support.tiny_families import in_gguf

    return in_gguf.written(variant, folder)


def published(folder: Path, to: Path, **changes: Any) -> Path:
    """The language half of a folder, as a converter would write it."""
    from tests.support import published_gguf

    return published_gguf.published(folder / FILE, to / "published.gguf", **changes)


@pytest.mark.parametrize(
    ("variant", "copied"),
    [
        *(("qwen2_vl", True), ("qwen2_5_vl", True), ("qwen3_vl", False), ("llava", False)),
        *(("llava_onevision", False), ("lighton_ocr", False), ("gemma3:windows", False)),
        *(("glm4v:half", False), ("lfm2_vl", False)),
    ],
)
def test_a_published_file_computes_what_transformers_does(
    variant: str, copied: bool, tmp_path: Path
) -> None:
    model, inputs = written(variant, tmp_path)
    whole, foreign = tmp_path / "whole", published(tmp_path, tmp_path)
    file = opened(whole, foreign)
    assert (file.name == "copy.gguf") == copied
    expected = logits_of(whole, tmp_path / FILE, model, inputs)  # compared in test_..._halves.py
    assert torch.equal(logits_of(whole, file, model, inputs), expected)
    assert opened(whole, foreign) == file  # the copy is used again


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("qwen2")
    written("qwen2_5_vl", made)
    return made


ROPE = "rope.dimension_sections"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"block_count": 7}, "its qwen2vl.block_count is 7"),
        ({"embedding_length": 8}, "its qwen2vl.embedding_length is 8"),
        ({"attention.head_count": (4, 4)}, "its qwen2vl.attention.head_count is (4, 4)"),
        ({"attention.head_count_kv": 1}, "its qwen2vl.attention.head_count_kv is 1"),
        ({"attention.key_length": 5}, "its qwen2vl.attention.key_length is 5"),
        ({"attention.layer_norm_rms_epsilon": 1e-3}, "layer_norm_rms_epsilon is 0.001"),
        ({"attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon is missing"),
        ({"rope.freq_base": 5e5}, "its qwen2vl.rope.freq_base is 500000.0"),
        ({"rope.freq_base": float("nan")}, "its qwen2vl.rope.freq_base is nan"),
        ({"rope.dimension_count": 2}, "its qwen2vl.rope.dimension_count is 2"),
        ({ROPE: (1, 1, 1, 0)}, f"its qwen2vl.{ROPE} is (1, 1, 1, 0)"),
        ({ROPE: None}, f"its qwen2vl.{ROPE} is missing"),
        ({"rope.scaling.type": "yarn"}, "its qwen2vl.rope.scaling.type is yarn"),
        ({"rope.scaling.factor": 4.0}, "its qwen2vl.rope.scaling.factor is 4.0"),
        ({"attention.sliding_window": 64}, "its qwen2vl.attention.sliding_window is 64"),
        ({"expert_count": 8}, "its qwen2vl.expert_count is 8"),
        ({"something.new": 1}, "its qwen2vl.something.new is 1"),
    ],
)
def test_other_metadata_is_refused_by_name(
    folder: Path, tmp_path: Path, changes: Mapping[str, Any], text: str
) -> None:
    file = published(folder, tmp_path, changes=changes)
    with pytest.raises(UsageError) as raised:
        opened(folder / "whole", file)
    assert raised.value.message.startswith(f"{file} does not fit the checkpoint: ")
    assert text in raised.value.message and raised.value.hint


def test_the_scale_of_logits_that_no_model_here_applies_is_refused(tmp_path: Path) -> None:
    """The converter writes the one of the text configuration, which is 0.0625 by default."""
    written("aya_vision", tmp_path)
    file = published(tmp_path, tmp_path, changes={"logit_scale": 0.0625})
    with pytest.raises(UsageError, match=r"its cohere2\.logit_scale is 0\.0625, .* needs 1\.0"):
        opened(tmp_path / "whole", file)


def test_layers_with_windows_in_another_order_than_llama_cpp_implies_are_refused(
    tmp_path: Path,
) -> None:
    written("gemma3", tmp_path)
    with pytest.raises(UsageError, match=r"its gemma3\.attention\.sliding_window_pattern is "):
        opened(tmp_path / "whole", published(tmp_path, tmp_path))


def test_norms_are_compared_as_the_converter_writes_them(tmp_path: Path) -> None:
    """It adds 1 to those of Gemma."""
    from tests.support.published_gguf import numbers_of

    written("paligemma", tmp_path)
    assert opened(tmp_path / "whole", published(tmp_path, tmp_path))
    stored = numbers_of(tmp_path / FILE, NORM) - 1
    with pytest.raises(UsageError, match=f"its {NORM} has other values"):
        opened(tmp_path / "whole", published(tmp_path, tmp_path, weights={NORM: stored}))


def test_metadata_that_changes_nothing_is_taken(folder: Path, tmp_path: Path) -> None:
    changes = {"rope.scaling.type": "none", "expert_count": 0, "context_length": 9}
    assert opened(folder / "whole", published(folder, tmp_path, changes=changes))


def test_merged_parts_are_taken_and_parts_are_not(folder: Path, tmp_path: Path) -> None:
    assert opened(folder / "whole", published(folder, tmp_path, general={"split.count": 0}))
    with pytest.raises(UsageError, match="part of a split file"):
        opened(folder / "whole", published(folder, tmp_path, general={"split.count": 2}))


@pytest.mark.parametrize(
    ("stated", "kind"), [(7, "q8_0"), (1024, "f32"), (-9, "f32"), ("?", "f32")]
)
def test_a_copy_is_of_the_kind_that_the_file_states(
    folder: Path, tmp_path: Path, stated: Any, kind: str
) -> None:
    from stages.models.gguf.header import read_header
    from stages.models.gguf.llama_context import kind_of

    (folder / "whole" / "copy.gguf").unlink(missing_ok=True)
    general = {"general.file_type": stated % (1 << 32) if isinstance(stated, int) else stated}
    file = published(folder, tmp_path, general=general)
    kinds = {kind_of(read_header(each)) for each in (file, opened(folder / "whole", file))}
    assert kinds == {f"gguf-{kind}"}


def test_a_copy_for_which_the_disk_has_no_room_fails(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "whole" / "copy.gguf").unlink(missing_ok=True)
    file = published(folder, tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(EnvironmentFault, match="are free"):
        opened(folder / "whole", file)
    assert list((folder / "whole").glob("*copy.gguf")) == []


Weights = Callable[[Path], Mapping[str, Any]]


def noisy(own: Path, name: str, share: float) -> dict[str, Any]:
    """The numbers of a tensor, with noise in them."""
    from tests.support.published_gguf import numbers_of

    found = numbers_of(own, name)
    draw = np.random.default_rng(2).standard_normal(found.shape)
    return {name: (found + share * found.std() * draw).astype(np.float32)}


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        (lambda own: noisy(own, NORM, 0.1), f"its {NORM} has other values"),
        (lambda own: noisy(own, TABLE, 0.5), f"its {TABLE} has other values"),
        (lambda own: noisy(own, "output.weight", 0.5), "its output.weight has other values"),
        (lambda own: {"rope_freqs.weight": np.ones(4, np.float32)}, "it has rope_freqs.weight"),
        (lambda own: {"blk.0.attn_output.bias": np.ones(64, np.float32)}, "attn_output.bias"),
    ],
)
def test_other_weights_are_refused_as_those_of_a_fine_tune(
    folder: Path, tmp_path: Path, weights: Weights, text: str
) -> None:
    file = published(folder, tmp_path, weights=weights(folder / FILE))
    with pytest.raises(UsageError) as raised:
        opened(folder / "whole", file)
    assert text in raised.value.message


def test_a_file_without_a_tensor_is_refused(folder: Path, tmp_path: Path) -> None:
    file = published(folder, tmp_path, without=[NORM])
    with pytest.raises(UsageError, match=f"it lacks {NORM}"):
        opened(folder / "whole", file)


def test_a_file_of_another_architecture_is_refused(folder: Path, tmp_path: Path) -> None:
    written("llava", tmp_path)
    with pytest.raises(UsageError, match=r"architecture is llama, and .* paddleocr or qwen2vl"):
        opened(folder / "whole", tmp_path / FILE)


class Words:
    """A tokenizer of these tokens."""

    def __init__(self, *tokens: str) -> None:
        self._tokens = tokens

    def get_vocab(self) -> dict[str, int]:
        return {token: at for at, token in enumerate(self._tokens)}


def test_tokens_are_those_of_the_tokenizer(folder: Path, tmp_path: Path) -> None:
    from stages.models.gguf.header import read_header
    from stages.models.gguf.user_file import check_tokens

    header = read_header(published(folder, tmp_path, tokens=["a", "b", "c", "[PAD3]"]))
    check_tokens(header, Words("a", "b", "<image>"), {"<image>"})
    with pytest.raises(UsageError, match="its token 1 is 'b', and the tokenizer's 'x'"):
        check_tokens(header, Words("a", "x"), ())
    with pytest.raises(UsageError, match="its token 4 is None"):
        check_tokens(header, Words("a", "b", "c", "[PAD3]", "e"), ())
    rows = header.tensors[TABLE].shape[0]
    with pytest.raises(UsageError, match=f"it has {rows} tokens"):
        check_tokens(header, Words(*map(str, range(rows + 1))), ())
    spaced = read_header(published(folder, tmp_path, tokens=["a", "\n", "   "]))
    check_tokens(spaced, Words("a", "\n", "▁▁▁"), ())  # one that was added to the vocabulary
    check_tokens(read_header(folder / FILE), Words("anything"), ())  # it has no tokens


def test_types_have_the_sizes_that_the_package_states() -> None:
    import gguf

    from stages.models.gguf.header import TYPES

    for number, (name, block, size) in TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (block, size))


def test_a_library_that_computes_otherwise_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.models.gguf import half as self_test

    self_test.check()
    monkeypatch.setattr(self_test, "EXPECTED", (*self_test.EXPECTED[:-1], -1.8))
    self_test.check.cache_clear()
    with pytest.raises(EnvironmentFault, match=r"this llama\.cpp computes wrong logits") as raised:
        self_test.check()
    assert "pip install 'penstock[gguf]'" in str(raised.value.hint)
