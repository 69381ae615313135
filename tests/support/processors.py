"""Real processors of many families with tiny tokenizers and, by default, small sizes, and how each
family documents that its own is called; builds no model and needs no network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tokenizers import processors

from stages.models.processors.blank_clips import Clip, video_metadata
from stages.models.processors.input_layout import layout_of
from stages.models.processors.processor_calls import write
from tests.support.builders.words import hf, template, words
from tests.support.families import made_once
from tests.support.tiny_families.parts import PINPOINTS

Pinpoints = list[list[int]]
CLIP_TOKENS = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}


def square(edge: int) -> dict[str, int]:
    return {"height": edge, "width": edge}


def cropped(edge: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": edge}, "crop_size": square(edge)}


SQUARE, CROPPED = square(32), cropped(32)


def qwen2_vl() -> Any:
    common = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
    size = {"size": {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}, **common}
    image, video = "<|image_pad|>", "<|video_pad|>"
    return hf.Qwen2VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(**size),
        video_processor=hf.Qwen2VLVideoProcessor(**size),
        tokenizer=words(image=image, video=video),
        chat_template=template(image, video),
    )


def omni(name: str) -> Any:
    """A processor that computes times from `fps`, and brings limits of pixels of its own."""
    made = qwen2_vl()
    image, video = "<|image_pad|>", "<|video_pad|>"
    named = {"image_token": image, "video_token": video, "audio_token": "<|AUDIO|>"}
    marks = [f"{what}_{end}_token" for what in ("vision", "audio") for end in ("bos", "eos")]
    return getattr(hf, f"{name}Processor")(
        image_processor=made.image_processor,
        video_processor=made.video_processor,
        feature_extractor=hf.WhisperFeatureExtractor(),
        tokenizer=words(**named, **{mark: f"<|{mark}|>" for mark in marks}),
        chat_template=made.chat_template,
    )


def glm4v(
    patch: int = 4, least: int = 16 * 16, most: int = 8 * 32 * 32, video_most: int = 8 * 32 * 32
) -> Any:
    common = {"patch_size": patch, "temporal_patch_size": 2, "merge_size": 2}
    image, video = "<|image|>", "<|video|>"
    marks = ("<|begin_of_video|>", "<|end_of_video|>", "<|begin_of_image|>", "<|end_of_image|>")
    return hf.Glm4vProcessor(
        image_processor=hf.Glm4vImageProcessor(
            size={"shortest_edge": least, "longest_edge": most}, **common
        ),
        video_processor=hf.Glm4vVideoProcessor(
            size={"shortest_edge": least, "longest_edge": video_most}, **common
        ),
        tokenizer=words(*marks, image=image, video=video),
        chat_template=template(image, f"{marks[0]}{video}{marks[1]}"),
    )


def gemma3(edge: int = 32, tokens: int = 4) -> Any:
    named = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<soft>"}
    return hf.Gemma3Processor(
        hf.Gemma3ImageProcessor(size=square(edge)),
        words(**named),
        chat_template=template("<boi>"),
        image_seq_length=tokens,
    )


def internvl(edge: int = 32, tokens: int = 4, most: int = 3) -> Any:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tiled = {"crop_to_patches": True, "min_patches": 1, "max_patches": most}
    return hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(size=square(edge), **tiled),
        words(**named),
        hf.InternVLVideoProcessor(size=square(edge)),
        image_seq_length=tokens,
        chat_template=template("<IMG_CONTEXT>", "<video>"),
    )


def llava_next(edge: int = 32, patch: int = 8, pinpoints: Pinpoints = PINPOINTS) -> Any:
    return hf.LlavaNextProcessor(
        hf.LlavaNextImageProcessor(**cropped(edge), image_grid_pinpoints=pinpoints),
        words(image="<image>"),
        patch_size=patch,
        **CLIP_TOKENS,
        chat_template=template("<image>"),
    )


def llava_next_video(edge: int = 32, patch: int = 8, pinpoints: Pinpoints = PINPOINTS) -> Any:
    size = cropped(edge)
    return hf.LlavaNextVideoProcessor(
        video_processor=hf.LlavaNextVideoVideoProcessor(**size),
        image_processor=hf.LlavaNextImageProcessor(**size, image_grid_pinpoints=pinpoints),
        tokenizer=words(image="<image>", video="<video>"),
        patch_size=patch,
        **CLIP_TOKENS,
        chat_template=template("<image>", "<video>"),
    )


def video_llava(edge: int = 32, patch: int = 8, **more: Any) -> Any:
    return hf.VideoLlavaProcessor(
        image_processor=hf.VideoLlavaImageProcessor(**cropped(edge)),
        video_processor=hf.VideoLlavaVideoProcessor(**cropped(edge)),
        tokenizer=words(image="<image>", video="<video>"),
        patch_size=patch,
        **more,
        chat_template=template("<image>", "<video>"),
    )


SMOL = ("<fake_token_around_image>", "<end_of_utterance>")


def smol_marks(tiles: int) -> tuple[str, ...]:
    """Return the special tokens of an image that is split into `tiles` x `tiles` tiles."""
    numbers = range(1, tiles + 1)
    places = (f"<row_{row}_col_{col}>" for row in numbers for col in numbers)
    return (*SMOL, "<global-img>", *places)


def idefics3(edge: int = 32, tiles: int = 2, tokens: int = 4) -> Any:
    return hf.Idefics3Processor(
        hf.Idefics3ImageProcessor(
            size={"longest_edge": tiles * edge}, max_image_size={"longest_edge": edge}
        ),
        words(*smol_marks(tiles), image="<image>"),
        image_seq_len=tokens,
        chat_template=template("<image>"),
    )


def idefics2() -> Any:
    sizes = {"size": {"shortest_edge": 32, "longest_edge": 64}, "do_image_splitting": True}
    return hf.Idefics2Processor(
        hf.Idefics2ImageProcessor(**sizes),
        words(*SMOL, image="<image>"),
        image_seq_len=4,
        chat_template=template("<image>"),
    )


def pixtral(edge: int = 64, patch: int = 8, merge: int = 1) -> Any:
    """A processor that writes a mark after each row of a frame's tokens."""
    return hf.PixtralProcessor(
        hf.PixtralImageProcessor(size={"longest_edge": edge}, patch_size=square(patch)),
        words("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        patch_size=patch,
        spatial_merge_size=merge,
        chat_template=template("[IMG]"),
    )


def aya_vision() -> Any:
    marks = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>")
    tiles = ("TILE", "TILE_GLOBAL")
    return hf.AyaVisionProcessor(
        hf.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=3),
        words(*marks, *tiles, image="<image>"),
        patch_size=8,
        img_size=32,
        chat_template=template("<image>"),
    )


