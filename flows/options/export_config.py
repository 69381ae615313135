"""Options of `penstock export`."""

from dataclasses import dataclass, replace
from typing import Annotated

from artifacts.errors import UsageError
from artifacts.options import Option
from artifacts.paths import folder_named
from flows.options.commands import RunOptions
from flows.options.export_asked import GROUP, HALVES, SAMPLES, ExportAsked
from flows.options.media import VideoSamplingOptions
from flows.options.model import (
    AS_PUBLISHED_OPTION,
    MODEL_OPTION,
    AdapterOptions,
    HalfPrecisionOptions,
    MemoryOptions,
    ModelOptions,
    StoreOptions,
)
from stages.export.jobs import GROUPS, KINDS, PACKED

JUDGEMENT = "calibration and judgement"
AT_ONCE = 8
"""Chunks a batch of what it is judged by."""


@dataclass(frozen=True, kw_only=True)
class ExportRun(AdapterOptions, HalfPrecisionOptions, VideoSamplingOptions, RunOptions):
    """The run that looks at the media of an export."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig(MemoryOptions, StoreOptions, AdapterOptions, ModelOptions):
    """One export. Fields have the names of the command line's options."""

    model: Annotated[str, replace(MODEL_OPTION, heading="", metavar="MODEL", positional=True)]
    """Hub id, folder, or `demo`."""
    to: Annotated[str, Option("|".join(KINDS), metavar="KIND", values=tuple(KINDS))]
    """Kind of the checkpoint."""
    out: Annotated[
        str,
        Option("a new folder, or one begun before", metavar="DIR", not_empty="Give a new folder"),
    ]
    """A new folder, or one begun before."""
    half: Annotated[
        str,
        Option(
            f"{'|'.join(HALVES)} [language; vision of a CLIP]", metavar="H", values=("", *HALVES)
        ),
    ] = ""
    """Half whose linear layers are quantized, or `both`; empty: the language half, of a model that
    makes vectors the vision half."""
    adapter: Annotated[
        str, Option("folder of a LoRA (PEFT), merged into it before", metavar="A")
    ] = ""
    """Folder of a LoRA adapter that is merged into the model before."""
    calibrate: Annotated[
        tuple[str, ...], Option("your own media", JUDGEMENT, "S", nargs="+", excludes="media")
    ] = ()
    """Media of your own, as a run that captions takes them; empty: it is judged by clips of the
    demo world."""
    calibrate_store: Annotated[
        str, Option("a store that has captions of it", JUDGEMENT, "DIR", excludes="media")
    ] = ""
    """A store that has captions of the model, to be taken instead of media."""
    samples: Annotated[int, Option("at most so many [%(default)s]", JUDGEMENT, "N", least=2)] = (
        SAMPLES
    )
    """At most so many chunks calibrate and judge it."""
    group: Annotated[
        int,
        Option(
            f"columns a scale, of {'|'.join(PACKED)}: {'|'.join(map(str, GROUPS))} [%(default)s]",
            JUDGEMENT,
            "N",
            values=GROUPS,
        ),
    ] = GROUP
    """Columns that share a scale, of the kinds that other programs load."""
    accept: Annotated[bool, Option("take it whatever the figures say", JUDGEMENT)] = False
    """Take it whatever the figures say."""
    as_published: Annotated[bool | None, AS_PUBLISHED_OPTION] = None
    """Judge and keep the model as its authors published it, or (False) as the installed
    transformers runs it; None: as `caption` runs it."""

    def __post_init__(self) -> None:
        if self.out:
            self.asked()  # says what is wrong with a kind better than the list of all kinds
        super().__post_init__()
        if self.calibrate and self.calibrate_store:
            raise UsageError(
                "--calibrate and --calibrate-store are given", hint="Leave one of them out"
            )
        if self.calibrate_store and self.store:
            raise UsageError(
                "--store and --calibrate-store are given", hint="The second is the store of the run"
            )
        self.captioning()

    def asked(self) -> ExportAsked:
        """Return the checkpoint that is asked for. Raises UsageError."""
        return ExportAsked(
            kind=self.to,
            folder=folder_named(self.out, "out"),
            half=self.half,
            calibrated=bool(self.calibrate or self.calibrate_store),
            stored=bool(self.calibrate_store),
            adapter=self.adapter,
            samples=self.samples,
            group=self.group,
            accept=self.accept,
        )

    def captioning(self, sources: tuple[str, ...] = ()) -> ExportRun:
        """Return the run that looks at the media of the export: its own, or these. Raises
        UsageError."""
        # What the captions are said in decides nothing: what is expected of them is asked natively.
        return ExportRun(
            language_precision="auto",
            sources=sources or self.calibrate,
            model=self.model,
            revision=self.revision,
            out=self.out,
            store=self.calibrate_store or self.store,
            memory=self.memory,
            as_published=self.as_published,
            trust_remote_code=self.trust_remote_code,
            batch_size=AT_ONCE,
        )
