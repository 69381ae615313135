"""Compares the table of limits, and the rules of `penstock check`, with the trainers' own sources.

    make readers SOURCES=DIR [TOKENIZERS=DIR]

DIR holds a checkout of each repository that artifacts/texts/limits.toml names, as
`DIR/sd-scripts`. Of each row, the text must stand at its line. Then functions of the trainers are
cut out of their sources and run where they lie: which tokens they give to the text encoder, and in
which bucket they put a picture. Nothing of them is copied into this repository.

1. `Source.take` compiles the named classes and functions of a file alone, without their
   annotations, decorators and bases, so that no trainer has to be installed.
2. A stand-in takes the place of the text encoder, and notes the ids that it is given.
3. What we call kept must be exactly these ids, for 60 captions; each size must get its bucket.
"""

import ast
import html
import math
import random
import re
import string
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, CLIPTokenizer

from artifacts.texts.trainer_limits import TextLimit, limits_of, text_limits
from artifacts.texts.trainer_models import MODELS
from flows.outputs.seen.settings import (
    DiffusionPipeSettings,
    KohyaSettings,
    LtxSettings,
    MusubiSettings,
    Size,
    TrainerSettings,
    span,
)
from flows.outputs.seen.tokens import is_mended, load_tokenizer, lost, mended

RANDOM = random.Random(7)
TEXT = """\
a woman in a yellow raincoat walks slowly along the rain-soaked boulevard; neon signs flicker, taxis
pass, the camera pans left and tilts up to reveal skyscrapers wrapped in fog. 1girl, solo,
long_hair, looking_at_viewer, (masterpiece:1.2), café ünïcode 日本語 quoted text don't isn't 4k 35mm
f/1.8"""
WORDS = TEXT.split()
LENGTHS = (5, 40, 60, 70, 75, 90, 150, 210, 230, 260, 380, 500, 700, 900, 1200)
CAPTIONS = [" ".join(RANDOM.choice(WORDS) for _ in range(n)) for n in LENGTHS for _ in range(4)]
SIZES = [
    *((RANDOM.randint(64, 5000), RANDOM.randint(64, 5000)) for _ in range(600)),
    *((1024, 1024), (1920, 1080), (3000, 2000)),
]
RUN = frozenset(
    {
        ("kohya", "sd1.5", "clip-l"),
        ("kohya", "flux-dev", "t5"),
        ("kohya", "flux-schnell", "t5"),
        ("kohya", "sd3", "t5"),
        ("kohya", "sd3", "clip-l and -g"),
        ("musubi", "qwen-image", "qwen2.5-vl"),
        ("musubi", "krea2", "qwen3-vl"),
        ("musubi", "flux2-klein", "qwen3"),
        ("musubi", "z-image", "qwen3"),
        ("musubi", "hunyuan-video-1.5", "qwen2.5-vl"),
        ("musubi", "wan", "umt5"),
        ("onetrainer", "flux", "t5"),
        ("onetrainer", "qwen-image", "qwen2.5-vl"),
        ("ai-toolkit", "sdxl", "clip"),
    }
)
"""Trainer, model and text encoder whose tokens are compared; of the others the source was read."""
Ids = Callable[[str], Sequence[int]]
"""A function of a caption: the ids that a trainer gives to the text encoder, without padding."""


def moved_rows(sources: Path) -> Iterator[str]:
    """Yield a line for each row of the table whose text does not stand at its line."""
    for limit in text_limits():
        repository, file, line = limit.place.split(":")
        path = sources / repository / file
        if not path.is_file():
            if (sources / repository).is_dir():
                yield f"{limit.trainer}:{limit.model}: {repository} has no {file}"
            continue
        lines = path.read_text("utf-8", errors="replace").splitlines()
        if limit.source not in "".join(lines[int(line) - 1 : int(line)]):
            now = [at for at, text in enumerate(lines, 1) if limit.source in text][:4]
            yield f"{limit.trainer}:{limit.model}: {limit.place} has moved, now in lines {now}"


@dataclass(frozen=True, slots=True)
class Source:
    """The checkouts of the trainers."""

    folder: Path

    def take(self, file: str, *names: str, **known: Any) -> dict[str, Any]:
        """Return what the named definitions of a file are, with `known` names around them. All
        functions of the file if no name is given."""
        tree, taken = ast.parse((self.folder / file).read_text("utf-8")), list[ast.stmt]()
        for node in tree.body:
            name = getattr(node, "name", "")
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
            if name in names:
                _strip(node)
                taken.append(node)
        scope: dict[str, Any] = {
            **vars(typing),
            "torch": torch,
            "np": np,
            "math": math,
            "random": random,
            "re": re,
            "F": torch.nn.functional,
            "logger": types.SimpleNamespace(info=lambda *a: None, warning=lambda *a: None),
            **known,
        }
        exec(compile(ast.Module(taken, []), file, "exec"), scope)
        return scope