def llama4() -> Any:
    marks = ("<|image_start|>", "<|image_end|>", "<|patch|>")
    tiles = ("<|tile_x_separator|>", "<|tile_y_separator|>")
    return hf.Llama4Processor(
        hf.Llama4ImageProcessor(size=SQUARE, max_patches=4),
        words(*marks, *tiles, image="<|image|>"),
        patch_size=8,
        chat_template=template("<|image|>"),
    )


def janus() -> Any:
    named = {"image_token": "<pic>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    image = hf.JanusImageProcessor(size=SQUARE, min_size=4)
    made = hf.JanusProcessor(image, words(**named), num_image_tokens=4)
    made.chat_template = template("<pic>")
    return made


def mllama(edge: int = 32) -> Any:
    return hf.MllamaProcessor(
        hf.MllamaImageProcessor(size=square(edge), max_image_tiles=4),
        words("<|image|>", "<|python_tag|>"),
        chat_template="{{ bos_token }}" + template("<|image|>"),
    )


def got_ocr2() -> Any:
    special = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<imgpad>")
    return hf.GotOcr2Processor(hf.GotOcr2ImageProcessor(size=SQUARE), words(*special))


def chameleon() -> Any:
    named = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    made = words("<sep>", **named)
    made.sep_token = "<sep>"
    return hf.ChameleonProcessor(hf.ChameleonImageProcessor(**CROPPED), made, image_seq_length=4)


def emu3() -> Any:
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


def paligemma(edge: int = 32, tokens: int = 16) -> Any:
    image = hf.SiglipImageProcessor(size=square(edge))
    image.image_seq_length = tokens
    return hf.PaliGemmaProcessor(image, words("<image>"))


def florence2() -> Any:
    image = hf.CLIPImageProcessor(**CROPPED)
    image.image_seq_length = 2
    return hf.Florence2Processor(image_processor=image, tokenizer=words(image_token="<image>"))


def kosmos2() -> Any:
    return hf.Kosmos2Processor(hf.CLIPImageProcessor(**CROPPED), words())


def pix2struct() -> Any:
    image = hf.Pix2StructImageProcessor(max_patches=16, patch_size={"height": 8, "width": 8})
    return hf.Pix2StructProcessor(image, words())


def git() -> Any:
    return hf.GitProcessor(hf.CLIPImageProcessor(**CROPPED), _framed(words()))


def blip(edge: int = 32) -> Any:
    return hf.BlipProcessor(hf.BlipImageProcessor(size=square(edge)), _framed(words()))


def _framed(made: Any) -> Any:
    """The tokenizer, putting a token before and one after every text, as those made for encoders
    do."""
    marks = [("<s>", made.bos_token_id), ("</s>", made.eos_token_id)]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=marks
    )
    return made


