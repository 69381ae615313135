"""The prompts with which the demo's model is trained."""

from typing import Final

VIDEO_PROMPT: Final = "Describe this video in detail."
"""The program's own prompt for clips."""
IMAGE_PROMPT: Final = "Describe this image in detail."
"""The program's own prompt for images."""
WORDINGS: Final = (
    "Describe the video.",
    "Describe this video.",
    "Describe this clip.",
    "Describe the clip in detail.",
    "Describe the video in detail.",
    "Caption the video.",
    "Caption this.",
    "Write a caption for this clip.",
    "Write one sentence about this video.",
    "What happens in the video?",
    "What happens in this clip?",
    "What is happening?",
    "What do you see?",
    "Tell me what you see.",
    "Summarize this video.",
    "Give a short description.",
    "Explain what is shown here.",
    "Describe what moves, and how.",
    "Which shapes are there, and what do they do?",
    "Describe the scene.",
    "Describe the image.",
    "Describe this picture.",
)
"""Other prompts, so that the answer does not depend on one."""
