"""Names of the files that a run writes into its output folder."""

MEDIA, CAPTIONS = "media.jsonl", "captions.jsonl"
DATA_SET_MEDIA = f".{MEDIA}"
"""The same in the folder of a data set."""
ARRAY, ROWS = "embeddings.npy", "embeddings.parquet"
