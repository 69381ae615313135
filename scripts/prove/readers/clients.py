"""Asks a server as the libraries of others do, and prints what holds; runs in `.venv-readers`.

    python -m scripts.prove.readers.clients ADDRESS CLIP FOLDER

The server has the demo's caption model and dual encoder. Ends with 1 where something does not hold.
"""

import asyncio
import base64
import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

from pydantic import BaseModel

SHOWN = 300
"""Most characters of what does not hold."""
CHAT = "/chat/completions"


class Shape(BaseModel):
    """What structured answers have to be."""

    colour: str
    count: int


class Note(BaseModel):
    """What any object is: no schema reaches the server with a request for JSON alone."""

    colour: str = ""


class Clients:
    """A server and what it is asked; collects what does not hold."""

    def __init__(self, address: str, clip: bytes, picture: bytes) -> None:
        openai: Any = import_module("openai")
        self.address, self.failed, self.count = address, 0, 0
        self.openai = openai
        self.reach = {"base_url": f"{address}/v1", "api_key": "unused", "max_retries": 0}
        self.client = openai.OpenAI(**self.reach, timeout=200)
        self.picture, self.video = self.asked(picture), self.asked(clip, "video/mp4")
        self.about_picture, self.about_video = self.plain(picture), self.plain(clip)

    @staticmethod
    def asked(medium: bytes, kind: str = "image/jpeg") -> list[dict[str, Any]]:
        """Return messages about a medium."""
        data = f"data:{kind};base64,{base64.b64encode(medium).decode()}"
        return of("image_url" if kind.startswith("image") else "video_url", data)

    def plain(self, medium: bytes) -> str:
        """Return what the server's own route says of a medium."""
        posted = urllib.request.Request(f"{self.address}/v1/caption", data=medium, method="POST")
        with urllib.request.urlopen(posted, timeout=200) as answer:
            return str(json.load(answer)["captions"][0]["caption"])

    def say(self, **more: Any) -> Any:
        """Return an answer about the clip, or what else the messages ask for."""
        return self.client.chat.completions.create(
            **{"model": "demo", "messages": self.video, **more}
        )

    def text(self, **more: Any) -> str:
        return str(self.say(**more).choices[0].message.content)

    def check(self, name: str, holds: Callable[[], Any]) -> None:
        """Print whether a check holds: it returns something true, and raises nothing."""
        try:
            found, why = bool(holds()), ""
        except Exception as error:  # whatever a library raises
            found, why = False, f": {type(error).__name__}: {error}"[:SHOWN]
        self.count, self.failed = self.count + 1, self.failed + (not found)
        print(f"{'holds' if found else 'FAILS'}  {name}{why}", flush=True)

    def refused(self, name: str, kind: str = "BadRequestError", **more: Any) -> None:
        """Check that a request is refused with an error of the client's own class, by its
        parameter."""

        def holds() -> bool:
            try:
                self.say(**more)
            except getattr(self.openai, kind) as error:
                return error.status_code == 404 or bool(error.param and error.code)
            return False

        self.check(f"openai: {name} is a {kind} with param and code", holds)


def of(kind: str, address: str) -> list[dict[str, Any]]:
    """Return messages with one part beside the text."""
    text = {"type": "text", "text": "Describe this in detail."}
    return [{"role": "user", "content": [text, {"type": kind, kind: {"url": address}}]}]


def streamed(clients: Clients, **more: Any) -> tuple[str, Any, Any]:
    """Return text, reason of the end, and usage of a streamed answer."""
    text, end, usage = "", None, None
    for piece in clients.say(stream=True, **more):
        usage = piece.usage or usage
        for choice in piece.choices:
            text += choice.delta.content or ""
            end = choice.finish_reason or end
    return text, end, usage


