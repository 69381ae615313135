"""Runs a tiny model in slots that are refilled, and says whether each row gives the tokens that
`generate` gives of it alone; and its vision half in passes of a fixed number of rows, and says in
which ways the bytes of a row's features depend on nothing else."""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

from artifacts.errors import HalfChecked
from artifacts.records.store import open_store
from stages.decode.engines.inflight.cache_layers import UnsupportedCacheError
from stages.decode.engines.inflight.pool_shape import MIN_STEP_ROWS, PLAIN, PoolLayout
from stages.decode.engines.inflight.prefill import TOKEN_TYPES, PrefilledSequence, prefill_row
from stages.decode.engines.inflight.scheduler import InflightScheduler, RequestPrefetcher
from stages.decode.engines.inflight.slot_check import EngineCheck, choose_layout, reference_of
from stages.decode.generation import DecodeItem
from stages.decode.protocol import DecodeRequest
from stages.memory.oom_retry import OomRetry
from stages.models.encoding import BATCHES, FIXED_ROWS
from stages.models.encoding.batch import PassChecks, PassRow, encode_passes
from stages.models.half_job import HalfJob
from stages.models.halves.features import Features, encode
from stages.models.halves.generate import generate, new_tokens, prompt_in
from stages.models.halves.split_route import choose_route, encoders
from stages.models.processors.side_inputs import Prepared
from stages.process.checks import Verdicts
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_families.verdict import rows_of
from tests.support.waves import events, no_faults

ALONE, FIXED = "alone", "fixed"
"""Ways of a vision half: each row by itself, and rows of a fixed number."""
LIMITS = (5, 12, 3, 9, 7)
"""Most tokens of each row's caption."""
LONGER = (0, 9, 3, 14, 1)
"""Tokens that each row's prompt has beyond what the family's has."""
SLOTS = 2
"""Fewer than rows, so that every slot is refilled."""

Item = tuple[dict[str, Any], Features]
"""A row: inputs, and features of its pictures."""


def judged_in_slots(variant: str, dtype: torch.dtype = torch.float32) -> str:
    """`slots`; or why not, where its tokens are not those of each row alone: `differs`, or a reason
    that was found out by the trial."""
    model, items = rows_of_variant(variant, dtype)
    tried = tried_in_slots(model, items)
    if tried.reason:
        return tried.reason
    found = in_slots(model, items, tried.layout)
    expected = [alone(model, item, limit) for item, limit in zip(items, LIMITS, strict=True)]
    return "slots" if found == expected else "differs"


def rows_of_variant(variant: str, dtype: torch.dtype = torch.float32) -> tuple[Any, list[Item]]:
    """The model of a variant, and rows with other pictures and prompts of other lengths."""
    model: Any = None
    items = []
    for seed, more in enumerate(LONGER):
        torch.manual_seed(seed)
        built, inputs = FAMILIES[variant]()
        # A cast to what it is already would make complex buffers real.
        model = model or greedy(built if dtype == torch.float32 else built.to(dtype))
        inputs = cast(inputs, dtype)
        items.append((longer(inputs, more), encode(model, inputs)))
    return model, items


