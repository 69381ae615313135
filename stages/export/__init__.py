"""Writes checkpoints in few bits or with graphs, and judges them beside what they were made of."""

from stages.export.calibrate_job import CalibrateJob
from stages.export.feature_job import FeaturesJob
from stages.export.graph_job import GraphJob
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
TRACE = Stage(
    name="trace",
    reads="",
    writes="",
    job=GraphJob,
    of_media=False,
    output_version=1,
    entry="stages.export.graphs.run:run",
    verb="making graphs",
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
CALIBRATE = Stage(
    name="calibrate",
    reads="captions",
    writes="",
    part="language",
    job=CalibrateJob,
    of_media=False,
    output_version=1,
    entry="stages.export.calibrate:run",
    verb="calibrating",
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
