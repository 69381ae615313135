"""Options of `penstock export`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from artifacts.disk.paths import folder_named
from artifacts.errors import UsageError, excluding
from artifacts.options import Option
from artifacts.packages import require_extra
from artifacts.schema import Part, Route
from flows.core.options.commands import RunOptions
from flows.core.options.media import VideoSamplingOptions
from flows.core.options.model import (
    MODEL_OPTION,
    AdapterOptions,
    ModelOptions,
    RecordedAdapterOptions,
)
from flows.core.options.precision import HalfPrecisionOptions
from flows.core.options.store import MemoryOptions, StoreOptions
from stages.export import BITSANDBYTES, GRAPHS, GROUPS, KINDS, PACKED

HALVES: dict[str, tuple[Part, ...]] = {
    "vision": ("vision",),
    "language": ("language",),
    "both": ("vision", "language"),
}
KINDS_HELP = ", ".join("|".join(kinds) for kinds in (BITSANDBYTES, PACKED, GRAPHS))
OTHERS = ("awq", "gptq")
"""Checkpoint kinds that users request, and that w4a16 replaces."""
SAMPLES, GROUP = 128, 32
"""Default number of calibration chunks, and default number of columns per quantization scale."""

REJECTED, RUNS = "rejected", "parity"
"""Folders inside a checkpoint's folder: the checkpoint until it passes, and its evaluation runs."""
NATIVE, EXPORTED = "native", "exported"
"""Subfolders of the evaluation runs, for the original model and for the checkpoint."""


JUDGEMENT = "calibration and evaluation"
AT_ONCE = 8
"""Batch size in chunks of the evaluation runs."""