def _strip(node: ast.stmt) -> None:
    """Remove annotations, decorators and bases, whose names are not known here."""
    kept = ("classmethod", "staticmethod", "property")
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef):
            inner.decorator_list = [d for d in inner.decorator_list if getattr(d, "id", "") in kept]
        if isinstance(inner, ast.FunctionDef):
            inner.returns = None
            for argument in inner.args.args:
                argument.annotation = None
        if isinstance(inner, ast.ClassDef):
            inner.bases = []


class Encoder:
    """Stands in for a text encoder, and notes what it is given."""

    device, dtype = torch.device("cpu"), torch.float32

    def parameters(self) -> Iterator[torch.Tensor]:
        return iter([torch.zeros(1), torch.zeros(1)])

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> Any:
        self.ids, self.mask = input_ids, attention_mask
        hidden = torch.zeros((*input_ids.shape, 2))
        return types.SimpleNamespace(hidden_states=[hidden] * 40, last_hidden_state=hidden)

    @property
    def kept(self) -> list[int]:
        return list(self.ids[0][self.mask[0].bool()].tolist())


def same_tokens(name: str, tokenizer: Any, limit: TextLimit, theirs: Ids) -> str:
    """Return an empty text if a trainer keeps what we say for all captions, else what differs."""
    own = load_tokenizer(Path(tokenizer.name_or_path))
    marks = set(tokenizer.all_special_ids) if limit.tokenizer.marks else set()
    for caption in CAPTIONS:
        text = mended(caption, limit) if is_mended(limit) else caption
        whole = limit.template.prefix + text + limit.template.suffix
        ids = tokenizer(whole, add_special_tokens=False).input_ids
        fault = lost(own, limit, caption)
        fitting = limit.tokens - tokenizer.num_special_tokens_to_add()
        expected = [i for i in ids[:fitting] if i not in marks]
        if [i for i in theirs(caption) if i not in marks] != expected:
            return f"{name}: other tokens of a caption of {len(ids)}"
        if (fault is not None) != (len(ids) > fitting):
            return f"{name}: {fault} of {len(ids)} tokens"
    return ""


def same_buckets(name: str, settings: TrainerSettings, theirs: Callable[[Size], Size]) -> str:
    """Return an empty text if a trainer puts all sizes where we say, else what differs."""
    for size in SIZES:
        own = settings.bucket(size, "image", 1)
        if own != tuple(int(side) for side in theirs(size)):
            return f"{name}: {size} in {own}, and the trainer in {theirs(size)}"
    return ""


def _limit(trainer: str, model: str, encoder: str) -> TextLimit:
    limit = next(one for one in limits_of(trainer, model) if one.encoder.startswith(encoder))
    assert (trainer, model, limit.encoder) in RUN
    return limit


def token_proofs(source: Source, tokenizers: Path) -> Iterator[tuple[str, str]]:
    """Yield the name of each comparison of tokens, and what differs."""

    def of(name: str) -> Any:
        kind: Any = CLIPTokenizer if name == "clip" else AutoTokenizer
        return kind.from_pretrained(tokenizers / name, local_files_only=True)

    clip, t5, qwen, qwen3 = of("clip"), of("t5"), of("qwen-image"), of("qwen3")
    base = source.take(
        "sd-scripts/library/strategy_base.py", "TokenizeStrategy", CLIPTokenizer=CLIPTokenizer
    )
    kohya = base["TokenizeStrategy"]()
    for option in (0, 150, 225):
        limit = next(one for one in text_limits() if one.model == "sd1.5" and one.option == option)
        yield (
            name := f"kohya sd1.5 {limit.left}",
            same_tokens(
                name,
                clip,
                limit,
                partial(_of_kohya, kohya, clip, limit.tokens),
            ),
        )
    for model, key in (("flux-dev", "flux"), ("flux-schnell", "flux"), ("sd3", "sd3")):
        strategy = f"{key.capitalize()}TokenizeStrategy"
        made = object.__new__(
            source.take(f"sd-scripts/library/strategy_{key}.py", strategy)[strategy]
        )
        limit = _limit("kohya", model, "t5")
        made.clip_l = made.clip_g = clip
        made.t5xxl, made.t5xxl_max_length = t5, limit.tokens
        at = 1 if key == "flux" else 2
        yield (
            name := f"kohya {model} t5",
            same_tokens(name, t5, limit, partial(_of_strategy, made, at)),
        )
    limit = _limit("kohya", "sd3", "clip")
    yield (
        "kohya sd3 clip",
        same_tokens("kohya sd3 clip", clip, limit, partial(_of_strategy, made, 0)),
    )
    yield from _musubi_proofs(source, t5, qwen, qwen3)
    yield from _wan_proof(source, t5)
    yield from _mgds_proofs(source, t5, qwen)
    taken = source.take("ai-toolkit/toolkit/train_tools.py", "text_tokenize")["text_tokenize"]
    yield (
        name := "ai-toolkit sdxl",
        same_tokens(
            name,
            clip,
            _limit("ai-toolkit", "sdxl", "clip"),
            lambda text: taken(clip, [text])[0].tolist(),
        ),
    )


