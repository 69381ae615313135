"""CogVLM2, from its published files: the video captioner, the video chat model, and the image chat
model with visual experts."""
