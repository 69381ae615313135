"""Three steps of AdamW on stored features give the losses and trained tensors of the whole model on
pixels, to the bit, in every family that transformers has; or it is known why not.

`python -m tests.families.test_training_sweep` prints in how many.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
import torch

from artifacts.errors import UsageError
from penstock.training import language_half
from stages.decode.prompts import append_tokens
from stages.models.halves.boundary import HALVES, absent_paths, modules_called, within
from stages.models.halves.features import encode, is_pixels
from stages.models.halves.load import load_half
from stages.models.halves.model_class import config_and_class
from stages.models.halves.records import CannotSplit, FeatureRecord
from stages.models.halves.split_route import choose_route
from stages.models.protocols import module_of
from stages.tune.load_features import join_outputs
from stages.tune.training import IGNORED
from tests.families.test_models_families import BY_OTHER_ROUTES
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_families.verdict import FAILING, UNCUT, rows_of, stored_rows
from tests.support.trainable_runs import record_run
from tests.support.trees import tensors_in

VARIANTS = [name for name in FAMILIES if name.endswith(":b2")]
"""Pictures or videos of a family, in two rows of other lengths that are padded on the left."""
ANSWERS = torch.tensor([[41, 42, 43, 44], [45, 46, 47, 48]])
ROUTE = "its class takes no outputs of an encoder: refused by name"
FAILS = "transformers' own model fails on it"
TRAIN = "its tower computes otherwise in train(), where Trainer puts it: equal with it in eval()"
SHARED = "its media pass a module that both halves have: equal with that frozen"
FROZEN = "torch rounds products by a frozen weight otherwise: equal if encoded with frozen ones"
PAIRS = "features of two rows do not join, which is refused: equal in batches of one row"
EXCEPTIONS: dict[str, set[str]] = {
    **{name: {ROUTE} for name in VARIANTS if name.split(":")[0] in {*UNCUT, *BY_OTHER_ROUTES}},
    **{name: {FAILS} for name in VARIANTS if name in FAILING},
    "chameleon:b2": {PAIRS, SHARED},
    "emu3:b2": {PAIRS, SHARED, TRAIN},
    "fast_vlm:b2": {TRAIN},
    "gemma3n:b2": {SHARED},
    "granite4_vision:b2": {TRAIN},
    "ovis2:b2": {PAIRS},
    "qianfan_ocr:b2": {TRAIN},
}
"""Variant → why it is not equal: it is equal without all of these, and not without all but one.
FROZEN is measured: it depends on the processor's instructions."""


class Trial(NamedTuple):
    """A variant in a folder: its checkpoint, the record of a run, and inputs with answers."""

    folder: Path
    variant: str
    inputs: dict[str, Any]

    @classmethod
    def of(cls, folder: Path, variant: str) -> "Trial":
        torch.manual_seed(0)
        model, inputs = FAMILIES[variant]()
        model.save_pretrained(folder)
        record_run(folder / "out", folder, folder)
        hidden = torch.full_like(inputs["input_ids"], IGNORED)
        answers = ANSWERS[: len(hidden)]
        inputs = {**append_tokens(inputs, answers), "labels": torch.cat([hidden, answers], 1)}
        return cls(folder, variant, inputs)

    def model(self) -> Any:
        _, cls = config_and_class(self.folder, False)
        return cls.from_pretrained(self.folder, dtype=torch.float32)

    def records(self, frozen: bool = False) -> list[FeatureRecord]:
        """What is stored of each row, encoded in one batch by `frozen` weights, or by such as are
        loaded. Raises CannotSplit."""
        vision = load_half(self.folder, "vision", dtype=torch.float32)
        module_of(vision).requires_grad_(not frozen)
        rows = rows_of(self.variant, self.inputs, vision.config)
        return stored_rows(encode(vision, self.inputs), rows)

    def is_equal(self, records: Iterable[FeatureRecord], without: Iterable[str]) -> bool:
        """Whether training on records equals that on pixels, without the causes of differences."""
        half: Any = language_half(self.folder / "out", dtype=torch.float32)
        whole = self.model()
        shared = [path for part in HALVES for path in modules_called(whole, part)]
        trained = {
            name
            for name, _ in half.named_parameters()
            if SHARED not in without or not any(within(name, path) for path in shared)
        }
        for model in (half.train(), whole.train()):
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in trained)
        tower = absent_paths(whole, "language") if TRAIN in without else ()
        for name, module in whole.named_modules():
            module.training &= not any(within(name, path) for path in tower)
        text = {name: part for name, part in self.inputs.items() if not is_pixels(name)}
        of_features = steps(half, {**text, "mm_encoder_outputs": joined(records)})
        of_pixels = steps(whole, self.inputs)
        assert of_features.keys() == of_pixels.keys() == {*trained, "losses"}
        return all(torch.equal(part, of_pixels[name]) for name, part in of_features.items())