def _of_kohya(strategy: Any, tokenizer: Any, most: int, text: str) -> list[int]:
    return list(strategy._get_input_ids(tokenizer, text, most).flatten().tolist())


def _of_strategy(strategy: Any, at: int, text: str) -> list[int]:
    return list(strategy.tokenize(text)[at][0].tolist())


def _musubi_proofs(source: Source, t5: Any, qwen: Any, qwen3: Any) -> Iterator[tuple[str, str]]:
    root, encoder = "musubi-tuner/src/musubi_tuner", Encoder()
    image = source.take(
        f"{root}/qwen_image/qwen_image_utils.py",
        *("get_qwen_prompt_embeds", "extract_masked_hidden"),
        is_fp8=lambda _: False,
    )

    def of_qwen(text: str) -> Sequence[int]:
        image["get_qwen_prompt_embeds"](qwen, encoder, text)
        return encoder.kept

    yield (
        "musubi qwen-image",
        same_tokens("musubi qwen-image", qwen, _limit("musubi", "qwen-image", "qwen"), of_qwen),
    )
    conditioner = object.__new__(
        source.take(f"{root}/krea2/krea2_encoder.py", "Qwen3VLConditioner")["Qwen3VLConditioner"]
    )
    limit = _limit("musubi", "krea2", "qwen3")
    end = "<|im_end|>\n<|im_start|>assistant\n"
    conditioner.tokenizer = conditioner.processor = qwen3
    conditioner.max_length, conditioner.select_layers, conditioner.qwen = 512, (2,), encoder
    conditioner.prompt_template_encode_prefix = limit.template.prefix
    conditioner.prompt_template_encode_suffix = end
    conditioner.prompt_template_encode_start_idx = limit.template.tokens
    conditioner.prompt_template_encode_suffix_start_idx = 5

    def of_krea(text: str) -> Sequence[int]:
        conditioner.forward([text])
        return encoder.kept[:-5]  # the end, which is put behind what was cut

    yield "musubi krea2", same_tokens("musubi krea2", qwen3, limit, of_krea)
    yield from _qwen3_proofs(source, root, encoder, qwen, qwen3)


def _qwen3_proofs(
    source: Source, root: str, encoder: Encoder, qwen: Any, qwen3: Any
) -> Iterator[tuple[str, str]]:
    embedder = object.__new__(
        source.take(
            f"{root}/flux_2/flux2_utils.py",
            *("Qwen3Embedder", "OUTPUT_LAYERS_QWEN3"),
            rearrange=lambda x, _: x,
        )["Qwen3Embedder"]
    )
    embedder.tokenizer, embedder.max_length, embedder.model = qwen3, 512, encoder

    def of_klein(text: str) -> Sequence[int]:
        embedder.forward([text])
        return encoder.kept

    yield (
        "musubi flux2-klein",
        same_tokens(
            "musubi flux2-klein", qwen3, _limit("musubi", "flux2-klein", "qwen3"), of_klein
        ),
    )
    turbo = source.take(
        f"{root}/zimage/zimage_utils.py",
        "get_text_embeds",
        zimage_config=types.SimpleNamespace(DEFAULT_MAX_SEQUENCE_LENGTH=512),
    )

    def of_z_image(text: str) -> Sequence[int]:
        turbo["get_text_embeds"](qwen3, encoder, text)
        return encoder.kept

    yield (
        "musubi z-image",
        same_tokens("musubi z-image", qwen3, _limit("musubi", "z-image", "qwen3"), of_z_image),
    )
    hunyuan = source.take(
        f"{root}/hunyuan_video_1_5/hunyuan_video_1_5_text_encoder.py",
        *("get_qwen_tokens", "TOKENIZER_MAX_LENGTH", "PROMPT_TEMPLATE_VIDEO"),
        "PROMPT_TEMPLATE_VIDEO_CROP_START_IDX",
    )
    yield (
        "musubi hunyuan-video-1.5",
        same_tokens(
            "musubi hunyuan-video-1.5",
            qwen,
            _limit("musubi", "hunyuan-video-1.5", "qwen"),
            lambda text: _without_padding(hunyuan["get_qwen_tokens"](qwen, text)),
        ),
    )