@dataclass(frozen=True, kw_only=True)
class ExportRun(
    RecordedAdapterOptions, AdapterOptions, HalfPrecisionOptions, VideoSamplingOptions, RunOptions
):
    """The run over the sample media of an export."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig(MemoryOptions, StoreOptions, AdapterOptions, ModelOptions):
    """One export. Field names equal the option names of the command line."""

    model: Annotated[str, replace(MODEL_OPTION, heading="", metavar="MODEL", positional=True)]
    """Hub id, folder, or `demo`."""
    to: Annotated[str, Option(KINDS_HELP, metavar="KIND", values=tuple(KINDS))]
    """Kind of the checkpoint."""
    out: Annotated[
        str,
        Option(
            "new output folder, or one to resume",
            metavar="DIR",
            not_empty="Give a new folder",
            path=True,
        ),
    ]
    """New output folder, or one to resume."""
    half: Annotated[
        str,
        Option(
            f"half to quantize: {'|'.join(HALVES)} [language; CLIP: vision]",
            metavar="H",
            values=("", *HALVES),
        ),
    ] = ""
    """Half whose linear layers are quantized, or `both`; empty: the language half, for a dual
    encoder the vision half."""
    adapter: Annotated[
        str, Option("folder of a LoRA adapter (PEFT) to merge first", metavar="A", path=True)
    ] = ""
    """Folder of a LoRA adapter that is merged into the model first."""
    calibrate: Annotated[
        tuple[str, ...],
        Option(
            "your own media, to calibrate and evaluate",
            JUDGEMENT,
            "S",
            nargs="+",
            excludes="media",
            path=True,
            or_text=True,
        ),
    ] = ()
    """Media for calibration and evaluation; empty: clips of the demo world."""
    calibrate_store: Annotated[
        str,
        Option("store with captions of the model", JUDGEMENT, "DIR", excludes="media", path=True),
    ] = ""
    """A store with captions of the model, used instead of media."""
    samples: Annotated[
        int, Option("maximum number of chunks [%(default)s]", JUDGEMENT, "N", least=2)
    ] = SAMPLES
    """Maximum number of chunks for calibration and evaluation."""
    group: Annotated[
        int,
        Option(
            f"{'|'.join(PACKED)}: columns per scale, {'|'.join(map(str, GROUPS))} [%(default)s]",
            JUDGEMENT,
            "N",
            values=GROUPS,
        ),
    ] = GROUP
    """Columns per quantization scale, for kinds that other programs load."""
    accept: Annotated[bool, Option("keep the checkpoint whatever its quality", JUDGEMENT)] = False
    """Keep the checkpoint even if it misses the quality limits."""

    def __post_init__(self) -> None:
        if self.out:
            self._check_kind()  # its error about an unknown kind says more than the list of kinds
        super().__post_init__()
        if self.calibrate and self.calibrate_store:
            raise excluding("--calibrate", "--calibrate-store")
        if self.calibrate_store and self.store:
            raise UsageError(
                "--store and --calibrate-store exclude each other",
                hint="Leave --store out: --calibrate-store is the store of the run",
            )
        self.captioning()

    def captioning(self, sources: tuple[str, ...] = ()) -> ExportRun:
        """Return the run over the export's media, or over `sources`. Raises UsageError."""
        # The language precision does not matter here: the reference runs in native precision.
        return ExportRun(
            language_precision="auto",
            sources=sources or self.calibrate,
            model=self.model,
            revision=self.revision,
            out=self.out,
            store=self.calibrate_store or self.store,
            memory=self.memory,
            recorded_by=self.adapter,
            trust_remote_code=self.trust_remote_code,
            batch_size=AT_ONCE,
        )

    def _check_kind(self) -> None:
        _ = self.folder  # raises UsageError
        if self.to not in KINDS:
            hint = f"Give one of {', '.join(KINDS)}"
            if self.to in OTHERS:
                hint = "Give w4a16 with --calibrate: the same kernels load it, for any model family"
            raise UsageError(f"unknown --to {self.to}", hint=hint)
        if self.group != GROUP and not self.packed:
            raise UsageError(
                f"--group has no effect with --to {self.to}: its scales are not of groups",
                hint=f"Give --to {' or '.join(PACKED)}, or leave --group out",
            )
        if self.graphs and self.half == "language":
            raise UsageError(
                f"--half language --to {self.to} is not supported: the language half decodes "
                "with continuous batching, which graphs cannot do",
                hint="Use nf4 or w4a16 for the language half; leave --half out for "
                "graphs of the vision half",
            )
        if self.adapter and self.calibrate_store:
            raise UsageError(
                "--adapter and --calibrate-store exclude each other: the stored captions come from "
                "the model without this adapter",
                hint="Give media with --calibrate SOURCES",
            )

    def parts(self, route: Route) -> tuple[Part, ...]:
        """Return the parts whose layers are quantized, for a model with this split strategy. Raises
        UsageError if the export is impossible."""
        dual = route == "dual"
        if self.graphs:
            return self._parts_with_graphs(route)
        half = self.half or ("vision" if dual else "language")
        if dual and half != "vision":
            raise UsageError(
                f"--half {half} is not supported for dual encoders",
                hint="The text half is small and runs once: use --half vision",
            )
        parts = HALVES[half]
        if "vision" in parts and self.packed:
            raise UsageError(
                f"--to {self.to} is not supported for the vision half: vLLM and SGLang keep it "
                "in 16 bit",
                hint="Leave --half out",
            )
        if "vision" in parts and self.calibrate_store:
            raise UsageError(
                f"--half {half} needs media: its features are computed again",
                hint="Give them with --calibrate SOURCES",
            )
        if route == "joint":
            if half != "language":
                raise UsageError(
                    "the model cannot be split; only its decoder can be quantized",
                    hint="Leave --half out",
                )
            return ("whole",)
        return parts

    def _parts_with_graphs(self, route: Route) -> tuple[Part, ...]:
        if route == "joint":
            raise UsageError(
                "the model cannot be split, so it has no part to make a graph of",
                hint="Use --to nf4 or int8, which quantize its decoder",
            )
        if self.calibrate_store:
            raise UsageError(
                f"--to {self.to} needs media: features are computed again",
                hint="Give them with --calibrate SOURCES",
            )
        if route == "dual":
            return HALVES[self.half or "both"]
        if self.half == "both":
            raise UsageError(
                f"--half both --to {self.to} is not supported for captioning models",
                hint="Leave --half out: its vision half gets graphs",
            )
        return HALVES["vision"]

    @property
    def folder(self) -> Path:
        """Return the output folder. Raises UsageError."""
        return folder_named(self.out, "out")

    @property
    def calibrated(self) -> bool:
        """Return whether the user's own media or captions calibrate the rounding of weights."""
        return bool(self.calibrate or self.calibrate_store)

    @property
    def graphs(self) -> bool:
        """Return whether the checkpoint contains graphs of the vision half."""
        return self.to in GRAPHS

    @property
    def packed(self) -> bool:
        """Return whether the checkpoint is of a kind that other programs load."""
        return self.to in PACKED

    @property
    def work(self) -> Path:
        """Return the folder of the checkpoint during evaluation, and after a failed one."""
        return self.folder / REJECTED

    @property
    def runs(self) -> Path:
        return self.folder / RUNS

    @property
    def merged(self) -> Path:
        """Return the folder of the model merged with its adapter. It is deleted after a successful
        export."""
        return self.runs / "merged"


def check_export_packages(request: ExportConfig) -> None:
    """Raise MissingPackage if a package that an export needs is not installed."""
    extras = {
        "bits": request.to in BITSANDBYTES,
        "export": request.graphs,
        "graphs": request.graphs,
    }
    for name in (name for name, needed in extras.items() if needed):
        require_extra(name, f"--to {request.to}")
