"""Features that float16 does not hold are refused, and said to be."""

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from stages.models.encoding.batch import overflowed
from stages.models.encoding.chunks import Refusal
from stages.models.encoding.run import _in_range
from stages.models.halves.records import FeatureRecord, RowCount


def record(value: float, dtype: torch.dtype) -> FeatureRecord:
    pooled = torch.ones(2, 3, dtype=dtype)
    pooled[1, 1] = value
    return FeatureRecord(
        features={"image": BaseModelOutputWithPooling(pooler_output=pooled)},
        rules={},
        needs=(),
        channel="images",
        side={},
        replacements=(),
        count=RowCount(tokens=2, media=1),
    )


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_number_that_is_none_is_seen_in_float16_alone(value: float) -> None:
    assert overflowed(record(value, torch.float16))
    assert not overflowed(record(value, torch.float32)), "a model may mean it"
    assert not overflowed(record(65504.0, torch.float16))


def test_the_stage_refuses_the_chunk_and_says_what_would_do() -> None:
    found = _in_range(record(float("nan"), torch.float16))
    assert isinstance(found, Refusal) and found.kind == "overflow"
    assert "--vision-precision fp32" in found.hint
    whole = record(1.0, torch.float16)
    assert _in_range(whole) is whole
