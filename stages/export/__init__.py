"""Writes checkpoints in few bits, and judges them beside what they were made of."""

from stages.export.feature_job import FeaturesJob
from stages.export.job import ExportJob
from stages.export.judge_job import JudgeJob
from stages.process.stage import Stage

STAGE = Stage(
    name="export",
    reads="",
    writes="",
    job=ExportJob,
    of_media=False,
    output_version=1,
    entry="stages.export.run:run",
    verb="exporting",
)
COMPARE = Stage(
    name="compare",
    reads="features",
    writes="",
    job=FeaturesJob,
    of_media=False,
    output_version=1,
    entry="stages.export.compare:run",
    verb="comparing features",
)
JUDGE = Stage(
    name="judge",
    reads="captions",
    writes="",
    part="language",
    job=JudgeJob,
    of_media=False,
    output_version=1,
    entry="stages.export.judge:run",
    verb="judging",
)
