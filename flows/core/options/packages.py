"""Checks that the packages which the options of a command need are installed, before it starts a
process or writes anything."""

from artifacts.packages import require, require_extra
from flows.core.options.commands import RunOptions
from flows.core.options.model import QUANTIZED
from flows.core.options.trained_half import TrainedHalfOptions
from flows.core.options.training import StepOptions, TuneConfig
from stages.models.graphs.sessions import BACKENDS
from stages.tune import ADAMW


def check_packages(config: RunOptions) -> None:
    """Raise MissingPackage if a package that these options need is not installed."""
    halves = config.groups.halves
    precisions = {
        "--precision": config.precision,
        "--vision-precision": halves.vision_precision,
        "--language-precision": halves.language_precision,
    }
    for option, precision in precisions.items():
        if precision in QUANTIZED:
            require_extra("bits", f"{option} {precision}")
    _check_optimizer(config.groups.training)
    if config.vision_backend in BACKENDS:
        require_extra("graphs", f"--vision-backend {config.vision_backend}")
    if config.groups.tagger.tagger:
        require_extra("graphs", "--tagger")
    if config.groups.adapter.adapter:
        require_extra("tune", "--adapter")
    if config.groups.gguf.language_gguf:
        require_extra("gguf", "--language-gguf")
    if "parquet" in config.groups.outputs.format:
        require("--format parquet", "pyarrow")


def check_training_packages(config: StepOptions) -> None:
    """Raise MissingPackage if a package that a training needs is not installed."""
    require_extra("tune", "training an adapter")
    if config.precision in QUANTIZED:
        require_extra("bits", f"--precision {config.precision}")
    _check_optimizer(config)
    if isinstance(config, TuneConfig) and config.tensorboard:
        require_extra("tensorboard", "--tensorboard")


def _check_optimizer(options: TrainedHalfOptions) -> None:
    if options.optimizer != ADAMW:
        require_extra("bits", f"--optimizer {options.optimizer}")
