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

from artifacts.stores.bucket_client import Listed, allows_http, client_of

SIGNED_SECONDS = timedelta(seconds=600)
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def is_odd(name: str) -> bool:
    """Return whether obstore cannot request an object of this name."""
    return bool(CONTROL.search(name)) or any(part in ("", ".", "..") for part in name.split("/"))


def all_listed(url: str, recursive: bool) -> Iterator[Listed]:
    """Yield all objects below a folder, or in it, with their names relative to it. Raises
    BaseError, ElementTree.ParseError."""
    parts = urlsplit(url)
    prefix = f"{parts.path.strip('/')}/".lstrip("/")
    last = ""
    while True:
        query = {"list-type": "2", "encoding-type": "url", "prefix": prefix}
        query |= {} if recursive else {"delimiter": "/"}
        query |= {"start-after": last} if last else {}
        page = ElementTree.fromstring(_page(parts.netloc, query))
        space = page.tag.partition("}")[0] + "}" if page.tag.startswith("{") else ""
        for each in page.iter(f"{space}Contents"):
            fields = {item.tag.removeprefix(space): item.text or "" for item in each}
            last = unquote_plus(fields["Key"])
            yield Listed(
                name=last.removeprefix(prefix).removesuffix("/"),
                size=int(fields["Size"]),
                modified=datetime.fromisoformat(fields["LastModified"]).timestamp(),
                version=fields.get("ETag") or f"{fields['Size']} {fields['LastModified']}",
            )
        if page.findtext(f"{space}IsTruncated") != "true":
            return


def _page(bucket: str, query: dict[str, str]) -> bytes:
    """Return the response to a list request. obstore signs it as a read of an object with an empty
    name, at an endpoint that contains the query. The last parameter absorbs the slash before the
    name."""
    plain = allows_http()
    at = cast(S3Store, from_url(f"s3://{bucket}", client_options={"allow_http": plain}))
    base = obstore.sign(at, "GET", "", SIGNED_SECONDS).partition("?")[0].rstrip("/")
    encoded_query = urlencode({**query, "x-id": ""})
    with_query = S3Store(
        bucket,
        config={"endpoint": f"{base}?{encoded_query}", "virtual_hosted_style_request": True},
        client_options={"allow_http": plain},
    )
    address = obstore.sign(with_query, "GET", "", SIGNED_SECONDS)
    return bytes(obstore.get(client_of(address, plain=plain), "").bytes())
