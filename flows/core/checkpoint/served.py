"""Describes a model that servers run, by what they state about it. Sends no media."""

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from artifacts.digests import digest_of
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.frame_fit import FrameFit
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import Store
from artifacts.remote.endpoints import SERVED, Endpoint, EndpointKeys, endpoints_of, keys_from
from flows.core.machine.event_loop import on_a_loop
from flows.core.options.commands import RunOptions
from stages.ask import QUALITY
from stages.models.hub.transfer import Announce
from stages.models.profile import ModelProfile, SamplingProfile

if TYPE_CHECKING:
    from stages.ask.servers import Client

T = TypeVar("T")
TRIES, PAUSE_SECONDS = 3, 0.5
"""Requests at the start for an address that is reached but gives no whole answer."""
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
    keys: EndpointKeys
    video: bool | None = None
    """Whether several frames are sent as one video, and not as pictures; None: unknown."""
    notes: tuple[str, ...] = ()
    """What the user should know besides."""

    @property
    def key_fields(self) -> list[Any]:
        return ["served", self.model, *self.identity, f"jpeg {QUALITY}"]

    @property
    def line(self) -> str:
        """Return where media go, and what identifies the model."""
        where = ", ".join(endpoint.url for endpoint in self.endpoints)
        local = all(endpoint.is_local for endpoint in self.endpoints)
        leave = "frames go to" if local else "media leave this machine: frames go to"
        ways = {None: "", True: ", those of a chunk as one video", False: ", each as a picture"}
        who = f"{self.model} is identified by {self.identity[0]}"
        return f"{leave} {where}{ways[self.video]}; {who}"

    def to_json(self) -> dict[str, Any]:
        urls = [endpoint.url for endpoint in self.endpoints]
        return {"endpoints": urls, "identity": list(self.identity), "video": self.video}

    def with_replies(
        self, look: "Callable[[Client], Awaitable[T]]", announce: Announce | None
    ) -> "tuple[ServedModel, list[T]]":
        """Return the model with the addresses that answer, and what `look` finds at each of them.
        `announce` is called for long waits. Raises EnvironmentFault if none answers."""
        import asyncio

        from stages.ask.servers import Client, NoReply

        async def reply_of(endpoint: Endpoint) -> T | NoReply:
            client = Client(endpoint, self.keys, announce or bool)
            for more_tries in reversed(range(TRIES)):
                try:
                    return await look(client)
                except NoReply as error:
                    if not error.reached or not more_tries:
                        return error
                    await asyncio.sleep(PAUSE_SECONDS)
            raise AssertionError

        async def all_replies() -> list[T | NoReply]:
            return await asyncio.gather(*map(reply_of, self.endpoints))

        answers = dict(zip(self.endpoints, on_a_loop(all_replies()), strict=True))
        replies = {endpoint: a for endpoint, a in answers.items() if not isinstance(a, NoReply)}
        silent = {endpoint: a for endpoint, a in answers.items() if isinstance(a, NoReply)}
        notes = [f"no answer from {endpoint.url} ({a.message})" for endpoint, a in silent.items()]
        if not replies:
            hint = next(iter(silent.values())).hint
            raise EnvironmentFault("; ".join(notes), hint=hint)
        without = tuple(f"{text}: this run goes on without it" for text in notes)
        served = replace(self, endpoints=tuple(replies), notes=(*self.notes, *without))
        return served, [*replies.values()]

    def with_video_support(self, store: Store, announce: Announce | None = None) -> "ServedModel":
        """Return the model with whether its servers take videos. A request with a few grey frames
        finds it out once, and the store keeps the answer. Raises PenstockError."""
        about = digest_of([*self.key_fields, sorted(endpoint.url for endpoint in self.endpoints)])
        video_records = RecordSet(store, "endpoints", digest_of(["endpoints", 1]))
        if about not in video_records:
            from stages.ask.run import looks_at_video

            try:
                served, takes = self.with_replies(
                    lambda client: looks_at_video(client, self.model, self.keys), announce
                )
            except UsageError as error:
                message = "; ".join((error.message, *self.notes))
                raise UsageError(message, hint=error.hint) from error
            if len(takes) < len(self.endpoints):
                return replace(served, video=all(takes))
            video_records.publish([Record(key=about, meta={"video": all(takes)})])
        return replace(self, video=bool(video_records.meta(about)["video"]))


