"""Describes a model that a server runs, by what the server states of it. Sends no media."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from artifacts.endpoints import SERVED, Endpoint, EndpointKeys, endpoints_of, keys_from
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.keys import digest_of
from artifacts.packs import Record, RecordSet
from artifacts.schema import FrameFit
from artifacts.store import Store
from flows.options.commands import RunOptions
from flows.options.endpoint import EndpointOptions
from flows.options.media import VideoSamplingOptions
from stages.ask import QUALITY
from stages.models.hub.checkpoint import Checkpoint
from stages.models.profile import ModelProfile, SamplingProfile

if TYPE_CHECKING:
    from stages.ask.client import Client, Reply

Found = TypeVar("Found")
PIXELS = 1 << 20
"""Default of `--max-pixels`."""
FRAMES = 8
"""Default frames per chunk."""
NOWHERE = Path(os.devnull)
"""Folder of a model without files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """A model that servers run."""

    model: str
    """Its name on the servers."""
    endpoints: tuple[Endpoint, ...]
    identity: tuple[str, ...]
    """What distinguishes it from other models in cache keys: what it is, then its value."""
    video: bool | None = None
    """Whether several frames are sent as one video, and not as pictures; None: unknown."""

    @property
    def key_fields(self) -> list[Any]:
        return ["served", self.model, *self.identity, f"jpeg {QUALITY}"]

    @property
    def line(self) -> str:
        """Return where media go, and what identifies the model."""
        where = ", ".join(each.url for each in self.endpoints)
        local = all(each.is_local for each in self.endpoints)
        leave = "frames go to" if local else "media leave this machine: frames go to"
        ways = {None: "", True: ", those of a chunk as one video", False: ", each as a picture"}
        who = f"{self.model} is identified by {self.identity[0]}"
        return f"{leave} {where}{ways[self.video]}; {who}"

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "endpoints": [each.url for each in self.endpoints],
            "identity": list(self.identity),
            "video": self.video,
        }


def open_served(config: RunOptions) -> ServedModel:
    """Return the model of a configuration. The servers state what it is, unless `--revision`
    does. Raises UsageError, EnvironmentFault."""
    options, name = EndpointOptions.of(config), config.model.removeprefix(SERVED)
    if not options.endpoint:
        raise only_captions(config.model)
    endpoints = endpoints_of(options.endpoint, insecure=options.insecure_endpoint)
    keys = keys_from(options.endpoint_keys)
    if config.revision:
        identity: tuple[str, ...] = ("--revision", config.revision)
    else:
        stated = _requested(endpoints, keys, lambda client: _stated(client, name, keys))
        if len(found := set(stated)) > 1 and all(found):
            raise UsageError(
                f"the servers run different models as {name}",
                hint="Give --revision if they are the same, or name other addresses",
            )
        addresses = sorted(each.url for each in endpoints)
        identity = stated[0] if all(stated) else ("name and address", *addresses)
    return ServedModel(model=name, endpoints=tuple(endpoints), identity=identity)


def with_video_support(config: RunOptions, served: ServedModel, store: Store) -> ServedModel:
    """Return the model with whether its servers take videos. A request with a few grey frames
    finds it out once, and the store keeps the answer. Raises PenstockError."""
    about = digest_of([*served.key_fields, sorted(each.url for each in served.endpoints)])
    known = RecordSet(store, "endpoints", digest_of(["endpoints", 1]))
    if about not in known:
        keys = keys_from(EndpointOptions.of(config).endpoint_keys)
        takes = _requested(
            served.endpoints, keys, lambda client: _takes_video(client, served, keys)
        )
        known.publish([Record(key=about, meta={"video": all(takes)})])
    return replace(served, video=bool(known.meta(about)["video"]))


async def _takes_video(client: "Client", served: ServedModel, keys: EndpointKeys) -> bool:
    """Return whether a server looks at a video in a request."""
    from stages.ask.probe import looks_at_video

    return await looks_at_video(client, served.model, keys)


def only_captions(name: str) -> UsageError:
    """Return the error of a command that needs a model on this machine."""
    return UsageError(
        f"{name} is run by a server, which only `penstock caption` can use",
        hint="Choose a model that this machine can load: a folder, a hub id, or demo",
    )


def served_checkpoint(name: str) -> Checkpoint:
    """Return the checkpoint of a served model, which has no files."""
    return Checkpoint(name=name, folder=NOWHERE)


def served_profile(config: RunOptions) -> ModelProfile:
    """Return the profile of a model of which nothing is known."""
    edge = int((VideoSamplingOptions.of(config).max_pixels or PIXELS) ** 0.5)
    fit = FrameFit(long_edges=((1.0, edge),))
    return ModelProfile(
        folder=str(NOWHERE),
        class_name="",
        model_type="",
        modalities=("image", "video"),
        dtype="",
        route="served",
        parts={},
        sampling=SamplingProfile(frames=FRAMES),
        fit_video=fit,
        fit_image=fit,
        feature_width=0,
        image_tokens=0,
        frame_tokens=0,
    )


def _requested(
    endpoints: Sequence[Endpoint],
    keys: EndpointKeys,
    ask: "Callable[[Client], Awaitable[Found]]",
) -> list[Found]:
    """Return what `ask` finds at each address. Raises EnvironmentFault if one does not answer."""
    from stages.ask.client import Client, NoReply

    async def one(endpoint: Endpoint) -> Found:
        client = Client(endpoint, keys)
        try:
            return await ask(client)
        except NoReply as error:
            raise EnvironmentFault(
                f"no answer from {endpoint.url} ({error.message})",
                hint="Start the server, or check the address",
            ) from error
        finally:
            await client.close()

    async def every() -> list[Found]:
        return await asyncio.gather(*map(one, endpoints))

    with ThreadPoolExecutor(1) as thread:  # the caller's thread may run an event loop
        return thread.submit(asyncio.run, every()).result()


async def _stated(client: "Client", name: str, keys: EndpointKeys) -> tuple[str, ...]:
    """Return what the server states that changes with its model; empty: nothing."""
    entry = _entry(_json(await client.get(f"{client.endpoint.url}/models")), name, "data", "id")
    owner, root = str(entry.get("owned_by", "")), entry.get("root")
    home = client.endpoint.url.removesuffix("/v1")
    if owner == "library":
        tags = _json(await client.get(f"{home}/api/tags"))
        if digest := _entry(tags, name, "models", "name").get("digest"):
            return "the digest that Ollama states", keys.cleaned(str(digest))
    if owner == "llamacpp":
        props = _json(await client.get(f"{home}/props"))
        if path := props.get("model_path"):
            about = digest_of([str(path), str(props.get("chat_template")), str(entry.get("meta"))])
            return "the properties that llama-server states", about
    if isinstance(root, str) and root:
        return "the root that the server states", keys.cleaned(root)
    return ()


def _json(reply: "Reply") -> Mapping[str, Any]:
    try:
        found = json.loads(reply.body) if reply.status == 200 else {}
    except (ValueError, RecursionError):
        found = {}
    return found if isinstance(found, dict) else {}


def _entry(value: Mapping[str, Any], name: str, listed: str, field: str) -> Mapping[str, Any]:
    """Return the entry of a model in a server's list; empty without one."""
    entries = value.get(listed)
    for each in entries if isinstance(entries, list) else ():
        if isinstance(each, dict) and each.get(field) in (name, f"{name}:latest"):
            return each
    return {}
