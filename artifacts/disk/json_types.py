"""Types of values in JSON of our own that a user may have changed, for `read_json_file`."""

from typing import Annotated

from msgspec import Meta

from artifacts.disk.json_shapes import MAX_NUMBER

Count = Annotated[int, Meta(ge=0, le=MAX_NUMBER - 1)]
"""A whole number from 0."""
Number = Annotated[float, Meta(gt=-float(MAX_NUMBER), lt=float(MAX_NUMBER))]
"""A number, neither infinite nor NaN."""
Text = Annotated[str, Meta(pattern=r"\A[^\ud800-\udfff]*\Z")]
"""A string that UTF-8 can encode. A path may be none, and is a plain `str`."""
