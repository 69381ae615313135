"""What a stage is estimated to need: terms in bytes with reasons, their sum, and `Cost`."""

import math
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Literal

from flows.core.checkpoint.models import Model
from flows.core.job.plan_record import PlannedStage
from flows.core.options.commands import RunOptions
from flows.core.plan.ladder import Rung
from flows.core.plan.workloads import Workload
from stages.process.device_limit import CONTEXT_BYTES

Purpose = Literal["weight", "activation", "kv", "workspace", "context", "host"]
ON_DEVICE: tuple[Purpose, ...] = ("weight", "activation", "kv", "workspace", "context")
"""What is counted on the compute device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """Where a stage runs, and the limits and settings that its memory depends on."""

    device: str
    """`cpu` or `cuda:N`."""
    new_tokens: int
    """Most tokens that are generated for a chunk."""
    context_bytes: int = CONTEXT_BYTES
    """Bytes that a GPU's driver takes per process."""
    schema: bool = False
    """Whether captions follow a schema, whose grammar takes memory."""
    selection: Collection[str] = ()
    """Settings with which tokens are selected."""
    readers: int = 1
    """Processes that prepare frames for a stage that encodes them."""


class Reason(StrEnum):
    """What memory is taken for: a sentence with places for the numbers of a term. Stages that only
    one command has (as of `tune`) have a `StrEnum` of their own."""

    # Of a half
    WEIGHTS = "{all:,.0f} M numbers x {each} bytes ({form})"
    QUANTIZED = "{part:,.0f} M of {all:,.0f} M numbers in {form} with scales, others x {each}"
    PACKED = "{part:,.0f} M of {all:,.0f} M numbers in {form}; others x {each}"
    AS_SAVED = "{all:,.0f} M numbers as they were saved ({form})"
    GGUF = "{form}; the others: {all:,.0f} M numbers x {each}"
    GRAPH_FILES = "the files of the graph, while it loads"
    PASS_OF_GRAPH = "{rows} of {each:,} bytes per pass, and assumed {assumed} times as many"
    SQUARES = "the frames of a chunk, {batches} batches of squares, and libraries"
    GRAPHS = (
        "the graphs, for {part:,.1f} M of {all:,.0f} M numbers, in {form}; the others x {each} "
        "bytes"
    )
    ADAPTER = "the adapter: {part:,.2f} M numbers x {each} bytes"
    PINNED = "pinned memory through which weights are read"
    PINNED_AND_CAST = "pinned memory through which weights are read and cast"
    LAYER_UNPACKED = "the largest quantized layer unpacked: {numbers:,} numbers x {each}"
    ROWS_UNPACKED = "the rows that are unpacked at once, in 32 bit"
    HALF_PINNED = (
        "{all:,.0f} M numbers x {each} bytes, in pinned host memory, and 2 layers on the way there"
    )
    LARGEST_LAYER = "the largest of {layers} layers ({layer}) and modules outside of them"
    TWO_LAYERS = (
        "2 of {layers} layers x {layer}, one computes while the next is {brought}; and modules "
        "outside of layers"
    )
    LAYERS_PINNED = "2 layers in pinned host memory, each a power of two"
    MATRIX_CAST = "the largest matrix as stored, to cast"
    WAITING = "{batches} that wait for a layer x {each}"
    WAITING_PIXELS = "pixels of {batches} x {each}"
    NEXT_BLOCK = "the next block's pixels, {batches} x {each}, and frames being read"
    READ_AHEAD = "{batches} of {contents} read ahead x {each}"
    IMAGES_READ_AHEAD = "{ahead}, and {copies} copies of an image of {each} being read"
    READERS = "{chunks} being prepared x {each}"
    READERS_PROCESSORS = "{chunks} being prepared x {each}, each with a processor of {processor}"
    PRODUCTS = "products in 8 bit: {tokens:,} tokens x {rows:,} numbers x {each} bytes"
    ADAPTER_OUTPUTS = "adapter outputs: {tokens:,} tokens x {rows:,} numbers x {each} bytes"
    CACHE = "{contents}"
    CACHE_LAYERS = "{here} of {layers} layers of {contents}"
    CACHE_PINNED = "{contents}, pinned: each a power of two"
    CACHE_BITS = "{contents}, {bits} bits each"
    CACHE_UNPACKED = "one layer of the KV cache unpacked"
    SCORES = (
        "scores of all pairs of tokens, in 32 bit: compute capability {capability} has no fused "
        "attention in bf16"
    )
    SCORES_OF_GRAPH = "scores of all pairs of tokens: a graph has no fused attention"
    MASKS = "attention masks of a batch: as numbers, and padded"
    FRAGMENTATION = "{share:.0%} of computing memory, lost to fragmentation"
    CUBLAS = "cuBLAS workspace"
    CONTEXT = "the driver, and torch's kernels, until measured"
    CONTEXT_MEASURED = "the driver, measured on this machine"
    LIBRARIES = "processor, tokenizer, classes"
    # Of one stage
    VIDEOS = (
        "{files} at once x ({frames} of {stored}x3, and {decoded} frames of {shown} in the decoder)"
    )
    IMAGES = "{packs} of images of {each} MiB, each with one being read"
    GRAPH_RUNTIME = "ONNX Runtime's own memory"
    PIXELS_AS_FEATURES = "{rows} x {units:,} pixel values, passed on unchanged"
    PASS = "{rows} x {units:,} pixel values: {source}"
    PASS_IN_CHUNKS = (
        "{rows} x {units:,} pixel values: {source}, {chunk} positions at once through an MLP"
    )
    OTHER_PASSES = "features of the other passes of a batch"
    RECORDED_PASSES = "recorded passes of at most {shapes} shapes, if there is room"
    CACHED_ROWS = "{rows} x ({tokens:,} + {new} tokens) x {each:,.0f} bytes"
    PREFILL = "{rows} x {tokens:,} tokens: {source}, without the cache"
    PREFILL_IN_CHUNKS = (
        "{rows} x {tokens:,} tokens: {source}, without the cache, {chunk} at once through an MLP"
    )
    WAITING_ROWS = "features of {rows}, running and waiting"
    GRAMMAR = "grammar of the schema: {tokens:,} tokens x {each:,} bytes"
    SOUND = "{seconds:,.0f} s of sound: an estimate by dimensions"
    SPECTRA = "spectra of batches of {batch} that are read ahead"
    SOUND_FILES = "sound of {files} at once"
    TEXTS = "{texts} x {tokens:,} tokens: {source}"
    NEXT_TEXTS = "texts, which take almost nothing"
    KERNELS = "CPU kernels for prompts of {lengths} x {each:,} bytes"
    REQUESTS = "2 chunks as pixels, and {requests} as JPEG in base64, a quarter of their bytes"
    CONNECTIONS = "connections, answers and records"


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One number of an estimate, with its origin."""

    part: Purpose
    bytes: int
    why: str
    """The arithmetic in one line."""

    @classmethod
    def of(
        cls, part: Purpose, size: float, reason: Reason | StrEnum, /, **numbers: object
    ) -> "Term":
        """Return a term of so many bytes, rounded up. `reason`: a `Reason`, or one of a command's
        own, with places for these `numbers`."""
        return cls(part=part, bytes=math.ceil(size), why=reason.value.format(**numbers))


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEstimate:
    """Expected peak memory of one stage process on one rung, in bytes, above the memory of its
    imports."""

    rung: Rung
    terms: tuple[Term, ...]
    """The terms that add up to the estimate."""
    device: str
    """`cpu` or `cuda:N`: where the process computes."""
    workload: Workload
    """The workload with the highest peak."""
    flops: float = 0
    """Operations for all chunks, counted at the largest size; 0: unknown."""
    by_dimensions: bool = False
    """Whether the estimate uses the half's dimensions instead of a dry run."""

    def bytes_of(self, part: Purpose) -> int:
        return sum(term.bytes for term in self.terms if term.part == part)

    @property
    def peak_bytes(self) -> int:
        """Return the peak bytes on the compute device."""
        return sum(term.bytes for term in self.terms if term.part in ON_DEVICE)

    @property
    def host_bytes(self) -> int:
        """Return the bytes of anonymous host memory; on a CPU, the peak itself."""
        return self.bytes_of("host") if self.device.startswith("cuda") else self.peak_bytes

    def plus(self, term: Term) -> "StageEstimate":
        return replace(self, terms=(*self.terms, term))

    def planned(self, *, fits: bool) -> PlannedStage:
        """Return the estimate for records, with the bytes of each purpose in place of the terms."""
        load = asdict(self.workload)
        if not load["stored_frames"]:
            del load["stored_frames"]
        return PlannedStage(
            stage=self.rung.stage,
            rung=asdict(self.rung),
            **{f"{part}_bytes": self.bytes_of(part) for part in ON_DEVICE},
            host_bytes=self.host_bytes,
            peak_bytes=self.peak_bytes,
            flops=self.flops,
            by_dimensions=self.by_dimensions,
            load=load,
            fits=fits,
            name=self.rung.name,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The cost functions of a stage."""

    rungs: Callable[[Model, RunOptions, str, str], list[Rung]]
    """Model, command, device and stage → rungs, cheapest first."""
    memory: Callable[[Model, Rung, Workload, Conditions], StageEstimate]
    """Model, rung, workload and conditions → memory estimate."""