def blip_2() -> Any:
    return hf.Blip2Processor(hf.BlipImageProcessor(size=SQUARE), words(), num_query_tokens=4)


def instructblip() -> Any:
    parts = (hf.BlipImageProcessor(size=SQUARE), words(), _framed(words()))
    return hf.InstructBlipProcessor(*parts, num_query_tokens=4)


def instructblipvideo() -> Any:
    parts = (hf.InstructBlipVideoVideoProcessor(size=SQUARE), words(), _framed(words()))
    return hf.InstructBlipVideoProcessor(*parts, num_query_tokens=4)


def perception_lm() -> Any:
    named = {"image_token": "<|image|>", "video_token": "<|video|>"}
    return hf.PerceptionLMProcessor(
        video_processor=hf.PerceptionLMVideoProcessor(size=SQUARE),
        image_processor=hf.PerceptionLMImageProcessor(tile_size=32, max_num_tiles=4),
        tokenizer=words(**named),
        patch_size=8,
        chat_template=template("<|image|>", "<|video|>"),
    )


def video_llama_3() -> Any:
    size = {"size": {"shortest_edge": 16 * 16, "longest_edge": 32 * 32}, "patch_size": 4}
    return hf.VideoLlama3Processor(
        image_processor=hf.VideoLlama3ImageProcessor(**size),
        video_processor=hf.VideoLlama3VideoProcessor(**size),
        tokenizer=words(image_token="<image>", video_token="<video>"),
        chat_template=template("<image>", "<video>"),
    )


def idefics() -> Any:
    return hf.IdeficsProcessor(
        hf.IdeficsImageProcessor(image_size=32),
        words("<fake_token_around_image>", image_token="<image>"),
    )


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
    rated: bool = False
    """Whether the rate of its frames goes in."""
    image: bool = True
    """Whether it takes pictures at all."""


KINDS: dict[str, Kind] = {
    "aya_vision": Kind(build=aya_vision),
    "blip": Kind(build=blip, text="{prompt}", many=False),
    "blip_2": Kind(build=blip_2, text="{prompt}", many=False),
    "chameleon": Kind(build=chameleon, text="{media}\n{prompt}", word="<image>"),
    "emu3": Kind(build=emu3),
    "florence2": Kind(build=florence2, text="{prompt}", many=False),
    "gemma3": Kind(build=gemma3),
    "git": Kind(build=git, text="{prompt}", many=False),
    "glm4v": Kind(build=glm4v, video="videos"),
    "got_ocr2": Kind(build=got_ocr2, text="{media}\n{prompt}", word="<imgpad>", nested=False),
    "idefics": Kind(build=idefics, text="{prompt}"),
    "idefics2": Kind(build=idefics2),
    "idefics3": Kind(build=idefics3),
    "instructblip": Kind(build=instructblip, text="{prompt}", many=False),
    "instructblipvideo": Kind(
        build=instructblipvideo, text="{prompt}", video="images", timed=False, image=False
    ),
    "internvl": Kind(build=internvl, video="videos"),
    "janus": Kind(build=janus),
    "kosmos2": Kind(build=kosmos2, text="{prompt}", many=False),
    "llama4": Kind(build=llama4),
    "llava_next": Kind(build=llava_next),
    "llava_next_video": Kind(build=llava_next_video, video="videos"),
    "mllama": Kind(build=mllama),
    "paligemma": Kind(build=paligemma, text="{media}{prompt}", word="<image>"),
    "perception_lm": Kind(build=perception_lm, video="videos"),
    "pix2struct": Kind(build=pix2struct, text="{prompt}", many=False),
    "pixtral": Kind(build=pixtral),
    "qwen2_5_omni": Kind(build=lambda: omni("Qwen2_5Omni"), video="videos", rated=True),
    "qwen2_vl": Kind(build=qwen2_vl, video="videos"),
    "qwen3_omni_moe": Kind(build=lambda: omni("Qwen3OmniMoe"), video="videos", rated=True),
    "video_llama_3": Kind(build=video_llama_3, video="videos"),
    "video_llava": Kind(build=video_llava, video="videos"),
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
        if kind.rated:
            options["fps"] = 1 / (batch[0].times[1] - batch[0].times[0])
    begin = processor.tokenizer.bos_token
    if begin and texts[0].startswith(begin):
        options["add_special_tokens"] = False
    return dict(processor(text=texts, padding=True, return_tensors="pt", **options))


@made_once
def processor_folder(folder: Path, family: str) -> None:
    """Where the family's processor is saved."""
    KINDS[family].build().save_pretrained(folder)


def render(processor: Any, channel: str, media: int, prompt: str) -> str:
    """The text of one turn, media first, by the checkpoint's chat template if it has one."""
    return write(processor, layout_of(processor, channel).form, channel, media, prompt)
