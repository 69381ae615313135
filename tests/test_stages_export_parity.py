"""How far a checkpoint is from its original is told in sums, and of single captions and chunks."""

from itertools import pairwise

import pytest
import torch

from stages.export.compare import nearness
from stages.export.logit_agreement import LogitAgreement
from stages.export.parity import DIGITS, KEPT, evaluate_parity, of_each


def test_the_figure_of_each_is_told_from_the_smallest_on_in_few_digits() -> None:
    assert list(of_each({"b": 2.0, "a": 1 / 3e7, "c": 2.0}).items()) == [
        ("a", float(f"{1 / 3e7:.{DIGITS}g}")),
        ("b", 2.0),
        ("c", 2.0),
    ]
    many = {f"{at}": float(at * 7 % 1009) for at in range(1009)}
    kept = list(of_each(many).values())
    assert len(kept) == KEPT
    assert (kept[0], kept[-1]) == (0.0, 1008.0)
    assert max(b - a for a, b in pairwise(kept)) <= 6
    assert of_each({}) == {}


def test_the_divergence_of_captions_sums_up_to_that_of_all_words() -> None:
    agreement, noise = LogitAgreement(), torch.Generator().manual_seed(3)
    lengths = {"short": 2, "long": 6}
    for key, words in lengths.items():
        wanted = torch.randn(words, 11, generator=noise)
        agreement.add(key, wanted, wanted + 0.1 * torch.randn(words, 11, generator=noise))
    same = torch.randn(4, 11, generator=noise)
    agreement.add("same", same, same.clone())
    told = agreement.to_json()
    each = told["by_caption"]
    assert each["same"] == 0.0 and min(each["short"], each["long"]) > 0
    summed = sum(each[key] * words for key, words in lengths.items())
    assert summed / 12 == pytest.approx(told["divergence"], rel=1e-4)
    assert (told["captions"], told["tokens"]) == (3, 12)
    assert evaluate_parity({"text": told}, 64)["text"] == told


def test_the_cosine_of_chunks_sums_up_to_that_of_all_rows() -> None:
    wanted = torch.randn(9, 16, generator=torch.Generator().manual_seed(4))
    found = wanted.clone()
    found[6:] += torch.randn(3, 16, generator=torch.Generator().manual_seed(5))
    told = nearness(wanted, found, [("good", 6), ("bad", 3)])
    each = told["by_chunk"]
    assert each["good"] == pytest.approx(1.0) and each["bad"] < 0.9
    assert list(each) == ["bad", "good"]
    mean = (6 * each["good"] + 3 * each["bad"]) / 9
    assert mean == pytest.approx(told["centred_mean"], abs=1e-5)
    assert told["chunks"] == 2


def test_divergence_is_that_of_the_two_distributions() -> None:
    wanted, found = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    agreement = LogitAgreement()
    agreement.add("one", wanted, found)
    told = agreement.to_json()
    first, second = wanted.softmax(-1), found.softmax(-1)
    mean = (first * (first / second).log()).sum(-1).mean()
    assert told["divergence"] == pytest.approx(float(mean), rel=1e-5)
    assert told["token_agreement"] == 0.5 and told["captions_as_native"] == 0
