"""Loads each class of docs/models.md in the environment whose Python runs it, and prints what lacks
a package. scripts/prove/test_install runs it where nothing but the wheel is installed.

For each family it makes a small checkpoint, without weights, of the real classes: the tokenizer
from vocabulary files as it reads them, the processors of images, videos and sound with their
default sizes, the processor of all of them, and the configuration. Then it does what Penstock does
before a run:

1. it loads the processor, once with a tokenizer.json and once without;
2. it processes a picture and a video;
3. it builds the model without storage.

What a step raises about a package is a line of the table. Ends with 1 if that line names no command
that installs the package, or if another error shows that a class was not tried. Arguments are the
families to try; without any, it tries all.
"""

import base64
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from artifacts.errors import MissingPackage
from stages.models.halves.model_class import config_and_class, skeleton_of
from stages.models.processors.input_layout import layout_of
from stages.models.processors.loading import load_processor

ROOT = Path(__file__).parents[2]
hf: Any = transformers
auto: Any = transformers.models.auto
PAGE = ROOT / "docs" / "models.md"
TYPES = {"blip_2": "blip-2", "inkling": "inkling_mm_model"}
"""Family → its model type, where the names differ."""
PROCESSORS = {
    "cosmos3_omni": "Qwen3VLProcessor",
    "fast_vlm": "LlavaProcessor",
    "glm_ocr": "Glm46VProcessor",
    "glmga": "Glm46VProcessor",
    "kosmos-2": "Kosmos2Processor",
    "kosmos-2.5": "Kosmos2_5Processor",
    "qwen2_5_omni_thinker": "Qwen2_5OmniProcessor",
    "qwen3_omni_moe_thinker": "Qwen3OmniMoeProcessor",
    "vision-encoder-decoder": "TrOCRProcessor",
}
"""Model type → the processor of its checkpoints, where transformers maps none."""
TOKENIZERS = {
    "altclip": "XLMRobertaTokenizer",
    "deepseek_vl": "LlamaTokenizer",
    "deepseek_vl_hybrid": "LlamaTokenizer",
    "ernie4_5_vl_moe": "LlamaTokenizer",
    "janus": "LlamaTokenizer",
    "llava_next_video": "LlamaTokenizer",
    "paligemma": "GemmaTokenizer",
    "siglip": "SiglipTokenizer",
    "tipsv2": "Tipsv2Tokenizer",
    "vision-encoder-decoder": "XLMRobertaTokenizer",
    "video_llava": "LlamaTokenizer",
}
"""Model type → the tokenizer of its checkpoints, where transformers maps none or a general one."""
SETTINGS: dict[str, dict[str, Any]] = {
    "Ernie4_5_VLMoeVideoProcessor": {"draw_on_frames": False},  # checkpoints have a font
    "MiniCPMOcrImageProcessor": {"small_image_upsize": "adaptive"},  # which needs a package
    "NemotronH_Omni_Reasoning_V3VideoProcessor": {"norm_mean": [0.5] * 3, "norm_std": [0.5] * 3},
}
"""Class → settings of it that checkpoints have, and without which it cannot be tried."""
TIKTOKEN = {"kimi_k25"}
"""Model types whose checkpoints have tiktoken.model and no tokenizer.json."""
PARTS: dict[str, Any] = {
    "image_processor": auto.image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES,
    "video_processor": auto.video_processing_auto.VIDEO_PROCESSOR_MAPPING_NAMES,
    "feature_extractor": auto.feature_extraction_auto.FEATURE_EXTRACTOR_MAPPING_NAMES,
}
"""Attribute of a processor → the classes that transformers maps to model types."""
OTHERS = ("vit", "parakeet_ctc")
"""Model types whose parts stand for those of processors that have none of their own."""
VOCABULARIES = (
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tiktoken.model",
    "tokenizer.model",
    "vocab.txt",
)
"""Files that make a tokenizer without a tokenizer.json."""
FRAMES = 32
VIDEO = {
    "video_metadata": [
        {
            "fps": 1.0,
            "duration": FRAMES,
            "total_num_frames": FRAMES,
            "frames_indices": [*range(FRAMES)],
        }
    ],
    "do_sample_frames": False,
}
WORDS = ["<image>", "|SPEAKER|", "|NEWLINE|", "<0x00>", "<0x04>"]
"""Tokens that processors look up by name."""
TEMPLATE = (
    "{% for m in messages %}{% for part in m['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% else %}<{{ part['type'] }}_token>{% endif %}{% endfor %}{% endfor %}"
)
WRITTEN = "written"
COMMAND = re.compile(r"Run .*pip install ([\w.-]+)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A step that did not pass."""

    name: str
    error: Exception

    @property
    def named(self) -> bool:
        """Whether it is about a package, and names the command that installs it."""
        return isinstance(self.error, MissingPackage) and bool(COMMAND.search(str(self.error)))


def families() -> list[str]:
    """Return the families of both tables of the page that are not refused."""
    page = PAGE.read_text(encoding="utf-8")
    tables = page.partition("## Families")[2].partition("## Not read")[0]
    rows = [[cell.strip() for cell in line.split("|")] for line in tables.splitlines()]
    rows = [row for row in rows if len(row) > 8 and row[1] not in ("family", "type", "---")]
    return list(dict.fromkeys(row[1] for row in rows if "refused" not in row))


def processor_of(model_type: str) -> str:
    return PROCESSORS.get(model_type) or auto.processing_auto.PROCESSOR_MAPPING_NAMES[model_type]


def tokenizer_of(model_type: str) -> str:
    mapped = auto.tokenization_auto.TOKENIZER_MAPPING_NAMES.get(model_type)
    return TOKENIZERS.get(model_type) or mapped or "TokenizersBackend"


def part(names: Any, model_type: str) -> Any:
    """Return an instance of a processor class that transformers maps to a model type, if any."""
    name = names.get(model_type)
    if isinstance(name, dict):
        name = name.get("torchvision") or name["pil"]
    return getattr(hf, name)(**SETTINGS.get(name, {})) if name else None


def own_tokens(cls: Any) -> dict[str, str]:
    """Return the tokens of its own that a processor class reads from its tokenizer."""
    source = Path(sys.modules[cls.__module__].__file__ or "").read_text(encoding="utf-8")
    names = re.findall(r"tokenizer(?:\.|, ?\")(\w+_token)\b", source)
    general = hf.PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES
    return {name: f"<{name}>" for name in names if name not in general and name[:4] != "add_"}


def sentencepiece_model(folder: Path, name: str, kind: str) -> None:
    """Train a model of sentencepiece on the page."""
    import sentencepiece

    made = io.BytesIO()
    text = [line[:200] for line in PAGE.read_text(encoding="utf-8").splitlines() if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=made,
        model_type=kind,
        vocab_size=600,
        minloglevel=2,
        pad_id=3,
        byte_fallback=kind == "bpe",
    )
    (folder / name).write_bytes(made.getvalue())


def write_vocabulary(folder: Path, cls: Any) -> None:
    """Write a small vocabulary in the files that a tokenizer class reads."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    marks = ["<s>", "<pad>", "</s>", "<unk>", "<|endoftext|>", "<|startoftext|>"]
    ids = {token: number for number, token in enumerate([*marks, *alphabet])}
    name = cls.vocab_files_names.get("vocab_file", "")
    if name == "vocab.txt":
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"]
        letters = "abcdefghijklmnopqrstuvwxyz0123456789"
        (folder / name).write_text("\n".join([*words, *letters, *(f"##{x}" for x in letters)]))
    elif name == "vocab.json":
        (folder / name).write_text(json.dumps(ids))
        (folder / "merges.txt").write_text("#version: 0.2\n")
    elif name.endswith(".model") and cls is not hf.TokenizersBackend:
        whole = getattr(getattr(cls, "model", None), "__name__", "Unigram")
        sentencepiece_model(folder, name, "bpe" if whole == "BPE" else "unigram")
    else:
        made = Tokenizer(models.BPE(ids, [], unk_token="<unk>", fuse_unk=True))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.save(str(folder / "tokenizer.json"))


def write_checkpoint(folder: Path, model_type: str) -> None:
    """Write a checkpoint without weights of a model type's real classes."""
    hf.CONFIG_MAPPING[model_type]().save_pretrained(folder)
    cls = getattr(hf, processor_of(model_type))
    words = tokenizer_of(model_type)
    write_vocabulary(folder, getattr(hf, words))
    settings = {"tokenizer_class": words, "extra_special_tokens": own_tokens(cls)}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    made: dict[str, Any] = {"tokenizer": hf.AutoTokenizer.from_pretrained(folder)}
    made["tokenizer"].add_tokens(WORDS, special_tokens=True)
    for name, mappings in PARTS.items():
        for known in (model_type, cls.__module__.split(".")[2], *OTHERS):
            if name not in made and known in mappings:
                made[name] = part(mappings, known)
    names = {name: "tokenizer" if "tokenizer" in name else name for name in cls.get_attributes()}
    cls(**{name: made[of] for name, of in names.items()}).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def steps(folder: Path, family: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the steps by name, which are taken one after the other."""
    model_type = TYPES.get(family, family)
    yield WRITTEN, lambda: write_checkpoint(folder, model_type)
    yield "loaded", lambda: load_processor(folder)
    yield "without tokenizer.json", lambda: load_slow(folder, model_type)
    yield "processes", lambda: process(folder)
    yield "model", lambda: build(folder, family)


def load_slow(folder: Path, model_type: str) -> None:
    """Load the processor from its vocabulary files alone, if its tokenizer has such."""
    fast, aside = folder / "tokenizer.json", folder / "aside"
    if model_type in TIKTOKEN:
        lines = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)]
        (folder / "tiktoken.model").write_text("\n".join(lines))
    if fast.exists() and any((folder / name).exists() for name in VOCABULARIES):
        fast.rename(aside)
        try:
            load_processor(folder)
        finally:
            aside.rename(fast)


def process(folder: Path) -> None:
    """Process a picture and a video with the processors of a folder."""
    processor = load_processor(folder)
    noise = np.random.default_rng(0).integers(0, 255, (FRAMES, 96, 128, 3), dtype=np.uint8)
    try:
        if seeing := getattr(processor, "image_processor", None):
            seeing([Image.fromarray(noise[0])], return_tensors="pt")
        if seeing := getattr(processor, "video_processor", None):
            seeing(videos=[noise], return_tensors="pt", **VIDEO)
    except ImportError:
        layout_of(processor, "images")
        raise


def build(folder: Path, family: str) -> None:
    """Build the model of a folder, or a tiny one where the default sizes fit none."""
    config, cls = config_and_class(folder, trusted=False)
    try:
        skeleton_of(config, cls)
    except (AttributeError, KeyError, TypeError, ValueError):
        sys.path.append(str(ROOT))  # the last, so that the program stays the one that is installed
        from tests.support.tiny_families import FAMILIES

        FAMILIES[family]()


def failures(family: str) -> list[Step]:
    """Return the steps that do not pass for a family; all that follow one that writes nothing."""
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name, take in steps(Path(folder), family):
            try:
                take()
            except Exception as error:
                failed.append(Step(name=name, error=error))
                if name == WRITTEN:
                    break
    return failed


def main(chosen: list[str]) -> int:
    """Print a line per family, and one per step of it that does not pass."""
    hf.utils.logging.set_verbosity_error()
    wrong, names = [], chosen or families()
    for family in names:
        model_type = TYPES.get(family, family)
        failed = failures(family)
        classes = f"{processor_of(model_type)} | {tokenizer_of(model_type)}"
        print(family, classes, "needs a package" if failed else "loads", sep=" | ", flush=True)
        for step in failed:
            mark = "" if step.named else "WRONG "
            print(f"    {mark}{step.name}: {' '.join(str(step.error).split())}", flush=True)
        wrong += [family] * any(not step.named for step in failed)
    print(f"{len(wrong)} of {len(names)} are wrong, with Python {sys.version.split()[0]}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
