"""Runs `penstock export`: a model in few bits, judged by what it makes of real media."""

import argparse
import sys
import tempfile
from pathlib import Path

from artifacts.errors import UsageError
from artifacts.paths import folder_named
from flows.cli.last_words import tell_end
from flows.cli.plan_command import show
from flows.console.display import Display, parse_size, printable, size
from flows.job.config import CaptionConfig
from flows.job.export_asked import ExportAsked
from flows.pipelines import PURPOSES
from flows.results.exported import Exported

DEMO_SEED = 0


def export_command(given: argparse.Namespace) -> int:
    """Run the command, and return the exit code of the contract. Raises PenstockError."""
    asked = ExportAsked(
        kind=given.kind,
        folder=folder_named(given.out, "out"),
        half=given.half,
        adapter=given.adapter,
        calibrated=bool(given.calibrate or given.calibrate_store),
        stored=bool(given.calibrate_store),
        samples=given.samples,
        group=given.group,
        accept=given.accept,
    )
    if given.calibrate_store and given.store:
        raise UsageError(
            "--store and --calibrate-store are given", hint="The second is the store of the run"
        )
    display = Display(quiet=given.quiet, as_json=given.json)
    with tempfile.TemporaryDirectory(prefix="penstock-export-") as folder:
        sources = tuple(given.calibrate)
        if not asked.calibrated:
            display.say("no media are given: it is judged by clips of the demo world")
            sources = (_demo_clips(Path(folder), asked.samples),)
        config = CaptionConfig(
            sources=sources,
            model=given.model,
            revision=given.revision,
            store=given.calibrate_store or given.store,
            memory=parse_size(given.memory) if given.memory else None,
            trust_remote_code=given.trust_remote_code,
            batch_size=8,
        )
        if given.dry_run:
            return show(config, *PURPOSES["export"], as_json=given.json)
        from flows.running.export import export

        result = export(config, asked, display)
    if tell_end(given, result, display) or not (given.json or result.accepted):
        _tell(result)
    return result.exit_code


def _tell(result: Exported) -> None:
    for missed in result.parity["missed"]:
        print(printable(f"not reached: {missed}"), file=sys.stderr)
    if not result.accepted:
        print(printable(f"kept in {result.out}; --accept takes it all the same"), file=sys.stderr)
        return
    before = ", there before" if result.before else ""
    print(printable(f"{result.out}: {size(result.bytes)}{before}; {_figures(result)}"))


def _figures(result: Exported) -> str:
    told = []
    if (text := result.parity.get("text")) is not None:
        told.append(
            f"{text['token_agreement']:.2%} of {text['tokens']:,} tokens as the original, "
            f"divergence {text['divergence']:.2g} nats, "
            f"{text['captions_as_native']:.1%} of captions the same"
        )
    if (features := result.parity.get("features")) is not None:
        told.append(
            f"features {features['centred_mean']:.4f} (least {features['centred_least']:.3f}), "
            f"{features['neighbours']:.1%} of the same neighbours"
        )
    return "; ".join(told)


def _demo_clips(folder: Path, count: int) -> str:
    from penstock_demo.clips import write_clips

    write_clips(folder / "clips", count, DEMO_SEED)
    return str(folder / "clips")
