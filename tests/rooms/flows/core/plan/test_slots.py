"""What is reckoned for slots: each row its columns, a window no more than it sees, states of every
row; and what a stage is told that turns out to have none."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from flows.core.checkpoint.models import Model
from flows.core.options.commands import CaptionConfig
from flows.core.plan.choose import Capacity, PlanRequest, stage_plans
from flows.core.plan.costs import estimate
from flows.core.plan.costs.decode import GRAMMAR_BYTES, rungs, supports_slots
from flows.core.plan.ladder import Rung
from flows.core.plan.stage_estimate import Conditions, StageEstimate
from stages.decode import engines
from stages.decode.engines import ENGINES, EngineSpec
from stages.decode.engines.inflight.pool import SLOT_LAYERS
from stages.decode.engines.inflight.pool_shape import GRAPH_BYTES, PoolShape, step_bytes
from stages.decode.engines.slot_load import SlotLoad, SlotTerm
from stages.models.cache_memory import LayerMemory, RowMemory
from tests.support.by_hand import GIB, KV_PER_TOKEN, LAYERS, PROFILE, budget, images, model

FULL = LayerMemory(kind="DynamicLayer", layers=LAYERS, token_bytes=KV_PER_TOKEN // LAYERS)
WORDS = 32_000


def with_memory(*kept: LayerMemory, **options: str) -> Model:
    """The model by hand, whose decoder remembers rows so."""
    memory = RowMemory(kept=kept, words=WORDS) if kept else None
    language = replace(PROFILE.language, row_memory=memory)
    return model(replace(PROFILE, parts={**PROFILE.parts, "language": language}), **options)


def decode_rungs_of(card: Model, device: str = "cuda:0", **options: Any) -> list[Rung]:
    return rungs(card, CaptionConfig(sources=("a",), **options), device, "decode")


def on(device: str, new: int = 256, **more: Any) -> Conditions:
    return Conditions(device=device, new_tokens=new, **more)


def planned(card: Model, rung: Rung, tokens: int = 1000, new: int = 256) -> StageEstimate:
    return estimate(card, rung, [images(64, tokens)], on("cuda:0", new))


def part(found: StageEstimate, name: str) -> list[int]:
    return [term.bytes for term in found.terms if term.part == name]


def test_the_names_of_what_has_slots_are_those_of_the_engine() -> None:
    assert {cls.__name__ for cls in SLOT_LAYERS} | {"DummyLayer"} == set(
        ENGINES["inflight"].cache_layers or ()
    )


def test_a_form_takes_what_its_tokens_do() -> None:
    card = with_memory(FULL)
    rung, load = decode_rungs_of(card)[0], [images(64, 1000)]
    for device, more in (("cpu", WORDS * GRAMMAR_BYTES), ("cuda:0", 0)):
        both = (on(device, schema=form) for form in (False, True))
        plain, formed = (estimate(card, rung, load, conditions) for conditions in both)
        assert formed.peak_bytes - plain.peak_bytes == more
    assert formed.host_bytes - plain.host_bytes == WORDS * GRAMMAR_BYTES


def test_a_server_plans_for_schemas_that_requests_may_bring() -> None:
    card = with_memory(FULL)
    config, load = CaptionConfig(sources=("a",)), (images(64, 1000),)
    plain = PlanRequest(model=card, config=config, device="cpu", workloads=load)
    rung = decode_rungs_of(card)[0]
    any_form = replace(plain, any_request=True).estimate(rung).peak_bytes
    assert any_form - plain.estimate(rung).peak_bytes == WORDS * GRAMMAR_BYTES


def test_a_pool_is_slots_times_columns_and_one_prompt_is_read_beside_it() -> None:
    card = with_memory(FULL)
    first = decode_rungs_of(card)[0]
    assert (first.in_slots, first.name) == (True, "64 slots, fp16")
    eight, four = (planned(card, replace(first, batch=size)) for size in (8, 4))
    columns = 1280  # 1,000 and 256 tokens, in steps of 64
    assert part(eight, "kv") == [8 * columns * KV_PER_TOKEN]
    assert part(four, "kv")[0] == 4 * columns * KV_PER_TOKEN
    assert eight.bytes_of("activation") == four.bytes_of("activation")
    assert eight.bytes_of("activation") > 1000 * KV_PER_TOKEN, "the prompt has a cache, too"
    assert part(planned(card, replace(first, batch=2)), "kv")[1:], "the trial takes more"


def test_a_window_takes_no_more_columns_than_it_sees_and_states_are_of_every_row() -> None:
    window = replace(FULL, kind="DynamicSlidingWindowLayer", layers=1, window=512)
    sizes = {"state_bytes": 1000, "state_bytes_32": 2000}
    state = LayerMemory(kind="LinearAttentionLayer", layers=3, **sizes)
    card = with_memory(replace(FULL, layers=1), window, state)
    rung = Rung(stage="decode", batch=2, precision="fp16", in_slots=True)
    each = KV_PER_TOKEN // LAYERS
    assert part(planned(card, rung), "kv")[0] == 2 * (1280 + 512) * each + 8 * 3 * 1000
    wide = with_memory(replace(FULL, layers=1), window, state, precision="fp32")
    rung = replace(rung, precision="fp32")
    assert part(planned(wide, rung), "kv")[0] == 2 * 2 * (1280 + 512) * each + 8 * 3 * 2000


def test_unused_rows_have_a_copy_of_a_layer_only_where_the_model_changes_keys() -> None:
    logits, copy = 8 * WORDS * 6, 8 * 64 * FULL.token_bytes
    for kind, direct, copied in (
        ("DynamicLayer", True, 0),
        ("DynamicLayer", False, copy),
        ("DynamicIndexedLayer", True, copy),
    ):
        memory = RowMemory(kept=(replace(FULL, kind=kind),), words=WORDS)
        shapes = [PoolShape(rows=8, slots=slots, columns=64) for slots in (1, 3, 8)]
        sizes = [step_bytes(memory, shape, 2, direct) for shape in shapes]
        assert sizes == [logits, logits + copied, logits]


@pytest.mark.parametrize(
    "kept",
    [
        (),
        (replace(FULL, kind="StaticLayer"),),
        (replace(FULL, window=16), replace(FULL, window=32)),
        (LayerMemory(kind="LinearAttentionLayer", state_bytes=10),),
    ],
)
def test_a_half_that_cannot_have_slots_is_planned_in_batches(kept: Any) -> None:
    card = with_memory(*kept)
    assert not supports_slots(card.profile.language, card.best("language"))
    assert decode_rungs_of(card)[0].name == "batch 8, fp16"


def test_who_names_batches_and_rungs_that_have_no_slots_are_planned_in_batches() -> None:
    plain = with_memory(FULL, engine="transformers")
    assert not any(rung.in_slots for rung in decode_rungs_of(plain, engine="transformers"))
    for rung in decode_rungs_of(with_memory(FULL, precision="auto"), precision="auto"):
        assert rung.in_slots == (not rung.kv and rung.precision != "int8")
    named = with_memory(FULL, precision="auto", engine="inflight")
    ladder = decode_rungs_of(named, precision="auto", engine="inflight")
    assert all(rung.in_slots for rung in ladder)
    assert {rung.precision for rung in ladder} == {"fp16", "nf4"}


def test_a_recorded_step_takes_another_step_and_its_graph() -> None:
    card = with_memory(FULL)
    rung = next(each for each in decode_rungs_of(card, "cuda:0") if each.batch == 8)
    devices = ("cpu", "cuda:0")
    found = {d: estimate(card, rung, [images(64, 1000)], on(d)) for d in devices}
    terms = {
        d: [term for term in each.terms if "recorded" in term.why] for d, each in found.items()
    }
    (term,) = terms["cuda:0"]
    assert terms["cpu"] == []
    memory = RowMemory(kept=(FULL,), words=WORDS)
    step = step_bytes(memory, PoolShape(rows=64, slots=8, columns=1280), 2)
    assert (term.part, term.bytes) == ("workspace", step + GRAPH_BYTES)


def test_selecting_tokens_counts_where_it_takes_more_than_a_prompt() -> None:
    card = with_memory(FULL)
    rung = next(each for each in decode_rungs_of(card, "cuda:0") if each.batch == 8)

    def computing(tokens: int, selection: tuple[str, ...] = ()) -> int:
        estimated = estimate(card, rung, [images(64, tokens)], on("cuda:0", selection=selection))
        return estimated.bytes_of("activation")

    # 64 rows: 4 bytes per logit, 26 of top-p.
    assert computing(10, ("seed", "top_p")) == 64 * WORDS * 30 > computing(10)
    assert computing(9000, ("top_p",)) == computing(9000) > 64 * WORDS * 30


def test_a_plan_counts_the_settings_of_a_command_and_a_server_those_of_every_request() -> None:
    card = with_memory(FULL)
    rung, load = decode_rungs_of(card)[0], (images(64, 10),)

    def computing(any_request: bool = False, **options: Any) -> int:
        config = CaptionConfig(sources=("a",), **options)
        request = PlanRequest(
            model=card, config=config, device="cuda:0", workloads=load, any_request=any_request
        )
        return request.estimate(rung).bytes_of("activation")

    assert computing() < computing(temperature=0.7) < computing(temperature=0.7, top_p=0.9)
    assert computing(any_request=True) == computing(top_p=0.9) == 64 * WORDS * 30


def terms_of_another(load: SlotLoad) -> Iterator[SlotTerm]:
    yield SlotTerm("kv", load.slots * (load.tokens + load.new_tokens), "a byte a token")


def test_another_engine_has_and_counts_slots_of_any_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    other = EngineSpec(
        name="other",
        entry="",
        output_version=1,
        depends_on_batch=False,
        slots=True,
        costs=f"{__name__}:terms_of_another",
        refused_precisions=frozenset({"nf4"}),
    )
    monkeypatch.setattr(engines, "ENGINES", {**ENGINES, "other": other})
    card = with_memory(replace(FULL, kind="StaticLayer"))
    half, settings = card.profile.language, card.best("language")
    assert not supports_slots(half, settings)
    settings = replace(settings, engine="other")
    assert supports_slots(half, settings)
    assert not supports_slots(half, replace(settings, precision="nf4"))
    assert not supports_slots(half, replace(settings, kv="quantized"))
    planned_by = replace(card, settings={**card.settings, "language": (settings,)})
    rung = Rung(stage="decode", batch=4, precision=settings.precision, in_slots=True)
    assert part(planned(planned_by, rung), "kv") == [4 * (1000 + 256)]


def test_fewer_slots_come_before_all_else() -> None:
    names = [rung.name for rung in decode_rungs_of(with_memory(FULL))]
    assert [rung.name for rung in decode_rungs_of(with_memory(FULL), "cpu")] == names[3:-1]
    pieces = [f"1 slot, fp16, prefill chunks of {tokens}" for tokens in (1024, 256)]
    assert names == [
        *(f"{slots} slots, fp16" for slots in (64, 32, 16, 8, 4, 2)),
        *("1 slot, fp16", *pieces, "batch 1, fp16, prefill chunks of 256, KV cache offloaded"),
    ]


def test_a_budget_decides_how_many_slots_there_are_and_what_is_told_to_who_has_none() -> None:
    card = with_memory(FULL)
    config = CaptionConfig(sources=("a",))
    question = PlanRequest(
        model=card, config=config, device="cuda:0", workloads=(images(64, 1000),)
    )
    found = {}
    for gib in (64, 16.6, 15):
        taken = stage_plans(question, question.rungs, budget(gib))["decode"].chosen
        assert taken.peak_bytes <= gib * GIB
        instead = Capacity(request=question, budget=budget(gib)).batch_without_slots(taken.rung)
        less = replace(taken.rung, in_slots=False, batch=instead)
        assert question.estimate(less).peak_bytes <= gib * GIB
        found[gib] = (taken.rung.batch, instead)
    assert found[64] == (64, 8), "batches keep the requested size"
    assert 8 > found[16.6][0] > found[15][0] >= 1
    assert all(instead <= slots for slots, instead in found.values())
