"""Names the stored results of trials of fp16. Imports no model library."""

KIND = "precisions"
"""Kind of the records: one per half, precision and kind of GPU."""
VERDICT = "fp16"
"""Key of the record. Its fields: `holds`, the least `cosine`, and how many `images`."""
TRIED_IMAGES = 16
"""Images on which fp16 is compared with fp32."""
MIN_COSINE = 0.9999
"""Smallest cosine of a vector in fp16 to the one in fp32 with which fp16 is used."""
