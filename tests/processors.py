"""Real processors of many families with tiny tokenizers and small sizes, and how each family is
documented to call them; needs no network and builds no model."""

import atexit
import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from stages.models.prepare import Clip, video_metadata
from tests.families import GRID, hf

TEMPLATE = (
    "{% for m in messages %}User: {% for c in m['content'] %}{% if c['type'] == 'text' %}"
    "{{ c['text'] }}{% else %}{{ MEDIA[c['type']] }}{% endif %}{% endfor %}\n"
    "{% endfor %}Assistant:"
)
TILES = tuple(f"<row_{row}_col_{col}>" for row in (1, 2) for col in (1, 2))
SQUARE = {"height": 32, "width": 32}
CROPPED = {"size": {"shortest_edge": 32}, "crop_size": SQUARE}


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A family's processor and its documented call."""

    build: Callable[[], Any]
    text: str | None = None
    """What is written for pictures and a prompt; None: the chat template writes it."""
    word: str = ""
    """What stands for a picture in it."""
    nested: bool = True
    """Whether pictures go in as a list for each prompt."""
    many: bool = True
    """Whether several pictures go into one prompt."""
    video: str | None = None
    """The argument that takes videos; None: frames go in as pictures."""
    timed: bool = True
    """Whether a video's times go in."""
    image: bool = True
    """Whether it takes pictures at all."""


def words(*special: str, image: str = "", video: str = "", **named: str) -> Any:
    """Bytes as tokens, and the family's own; `named` ones are attributes of the tokenizer."""
    known = ("<pad>", "</s>", "<s>", "<unk>", *special, image, video, *named.values())
    names = dict.fromkeys(name for name in known if name)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {name: index for index, name in enumerate([*names, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made: Any = hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
        padding_side="left",
        **({"extra_special_tokens": named} if named else {}),
    )
    made.add_tokens(list(names), special_tokens=True)
    return made


def template(image: str, video: str = "") -> str:
    return "{% set MEDIA = " + repr({"image": image, "video": video}) + " %}" + TEMPLATE


def _qwen2_vl() -> Any:
    common = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    size = {"size": {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}, **common}
    image, video = "<|image_pad|>", "<|video_pad|>"
    return hf.Qwen2VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(**size),
        video_processor=hf.Qwen2VLVideoProcessor(**size),
        tokenizer=words(image=image, video=video),
        chat_template=template(image, video),
    )


def _glm4v() -> Any:
    common = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    size = {"size": {"shortest_edge": 16 * 16, "longest_edge": 8 * 32 * 32}, **common}
    image, video = "<|image|>", "<|video|>"
    marks = ("<|begin_of_video|>", "<|end_of_video|>", "<|begin_of_image|>", "<|end_of_image|>")
    return hf.Glm4vProcessor(
        image_processor=hf.Glm4vImageProcessor(**size),
        video_processor=hf.Glm4vVideoProcessor(**size),
        tokenizer=words(*marks, image=image, video=video),
        chat_template=template(image, f"{marks[0]}{video}{marks[1]}"),
    )


def _gemma3() -> Any:
    named = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<soft>"}
    return hf.Gemma3Processor(
        hf.Gemma3ImageProcessor(size=SQUARE),
        words(**named),
        chat_template=template("<boi>"),
        image_seq_length=4,
    )


def _internvl() -> Any:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    return hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=3),
        words(**named),
        hf.InternVLVideoProcessor(size=SQUARE),
        image_seq_length=4,
        chat_template=template("<IMG_CONTEXT>", "<video>"),
    )


