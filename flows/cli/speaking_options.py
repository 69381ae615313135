"""Adds the options that say what a caption is asked for, and how its words are chosen; runs
nothing."""

import argparse
from collections.abc import Sequence

from artifacts.errors import UsageError
from flows.job.speaking_config import LENGTHS
from stages.decode.engines import AUTO, OFFERED
from stages.decode.generation import GREEDY, SAMPLINGS

PRESENCE_HELP = "subtract F from logits of tokens already generated, -2 to 2 [0]"


def add_speaking_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of text."""
    add = parser.add_argument_group("text").add_argument
    add("--prompts", action="append", metavar="NAME=TEXT", help="several captions; repeat it")
    add("--length", default="", metavar="L", help=f"asks for it in words: {'|'.join(LENGTHS)}")
    add("--summary", action="store_true", help="chapters and a summary of each video")
    add("--summary-prompt", default="", metavar="TEXT", help="what is asked for it")
    add("--system", default="", metavar="TEXT", help="what the system's turn says before")
    add("--start-with", default="", metavar="TEXT", help="every caption goes on from it")
    add("--schema", default="", metavar="F", help="every caption is JSON of this JSON Schema")
    add("--avoid", default="", metavar="W,W", help="words that are never said")
    add("--sampling-as-card", action="store_true", help="frames and --system as the model's card")
    add("--engine", default=AUTO, metavar="E", help=f"{'|'.join(OFFERED)} [%(default)s]")
    add("--max-new-tokens", type=int, default=256, metavar="N", help="longest caption [256]")
    add("--retry-loops", action="store_true", help="say again what goes round in circles")
    add("--strip-think", action="store_true", help="leave out what is in <think> … </think>")
    add("--trigger", default="", metavar="WORD", help="put `WORD, ` before every caption")
    add("--prefix", default="", metavar="T", help="put before every caption")
    add("--suffix", default="", metavar="T", help="put after every caption")
    _add_choice_options(parser)


def _add_choice_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("choice of words, the likeliest by default").add_argument
    add("--sampling", default=GREEDY, metavar="S", help=f"{'|'.join(SAMPLINGS)} [%(default)s]")
    add("--temperature", type=float, metavar="T", help="lets chance choose: 0 never, 1 as it says")
    add("--top-p", type=float, metavar="P", help="among the likeliest of this share together")
    add("--top-k", type=int, metavar="K", help="among so many, 0: all [50]")
    add("--seed", type=int, default=0, metavar="N", help="of chance [0]")
    add("--beams", type=int, default=1, metavar="N", help="follow so many captions, take the best")
    add("--repetition-penalty", type=float, metavar="X", help="above 1: says less again")
    add("--presence-penalty", type=float, metavar="F", help=PRESENCE_HELP)
    add("--no-repeat-ngram", type=int, default=0, metavar="N", help="never the same N tokens twice")


def prompts_of(given: Sequence[str]) -> dict[str, str]:
    """Return the prompts by name that options name, in order. Raises UsageError."""
    found: dict[str, str] = {}
    for option in given:
        name, equals, text = option.partition("=")
        if not equals:
            raise UsageError(
                f"--prompts {option} has no name", hint='Write NAME=TEXT: short="What is it?"'
            )
        if name in found:
            raise UsageError(f"--prompts {name} is given twice", hint="Give each its own name")
        found[name] = text
    return found
