"""What a stranger may send to `penstock serve`: files that mean harm, HTTP that is none, names and
paths of elsewhere; asks nothing of any server."""

import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image

NO_PICTURE = {415, 422}
TOO_LARGE = {413}
ANY = {200, 413, 415, 422}
"""Statuses of what may be read in part, or not."""


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG that says it is so large, with little in it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(min(3 * width * height, 1 << 22)))
    parts = (_chunk(b"IHDR", header), *chunks, _chunk(b"IDAT", data), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + data))
    return struct.pack(">I", len(data)) + name + data + check


def png_of_words() -> bytes:
    """A small PNG with a text that is 256 MB when it is unpacked."""
    packer = zlib.compressobj(9)
    words = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    return png(8, 8, _chunk(b"zTXt", b"Comment\0\0" + words))


def jpeg(width: int = 64, height: int = 48, **options: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "JPEG", **options)
    return file.getvalue()


def jpeg_that_says(width: int, height: int) -> bytes:
    """A small JPEG whose header promises more."""
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_of_frames(frames: int, side: int = 64) -> bytes:
    file = io.BytesIO()
    # All of one colour each: equal ones would be one frame to the writer.
    made = [Image.new("P", (side, side), number % 2) for number in range(frames)]
    made[0].save(file, "GIF", save_all=True, append_images=made[1:], duration=40, optimize=False)
    return file.getvalue()


def gif_that_says(side: int) -> bytes:
    data = bytearray(gif_of_frames(2))
    data[6:10] = struct.pack("<HH", side, side)
    return bytes(data)


def bmp_that_says(width: int, height: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 4096, 0, 0, 54) + head + bytes(4096)


def tiff_that_says(width: int, height: int) -> bytes:
    told = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 200), (277, 1)]
    told += [(278, height), (279, 16)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in told)
    book = struct.pack("<H", len(told)) + entries + bytes(4)
    return (b"II*\0" + struct.pack("<I", 8) + book).ljust(200, b"\0") + bytes(16)


HOSTILE: dict[str, tuple[Callable[[], bytes], set[int]]] = {
    "empty": (lambda: b"", NO_PICTURE),
    "one byte": (lambda: b"\xff", NO_PICTURE),
    "text": (lambda: b"hello " * 50, NO_PICTURE),
    "page": (lambda: b"<!doctype html><script>alert(1)</script>", NO_PICTURE),
    "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", NO_PICTURE),
    "SVG that includes": (
        lambda: (
            b"<?xml version='1.0'?><!DOCTYPE s [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>"
            b"<svg xmlns='http://www.w3.org/2000/svg'>&e;</svg>"
        ),
        NO_PICTURE,
    ),
    "PDF": (lambda: b"%PDF-1.7\n" + bytes(500), NO_PICTURE),
    "PostScript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", NO_PICTURE),
    "ZIP": (lambda: b"PK\x03\x04" + bytes(500), NO_PICTURE),
    "playlist": (lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", NO_PICTURE),
    "concat script": (lambda: b"ffconcat version 1.0\nfile /etc/passwd\n", NO_PICTURE),
    "start of a JPEG": (lambda: jpeg(640, 480)[:200], ANY),
    "half a JPEG": (lambda: jpeg(640, 480)[:1500], ANY),
    "JPEG in JPEG's clothes alone": (lambda: b"\xff\xd8\xff\xe0" + bytes(4000), NO_PICTURE),
    "MP4 in clothes alone": (lambda: b"\0\0\0\x18ftypisom" + bytes(4000), NO_PICTURE),
    "PNG 60000 x 60000": (lambda: png(60000, 60000), TOO_LARGE),
    "PNG 2^31 x 2^31": (lambda: png(0x7FFFFFFF, 0x7FFFFFFF), {413, 422}),
    "PNG 0 x 0": (lambda: png(0, 0), NO_PICTURE),
    "PNG with 256 MB of words": (png_of_words, ANY),
    "JPEG that says 65500 x 65500": (lambda: jpeg_that_says(65500, 65500), TOO_LARGE),
    "JPEG that says 20000 x 10000": (lambda: jpeg_that_says(20000, 10000), TOO_LARGE),
    "GIF that says 65535 x 65535": (lambda: gif_that_says(65535), {413, 422}),
    "BMP that says 60000 x 60000": (lambda: bmp_that_says(60000, 60000), {413, 422}),
    "TIFF that says 100000 x 100000": (lambda: tiff_that_says(100000, 100000), {413, 422}),
}
"""Name → what is sent, and the statuses that answer it."""
SLOW_HOSTILE: dict[str, tuple[Callable[[], bytes], set[int]]] = {
    "JPEG of 200 megapixels": (lambda: jpeg(20000, 10000, quality=20), TOO_LARGE),
    "GIF of 5000 frames": (lambda: gif_of_frames(5000), ANY),
    "GIF of 400 large frames": (lambda: gif_of_frames(400, 2000), ANY),
}

