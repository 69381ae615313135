"""Chooses fp16 on a GPU, under `auto`, for the vision half of a dual encoder published in fp32.

1. If the store knows the result of a trial for this half and kind of GPU, it decides.
2. If the store has vectors of this half in fp32, they stay valid: fp32.
3. Otherwise the embed stage tries fp16 on the job's first images, stores the result, and the run is
   planned again.
"""

from dataclasses import replace

from artifacts.keys import digest_of
from artifacts.packs import RecordSet, stored_namespaces
from artifacts.store import Store
from flows.checkpoint.models import Model
from flows.checkpoint.precision import PartSettings, attention, weight_bytes
from flows.ledger.namespaces import notes
from flows.options.commands import RunOptions
from stages.embed.trials import KIND, MIN_COSINE, VERDICT
from stages.process.device import device_capability


def with_vector_precision(config: RunOptions, model: Model, store: Store, device: str) -> Model:
    """Return the model with fp16 first if a trial has shown that it holds, or with the namespace of
    a trial to make, or with a note on why it runs in fp32."""
    if model.served is not None:
        return model
    best = model.best("vision")
    concerned = model.profile.route == "dual" and config.precision_of("vision") == "auto"
    if device == "cpu" or not concerned or best.graph or best.precision != "fp32":
        return model
    half = model.profile.vision
    fp16 = replace(
        best,
        precision="fp16",
        dtype="float16",
        attention=attention(half, "float16", device),
        weight_bytes=weight_bytes(half, "fp16", "float16"),
    )
    kind = device_capability(device)
    namespace = digest_of([KIND, model.digests["vision"], fp16.key_fields, kind])
    tried = RecordSet(store, KIND, namespace)
    if VERDICT in tried and tried.meta(VERDICT)["holds"]:
        vision = (fp16, *model.settings["vision"][1:])
        return replace(model, settings={**model.settings, "vision": vision})
    if VERDICT in tried:
        cosine = float(tried.meta(VERDICT)["cosine"])
        return _in_fp32(model, f"in fp16 the cosine to fp32 is {cosine:.6f}, below {MIN_COSINE}")
    if _has_vectors(store, model, best):
        return _in_fp32(model, "the store has vectors of it in fp32; --precision fp16 makes others")
    return replace(model, trial=namespace)


def _in_fp32(model: Model, reason: str) -> Model:
    note = f"the vision half runs in fp32 ({reason})"
    return replace(model, notes=(*model.notes, note))


def _has_vectors(store: Store, model: Model, settings: PartSettings) -> bool:
    """Return whether the store has vectors of this half with these settings."""
    about, key_fields = notes(store), settings.key_fields
    return any(
        namespace in about
        and about.meta(namespace)["weights"] == model.digests["vision"]
        and about.meta(namespace).get("computing") == key_fields
        and len(RecordSet(store, "embeddings", namespace)) > 0
        for namespace in stored_namespaces(store, "embeddings")
    )