def openai_answers(clients: Clients) -> None:
    """What OpenAI's client gets."""
    check, want, say = clients.check, clients.about_video, clients.say
    check("openai: models", lambda: clients.client.models.retrieve("demo").id == "demo")
    check("openai: a clip", lambda: clients.text() == want)
    check(
        "openai: a picture",
        lambda: clients.text(messages=clients.picture) == clients.about_picture,
    )
    check("openai: a stream", lambda: streamed(clients)[:2] == (want, "stop"))
    counted = {"stream_options": {"include_usage": True}}
    check("openai: usage of a stream", lambda: streamed(clients, **counted)[2].total_tokens > 0)
    check("openai: stream()", lambda: by_helper(clients) == want)
    for name in ("max_tokens", "max_completion_tokens"):
        check(f"openai: {name}", lambda: say(**{name: 3}).choices[0].finish_reason == "length")  # noqa: B023
    stop = want.split()[3]
    kept = want.split(stop)[0]
    check("openai: stop keeps blanks", lambda: clients.text(stop=[stop]) == kept)
    check("openai: so does a stream", lambda: streamed(clients, stop=[stop])[0] == kept)
    drawn = {"temperature": 1, "seed": 3}
    check("openai: a seed", lambda: clients.text(**drawn) == clients.text(**drawn))
    check("openai: ten at once", lambda: asyncio.run(at_once(clients)) == [want] * 10)
    json_object = {"response_format": {"type": "json_object"}}
    check("openai: json_object", lambda: is_begun(say(**json_object)))
    check("openai: json_schema", lambda: Shape.model_validate_json(clients.text(**schema())))
    parse = clients.client.chat.completions.parse
    check(
        "openai: parse()",
        lambda: (
            parse(model="demo", messages=clients.video, response_format=Shape)
            .choices[0]
            .message.parsed
        ),
    )
    check("openai: a function that must be called", lambda: called(say(**forced())))
    for name in ("embeddings", "responses"):
        create = getattr(clients.client, name).create
        check(f"openai: {name} is NotFoundError", lambda: not_found(clients, create))  # noqa: B023
    tenth = {"tools": forced()["tools"], "tool_choice": "auto"}
    for name, more in refusals(clients).items():
        clients.refused(name, **more)
    clients.refused("tools that may be called", **tenth)
    clients.refused("an unknown model", "NotFoundError", model="gpt-4o")


def refusals(clients: Clients) -> dict[str, dict[str, Any]]:
    """Return what is refused → the request."""
    two = [*clients.picture[0]["content"], clients.picture[0]["content"][1]]
    turns = [*clients.picture, {"role": "assistant", "content": "x"}, *clients.picture]
    audio = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
    cut = clients.picture[0]["content"][1]["image_url"]["url"][:400]
    return {
        "a text alone": {"messages": [{"role": "user", "content": "hello"}]},
        "an address": {"messages": of("image_url", "http://127.0.0.1/x.jpg")},
        "broken base64": {"messages": of("image_url", "data:image/jpeg;base64,@@@@")},
        "a text as a picture": {"messages": clients.asked(b"hello")},
        "a JPEG that was cut": {"messages": of("image_url", cut)},
        "two pictures": {"messages": [{"role": "user", "content": two}]},
        "an assistant's turn": {"messages": turns},
        "sound": {"messages": [{"role": "user", "content": [audio]}]},
        "n=2": {"n": 2},
        "logprobs": {"logprobs": True, "top_logprobs": 2},
        "max_tokens=-1": {"max_tokens": -1},
        "a temperature in words": {"temperature": "hot"},
    }


def by_helper(clients: Clients) -> str:
    """Return the text that the client's own helper puts together."""
    with clients.client.chat.completions.stream(model="demo", messages=clients.video) as stream:
        for _ in stream:
            pass
        return str(stream.get_final_completion().choices[0].message.content)


async def at_once(clients: Clients) -> list[str]:
    """Return ten answers to requests at once."""
    client = clients.openai.AsyncOpenAI(**clients.reach, timeout=200)
    create = client.chat.completions.create
    ten = (create(model="demo", messages=clients.video) for _ in range(10))
    return [str(each.choices[0].message.content) for each in await asyncio.gather(*ten)]


def schema() -> dict[str, Any]:
    """Return the response format of a schema that allows nothing else."""
    strict = {**Shape.model_json_schema(), "additionalProperties": False}
    form = {"name": "shape", "strict": True, "schema": strict}
    return {"response_format": {"type": "json_schema", "json_schema": form}}


def forced() -> dict[str, Any]:
    """Return a function that must be called."""
    function = {"name": "note", "parameters": Shape.model_json_schema()}
    choice = {"type": "function", "function": {"name": "note"}}
    return {"tools": [{"type": "function", "function": function}], "tool_choice": choice}


def called(answer: Any) -> bool:
    """Return whether an answer is one call of a function and nothing else."""
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls
    Shape.model_validate_json(call.function.arguments)
    alone = choice.message.content is None and choice.finish_reason == "stop"
    return bool(alone and call.id and call.function.name == "note")


def is_begun(answer: Any) -> bool:
    """Return whether an answer is an object, or the start of one that the limit cut."""
    text, end = answer.choices[0].message.content, answer.choices[0].finish_reason
    return text.startswith("{") and (end == "length" or isinstance(json.loads(text), dict))


def not_found(clients: Clients, create: Callable[..., Any]) -> bool:
    """Return whether a route is not there, by the client's own error."""
    try:
        create(model="demo", input="x")
    except clients.openai.NotFoundError:
        return True
    return False


