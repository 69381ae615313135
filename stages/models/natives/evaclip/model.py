"""EVA-CLIP as a model of transformers, under the name of the class of its files. Knows no pictures
and no text.

All but the vision tower is CLIP's: the text tower, how vectors are projected, and the logits.
"""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.clip.modeling_clip import CLIPModel, CLIPTextModel

from stages.models.natives.evaclip.config import (
    EvaCLIPConfig,
    EvaCLIPTextConfig,
    EvaCLIPVisionConfig,
)
from stages.models.natives.evaclip.vision import EvaCLIPPreTrainedModel, EvaCLIPVisionModel


class EvaCLIPModel(EvaCLIPPreTrainedModel, CLIPModel):
    """Both towers."""

    config: EvaCLIPConfig

    def __init__(self, config: EvaCLIPConfig) -> None:
        # Not CLIPModel's own, which would make a vision tower of CLIP's too.
        PreTrainedModel.__init__(self, config)
        vision, text = config.vision_config, config.text_config
        assert isinstance(vision, EvaCLIPVisionConfig) and isinstance(text, EvaCLIPTextConfig)
        assert config.projection_dim is not None
        self.vision_embed_dim, self.text_embed_dim = vision.hidden_size, text.hidden_size
        self.text_model = CLIPTextModel._from_config(text)
        self.vision_model = EvaCLIPVisionModel._from_config(vision)
        self.visual_projection = nn.Linear(
            vision.hidden_size, config.projection_dim, bias=config.projection_bias
        )
        self.text_projection = nn.Linear(text.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.post_init()
