"""EVA-CLIP of 5 to 18 B parameters, a dual encoder, from the files of its hub repositories and,
converted, from those of its original code."""