def _wan_proof(source: Source, t5: Any) -> Iterator[tuple[str, str]]:
    """T5 takes the place of UMT5, whose files are larger; the class that mends the text is that of
    the trainer."""
    try:
        ftfy: Any = __import__("ftfy")
    except ImportError:
        print("limits: musubi wan is not compared: ftfy is not installed")
        return
    taken = source.take(
        "musubi-tuner/src/musubi_tuner/wan/modules/tokenizers.py",
        *("basic_clean", "whitespace_clean", "HuggingfaceTokenizer"),
        ftfy=ftfy,
        html=html,
        string=string,
    )
    made = object.__new__(taken["HuggingfaceTokenizer"])
    made.tokenizer, made.seq_len, made.clean = t5, 512, "whitespace"
    yield (
        "musubi wan",
        same_tokens(
            "musubi wan", t5, _limit("musubi", "wan", "umt5"), lambda text: made(text)[0].tolist()
        ),
    )


def _without_padding(made: Any) -> list[int]:
    ids, mask = made[0][0], made[1][0]
    return list(ids[mask.bool()].tolist())


def _mgds_proofs(source: Source, t5: Any, qwen: Any) -> Iterator[tuple[str, str]]:
    sys.path.insert(0, str(source.folder / "mgds" / "src"))
    tokenize: Any = __import__("mgds.pipelineModules.Tokenize", fromlist=["Tokenize"]).Tokenize
    limit = _limit("onetrainer", "qwen-image", "qwen")
    cases: list[tuple[str, Any, TextLimit, dict[str, Any]]] = [
        ("onetrainer flux", t5, _limit("onetrainer", "flux", "t5"), {"max_token_length": 77}),
        (
            "onetrainer qwen-image",
            qwen,
            limit,
            {
                "max_token_length": 512,
                "format_text": limit.template.prefix + "{}" + limit.template.suffix,
                "additional_format_text_tokens": 34,
            },
        ),
    ]
    for name, tokenizer, of, options in cases:
        module = tokenize("in", "tokens", "mask", tokenizer, **options)
        module.pipeline = types.SimpleNamespace(device=torch.device("cpu"))

        def ids(text: str, module: Any = module) -> Sequence[int]:
            module._get_previous_item = lambda *_: text
            row = module.get_item(0, 0)
            return list(row["tokens"][row["mask"].bool()].tolist())

        yield name, same_tokens(name, tokenizer, of, ids)


def bucket_proofs(source: Source) -> Iterator[tuple[str, str]]:
    """Yield the name of each comparison of buckets, and what differs."""
    util = source.take("sd-scripts/library/model_util.py", "make_bucket_resolutions")
    manager = source.take(
        "sd-scripts/library/train_util.py",
        "BucketManager",
        model_util=types.SimpleNamespace(make_bucket_resolutions=util["make_bucket_resolutions"]),
    )["BucketManager"]
    for resolution, largest, no_upscale in (
        (512, 1024, False), (1024, 1024, False), (1024, 2048, False), (768, 1536, False),
        (1024, 2048, True),
    ):  # fmt: skip
        of = manager(no_upscale, (resolution, resolution), 256, largest, 64)
        if not no_upscale:
            of.make_buckets()
        settings = KohyaSettings(
            resolution=resolution,
            enable_bucket=True,
            max_bucket_reso=largest,
            bucket_no_upscale=no_upscale,
        )
        name = f"kohya buckets {resolution} up to {largest}{', no upscale' * no_upscale}"
        yield name, same_buckets(name, settings, partial(_of_manager, of))
    root = "musubi-tuner/src/musubi_tuner/dataset"
    lines = (source.folder / root / "architectures.py").read_text("utf-8")
    names = dict(re.findall(r'^(ARCHITECTURE_\w+) = "(.*)"', lines, re.MULTILINE))
    selector = source.take(
        f"{root}/bucket.py", "BucketSelector", **names, divisible_by=lambda n, by: n - n % by
    )["BucketSelector"]
    for no_upscale in (False, True):
        of = selector((960, 544), True, no_upscale, "wan")
        own = MusubiSettings(enable_bucket=True, bucket_no_upscale=no_upscale)
        name = f"musubi buckets{', no upscale' * no_upscale}"
        yield name, same_buckets(name, own, of.get_bucket_resolution)
    yield from _pipe_proofs(source)
    yield _ltx_proof(source)