def open_served(config: RunOptions, announce: Announce | None = None) -> ServedModel:
    """Return the model of a configuration. The servers state what it is, unless `--revision`
    does. `announce` is called for long waits. Raises UsageError, EnvironmentFault."""
    options = config.groups.endpoint
    if not options.endpoint:
        raise only_captions(config.model)
    endpoints = endpoints_of(options.endpoint, insecure=options.insecure_endpoint)
    served = ServedModel(
        model=config.model.removeprefix(SERVED),
        endpoints=tuple(endpoints),
        identity=("--revision", config.revision or ""),
        keys=keys_from(options.endpoint_keys),
    )
    if config.revision:
        return served
    served, answers = served.with_replies(lambda client: _stated(client, served), announce)
    stated, unlisted = zip(*answers, strict=True)
    served = replace(served, notes=(*served.notes, *filter(None, unlisted)))
    if len(identities := set(stated)) > 1 and all(identities):
        raise UsageError(
            f"the servers run different models as {served.model}",
            hint="Give --revision if they are the same, or name other addresses",
        )
    addresses = ("name and address", *sorted(endpoint.url for endpoint in endpoints))
    return replace(served, identity=stated[0] if all(stated) else addresses)


def only_captions(name: str) -> UsageError:
    """Return the error of a command that needs a model on this machine."""
    return UsageError(
        f"{name} is run by a server, which only `penstock caption` and `penstock ask` can use",
        hint="Choose a model that this machine can load: a folder, a hub id, or demo",
    )


def served_profile(config: RunOptions) -> ModelProfile:
    """Return a profile without any fact about the model: the server states none."""
    edge = int((config.groups.video.max_pixels or PIXELS) ** 0.5)
    fit = FrameFit(long_edges=((1.0, edge),))
    return ModelProfile(
        folder=str(NOWHERE), class_name="", model_type="", modalities=("image", "video"),
        dtype="", route="served", parts={}, sampling=SamplingProfile(frames=FRAMES),
        fit_video=fit, fit_image=fit, feature_width=0, image_tokens=0, frame_tokens=0,
    )  # fmt: skip


async def _stated(client: "Client", served: ServedModel) -> tuple[tuple[str, ...], str]:
    """Return what the server states that changes with its model, and a note if it lists other
    models alone; empty: nothing."""
    models = _entries(await _page(client, served, f"{client.endpoint.path}/models"), "data", "id")
    listed_model = _own(models, served)
    owner, home = listed_model.get("owned_by"), client.endpoint.path.removesuffix("/v1")
    what, stated = "the root that the server states", listed_model.get("root")
    if owner == "library":
        tags = _entries(await _page(client, served, f"{home}/api/tags"), "models", "name")
        what, stated = "the digest that Ollama states", _own(tags, served).get("digest")
    if owner == "llamacpp":
        props = await _page(client, served, f"{home}/props")
        if path := props.get("model_path"):
            what, template = "the properties that llama-server states", props.get("chat_template")
            stated = digest_of([str(path), str(template), str(listed_model.get("meta"))])
    others = served.keys.cleaned(", ".join(sorted(models)))
    note = f"{client.endpoint.url} does not list {served.model}, but {others}"
    return (
        (what, served.keys.cleaned(stated)) if isinstance(stated, str) and stated else (),
        note if models and not listed_model else "",
    )


async def _page(client: "Client", served: ServedModel, path: str) -> dict[str, Any]:
    """Return the JSON object at a path of the server; empty if it answers with none."""
    from stages.ask.servers import patiently, refuse_all

    reply = await patiently(client, lambda: client.get(path))
    if reply.status in (401, 403):
        refuse_all(client, reply.status, f"HTTP {reply.status}", served.model)
    if reply.status >= 429:  # another identity would caption all of it again
        raise EnvironmentFault(
            f"{client.endpoint.url} does not state its models (HTTP {reply.status})",
            hint="Try again later, or name the model with --revision",
        )
    try:
        answer = json.loads(reply.body) if reply.status == 200 else {}
    except (ValueError, RecursionError):
        answer = {}
    return answer if isinstance(answer, dict) else {}


def _entries(page: Mapping[str, Any], listed: str, field: str) -> dict[str, dict[str, Any]]:
    """Return the models that a page lists, by this field of theirs."""
    listing = page.get(listed)
    models = (m for m in (listing if isinstance(listing, list) else ()) if isinstance(m, dict))
    return {model[field]: model for model in models if isinstance(model.get(field), str)}


def _own(models: Mapping[str, dict[str, Any]], served: ServedModel) -> dict[str, Any]:
    """Return the listed model that is the served one; empty: none."""
    base = served.model.removesuffix(":latest")
    names = (served.model, base, f"{base}:latest")
    return next((models[name] for name in models if name in names), {})
