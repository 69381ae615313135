"""CogVLM2: the video captioner and the video chat model, and the image chat model with visual
experts, from their published files."""