def _of_manager(manager: Any, size: Size) -> Size:
    width, height = manager.select_bucket(*size)[0]
    return width, height


def _pipe_proofs(source: Source) -> Iterator[tuple[str, str]]:
    taken = source.take(
        "diffusion-pipe/utils/dataset.py",
        *("DirectoryDataset", "dedup_and_sort", "ROUND_DECIMAL_DIGITS"),
    )
    of = object.__new__(taken["DirectoryDataset"])
    of.ars = taken["dedup_and_sort"](np.geomspace(0.5, 2.0, 7))
    of.log_ars, of.frame_buckets = np.log(of.ars), np.array([1, 33, 65])
    own = DiffusionPipeSettings(enable_ar_bucket=True, num_ar_buckets=7, frame_buckets=[1, 33, 65])

    def bucket(size: Size) -> Size:
        shape = of._find_closest_ar_bucket(np.log(size[0] / size[1]), 1, False)[0]
        width = math.sqrt(512 * 512 * shape)
        wide, tall = (max(16, round(side / 16) * 16) for side in (width, 512 * 512 / width))
        return wide, tall

    yield "diffusion-pipe buckets", same_buckets("diffusion-pipe buckets", own, bucket)
    model, differ = MODELS["diffusion-pipe"]["wan"], ""
    for _ in range(400):
        count, rate = RANDOM.randint(2, 400), RANDOM.choice([12, 16, 23.976, 24, 25, 30, 60])
        counted = int(count * 16 / rate)
        theirs = of._find_closest_ar_bucket(0.0, counted, counted > 1)
        expected = theirs is not None and theirs[1] > 1 and [span(0, theirs[1], 16.0)]
        if own.spans(count, rate, model) != (expected or []):
            differ = f"{count} frames at {rate}: {theirs}"
    yield "diffusion-pipe frames", differ


def _ltx_proof(source: Source) -> tuple[str, str]:
    of = object.__new__(
        source.take("LTX-2/packages/ltx-trainer/scripts/process_videos.py", "MediaDataset")[
            "MediaDataset"
        ]
    )
    of.resolution_buckets = [(25, 448, 768), (49, 512, 512), (89, 704, 480), (1, 768, 768)]
    own = LtxSettings(buckets=tuple((w, h, n) for n, h, w in of.resolution_buckets))
    for width, height in SIZES[:200]:
        count = RANDOM.randint(1, 200)
        item = types.SimpleNamespace(shape=(count, 3, height, width))
        _, tall, wide = of._get_resolution_bucket_for_item(item)
        if own.bucket((width, height), "video", count) != (wide, tall):
            return "ltx buckets", f"{width} x {height}, {count} frames"
    return "ltx buckets", ""


def failures(sources: Path | None, tokenizers: Path | None) -> int:
    """Compare with the sources; return how many comparisons fail. Without sources, say so."""
    if sources is None:
        print("limits: not compared with the trainers' sources (SOURCES=DIR names them)")
        return 0
    failed = 0
    for line in moved_rows(sources):
        failed += 1
        print(f"MOVED {line}")
    present = {p.split(":")[0] for p in (one.place for one in text_limits())}
    absent = sorted(name for name in present if not (sources / name).is_dir())
    print(f"{len(text_limits())} limits, {failed} moved; not there: {', '.join(absent) or 'none'}")
    proofs = [bucket_proofs(Source(sources))]
    if tokenizers is None:
        print("limits: tokens are not compared (TOKENIZERS=DIR names clip, t5, qwen-image, qwen3)")
    else:
        proofs.append(token_proofs(Source(sources), tokenizers))
    for name, differs in (pair for some in proofs for pair in some):
        failed += bool(differs)
        print(f"{'DIFFERS ' + differs if differs else 'equal   ' + name}")
    return failed
