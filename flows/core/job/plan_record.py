"""What the record of a run, or of an export, says of its plan."""

from dataclasses import dataclass, field
from typing import Any

from artifacts.disk.json_types import Count, Number, Text
from artifacts.schema import Sampling, values_of
from artifacts.texts.affixes import FixedText
from artifacts.timecodes import START
from flows.core.machine.versions import seconds_of
from stages.process.stage_spec import CHUNK


@dataclass(kw_only=True, slots=True)
class GraphRecord:
    """The graph that computes a half."""

    digest: Text
    provider: Text
    bytes: Count


@dataclass(kw_only=True, slots=True)
class GgufRecord:
    """The GGUF file that holds a half."""

    digest: Text
    bytes: Count


@dataclass(kw_only=True, slots=True)
class AdapterRecord:
    """The adapter of a half."""

    folder: str
    digest: Text
    parameters: Count
    bytes: Count
    modules: Count


@dataclass(kw_only=True, slots=True)
class HalfRecord:
    """A half of the model: its size, and how it computes."""

    parameters: Count
    stored_bytes: Count
    bytes: Count
    """Bytes of its weights as loaded."""
    precision: Text
    dtype: Text
    attention: Text
    graphs: GraphRecord | None = None
    gguf_file: GgufRecord | None = None
    adapter: AdapterRecord | None = None

    @property
    def computed_by(self) -> str:
        """Return what computes it, for display."""
        if self.graphs:
            return self.graphs.provider
        if self.gguf_file:
            return "llama.cpp"
        if not self.attention:
            return "ONNX Runtime"
        added = f", with the adapter {self.adapter.folder}" if self.adapter else ""
        return f"{self.attention} attention{added}"


@dataclass(kw_only=True, slots=True)
class SamplingRecord:
    """How frames were sampled. Fields are those of `Sampling`."""

    chunk_seconds: Number | None
    """None: `whole`."""
    whole: bool = False
    """Whether each file is one chunk."""
    shots: bool = False
    chapters: bool = False
    fps: Number | None = None
    frames: Count | None = None
    min_frames: Count = 1
    max_frames: Count = 0
    deinterlace: bool = True
    clip_frames: Count = 0
    clip_fps: Number = 0.0
    clip_overlap: bool = False
    clip_own: bool = False

    @classmethod
    def of(cls, sampling: Sampling) -> "SamplingRecord":
        fields = values_of(sampling)
        if sampling.whole:
            fields["chunk_seconds"] = None
        return cls(whole=sampling.whole, **fields)


@dataclass(kw_only=True, slots=True)
class RungRecord:
    """A rung that a stage took, or on which it ran items alone, with the reason."""

    stage: Text
    rung: dict[Text, Any] = field(default_factory=dict)
    name: Text
    """The rung as text."""
    reason: Text
    error: Text
    """Message of the process that failed; empty: none did."""
    time: Text

    def __post_init__(self) -> None:
        """Raises ValueError for a wrong time."""
        seconds_of(self.time)


@dataclass(kw_only=True, slots=True)
class PlannedStage:
    """Expected peak memory of one stage process on the rung it starts on, in bytes above the memory
    of its imports."""

    stage: Text
    rung: dict[Text, Any] = field(default_factory=dict)
    weight_bytes: Count = 0
    activation_bytes: Count = 0
    kv_bytes: Count = 0
    workspace_bytes: Count = 0
    context_bytes: Count = 0
    host_bytes: Count = 0
    peak_bytes: Count
    flops: int | float = 0
    by_dimensions: bool = False
    load: dict[Text, Any] = field(default_factory=dict)
    """Fields of the `Workload` with the highest peak."""
    fits: bool = True
    name: Text
    """The rung as text."""


@dataclass(kw_only=True, slots=True)
class MemoryPlan:
    """The planned memory of a run."""

    budget_bytes: Count | None = None
    budget_given: bool = False
    stages: list[PlannedStage] = field(default_factory=list)

    def of_stage(self, name: str) -> PlannedStage | None:
        """Return the plan of a stage; None if nothing was planned."""
        return next((planned for planned in self.stages if planned.stage == name), None)


@dataclass(kw_only=True, slots=True)
class FixedWords:
    """The words that a run puts around its captions, and the schema that these follow."""

    prefix: Text = ""
    suffix: Text = ""
    schema: Text = ""
    trigger: Text = ""

    @property
    def text(self) -> FixedText:
        """Return what stands before and after the captions of the model."""
        return FixedText.of(self.trigger, self.prefix, self.suffix)


@dataclass(kw_only=True, slots=True)
class PlanRecord:
    """The plan of a run, whose model is empty before it is made. A command without a model has
    none."""

    model: str = ""
    revision: str | None = None
    commit: Text | None = None
    folder: str = ""
    device: Text = "cpu"
    card: Text | None = None
    """Model of the GPU."""
    precision: dict[Text, Text] = field(default_factory=dict)
    as_published: bool = False
    sampling: SamplingRecord | None = None
    max_pixels: Count | None = None
    max_video_pixels: Count | None = None
    features_as: Text = ""
    """Form in which features are stored; empty: as computed."""
    batch_size: Count | None = None
    generation: dict[Text, Any] = field(default_factory=dict)
    """Sampling parameters that are not the defaults."""
    words: FixedWords = field(default_factory=FixedWords)
    store: str = ""
    media: Count = 0
    counts: Text = CHUNK
    """What chunks of this run are called."""
    decided_by: dict[Text, Text] = field(default_factory=dict)
    """What decides the keys of the records, in words → a short form of its value."""
    halves: dict[Text, HalfRecord] = field(default_factory=dict)
    route: Text = ""
    served: dict[Text, Any] | None = None
    """The server that has the model (`ServedModel.to_json`); None: the model is local."""
    notes: list[Text] = field(default_factory=list)
    memory: MemoryPlan = field(default_factory=MemoryPlan)
    seconds: dict[Text, Number | None] = field(default_factory=dict)
    """Expected seconds of each stage; None: unknown."""
    chunks: Count = 0
    """Expected chunks; 0: unknown."""
    prompts: Count = 1
    """Prompts of each chunk."""
    clock: Text = START
    """What the times of cues count from, as `--clock` names it."""
    in_waves: Text = ""
    """How many waves the run takes, and why; empty: one."""


@dataclass(kw_only=True, slots=True)
class RecordedPlan:
    """The plan in the record of a run."""

    plan: PlanRecord