def other_libraries(clients: Clients) -> None:
    """What litellm, langchain and instructor get."""
    litellm: Any = import_module("litellm")
    chat: Any = import_module("langchain_openai").ChatOpenAI(model="demo", **clients.reach)
    instructor: Any = import_module("instructor")
    check, picture, want = clients.check, clients.picture, clients.about_picture
    reach = {"api_base": clients.reach["base_url"], "api_key": "x", "num_retries": 0}

    def complete(provider: str = "openai", **more: Any) -> Any:
        requests = {"messages": picture, **reach, **more}
        return litellm.completion(model=f"{provider}/demo", **requests)

    def text(answer: Any) -> Any:
        return answer.choices[0].message.content

    def pieces() -> str:
        return "".join(each.choices[0].delta.content or "" for each in complete(stream=True))

    check("litellm: openai", lambda: text(complete()) == want)
    check("litellm: a stream", lambda: pieces() == want)
    vllm = partial(complete, "hosted_vllm", messages=clients.video)
    check("litellm: hosted_vllm", lambda: text(vllm()) == clients.about_video)
    check(
        "litellm: a pydantic model",
        lambda: Shape.model_validate_json(text(complete(response_format=Shape))),
    )
    check("langchain: invoke", lambda: chat.invoke(picture).content == want)
    check("langchain: stream", lambda: "".join(x.content for x in chat.stream(picture)) == want)
    for method in ("json_schema", "function_calling"):
        structured = chat.with_structured_output(Shape, method=method)
        check(f"langchain: {method}", lambda: isinstance(structured.invoke(picture), Shape))  # noqa: B023
    for mode in ("TOOLS", "JSON", "JSON_SCHEMA"):
        asking = instructor.from_openai(clients.client, mode=getattr(instructor.Mode, mode))
        made = Note if mode == "JSON" else Shape
        more = {"model": "demo", "messages": picture, "response_model": made, "max_retries": 0}
        create = asking.chat.completions.create
        check(f"instructor: {mode}", lambda: isinstance(create(**more), made))  # noqa: B023


def fields_of_vllm(clients: Clients, fields: dict[str, list[Any]]) -> None:
    """Every field of vLLM's request, with the values by which it asks for nothing."""

    def answer(field: str, value: Any) -> Any:
        body = {"model": "demo", "messages": clients.video, field: value}
        return clients.client.post(CHAT, body=body, cast_to=object)

    def same(field: str) -> bool:
        answers = [answer(field, value) for value in fields[field]]
        return all(a["choices"][0]["message"]["content"] == clients.about_video for a in answers)

    for field in fields:
        if field not in ("model", "stream"):
            clients.check(f"vLLM: the default of {field}", lambda: same(field))  # noqa: B023


def documents(clients: Clients, folder: Path) -> None:
    """What the OpenAPI document says, by its validator and schemathesis."""
    with urllib.request.urlopen(f"{clients.address}/openapi.json") as answer:
        document = json.load(answer)
    (folder / "openapi.json").write_text(json.dumps(document), encoding="utf-8")
    validator: Any = import_module("openapi_spec_validator")
    clients.check("openapi-spec-validator", lambda: validator.validate(document) is None)
    command = [str(Path(sys.executable).with_name("schemathesis")), "run"]
    command += [str(folder / "openapi.json"), "--url", clients.address, "--no-color"]
    command += ["--max-examples", "15", "--generation-deterministic", "--request-timeout", "30"]
    media = [part for path in media_routes(document) for part in ("--exclude-path", path)]
    accepts = "positive_data_acceptance"
    for name, more in (
        ("all checks but one", ["--exclude-checks", accepts]),
        (accepts, ["--checks", accepts, *media]),
    ):
        done = subprocess.run(
            [*command, *more], capture_output=True, text=True, check=False, cwd=folder
        )
        log = folder / f"schemathesis {name}.log"
        log.write_text(done.stdout + done.stderr, encoding="utf-8")
        clients.check(f"schemathesis: {name} ({log})", lambda: done.returncode == 0)  # noqa: B023
    check, want = clients.check, clients.about_video
    check("the server still answers", lambda: clients.text() == want)


def media_routes(document: dict[str, Any]) -> Iterator[str]:
    """Yield the routes whose body is a medium, or holds one: no schema describes it."""
    for path, methods in document["paths"].items():
        bodies = [each.get("requestBody", {}).get("content", {}) for each in methods.values()]
        if path.endswith(CHAT) or any(b and "application/json" not in b for b in bodies):
            yield path


def first_picture(clip: Path) -> bytes:
    """Return the first frame of a clip as a JPEG."""
    file = BytesIO()
    with import_module("av").open(str(clip)) as container:
        next(container.decode(video=0)).to_image().save(file, "JPEG")
    return file.getvalue()


def main(address: str, clip: Path, folder: Path) -> int:
    """Ask everything, and return the exit status."""
    clients = Clients(address, clip.read_bytes(), first_picture(clip))
    openai_answers(clients)
    other_libraries(clients)
    fields_of_vllm(clients, json.loads((folder / "fields.json").read_text(encoding="utf-8")))
    documents(clients, folder)
    print(f"clients: {clients.count - clients.failed} of {clients.count} hold")
    return int(clients.failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