TOKEN = "a-token-of-the-test-0123456789"
EMBED = (
    b"POST /v1/embed HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %b\r\n" % TOKEN.encode()
)
NOT_HTTP: dict[str, tuple[bytes, ...]] = {
    "nothing": (b"",),
    "line ends": (b"\r\n" * 2000,),
    "zeros": (bytes(5000),),
    "TLS": (bytes.fromhex("16030100c8010000c40303") + bytes(190),),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(30),),
    "HTTP/0.9": (b"GET /\r\n\r\n",),
    "long line": (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",),
    "long header": (EMBED + b"X-A: " + b"a" * 500_000 + b"\r\n\r\n",),
    "many headers": (EMBED + b"".join(b"X-%d: 1\r\n" % n for n in range(20_000)) + b"\r\n",),
    "header with zeros": (EMBED + b"X-A: \0\0\r\n\r\n",),
    "length below zero": (EMBED + b"Content-Length: -5\r\n\r\nhello",),
    "length no number": (EMBED + b"Content-Length: many\r\n\r\nhello",),
    "length of hundred digits": (EMBED + b"Content-Length: " + b"9" * 100 + b"\r\n\r\nhello",),
    "two lengths": (EMBED + b"Content-Length: 5\r\nContent-Length: 50\r\n\r\nhello",),
    "length and chunks": (
        EMBED + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1",
    ),
    "unknown coding": (EMBED + b"Transfer-Encoding: rot13\r\n\r\nhello",),
    "chunk below zero": (EMBED + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",),
    "chunk no number": (EMBED + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",),
    "huge chunk": (EMBED + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\nhello",),
    "garbage behind a request": (
        b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" + b"\xde\xad\xbe\xef" * 500,
    ),
    "body longer than told": (EMBED + b"Content-Length: 5\r\n\r\nhello" + b"world" * 1000,),
}
"""Name → what is sent as it is; answered 4xx or by a closed connection, and by nothing else."""

HOSTS = [
    "rebound.example",
    "rebound.example:{port}",
    "evil@127.0.0.1:{port}",
    "127.0.0.1.evil.example:{port}",
    "localhost.evil.example",
    "127.0.0.1:{port}/v1/info?",
    "127.0.0.1:{port}#",
    "/v1/info",
    "0x7f000001:{port}",
    "*",
    "",
]

PATHS = [
    "/static/../../pyproject.toml",
    "/static/../../../../../../etc/passwd",
    "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/static/..%2f..%2f..%2f..%2fetc%2fpasswd",
    "/static/%252e%252e/%252e%252e/etc/passwd",
    "/static/....//....//etc/passwd",
    "/static/..\\..\\etc\\passwd",
    "/static//etc/passwd",
    "/static/%00/etc/passwd",
    "/static/index.html%00.js",
    "/static/",
    "/v1/media/../../etc/passwd",
    "/v1/media/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/v1/media//etc/passwd",
    "/v1/media/file:///etc/passwd",
    "/v1/media/-1",
    "/v1/media/0",
    "/v1/media/1e3",
    "/v1/media/99999999999999999999999999999999",
    "/v1/media/" + "9" * 5000,
    "/v1/media/0x10",
    "/v1/media/%D9%A1",
    "/v1/thumbnail/-1",
    "/v1/thumbnail/../../etc/passwd",
    "/v1/thumbnail/99999999999999999999999999999999",
    "//v1/info/..",
    "/etc/passwd",
    "/.git/config",
    "/docs",
    "/redoc",
    "/v1/../etc/passwd",
    "/" + "a/" * 3000,
]
"""Answered 404, or as what makes no sense; never with a file."""
SECRETS = (b"root:", b"[build-system]", b"[core]")
"""Of the files that they look for."""

WRONG_TOKENS = {
    "none": {"Authorization": ""},
    "scheme alone": {"Authorization": "Bearer"},
    "empty token": {"Authorization": "Bearer "},
    "another": {"Authorization": "Bearer wrong"},
    "cut": {"Authorization": "Bearer {cut}"},
    "longer": {"Authorization": "Bearer {token}x"},
    "twice": {"Authorization": "Bearer {token} {token}"},
    "upper case": {"Authorization": "Bearer {upper}"},
    "no scheme": {"Authorization": "{token}"},
    "basic": {"Authorization": "Basic {token}"},
    "not ASCII": {"Authorization": "Bearer \xe4\xf6\xfc"},
    "very long": {"Authorization": "Bearer " + "a" * 20000},
    "as a cookie": {"Cookie": "penstock_session={token}"},
    "empty cookie": {"Cookie": "penstock_session="},
    "other header": {"Authorization": "", "X-API-Key": "{token}"},
}
ASKING = [
    ("POST", "/v1/embed"),
    ("POST", "/v1/label"),
    ("POST", "/v1/caption"),
    ("POST", "/v1/session"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/search?q=a"),
    ("POST", "/v1/search"),
    ("GET", "/v1/media/0"),
    ("GET", "/v1/thumbnail/0"),
    ("GET", "/v1/info"),
    ("GET", "/v1/stats"),
    ("GET", "/metrics"),
]
"""What asks for a token where there is one."""
OPEN = ["/", "/healthz", "/readyz"]