def _llava_next() -> Any:
    return hf.LlavaNextProcessor(
        hf.LlavaNextImageProcessor(**CROPPED, image_grid_pinpoints=GRID),
        words(image="<image>"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>"),
    )


def _llava_next_video() -> Any:
    return hf.LlavaNextVideoProcessor(
        video_processor=hf.LlavaNextVideoVideoProcessor(**CROPPED),
        image_processor=hf.LlavaNextImageProcessor(**CROPPED, image_grid_pinpoints=GRID),
        tokenizer=words(image="<image>", video="<video>"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>", "<video>"),
    )


def _video_llava() -> Any:
    return hf.VideoLlavaProcessor(
        image_processor=hf.VideoLlavaImageProcessor(**CROPPED),
        video_processor=hf.VideoLlavaVideoProcessor(**CROPPED),
        tokenizer=words(image="<image>", video="<video>"),
        patch_size=8,
        chat_template=template("<image>", "<video>"),
    )


SMOL = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *TILES)


def _idefics3() -> Any:
    sizes = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    return hf.Idefics3Processor(
        hf.Idefics3ImageProcessor(**sizes),
        words(*SMOL, image="<image>"),
        image_seq_len=4,
        chat_template=template("<image>"),
    )


def _idefics2() -> Any:
    sizes = {"size": {"shortest_edge": 32, "longest_edge": 64}, "do_image_splitting": True}
    return hf.Idefics2Processor(
        hf.Idefics2ImageProcessor(**sizes),
        words(*SMOL[:2], image="<image>"),
        image_seq_len=4,
        chat_template=template("<image>"),
    )


def _pixtral() -> Any:
    return hf.PixtralProcessor(
        hf.PixtralImageProcessor(size={"longest_edge": 64}, patch_size={"height": 8, "width": 8}),
        words("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        patch_size=8,
        chat_template=template("[IMG]"),
    )


def _aya_vision() -> Any:
    marks = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>")
    tiles = ("TILE", "TILE_GLOBAL")
    return hf.AyaVisionProcessor(
        hf.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=3),
        words(*marks, *tiles, image="<image>"),
        patch_size=8,
        img_size=32,
        chat_template=template("<image>"),
    )


def _llama4() -> Any:
    marks = ("<|image_start|>", "<|image_end|>", "<|patch|>")
    tiles = ("<|tile_x_separator|>", "<|tile_y_separator|>")
    return hf.Llama4Processor(
        hf.Llama4ImageProcessor(size=SQUARE, max_patches=4),
        words(*marks, *tiles, image="<|image|>"),
        patch_size=8,
        chat_template=template("<|image|>"),
    )


def _janus() -> Any:
    named = {"image_token": "<pic>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    image = hf.JanusImageProcessor(size=SQUARE, min_size=4)
    made = hf.JanusProcessor(image, words(**named), num_image_tokens=4)
    made.chat_template = template("<pic>")
    return made


def _mllama() -> Any:
    return hf.MllamaProcessor(
        hf.MllamaImageProcessor(size=SQUARE, max_image_tiles=4),
        words("<|image|>", "<|python_tag|>"),
        chat_template="{{ bos_token }}" + template("<|image|>"),
    )


def _got_ocr2() -> Any:
    special = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<imgpad>")
    return hf.GotOcr2Processor(hf.GotOcr2ImageProcessor(size=SQUARE), words(*special))


def _chameleon() -> Any:
    named = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    made = words("<sep>", **named)
    made.sep_token = "<sep>"
    return hf.ChameleonProcessor(hf.ChameleonImageProcessor(**CROPPED), made, image_seq_length=4)


def _emu3() -> Any:
    named = {
        "image_token": "<image>",
        "boi_token": "<boi>",
        "eoi_token": "<eoi>",
        "image_wrapper_token": "<wrap>",
        "eof_token": "<eof>",
    }
    return hf.Emu3Processor(
        hf.Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=64 * 64),
        words(**named),
        chat_template=template("<image>"),
    )


def _paligemma() -> Any:
    image = hf.SiglipImageProcessor(size=SQUARE)
    image.image_seq_length = 16
    return hf.PaliGemmaProcessor(image, words("<image>"))


def _florence2() -> Any:
    image = hf.CLIPImageProcessor(**CROPPED)
    image.image_seq_length = 4
    return hf.Florence2Processor(image_processor=image, tokenizer=words(image_token="<image>"))


def _kosmos2() -> Any:
    return hf.Kosmos2Processor(hf.CLIPImageProcessor(**CROPPED), words())


def _pix2struct() -> Any:
    image = hf.Pix2StructImageProcessor(max_patches=16, patch_size={"height": 8, "width": 8})
    return hf.Pix2StructProcessor(image, words())


def _git() -> Any:
    made = words()
    marks = [("<s>", made.bos_token_id), ("</s>", made.eos_token_id)]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=marks
    )
    return hf.GitProcessor(hf.CLIPImageProcessor(**CROPPED), made)


def _blip() -> Any:
    return hf.BlipProcessor(hf.BlipImageProcessor(size=SQUARE), words())


def _blip_2() -> Any:
    return hf.Blip2Processor(hf.BlipImageProcessor(size=SQUARE), words(), num_query_tokens=4)


def _instructblip() -> Any:
    parts = (hf.BlipImageProcessor(size=SQUARE), words(), words())
    return hf.InstructBlipProcessor(*parts, num_query_tokens=4)


def _instructblipvideo() -> Any:
    parts = (hf.InstructBlipVideoVideoProcessor(size=SQUARE), words(), words())
    return hf.InstructBlipVideoProcessor(*parts, num_query_tokens=4)


