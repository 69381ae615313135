"""What a server is asked with in a chat."""

import base64
from typing import Any

PROMPT = "Describe this image in detail."


def messages(medium: bytes, kind: str = "image/png", prompt: str = PROMPT) -> Any:
    """One question about a picture, or about a clip."""
    data = f"data:{kind};base64,{base64.b64encode(medium).decode()}"
    name = "image_url" if kind.startswith("image/") else "video_url"
    parts = [{"type": "text", "text": prompt}, {"type": name, name: {"url": data}}]
    return [{"role": "user", "content": parts}]
