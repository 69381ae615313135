"""Schemas, label files, adapters and playlists from strangers: each is taken or refused in a line,
soon and within memory; none means something else than it meant elsewhere, and none that is dressed
up as a video or a picture has another file opened, or captioned as what it names."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from artifacts.errors import MediaError, PenstockError
from artifacts.frame_fit import FrameFit
from artifacts.schema import Sampling
from flows.commands.label.label_set import label_set
from flows.core.media.media_file import IMAGE_SUFFIXES
from stages.decode.json_schema import canonical, follows
from stages.frames.formats import check_file
from stages.frames.image import read_image
from stages.frames.video import Video
from stages.models.adapter_modules import read_adapter
from tests.support.adapters import matrices, write_adapter
from tests.support.attacks import seeded
from tests.support.loopback import visited_port
from tests.support.media import write_video

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]  # each takes seconds

LETTERS = 400
"""A refusal is one line that can be read."""


def refused(call: Any, words: str) -> None:
    with pytest.raises(PenstockError) as found:
        call()
    text = str(found.value)
    assert words in text and "\n" not in text and len(text) < LETTERS + 200, text


def of(value: dict[str, Any], **more: Any) -> str:
    return json.dumps({"type": "object", "properties": {"a": value}, "required": ["a"], **more})


def doubling(levels: int) -> str:
    def both(to: str) -> dict[str, Any]:
        return {"type": "object", "properties": {"x": {"$ref": to}, "y": {"$ref": to}}}

    defs = {f"d{n}": both(f"#/$defs/d{n + 1}") for n in range(levels)}
    return of({"$ref": "#/$defs/d0"}, **{"$defs": {**defs, f"d{levels}": {"type": "string"}}})


def chained(count: int) -> str:
    defs: dict[str, Any] = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(count)}
    return of({"$ref": "#/$defs/d0"}, **{"$defs": {**defs, f"d{count}": {"type": "string"}}})


def nested(levels: int) -> str:
    found: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        found = {"type": "object", "properties": {"a": found}}
    return of(found)


def matching(pattern: str, letters: int) -> tuple[str, str]:
    return of({"type": "string", "maxLength": letters, "pattern": pattern}), "is not supported"


SCHEMAS: dict[str, tuple[str, str]] = {
    "references that double": (doubling(30), "after its references are expanded"),
    "a chain of references": (chained(20_000), "follow each other"),
    "nested 300 times": (nested(300), "is not supported"),
    "a huge bound": (of({"type": "integer", "minimum": 10**400}), "number out of range"),
    "a pattern that explodes": matching("(.*a){30}", 10**9),
    "a pattern of a class 100,000 times": matching("\\p{L}{100000}", 30),
    "a pattern of 200,000 brackets": matching("(" * 200_000 + ")" * 200_000, 9),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_that_is_too_much_is_refused_in_a_line(name: str) -> None:
    text, words = SCHEMAS[name]
    refused(lambda: canonical(text), words)


CORRECTIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "nested stars": ("^(a*)*$", {}, "a" * 4000 + "b"),
    "two ways": ("^(a|aa)+$", {}, "a" * 4000 + "b"),
    "anything twice": ("^(.*)(.*)(.*)(.*)(.*)x$", {}, "a" * 4000),
    "a pattern beside enum": ("^(a+)+$", {"enum": ["a" * 45 + "!", "aa"]}, "a" * 45 + "!"),
    "a long text": ("^(\\w+ ?)+$", {"maxLength": 10**6}, "word " * 40_000 + "!"),
}


@pytest.mark.parametrize("name", CORRECTIONS)
def test_one_correction_never_stops_a_review(name: str) -> None:
    pattern, more, texts = CORRECTIONS[name]
    text = of({"type": "string", "maxLength": 5000, "pattern": pattern, **more})
    assert not follows(text, json.dumps({"a": texts}))


ODD = ('{"a": 1' + "0" * 400 + "}", '{"a": 1e400}', '{"a": ' + "[" * 50_000, '{"a": "\\ud800"}')


@pytest.mark.parametrize("text", ODD)
def test_an_odd_correction_is_answered(text: str) -> None:
    assert not follows(of({"type": "integer", "multipleOf": 0.5, "minimum": 0, "maximum": 9}), text)
    assert not follows(of({"type": "string", "pattern": "^a$", "maxLength": 3}), text)


def laughs() -> str:
    lines = ["a: &a [x, x, x]"]
    for n in range(1, 20):
        name, nine = chr(97 + n), ", ".join([f"*{chr(96 + n)}"] * 9)
        lines.append(f"{name}: &{name} [{nine}]")
    return "\n".join(lines)


LABELS: dict[str, tuple[str, str]] = {
    "aliases of aliases": (laughs(), "expand to more than"),
    "an alias within itself": ("a: &a [*a]\n", "contains itself"),
    "an alias of nothing": ("a: *b\n", "undefined alias"),
    "nested 3,000 times": ("[" * 3000, "cannot be parsed"),
    "prompts within prompts": ("a: [[[x]]]\n", "is no text"),
    "a parent that is a list": ("a: {parent: [b]}\n", "is no text"),
}


@pytest.mark.parametrize("name", LABELS)
def test_a_file_of_labels_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    text, words = LABELS[name]
    (tmp_path / "l.yaml").write_text(text)
    refused(lambda: label_set(str(tmp_path / "l.yaml")), words)


def test_aliases_that_people_write_are_understood(tmp_path: Path) -> None:
    text = "dog: &d [a dog, a puppy]\ncat: *d\nold: &o {prompts: [x]}\nnew: {<<: *o, group: g}\n"
    (tmp_path / "l.yaml").write_text(text)
    known = yaml.safe_load(text)
    assert [label.prompts for label in label_set(str(tmp_path / "l.yaml")).labels] == [
        tuple(known["dog"]), tuple(known["cat"]), ("x",), ("x",)
    ]  # fmt: skip


def test_a_long_line_of_parents_is_gone_through_once(tmp_path: Path) -> None:
    count = 20_000
    messages: dict[str, Any] = {f"l{n}": {"parent": f"l{n + 1}"} for n in range(count)}
    (tmp_path / "l.json").write_text(json.dumps({**messages, f"l{count}": None}))
    assert len(label_set(str(tmp_path / "l.json")).labels) == count + 1


LONG = "model." + "a" * 60 + ".x"
ADAPTERS: dict[str, tuple[dict[str, Any], str]] = {
    "a rank pattern that explodes": ({"rank_pattern": {"(a+)+": 8, "(a|aa)+b": 2}}, ""),
    "an alpha pattern that explodes": ({"alpha_pattern": {"(.*a){25}c": 8}}, ""),
    "a look-behind": ({"rank_pattern": {"(?<=a)x": 8}}, "cannot be matched"),
    "a pattern repeated without end": (
        {"alpha_pattern": {"((a{1,1000}){1,1000}){1,1000}": 3}},
        "cannot be matched",
    ),
    "a pattern of a million letters": ({"rank_pattern": {"a|" * 500_000: 1}}, "characters"),
    "10,000 patterns": ({"rank_pattern": {f"m{n}": 1 for n in range(10_000)}}, "4,096"),
    "100 expressions": ({"rank_pattern": {f"m{n}*": 1 for n in range(100)}}, "64 expressions"),
    "patterns in a list": ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
    "a rank that is a text": ({"rank_pattern": {"x": "8"}}, "no valid r"),
    "a rank of 400 digits": ({"r": 10**400}, "no valid r"),
    "an alpha that is no number": ({"lora_alpha": float("nan")}, "no valid lora_alpha"),
    "modules_to_save that is a text": ({"modules_to_save": "lm_head"}, "not a list of names"),
    "modules_to_save of numbers": ({"modules_to_save": [5]}, "not a list of names"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_settings_of_an_adapter_are_read_or_refused_in_a_line(name: str, tmp_path: Path) -> None:
    changes, words = ADAPTERS[name]
    shapes = {LONG: (6, 5), f"{LONG}.{'a' * 40}!": (6, 5)}
    folder = write_adapter(tmp_path / "adapter", matrices(shapes), **changes)
    if words:
        refused(lambda: read_adapter(folder), words)
    else:
        assert {found.scale for found in read_adapter(folder).low_rank.values()} == {2.0}


HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{0}\n#EXT-X-ENDLIST\n"
TEXTS = {
    "hls": HLS,
    "hls master": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{0}\n",
    "hls map": '#EXTM3U\n#EXT-X-MAP:URI="{0}"\n#EXTINF:1,\n{0}\n#EXT-X-ENDLIST\n',
    "hls key": '#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{0}"\n#EXTINF:1,\n{0}\n#EXT-X-ENDLIST\n',
    "hls behind a mark": "\ufeff" + HLS,
    "hls behind lines": "\n\n  " + HLS,
    "concat": "ffconcat version 1.0\nfile {0}\n",
    "concat quoted": "ffconcat version 1.0\nfile '{0}'\nduration 5\n",
    "concat unsafe": "ffconcat version 1.0\noption safe 0\nfile '{0}'\n",
    "concat plain": "file '{0}'\nfile '{0}'\n",
    "dash": '<?xml version="1.0"?><MPD type="static" '
    'profiles="urn:mpeg:dash:profile:isoff-main:2011"><Period><AdaptationSet>'
    '<Representation id="0" bandwidth="1"><BaseURL>{0}</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5 RTP/AVP 96\n",
    "imf": '<?xml version="1.0"?><CompositionPlaylist '
    'xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"><Id>{0}</Id></CompositionPlaylist>',
    "asx": '<asx version="3.0"><entry><ref href="{0}"/></entry></asx>',
    "pls": "[playlist]\nFile1={0}\nNumberOfEntries=1\n",
    "xspf": '<?xml version="1.0"?><playlist xmlns="http://xspf.org/ns/0/"><trackList><track>'
    "<location>{0}</location></track></trackList></playlist>",
    "smil": "<smil><body><video src='{0}'/></body></smil>",
    "real": "{0}\n",
    "rtsp": "rtsptext\n{0}\n",
    "metadata": ";FFMETADATA1\ntitle={0}\n",
    "svg": '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    '<image xlink:href="{0}" width="64" height="48"/></svg>',
    "avisynth": 'AVISource("{0}")\n',
    "lavfi": "movie={0}\n",
    "eps": "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({0}) run\nshowpage\n",
    "vobsub": "# VobSub index file, v7\nsize: 64x48\ntimestamp: 00:00:00:000, filepos: 000000000\n",
}
FIT = FrameFit()
SAMPLING = Sampling(chunk_seconds=30, fps=1, max_frames=4)
NAMES = ("clip.mp4", "list.m3u8", "clip.jpg")
TARGETS = ("real.ts", "{folder}/real.ts", "file://{folder}/real.ts", "http://127.0.0.1:{port}/a.ts")


@pytest.fixture(scope="module")
def visited() -> Iterator[tuple[int, list[bytes]]]:
    """A port of this machine, and what was sent to it."""
    with visited_port() as found:
        yield found


def opened_by_this_process(folder: Path) -> set[str]:
    """Files of a folder that this process has open."""
    links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    opened = {os.readlink(link) for link in links if os.path.exists(link)}
    return opened & {*map(str, folder.iterdir())}


def read(path: Path) -> None:
    if path.suffix in IMAGE_SUFFIXES:
        read_image(path)
    else:
        with Video(path) as video:
            list(video.chunks(video.plan(SAMPLING), FIT))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_else_is_opened(
    tmp_path: Path, visited: tuple[int, list[bytes]], name: str, text: str
) -> None:
    port, request = visited
    real = write_video(tmp_path / "real.ts")
    os.utime(real, (0, 0))  # so that reading it shows, also where a file's use is seldom noted
    for target in TARGETS:
        (tmp_path / name).write_text(TEXTS[text].format(target.format(folder=tmp_path, port=port)))
        with pytest.raises(MediaError):
            read(tmp_path / name)
        assert real.stat().st_atime == 0, "the file that it names was read"
        assert not request
        assert not opened_by_this_process(tmp_path)


@pytest.mark.parametrize("number", range(20))
def test_a_playlist_with_random_bytes_in_it_opens_nothing(tmp_path: Path, number: int) -> None:
    random = seeded("playlist", number)
    real = write_video(tmp_path / "real.ts")
    os.utime(real, (0, 0))
    data = bytearray(random.choice(list(TEXTS.values())).format(real).encode())
    for _ in range(random.randrange(1, 5)):
        at = random.randrange(len(data) + 1)
        data[at:at] = random.randbytes(random.randrange(1, 4))
    (path := tmp_path / random.choice(("clip.mp4", "clip.ts", "clip"))).write_bytes(data)
    with pytest.raises(MediaError):
        read(path)
    assert real.stat().st_atime == 0, bytes(data)


def test_the_real_thing_is_seen_so(tmp_path: Path) -> None:
    """The check above can fail: a reading moves the time of access."""
    real = write_video(tmp_path / "real.ts")
    os.utime(real, (0, 0))
    check_file(real)
    assert real.stat().st_atime > 0