def joined(records: Iterable[FeatureRecord]) -> dict[str, Any]:
    return join_outputs([(record.features, record.rules) for record in records])


def steps(model: Any, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Take three steps; return the losses and the trained tensors."""
    torch.manual_seed(0)  # of dropout
    trained = {name: part for name, part in model.named_parameters() if part.requires_grad}
    optimizer, losses = torch.optim.AdamW(trained.values(), lr=1e-2), []
    for _ in range(3):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert losses[2] < losses[0] < float("inf"), "it learns"
    return {"losses": torch.stack(losses), **{name: part.data for name, part in trained.items()}}


def check(folder: Path, variant: str) -> set[str]:
    """Check a variant against the table; returns why it is not equal here."""
    reasons = EXCEPTIONS.get(variant, set())
    if ROUTE in reasons:
        route = choose_route(FAMILIES[variant]()[0]).route
        record_run(folder / "out", folder, folder, route)
        with pytest.raises(UsageError, match=f"takes no outputs of an encoder.*route: {route}"):
            language_half(folder / "out")
        return reasons
    trial = Trial.of(folder / "pair", variant)
    if FAILS in reasons:
        with pytest.raises(TypeError):
            steps(trial.model(), trial.inputs)
        return reasons
    if PAIRS in reasons:
        with pytest.raises(CannotSplit):  # so each is encoded alone
            trial.records()
        trial = Trial.of(folder / "row", variant.removesuffix(":b2"))
        with pytest.raises(ValueError, match="take batches of 1"):
            joined(trial.records() * 2)
    records, frozen = trial.records(), trial.records(frozen=True)
    both = (tensors_in(joined(rows)) for rows in (records, frozen))
    is_rounded = not all(map(torch.equal, *both))
    for reason in reasons - {PAIRS}:
        assert not trial.is_equal(frozen, reasons - {reason}), f"{variant} in spite of: {reason}"
    assert trial.is_equal(frozen if is_rounded else records, reasons), variant
    return reasons | {FROZEN} if is_rounded else reasons


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_on_features_equals_training_on_pixels(variant: str, tmp_path: Path) -> None:
    check(tmp_path, variant)


def test_the_page_says_of_how_many_variants() -> None:
    page = Path(__file__).parents[2] / "docs" / "training.md"
    assert f" of {len(VARIANTS)} variants are equal bit for bit" in page.read_text("utf-8")


def main() -> None:
    """Print how many variants are equal here, and why the others are not."""
    differing = {}
    for variant in VARIANTS:
        with TemporaryDirectory() as folder:
            if reasons := check(Path(folder), variant):
                differing[variant.removesuffix(":b2")] = reasons
    count = f"{len(VARIANTS) - len(differing)} of {len(VARIANTS)} variants are equal bit for bit"
    threads = torch.get_num_threads()
    print(f"{count}: encoded in batches of 2 rows, threads of the CPU: {threads}")
    for variant, reasons in differing.items():
        print(f"{variant}: {'; '.join(sorted(reasons))}")


if __name__ == "__main__":
    main()
