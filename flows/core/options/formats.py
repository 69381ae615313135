"""Names of output formats and their files, of rules for files that users wrote or edited, and of
`--help` headings.

Option declarations refer to the headings.
"""

from stages.decode.generation import TEXT

__all__ = ["FILES", "LABELS", "MEMORY", "MODEL", "OUTPUTS", "SAMPLING", "TEXT", "VECTORS"]

MODEL = "model and store"
SAMPLING = "sampling"
VECTORS = "store and sampling"
MEMORY = "memory"
GIVE_CONDITION = "Give a condition, or leave it out: all are taken"
FILES = "files"
LABELS = "labels"
QUESTIONS = "questions"
OUTPUTS = "outputs"


TRAINER_FORMATS = ("kohya", "musubi", "diffusion-pipe", "ltx", "hf")
"""Formats of training data sets."""
FORMATS = ("jsonl", "txt", "csv", "vtt", "srt", "parquet", "webdataset", *TRAINER_FORMATS)
"""The values of `--format`; jsonl is always written."""
COCO = "coco"
"""A format for labels only."""
COCO_FILE = "labels.coco.json"
EXACT, ORIGINAL = MEDIA_MODES = ("exact", "original")
"""The values of `--media`."""
MADE = {EXACT: ("exact 6", "exact 6 with combs"), ORIGINAL: ("original 5", "original 5")}
"""Mode of media → how clips of frames without combs, and with them, are made. A number is raised
when they are made differently."""
SOUNDING = " with sound"
"""Added to how clips are made that have the sound of their video."""
MOST_TRACKS = 16
"""Sound tracks whose clips are found among the data of a run. `--sound-track` may be larger."""


def sounding(track: int) -> str:
    """Return what is added for a sound track; 0: the default one."""
    return f"{SOUNDING} of track {track}" if track else SOUNDING


RETIMED = " timed anew"
"""Added to how clips are made that have a trainer's frames at its rate, whatever their video's."""


def timing(frames: int, fps: float) -> str:
    """Return what is added for clips as long as this number of frames at this rate; 0: clips of any
    length."""
    return f" of {frames} at {fps:g}" if frames else ""


COPY, NONE = CLIP_SOUNDS = ("copy", "none")
"""The values of `--clip-sound`."""
KEEP, REPLACE = RULES = ("keep", "replace")
"""The values of `--existing`."""


MEDIA, CAPTIONS = "media.jsonl", "captions.jsonl"
DATA_SET_MEDIA = f".{MEDIA}"
"""The same in the folder of a data set."""
ARRAY, ROWS = "embeddings.npy", "embeddings.parquet"
ANSWERS = "answers.jsonl"
ANSWERED = "answers"
"""Folder of the answers in the output folder of a run of captions."""
QUESTIONS_FILE = "answers_questions.json"
"""The questions of the last run into a folder of answers."""
