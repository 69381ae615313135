"""Tells transformers' loader how published tensors of CogVLM2 are called here. Reads no file."""

from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Split, WeightConverter, WeightRenaming

BELOW = (r"^model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1.")
"""The language half lies beside the vision half there."""


def register(name: str, *, experts: bool) -> None:
    """Register the names of the model class `name`. With visual experts a layer keeps all of its
    own; without, it is a Llama's under others."""
    found: list[WeightConverter | WeightRenaming] = [WeightRenaming(*BELOW)]
    if not experts:
        found += [
            WeightRenaming("language_expert_dense", "o_proj"),
            WeightRenaming(r"mlp\.language_mlp\.", "mlp."),
            WeightConverter(
                source_patterns="self_attn.language_expert_query_key_value.weight",
                target_patterns=[f"self_attn.{part}_proj.weight" for part in "qkv"],
                operations=[Split(dim=0)],
            ),
        ]
    register_checkpoint_conversion_mapping(name, found, overwrite=True)
