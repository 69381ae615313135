"""CogVLM2 as models of transformers, under the names of the classes of their files. Knows no
pictures and no text."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from stages.models.natives.cogvlm2.config import CogVLM2Config
from stages.models.natives.cogvlm2.halves import (
    CogVLM2Model,
    CogVLM2PreTrainedModel,
    CogVLMImageModel,
    CogVLMVideoModel,
)
from stages.models.natives.cogvlm2.names import register
from stages.models.natives.cogvlm2.positions import positions_of


class CogVLM2ForConditionalGeneration(CogVLM2PreTrainedModel, GenerationMixin):
    """Both halves and the output head."""

    halves: type[CogVLM2Model]
    """Class of what lies below the output head."""

    def __init__(self, config: CogVLM2Config) -> None:
        super().__init__(config)
        text: Any = config.text_config
        self.model = self.halves(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> Any:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: Any) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        return self.lm_head

    def get_decoder(self) -> Any:
        return self.model.get_decoder()

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
            found = self.model.get_video_features(pixel_values_videos, video_frame_counts)
            mm_encoder_outputs = {"video": found}
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
    """The video captioner and the video chat model, as their files name it."""

    input_modalities = ["video", "text"]  # noqa: RUF012
    halves = CogVLMVideoModel


class CogVLMForCausalLM(CogVLM2ForConditionalGeneration):
    """The model that chats about images, as its files name it."""

    input_modalities = ["image", "text"]  # noqa: RUF012
    halves = CogVLMImageModel


register(CogVLMVideoForCausalLM.__name__, experts=False)
register(CogVLMForCausalLM.__name__, experts=True)