def cast(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The inputs, with pixels in the precision of a model."""
    return {
        name: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


@functools.cache
def float32_depends_on_rows() -> bool:
    """Whether this processor gives a row of a float32 product other bits beside other numbers of
    rows, as an Intel Xeon of model 167 does. No pool can then keep a family's bits in float32."""
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(192, 192, generator=source)
    rows = torch.randn(64, 192, generator=source)
    one, *others = (linear(rows[:count], weight)[0] for count in (8, 16, 64))
    return not all(torch.equal(one, other) for other in others)


def greedy(model: Any) -> Any:
    """The model, which says the likeliest token until its limit."""
    for part in model.modules():
        if (settings := getattr(part, "generation_config", None)) is not None:
            settings.eos_token_id, settings.pad_token_id = None, 0
            settings.do_sample, settings.num_beams = False, 1
    return model


def longer(inputs: dict[str, Any], more: int) -> dict[str, Any]:
    """The inputs with so many more tokens of text at the end of the prompt."""
    tail = torch.tensor([[11 + at % 7 for at in range(more)]], dtype=torch.long)
    tails = {"input_ids": tail, "attention_mask": torch.ones_like(tail)}
    tails |= {name: torch.zeros_like(tail) for name in TOKEN_TYPES}
    return {
        name: torch.cat([value, tails[name]], dim=1) if name in tails else value
        for name, value in inputs.items()
    }


def tried_in_slots(model: Any, items: Sequence[Item]) -> EngineCheck:
    """What the trial says of the first row and a longer one."""
    if choose_route(model).route == "joint":
        return EngineCheck(reason="it is run whole")
    try:
        row, other = (prefill_row(model, *items[at], max_new_tokens=8) for at in (0, 3))
        reference = reference_of(model, *items[0])
        return choose_layout(MIN_STEP_ROWS, row, other, reference)
    except UnsupportedCacheError as error:
        return EngineCheck(reason=str(error))


def alone(model: Any, item: Item, limit: int) -> list[int]:
    """The tokens that `generate` gives of one row."""
    inputs, features = item
    made = generate(model, inputs, features, max_new_tokens=limit)
    tokens: list[int] = new_tokens(made, prompt_in(model, inputs))[0, :limit].tolist()
    return tokens


def in_slots(
    model: Any, items: Sequence[Item], layout: PoolLayout = PLAIN, lag: int = 0
) -> list[list[int]]:
    """The tokens of each row, decoded in slots."""

    def read(requests: DecodeRequest) -> PrefilledSequence:
        at = int(requests.item.key)
        return prefill_row(model, *items[at], max_new_tokens=LIMITS[at])

    row: Any = None
    requests = [DecodeRequest(DecodeItem(str(at), "", ""), row) for at in range(len(items))]
    with events() as (report, _), ThreadPoolExecutor(1) as beside:
        loop = InflightScheduler(
            read, OomRetry(report, list, no_faults()), layout, slots=SLOTS, lag=lag
        )
        flights = [
            flight
            for flight in loop.run(RequestPrefetcher([requests], beside))
            if flight is not None
        ]
    texts = {int(flight.request.item.key): flight.output_ids for flight in flights}
    assert loop.slots == SLOTS and len(flights) == len(items)
    return [texts[at] for at in range(len(items))]


PASSED = 5


def judged_in_passes(variant: str, folder: Path, dtype: torch.dtype = torch.float32) -> list[str]:
    """Return the ways that hold for a variant of a family with one row."""
    model, rows = prepared_rows(variant, dtype)
    found = []
    for way, count in ((FIXED, FIXED_ROWS), (ALONE, 1)):
        trials = PassChecks(Verdicts(open_store(str(folder / way)), "cpu"), HalfJob(model=""))
        try:
            encode_passes(model, [PassRow(prepared=row, rows=count) for row in rows], trials)
        except HalfChecked:
            return [BATCHES]
        held = [trials.result(PassRow(prepared=row, rows=count)) for row in rows]
        found += [way] if all(each is True for each in held) else []
    return sorted(found)


def prepared_rows(variant: str, dtype: torch.dtype) -> tuple[Any, list[Prepared]]:
    """The model of a variant, and rows with other pictures."""
    model: Any = None
    rows = []
    for seed in range(PASSED):
        torch.manual_seed(seed)
        built, inputs = FAMILIES[variant]()
        model = model or built.eval().to(dtype)
        taken = {name for encoder in encoders(model) for name in encoder.names}
        row = {name: value for name, value in inputs.items() if name in taken}
        (count,) = rows_of(variant, inputs, model.config)
        rows.append(Prepared(inputs=row, channel="images", side={}, replacements=(), count=count))
    return model, rows
