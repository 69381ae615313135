"""Describes the next round of learning without running it."""

from artifacts.paths import folder_named
from artifacts.plurals import counted
from flows.learning.inputs import left_round, own_rounds
from flows.learning.learn import caption_tokens, choose, differing_lines, examples_of
from flows.media.example import Example
from flows.options.learn import LearnConfig, LearnRun, RecordedRun
from flows.results.rounds import ADAPTER, Round, is_weak, media_held, round_folder
from flows.results.tuned import RUN


def preview(
    config: LearnConfig, run: RecordedRun
) -> tuple[list[str], LearnRun | None, list[Example]]:
    """Return lines on the next round, the run that trains its adapter (None if there is nothing to
    train), and the captions that it trains on. Raises UsageError, EnvironmentFault."""
    out = folder_named(config.out, "out")
    run, rounds = own_rounds(config, run, out)
    left = left_round(out, rounds)
    round_ = left or choose(config, run, out, rounds, dry=True)
    if round_ is None:
        return [f"nothing new to learn since round {rounds[-1]['round']}"], None, []
    folder = round_folder(out, round_["round"]) / ADAPTER / RUN
    tuning = run.tuning(config, folder, caption_tokens(round_))
    return _lines(round_, is_begun=left is not None), tuning, examples_of(round_)


def _lines(round_: Round, *, is_begun: bool) -> list[str]:
    corrected = sum(each["corrected"] for each in round_["held_out"])
    held = f"{len(round_['held_out'])} held out, {corrected} of them corrected"
    if is_weak(round_):
        held += f"; weak test: {counted(media_held(round_), 'file')}"
    state = f"continues from {round_['phase']!r}" if is_begun else "is new"
    lines = [
        f"round {round_['round']} {state}: {counted(len(round_['examples']), 'caption')} to train "
        f"on, {held}",
        f"from {round_['previous'] or 'the model without an adapter'}",
    ]
    return [*lines, *differing_lines(round_)]
