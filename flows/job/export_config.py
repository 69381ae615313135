"""Holds what an export is told to do, the same for the command line and for Prefect. It knows
nothing of how it is done."""

from dataclasses import dataclass

from artifacts.errors import UsageError
from artifacts.paths import folder_named
from flows.job.config import CaptionConfig
from flows.job.export_asked import GROUP, SAMPLES, ExportAsked

AT_ONCE = 8
"""Chunks a batch of what it is judged by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """One export. Fields have the names of the command line's options."""

    model: str
    """Hub id, folder, or `demo`."""
    to: str
    """Kind of the checkpoint."""
    out: str
    """A new folder, or one begun before."""
    half: str = ""
    """Half whose linear layers are quantized, or `both`; empty: the language half, of a model that
    makes vectors the vision half."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; None: its default branch."""
    calibrate: tuple[str, ...] = ()
    """Media of your own, as a run that captions takes them; empty: it is judged by clips of the
    demo world."""
    calibrate_store: str = ""
    """A store that has captions of the model, to be taken instead of media."""
    adapter: str = ""
    """Folder of a LoRA adapter that is merged into the model before."""
    samples: int = SAMPLES
    """At most so many chunks calibrate and judge it."""
    group: int = GROUP
    """Columns that share a scale, of the kinds that other programs load."""
    accept: bool = False
    """Take it whatever the figures say."""
    store: str = ""
    """Folder of the store; empty: `$PENSTOCK_STORE` or the user's cache."""
    memory: int | None = None
    """Bytes that a stage may take, of the GPU or else of the host, above what its imports take;
    None: what is free, but for a reserve."""
    as_published: bool | None = None
    """Judge and keep the model as its authors published it, or (False) as the installed
    transformers runs it; None: as `caption` runs it."""
    trust_remote_code: bool = False
    """Allow code that comes with the checkpoint to run, and pickled weights to be loaded."""

    def __post_init__(self) -> None:
        if not self.out:
            raise UsageError("--out is empty", hint="Give a new folder")
        if self.calibrate and self.calibrate_store:
            raise UsageError(
                "--calibrate and --calibrate-store are given", hint="Leave one of them out"
            )
        if self.calibrate_store and self.store:
            raise UsageError(
                "--store and --calibrate-store are given", hint="The second is the store of the run"
            )
        self.asked()  # says what is wrong, and so does the other
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

    def captioning(self, sources: tuple[str, ...] = ()) -> CaptionConfig:
        """Return the run that looks at the media of the export: its own, or these. Raises
        UsageError."""
        # What the captions are said in decides nothing: what is expected of them is asked natively.
        return CaptionConfig(
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
