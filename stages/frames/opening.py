"""Opens a media file for its video, and explains why a file cannot be used."""

from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from artifacts.containers import open_media
from artifacts.errors import MediaError
from artifacts.regular_files import open_regular
from stages.frames.dolby_vision import has_no_base_layer
from stages.frames.formats import OPTIONS, check_file
from stages.process.memory_limit import memory_was_short

ISO_BRANDS_AT = slice(4, 8)
"""Position of `ftyp` in an MP4 or MOV file."""

STRICT = {"err_detect": "explode"}
"""Decoder option with which damage is an error."""
LENIENT_CODECS = frozenset(("h264",))
"""Codecs whose decoder marks concealed frames. With STRICT, a seek into an open group of pictures
is an error, too."""
THREAD_TYPES: dict[str, Literal["SLICE"]] = {"vp8": "SLICE"}
"""Kind of decoder threads, if not the decoder's own choice. Of 42 damaged VP8 files, 36 had other
frames with frame threads, without any error; none had with slice threads."""
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Codec → its decoder that decodes the transparency of a WebM track, as FFmpeg's own do not."""

READ_BYTES = 1 << 20
MAX_PIXELS = 1 << 27
"""Most pixels per frame, 16384 x 8192; no camera has more. A decoder holds several frames."""


def is_damage(error: av.error.FFmpegError, path: Path) -> bool:
    """Return whether the content of the file is at fault, and not the disk or memory.

    For broken content FFmpeg also reports I/O errors and impossible allocations. So the file is
    read once more, and the memory of this process is checked.
    """
    if isinstance(error, MemoryError):
        return not memory_was_short()
    if not isinstance(error, OSError):
        return True
    try:
        with open_regular(path) as file:
            while file.read(READ_BYTES):
                pass
    except OSError:
        return False
    return True


def open_video(
    path: Path, *, threads: int = 0, strict: bool = False
) -> tuple[InputContainer, VideoStream]:
    """Return the container and its best video stream. `threads` 0 lets the decoder use all cores.
    With `strict` the decoder reports damage, as an error or by a mark. Raises MediaError."""
    check_file(path)
    try:
        container = open_container(path)
    except av.error.FFmpegError as error:
        if not is_damage(error, path):
            raise
        raise _cannot_open(path, error) from error
    try:
        stream = _video_stream(path, container)
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all
        codec = stream.codec_context.name
        options = STRICT if strict and codec not in LENIENT_CODECS else {}
        stream.thread_type = THREAD_TYPES.get(codec, "AUTO")
        stream.codec_context.thread_count = threads
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS), **options}
        context = stream.codec_context
        if codec == "rawvideo" and context.pix_fmt == "bgra" and not context.codec_tag.strip("\0"):
            context.pix_fmt = "bgr0"  # as in AVI, whose fourth byte is undefined
    except BaseException:
        container.close()
        raise
    return container, stream


def has_alpha_track(stream: VideoStream) -> bool:
    """Return whether a WebM track says that it stores transparency beside its frames."""
    says = any(k.lower() == "alpha_mode" and v == "1" for k, v in stream.metadata.items())
    return says and stream.codec_context.name in ALPHA_DECODERS


def decoder_of(stream: VideoStream) -> VideoCodecContext:
    """Return the decoder of a stream of `open_video`: its own, or one that decodes alpha."""
    own = stream.codec_context
    if not has_alpha_track(stream):
        return own
    decoder = av.CodecContext.create(ALPHA_DECODERS[own.name], "r")
    assert isinstance(decoder, VideoCodecContext)
    for name in ("extradata", "thread_count", "options", "color_range", "colorspace"):
        setattr(decoder, name, getattr(own, name))
    return decoder


def open_container(path: Path) -> InputContainer:
    """Open a media file with FFmpeg, without opening any other file or address. Raises
    FFmpegError."""
    return open_media(path, options=OPTIONS)


def time_zero(container: InputContainer) -> Fraction:
    """Return time 0 of a file in seconds of its own clock: where its first stream starts. Covers
    and data do not count, though FFmpeg counts them."""
    start = Fraction(container.start_time or 0, av.time_base)
    shown = [
        stream.start_time * stream.time_base
        for stream in container.streams
        if stream.type in ("video", "audio", "subtitle")
        and not stream.disposition & Disposition.attached_pic
        and stream.start_time is not None
        and stream.time_base
    ]
    exact = min(shown, default=start)
    return exact if exact > start - Fraction(1, av.time_base) else start  # `start` is rounded


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        raise MediaError(
            f"{path} holds no video ({', '.join(s.type for s in container.streams) or 'nothing'})",
            kind="no-video",
            hint="Leave it out; only videos and images are supported",
        )
    # PyAV returns None for a codec that it was built without, despite its annotation.
    if stream.codec_context is None:  # pragma: no cover  # needs a codec that no wheel lacks
        raise MediaError(
            f"{path} uses a codec that this FFmpeg cannot decode",
            kind="no-decoder",
            hint="Convert it, for example to H.264 in MP4",
        )
    if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
        raise MediaError(
            f"{path} has frames of {stream.codec_context.width} x "
            f"{stream.codec_context.height} pixels, more than any camera's",
            kind="too-large",
            hint="Scale it down first, if its header is right",
        )
    if has_no_base_layer(path):
        raise MediaError(
            f"{path} is Dolby Vision without a base layer (profile 5, or 10.0), which plain "
            "decoders show in green and purple",
            kind="no-decoder",
            hint="Convert it first: ffmpeg -i FILE -vf libplacebo=tonemapping=bt.2390 OUT.mp4",
        )
    if not stream.time_base:  # None or 0/1, depending on the version of PyAV
        raise MediaError(
            f"{path} has no time base",
            kind="damaged",
            hint="Remux it: ffmpeg -i FILE -c copy OUT.mkv",
        )
    return stream


def no_frames(path: Path) -> MediaError:
    """Return the error for a video without a single decodable frame."""
    return MediaError(
        f"{path} has no decodable frame",
        kind="no-frames",
        hint="Check in a player whether it is complete, or leave it out",
    )


def _cannot_open(path: Path, error: av.error.FFmpegError) -> MediaError:
    with open_regular(path) as file:
        start = file.read(16)
    if not isinstance(error, av.error.InvalidDataError | av.error.EOFError):
        return MediaError(
            f"{path} is damaged ({error.strerror})",
            kind="damaged",
            hint="Copy or download it again",
        )
    if start[ISO_BRANDS_AT] == b"ftyp":
        return MediaError(
            f"{path} ends before its index, or the index is damaged (no moov atom)",
            kind="no-moov",
            hint="Copy or download it again, or repair it with untrunc",
        )
    return MediaError(
        f"{path} is not a media file that FFmpeg can read ({error.strerror})",
        kind="not-media",
        hint="Check in a player whether it is complete, or leave it out",
    )
