"""Options of `penstock export`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from artifacts.errors import UsageError
from artifacts.options import Option
from artifacts.paths import folder_named
from artifacts.schema import Part, Route
from flows.options.commands import RunOptions
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
from stages.export.jobs import GRAPHS, GROUPS, KINDS, PACKED

HALVES: dict[str, tuple[Part, ...]] = {
    "vision": ("vision",),
    "language": ("language",),
    "both": ("vision", "language"),
}
OTHERS = ("awq", "gptq")
"""Kinds that people ask for, and that w4a16 takes the place of."""
SAMPLES, GROUP = 128, 32
"""Chunks that a checkpoint is calibrated and judged by, and columns that share a scale, where
nobody says."""

REJECTED, RUNS = "rejected", "parity"
"""Folders in that of a checkpoint: of itself until it passes, and of the runs that it is judged
by."""
NATIVE, EXPORTED = "native", "exported"
"""Folders among those runs, of the original's and of the checkpoint's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportRequest:
    """The checkpoint that a command requests."""

    kind: str
    folder: Path
    """Folder that it is written to."""
    half: str = ""
    """Which linear layers are quantized; empty: those of the language half, of a dual encoder those
    of the vision half."""
    calibrated: bool = False
    """Whether weights are rounded by what they do to the user's own media."""
    stored: bool = False
    """Whether these are read off the store, and no media are given."""
    adapter: str = ""
    """Folder of an adapter that is merged into the model before; empty: none."""
    samples: int = SAMPLES
    group: int = GROUP
    accept: bool = False
    """Whether it is taken whatever the figures say."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            hint = f"Give one of {', '.join(KINDS)}"
            if self.kind in OTHERS:
                hint = "Give w4a16 with --calibrate: the same kernels load it, of any family"
            raise UsageError(f"--to {self.kind} is not offered", hint=hint)
        if self.half not in ("", *HALVES):
            raise UsageError(
                f"--half {self.half} is not known", hint=f"Give one of {', '.join(HALVES)}"
            )
        if self.group not in GROUPS:
            raise UsageError(
                f"--group {self.group} is not known",
                hint=f"Give one of {', '.join(map(str, GROUPS))}",
            )
        if self.graphs and self.half == "language":
            raise UsageError(
                f"--half language --to {self.kind} is not offered: captions are said in slots, "
                "which a graph has not",
                hint="Take nf4 or w4a16 for the language half; leave --half out for "
                "graphs of what sees",
            )
        if self.adapter and self.stored:
            raise UsageError(
                "--adapter and --calibrate-store are given: what is in a store was captioned by "
                "the model without the adapter, or by another one",
                hint="Give media with --calibrate SOURCES",
            )
        if self.samples < 2:
            raise UsageError(f"--samples is {self.samples}", hint="Give 2 or more")

    def parts(self, route: Route) -> tuple[Part, ...]:
        """Return the parts whose layers are quantized, of a model that is run by this route. Raises
        UsageError for one that cannot be had, or judged."""
        dual = route == "dual"
        if self.graphs:
            return self._parts_with_graphs(route)
        half = self.half or ("vision" if dual else "language")
        if dual and half != "vision":
            raise UsageError(
                f"--half {half} of a model that makes vectors is not offered",
                hint="Its text half is small and run once: take --half vision",
            )
        parts = HALVES[half]
        if "vision" in parts and self.packed:
            raise UsageError(
                f"--to {self.kind} of the vision half is not offered: vLLM and SGLang keep it in "
                "16 bit",
                hint="Leave --half out",
            )
        if "vision" in parts and self.stored:
            raise UsageError(
                f"--half {half} needs media: its features are made anew",
                hint="Give them with --calibrate SOURCES",
            )
        if route == "joint":
            if half != "language":
                raise UsageError(
                    "the model cannot be cut, and only its decoder is quantized",
                    hint="Leave --half out",
                )
            return ("whole",)
        return parts

    def _parts_with_graphs(self, route: Route) -> tuple[Part, ...]:
        if route == "joint":
            raise UsageError(
                "the model cannot be cut, so that it has no part that a graph could be of",
                hint="Take --to nf4 or int8, which quantize its decoder",
            )
        if self.stored:
            raise UsageError(
                f"--to {self.kind} needs media: features are made anew",
                hint="Give them with --calibrate SOURCES",
            )
        if route == "dual":
            return HALVES[self.half or "both"]
        if self.half == "both":
            raise UsageError(
                f"--half both --to {self.kind} is not offered of a model that captions",
                hint="Leave --half out: its vision half gets graphs",
            )
        return HALVES["vision"]

    @property
    def graphs(self) -> bool:
        """Return whether what sees is to be computed by graphs."""
        return self.kind in GRAPHS

    @property
    def packed(self) -> bool:
        """Return whether the checkpoint is of a kind that other programs load."""
        return self.kind in PACKED

    @property
    def work(self) -> Path:
        """Return where it is written before it is judged, and stays when it does not pass."""
        return self.folder / REJECTED

    @property
    def runs(self) -> Path:
        """Return the folder of what it is judged by."""
        return self.folder / RUNS

    @property
    def merged(self) -> Path:
        """Return the folder of the model with its adapter, which is there until the checkpoint is
        in its place."""
        return self.runs / "merged"


JUDGEMENT = "calibration and judgement"
AT_ONCE = 8
"""Chunks a batch of what it is judged by."""


@dataclass(frozen=True, kw_only=True)
class ExportRun(AdapterOptions, HalfPrecisionOptions, VideoSamplingOptions, RunOptions):
    """The run over the sample media of an export."""


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

    def asked(self) -> ExportRequest:
        """Return the checkpoint that is asked for. Raises UsageError."""
        return ExportRequest(
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
