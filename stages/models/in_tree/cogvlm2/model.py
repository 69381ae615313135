"""CogVLM2 as transformers models, under the class names that its files use.

The language half of its image chat model is a Llama whose layers have separate weights for text and
for image tokens. The module computes the position ids and the rotary embedding of its prompts.

The encoder of its vision half is EVA02-E. Its norms come after attention and MLP, despite their
names in the files, and it has no final norm. Then a convolution merges four patches into one, and
an adapter projects them to the width of the language half. A learned token is put before and after
them.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, LlamaConfig, LlamaModel, PreTrainedModel
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Split, WeightConverter, WeightRenaming
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import CLIPMLP
from transformers.models.llama.modeling_llama import (
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from stages.models.in_tree.cogvlm2.config import CogVLM2Config, CogVLM2VisionConfig


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    """Return the output of a module's attention, of shape [rows, tokens, heads, width]."""
    name = module.config._attn_implementation
    function = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
    attended: torch.Tensor = function(
        module, query, key, value, mask, dropout=0.0, scaling=module.scaling, **options
    )[0]
    return attended


class PatchEmbedding(nn.Module):
    """Patch embeddings with positions, after a class token for the whole image."""

    def __init__(self, config: CogVLM2VisionConfig) -> None:
        super().__init__()
        width, size = config.hidden_size, config.patch_size
        self.proj = nn.Conv2d(config.in_channels, width, kernel_size=size, stride=size)
        self.cls_embedding = nn.Parameter(torch.zeros(1, width))
        self.position_embedding = nn.Embedding(config.num_positions, width)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.proj(pixels).flatten(2).mT
        first = self.cls_embedding.expand(len(patches), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class VisionAttention(nn.Module):
    """Bidirectional attention over all patches."""

    num_key_value_groups = 1
    is_causal = False

    def __init__(self, config: CogVLM2VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.heads = config.num_heads
        self.scaling = (config.hidden_size // config.num_heads) ** -0.5
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        parts = self.query_key_value(hidden).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        made = attend(self, query, key, value, is_causal=False)
        return self.dense(made.reshape(hidden.shape))  # type: ignore[no-any-return]


class CogVLM2VisionLayer(nn.Module):
    """A layer of the encoder."""

    def __init__(self, config: CogVLM2VisionConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = VisionAttention(config)
        self.mlp = CLIPMLP(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.input_layernorm(self.attention(hidden))
        return hidden + self.post_attention_layernorm(self.mlp(hidden))  # type: ignore[no-any-return]


class VisionLayers(nn.Module):
    """The layers of an encoder in order."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class Adapter(nn.Module):
    """Projects patches to the width of the language half."""

    def __init__(self, config: CogVLM2VisionConfig) -> None:
        super().__init__()
        inner, out = config.adapter_size, config.out_hidden_size
        self.linear_proj = nn.Linear(config.hidden_size, out, bias=False)
        self.norm1 = nn.LayerNorm(out)
        self.dense_h_to_4h = nn.Linear(out, inner, bias=False)
        self.gate_proj = nn.Linear(out, inner, bias=False)
        self.dense_4h_to_h = nn.Linear(inner, out, bias=False)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.gelu(self.norm1(self.linear_proj(patches)))
        inner = nn.functional.silu(self.gate_proj(hidden)) * self.dense_h_to_4h(hidden)
        return self.dense_4h_to_h(inner)  # type: ignore[no-any-return]


class CogVLM2VisionModel(PreTrainedModel):
    """The vision half."""

    config_class = CogVLM2VisionConfig
    config: CogVLM2VisionConfig
    main_input_name = "pixel_values"
    input_modalities = ["image", "video"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["CogVLM2VisionLayer"]  # noqa: RUF012

    def __init__(self, config: CogVLM2VisionConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.patch_embedding = PatchEmbedding(config)
        layers = (CogVLM2VisionLayer(config) for _ in range(config.num_hidden_layers))
        self.transformer = VisionLayers(layers)
        self.conv = nn.Conv2d(width, width, kernel_size=2, stride=2)
        self.linear_proj = Adapter(config)
        self.boi = nn.Parameter(torch.zeros(1, 1, config.out_hidden_size))
        self.eoi = nn.Parameter(torch.zeros(1, 1, config.out_hidden_size))
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        hidden = self.transformer(self.patch_embedding(pixel_values))
        side = self.config.image_size // self.config.patch_size
        grid = hidden[:, 1:].mT.unflatten(-1, (side, side))
        patches = self.linear_proj(self.conv(grid).flatten(2).mT)
        first, last = (end.expand(len(patches), -1, -1) for end in (self.boi, self.eoi))
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden, pooler_output=torch.cat([first, patches, last], dim=1)
        )


def positions_of(
    standing: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the position of each token, [rows, tokens]. All patches of an image share one; the
    tokens at its ends have their own. `standing` marks the placeholders."""
    is_attended = torch.ones_like(standing) if attention_mask is None else attention_mask.bool()
    seen = standing & is_attended
    patches = seen & ~_first(seen) & ~_last(seen)
    steps = (is_attended & ~patches) | _first(patches)
    return (steps.long().cumsum(-1) - 1).clamp(min=0)


def _first(seen: torch.Tensor) -> torch.Tensor:
    """Mark the first token of each marked run."""
    first = seen.clone()
    first[:, 1:] &= ~seen[:, :-1]
    return first


def _last(seen: torch.Tensor) -> torch.Tensor:
    """Mark the last token of each marked run."""
    last = seen.clone()
    last[:, :-1] &= ~seen[:, 1:]
    return last


def of_experts(standing: torch.Tensor) -> torch.Tensor:
    """Mark the tokens that visual experts read: all placeholders but the last of each image."""
    return standing & ~_last(standing)


class RoundedRotaryEmbedding(LlamaRotaryEmbedding):
    """Rotary positions whose frequencies are rounded to a low-precision type. The class name
    matters: only for this name does transformers recompute the frequencies after loading. For
    another name it would keep uninitialized memory."""

    def __init__(self, config: LlamaConfig, rounding: str) -> None:
        super().__init__(config)
        self.rounding = getattr(torch, rounding)
        rounded = self._rounded(self.inv_freq)
        self.inv_freq = nn.Buffer(rounded, persistent=False)
        self.original_inv_freq = nn.Buffer(rounded.clone(), persistent=False)

    def _rounded(self, frequencies: torch.Tensor) -> torch.Tensor:
        return frequencies.to(self.rounding).float()

    def compute_default_rope_parameters(  # type: ignore[override]
        self, config: LlamaConfig, **_: Any
    ) -> tuple[torch.Tensor, float]:
        exact, scaling = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
        # The first call comes from `__init__`, before `rounding` is set.
        return (self._rounded(exact) if "rounding" in vars(self) else exact), scaling


Layer = Callable[[torch.Tensor], torch.Tensor]


def routed(
    hidden: torch.Tensor, seen: torch.Tensor | None, language: Layer, vision: Layer
) -> torch.Tensor:
    """Return the output of `vision` for tokens that `seen` marks, of `language` for the rest."""
    if seen is None:
        return language(hidden)
    text = language(hidden[~seen])
    outputs = text.new_empty((*hidden.shape[:-1], text.shape[-1]))
    outputs[~seen] = text
    outputs[seen] = vision(hidden[seen])
    return outputs


class ExpertAttention(nn.Module):
    """Causal attention with one set of weights for text and one for image tokens."""

    is_causal = True

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        heads, keys = config.num_attention_heads, config.num_key_value_heads or 1
        self.head_dim = config.head_dim or config.hidden_size // heads
        self.num_key_value_groups = heads // keys
        self.scaling = self.head_dim**-0.5
        self.sizes = [self.head_dim * count for count in (heads, keys, keys)]
        width, fused = config.hidden_size, sum(self.sizes)
        self.language_expert_query_key_value = nn.Linear(width, fused, bias=False)
        self.vision_expert_query_key_value = nn.Linear(width, fused, bias=True)
        self.language_expert_dense = nn.Linear(width, width, bias=False)
        self.vision_expert_dense = nn.Linear(width, width, bias=False)

    def forward(
        self,
        hidden: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Any,
        seen: torch.Tensor | None,
    ) -> torch.Tensor:
        fused = routed(
            hidden, seen, self.language_expert_query_key_value, self.vision_expert_query_key_value
        )
        parts = fused.split(self.sizes, dim=-1)
        query, key, value = (p.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for p in parts)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        made = attend(self, query, key, value, attention_mask).reshape(hidden.shape)
        return routed(made, seen, self.language_expert_dense, self.vision_expert_dense)


class ExpertMLP(nn.Module):
    """Two MLPs: one for text, one for image tokens."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.language_mlp = LlamaMLP(config)
        self.vision_mlp = LlamaMLP(config)

    def forward(self, hidden: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        return routed(hidden, seen, self.language_mlp, self.vision_mlp)


class CogVLM2ExpertLayer(nn.Module):
    """A layer of the language half."""

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = ExpertAttention(config, layer_idx)
        self.mlp = ExpertMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        seen: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        normed = self.input_layernorm(hidden)
        hidden = hidden + self.self_attn(
            normed, position_embeddings, attention_mask, past_key_values, seen
        )
        return hidden + self.mlp(self.post_attention_layernorm(hidden), seen)  # type: ignore[no-any-return]


class CogVLM2ExpertModel(LlamaModel):
    """The language half. Its `forward` passes `seen` on to the layers."""

    _no_split_modules = ["CogVLM2ExpertLayer"]  # noqa: RUF012

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(
            CogVLM2ExpertLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.post_init()


BELOW = (r"^model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1.")
"""Renaming of the language half, which lies beside the vision half in published files."""


def register(name: str, *, experts: bool) -> None:
    """Register the weight renaming for the model class `name`. A layer with visual experts keeps
    its own names; others get a Llama layer's names."""
    renamings: list[WeightConverter | WeightRenaming] = [WeightRenaming(*BELOW)]
    if not experts:
        renamings += [
            WeightRenaming("language_expert_dense", "o_proj"),
            WeightRenaming(r"mlp\.language_mlp\.", "mlp."),
            WeightConverter(
                source_patterns="self_attn.language_expert_query_key_value.weight",
                target_patterns=[f"self_attn.{part}_proj.weight" for part in "qkv"],
                operations=[Split(dim=0)],
            ),
        ]
    register_checkpoint_conversion_mapping(name, renamings, overwrite=True)


LANGUAGE: Mapping[bool, type[LlamaModel]] = {False: LlamaModel, True: CogVLM2ExpertModel}
"""Whether there are visual experts → class of the language half."""


class CogVLM2PreTrainedModel(PreTrainedModel):
    """The common base of both models' classes."""

    config_class = CogVLM2Config
    config: CogVLM2Config
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["CogVLM2VisionLayer", "LlamaDecoderLayer", "CogVLM2ExpertLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    # Each layer's file holds the frequencies of its positions, which the model computes.
    _keys_to_ignore_on_load_unexpected = {r"rotary_emb\.inv_freq$"}  # noqa: RUF012

    def _init_weights(self, module: Any) -> None:
        super()._init_weights(module)
        if isinstance(module, PatchEmbedding):
            init.normal_(module.cls_embedding, std=0.02)
        if isinstance(module, CogVLM2VisionModel):
            for end in (module.boi, module.eoi):
                init.normal_(end, std=0.02)


class CogVLM2Model(CogVLM2PreTrainedModel):
    """Both halves, without the output head."""

    def __init__(self, config: CogVLM2Config) -> None:
        super().__init__(config)
        vision, text = config.vision_config, config.text_config
        assert isinstance(vision, CogVLM2VisionConfig) and isinstance(text, LlamaConfig)
        self.vision = CogVLM2VisionModel._from_config(vision)
        self.language_model = LANGUAGE[config.visual_experts]._from_config(text)
        if config.rope_rounding is not None:
            rounded = RoundedRotaryEmbedding(text, config.rope_rounding)
            self.language_model.rotary_emb = rounded
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: Mapping[str, Any] | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        if input_ids is None:
            raise ValueError("input_ids are required: they mark the places of images")
        standing = input_ids == self.config.image_token_id
        if attention_mask is not None and attention_mask.ndim == 2:
            standing = standing & attention_mask[:, -standing.shape[1] :].bool()
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            if past:
                raise ValueError("position_ids are required with a cache: patches share a position")
            position_ids = positions_of(standing, attention_mask)
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if mm_encoder_outputs:
            inputs_embeds = _filled(inputs_embeds, standing, mm_encoder_outputs)
        if self.config.visual_experts:
            kwargs["seen"] = _seen(standing, past)
        return self.language_model(  # type: ignore[no-any-return]
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )


def _filled(embeddings: Any, standing: torch.Tensor, outputs: Mapping[str, Any]) -> torch.Tensor:
    """Return the embeddings with features in place of placeholders."""
    parts = [part.flatten(0, -2) for record in outputs.values() for part in record.pooler_output]
    features = torch.cat(parts).to(embeddings)
    places = int(standing.sum())
    if places != len(features):
        raise ValueError(f"the prompt has {places} placeholders for {len(features)} features")
    filled: torch.Tensor = embeddings.masked_scatter(standing.unsqueeze(-1), features)
    return filled


def _seen(standing: torch.Tensor, past: int) -> torch.Tensor | None:
    """Return which tokens the visual experts read; None if there are none."""
    if standing.shape[1] == 1:
        return None  # a generated token is always text
    seen = of_experts(standing)
    if not bool(seen.any()):
        return None
    if past:  # the visual experts might have had to read the last token of the previous chunk
        raise ValueError("visual experts do not support chunked prefill of a prompt with images")
    return seen


class CogVLMVideoModel(CogVLM2Model):
    """The halves of the video models."""

    def get_video_features(
        self,
        pixel_values_videos: torch.Tensor,
        video_frame_counts: torch.Tensor | None = None,
        **_: Any,
    ) -> Any:
        """Return one [tokens, width] feature tensor per video.

        The frames of all videos [frames, 3, height, width] are concatenated;
        `video_frame_counts` gives the number of frames per video."""
        features = self.vision(pixel_values_videos)
        counts = [len(pixel_values_videos)]
        if video_frame_counts is not None:
            counts = video_frame_counts.flatten().tolist()
        features.pooler_output = [v.flatten(0, 1) for v in features.pooler_output.split(counts)]
        return features


class CogVLMImageModel(CogVLM2Model):
    """The halves of the image model."""

    def get_image_features(self, pixel_values: torch.Tensor, **_: Any) -> Any:
        """Return one [tokens, width] feature tensor per image [images, 3, height, width]."""
        features = self.vision(pixel_values)
        features.pooler_output = list(features.pooler_output)
        return features


class CogVLM2ForConditionalGeneration(CogVLM2PreTrainedModel, GenerationMixin):
    """Both halves and the output head."""

    halves: type[CogVLM2Model]
    """Class of the model below the output head."""

    def __init__(self, config: CogVLM2Config) -> None:
        super().__init__(config)
        text: Any = config.text_config
        self.model = self.halves(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> Any:
        return self.lm_head

    def _prepare_position_ids_for_generation(self, inputs_tensor: Any, model_kwargs: Any) -> Any:
        ids = model_kwargs.get("input_ids", inputs_tensor)
        cache = model_kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        return positions_of(ids == self.config.image_token_id, model_kwargs.get("attention_mask"))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        video_frame_counts: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: Mapping[str, Any] | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        if pixel_values is not None:
            mm_encoder_outputs = {"image": self.model.get_image_features(pixel_values)}
        if pixel_values_videos is not None:
            features = self.model.get_video_features(pixel_values_videos, video_frame_counts)
            mm_encoder_outputs = {"video": features}
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            use_cache=use_cache,
            **kwargs,
        )
        at = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, at])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.lm_head.out_features)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values
        )


class CogVLMVideoForCausalLM(CogVLM2ForConditionalGeneration):
    """The video captioner and the video chat model, under the class name of their files."""

    input_modalities = ["video", "text"]  # noqa: RUF012
    halves = CogVLMVideoModel


class CogVLMForCausalLM(CogVLM2ForConditionalGeneration):
    """The image chat model, under the class name of its files."""

    input_modalities = ["image", "text"]  # noqa: RUF012
    halves = CogVLMImageModel


register(CogVLMVideoForCausalLM.__name__, experts=False)
register(CogVLMForCausalLM.__name__, experts=True)
