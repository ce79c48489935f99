"""A report tells these topics of every section, in the order of `TOPICS`.

Each file of this folder that ends with a `TOPIC` is one: its records, the blocks that tell them, and its plots. To add
a topic, write such a file and put it into `TOPICS`; every format then has it. Five files are no topics: `topic.py`
says what a topic is, `contrasts.py` holds methods against each other for all of them, `analysed.py` tells the results
of an analysis, `likelihood.py` a table beside the scores, and `search.py` a search, which has sections of its own.
"""

from __future__ import annotations

from finetune_bench.reports.topics.attribution import TOPIC as ATTRIBUTION
from finetune_bench.reports.topics.calibration import TOPIC as CALIBRATION
from finetune_bench.reports.topics.collapse import TOPIC as COLLAPSE
from finetune_bench.reports.topics.cost import TOPIC as COST
from finetune_bench.reports.topics.differences import TOPIC as DIFFERENCES
from finetune_bench.reports.topics.divergence import TOPIC as DIVERGENCE
from finetune_bench.reports.topics.dose import TOPIC as DOSE
from finetune_bench.reports.topics.drift import TOPIC as DRIFT
from finetune_bench.reports.topics.dropout_controls import TOPIC as DROPOUT_CONTROLS
from finetune_bench.reports.topics.equal_cost import TOPIC as EQUAL_COST
from finetune_bench.reports.topics.interpolation import TOPIC as INTERPOLATION
from finetune_bench.reports.topics.other_analyses import TOPIC as OTHER_ANALYSES
from finetune_bench.reports.topics.probe import TOPIC as PROBE
from finetune_bench.reports.topics.ranks import TOPIC as RANKS
from finetune_bench.reports.topics.retention import TOPIC as RETENTION
from finetune_bench.reports.topics.scores import TOPIC as SCORES
from finetune_bench.reports.topics.similarity import TOPIC as SIMILARITY
from finetune_bench.reports.topics.submission import TOPIC as SUBMISSION
from finetune_bench.reports.topics.synergy import TOPIC as SYNERGY
from finetune_bench.reports.topics.tests import TOPIC as TESTS
from finetune_bench.reports.topics.topic import Topic
from finetune_bench.reports.topics.training_curves import TOPIC as TRAINING_CURVES
from finetune_bench.reports.topics.transfer import TOPIC as TRANSFER

TOPICS: tuple[Topic, ...] = (
    SCORES,
    DIFFERENCES,
    COST,
    EQUAL_COST,
    SYNERGY,
    ATTRIBUTION,
    DROPOUT_CONTROLS,
    DOSE,
    INTERPOLATION,
    RANKS,
    TESTS,
    COLLAPSE,
    CALIBRATION,
    TRANSFER,
    PROBE,
    SIMILARITY,
    DRIFT,
    RETENTION,
    SUBMISSION,
    OTHER_ANALYSES,
    DIVERGENCE,
    TRAINING_CURVES,
)
