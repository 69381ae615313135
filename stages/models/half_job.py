"""The job descriptions of models: the half that a stage runs, and the checkpoint that a process
describes. Imports no model library."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from artifacts.records.model_files import ModelFiles
from artifacts.schema import Route

PINNED_LOAD_BYTES = 128 << 20
"""Pinned host memory through which weights are copied to a GPU."""
RECORDINGS = 8
"""Shapes whose recorded passes through a vision half are kept on a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HalfJob:
    """The half to run: its model, device and precision."""

    model: str
    """Folder or hub id."""
    revision: str | None = None
    device: str = "cpu"
    """`cpu` or `cuda:N`."""
    dtype: str = "auto"
    """Name of the torch dtype in which the half computes; `auto`: the checkpoint's own."""
    precision: str = ""
    """`int8` or `nf4` quantizes the half; any other value has no effect beyond `dtype`."""
    attention: str | None = None
    """Attention implementation; None is the model's default."""
    as_published: bool = False
    """Whether to compute as the model's authors published it, where a difference is known."""
    trust_remote_code: bool = False
    route: Route = "protocol"
    """Split strategy: how the model runs in two stages."""
    extra_modules: tuple[str, ...] = ()
    """Paths of modules of the other half that this half needs too."""
    offload: bool = False
    """Whether layers stay outside the device until they compute. On a CPU, and for a vision half,
    they stay in the checkpoint's files; for a language half on a GPU, in host memory."""
    packed: bool = False
    """Whether layers that another program than bitsandbytes quantized stay packed, and are unpacked
    when they compute."""
    lockstep: bool = False
    """Whether many calls cross the layers together, so that each layer is loaded once for all
    calls. Always true for an offloaded vision half."""
    backend: str = ""
    """Backend of the half's encoders: `onnx` or `tensorrt` graphs of the checkpoint; empty:
    torch."""
    graph_bytes: int = 0
    """Maximum GPU memory in bytes for graphs."""
    engines: str = ""
    """Folder for the engines that TensorRT builds from graphs."""
    gguf: str = ""
    """GGUF file that runs the decoder of a language half in llama.cpp; empty: torch does."""
    gguf_tokens: int = 0
    """Tokens, prompt and caption, for which each sequence gets room when it is loaded; 0: room is
    made as sequences need it."""
    gguf_copy: str = ""
    """Path of a copy with another header, made if llama.cpp needs one."""
    adapter: str = ""
    """Folder of the adapter to inject into the half; empty: none."""
    adapted: Mapping[str, str] = field(default_factory=dict)
    """Path of each module that the adapter changes: its name in the adapter → in the model."""
    today: str = ""
    """Date for chat templates that ask for one, as YYYY-MM-DD; empty: none does."""
    max_pixels: int = 0
    """Maximum pixels per image or frame; 0: the processor's own limit."""
    max_video_pixels: int = 0
    """Maximum pixels of all frames of a video together; 0: the processor's own limit."""
    mlp_chunk: int = 0
    """Positions that pass through an MLP of the vision half at once; 0: all."""
    files: ModelFiles = field(default_factory=ModelFiles)
    """The model files that the job was planned with; empty: they are not compared."""
    digest: str = ""
    """Digest of its content and settings, by which verdicts of checks name it."""
    title: str = ""
    """Its name for the user, such as `the vision half of demo in fp32`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerJob:
    """A tokenizer to write as one file."""

    folder: str
    file: str
    """File to write."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DescribeJob:
    """The checkpoint to describe, or the user's file to compare with it."""

    model: str
    """Folder or hub id."""
    gguf: str = ""
    """GGUF file to compare with it; empty: none."""
    revision: str | None = None
    trust_remote_code: bool = False
    max_pixels: int = 0
    """Maximum pixels per image or frame; 0: the processor's own limit."""
    max_video_pixels: int = 0
    """Maximum pixels of all frames of a video together; 0: the processor's own limit."""
    as_published: bool | None = None
    """Whether to describe it as its authors published it; None: by the rule."""
    today: str = ""
    """Date for templates that ask for one, as YYYY-MM-DD; empty: none does."""
    files: ModelFiles = field(default_factory=ModelFiles)
    """The model files that it was planned with; empty: they are not compared."""