def _perception_lm() -> Any:
    named = {"image_token": "<|image|>", "video_token": "<|video|>"}
    return hf.PerceptionLMProcessor(
        video_processor=hf.PerceptionLMVideoProcessor(size=SQUARE),
        image_processor=hf.PerceptionLMImageProcessor(tile_size=32, max_num_tiles=4),
        tokenizer=words(**named),
        patch_size=8,
        chat_template=template("<|image|>", "<|video|>"),
    )


def _video_llama_3() -> Any:
    size = {"size": {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}, "patch_size": 4}
    return hf.VideoLlama3Processor(
        image_processor=hf.VideoLlama3ImageProcessor(**size),
        video_processor=hf.VideoLlama3VideoProcessor(**size),
        tokenizer=words(image_token="<image>", video_token="<video>"),
        chat_template=template("<image>", "<video>"),
    )


def _idefics() -> Any:
    return hf.IdeficsProcessor(
        hf.IdeficsImageProcessor(image_size=32),
        words("<fake_token_around_image>", image_token="<image>"),
    )


KINDS: dict[str, Kind] = {
    "aya_vision": Kind(build=_aya_vision),
    "blip": Kind(build=_blip, text="{prompt}", many=False),
    "blip_2": Kind(build=_blip_2, text="{prompt}", many=False),
    "chameleon": Kind(build=_chameleon, text="{media}\n{prompt}", word="<image>"),
    "emu3": Kind(build=_emu3),
    "florence2": Kind(build=_florence2, text="{prompt}", many=False),
    "gemma3": Kind(build=_gemma3),
    "git": Kind(build=_git, text="{prompt}", many=False),
    "glm4v": Kind(build=_glm4v, video="videos"),
    "got_ocr2": Kind(build=_got_ocr2, text="{media}\n{prompt}", word="<imgpad>", nested=False),
    "idefics": Kind(build=_idefics, text="{prompt}"),
    "idefics2": Kind(build=_idefics2),
    "idefics3": Kind(build=_idefics3),
    "instructblip": Kind(build=_instructblip, text="{prompt}", many=False),
    "instructblipvideo": Kind(
        build=_instructblipvideo, text="{prompt}", video="images", timed=False, image=False
    ),
    "internvl": Kind(build=_internvl, video="videos"),
    "janus": Kind(build=_janus),
    "kosmos2": Kind(build=_kosmos2, text="{prompt}", many=False),
    "llama4": Kind(build=_llama4),
    "llava_next": Kind(build=_llava_next),
    "llava_next_video": Kind(build=_llava_next_video, video="videos"),
    "mllama": Kind(build=_mllama),
    "paligemma": Kind(build=_paligemma, text="{media}{prompt}", word="<image>"),
    "perception_lm": Kind(build=_perception_lm, video="videos"),
    "pix2struct": Kind(build=_pix2struct, text="{prompt}", many=False),
    "pixtral": Kind(build=_pixtral),
    "qwen2_vl": Kind(build=_qwen2_vl, video="videos"),
    "video_llama_3": Kind(build=_video_llama_3, video="videos"),
    "video_llava": Kind(build=_video_llava, video="videos"),
}
"""Family -> its processor and its call."""


def plain_call(
    family: str, processor: Any, batch: Sequence[Clip], prompts: Sequence[str]
) -> dict[str, Any]:
    """What the processor gives for media and prompts at once, called as its family documents."""
    kind = KINDS[family]
    as_video = kind.video is not None and batch[0].kind == "video"
    clips = [clip if kind.many else clip.middle() for clip in batch]
    pictures = [[Image.fromarray(frame) for frame in clip.frames] for clip in clips]
    counts = [1 if as_video else len(row) for row in pictures]
    texts = []
    for count, prompt in zip(counts, prompts, strict=True):
        parts: list[dict[str, str]] = [{"type": "video" if as_video else "image"}] * count
        turn = [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]
        if kind.text is None:
            texts.append(processor.apply_chat_template(turn, add_generation_prompt=True))
        else:
            texts.append(kind.text.format(media=kind.word * count, prompt=prompt))
    flat = [picture for row in pictures for picture in row]
    options: dict[str, Any] = {"images": pictures if kind.nested else flat}
    if as_video:
        options = {str(kind.video): [clip.frames for clip in clips]}
        if kind.timed:
            metadata = [video_metadata(clip) for clip in clips]
            options |= {"video_metadata": metadata, "do_sample_frames": False}
    if texts[0].startswith(processor.tokenizer.bos_token):
        options["add_special_tokens"] = False
    return dict(processor(text=texts, padding=True, return_tensors="pt", **options))


@functools.cache
def processor_folder(family: str) -> Path:
    """Where the family's processor is saved, once a session; not to be written to."""
    root = tempfile.TemporaryDirectory()
    atexit.register(root.cleanup)
    KINDS[family].build().save_pretrained(root.name)
    return Path(root.name)
