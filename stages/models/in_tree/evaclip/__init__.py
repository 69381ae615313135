"""EVA-CLIP of 5 to 18 B parameters, a dual encoder, from its hub repositories or from converted
files of its original code."""
