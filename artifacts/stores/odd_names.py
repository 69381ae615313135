"""Lists an S3 folder in which an object has a name that obstore rejects, such as `a//b`. obstore
then fails to list the whole folder.
"""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import cast
from urllib.parse import unquote_plus, urlencode, urlsplit
from xml.etree import ElementTree

import obstore
from obstore.store import S3Store, from_url

from artifacts.stores.bucket_client import Listed, client_of
from artifacts.stores.credentials import allows_http

SIGNED_SECONDS = timedelta(seconds=600)
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def is_odd(name: str) -> bool:
    """Tell whether no object of this name can be asked for by obstore."""
    return bool(CONTROL.search(name)) or any(part in ("", ".", "..") for part in name.split("/"))


def all_listed(url: str, recursive: bool) -> Iterator[Listed]:
    """Yield all objects below a folder, or those in it, with their names from there on. Raises
    BaseError, ElementTree.ParseError."""
    parts = urlsplit(url)
    prefix = f"{parts.path.strip('/')}/".lstrip("/")
    last = ""
    while True:
        asked = {"list-type": "2", "encoding-type": "url", "prefix": prefix}
        asked |= {} if recursive else {"delimiter": "/"}
        asked |= {"start-after": last} if last else {}
        page = ElementTree.fromstring(_page(parts.netloc, asked))
        space = page.tag.partition("}")[0] + "}" if page.tag.startswith("{") else ""
        for each in page.iter(f"{space}Contents"):
            told = {item.tag.removeprefix(space): item.text or "" for item in each}
            last = unquote_plus(told["Key"])
            yield Listed(
                name=last.removeprefix(prefix).removesuffix("/"),
                size=int(told["Size"]),
                modified=datetime.fromisoformat(told["LastModified"]).timestamp(),
                version=told.get("ETag") or f"{told['Size']} {told['LastModified']}",
            )
        if page.findtext(f"{space}IsTruncated") != "true":
            return


def _page(bucket: str, asked: dict[str, str]) -> bytes:
    """Return the answer to a request for a list. obstore signs it as the reading of an object with
    an empty name, at an endpoint that holds the query; the last parameter takes the slash that
    comes before the name."""
    plain = allows_http()
    at = cast(S3Store, from_url(f"s3://{bucket}", client_options={"allow_http": plain}))
    base = obstore.sign(at, "GET", "", SIGNED_SECONDS).partition("?")[0].rstrip("/")
    query = urlencode({**asked, "x-id": ""})
    with_query = S3Store(
        bucket,
        config={"endpoint": f"{base}?{query}", "virtual_hosted_style_request": True},
        client_options={"allow_http": plain},
    )
    address = obstore.sign(with_query, "GET", "", SIGNED_SECONDS)
    return bytes(obstore.get(client_of(address, plain=plain), "").bytes())
