"""Natural-language inference beyond GLUE: does the second text follow from the first? Scored on the validation sets.

The published numbers of rows are those of the data sets' own papers, counted with a label: 785 training and 158
validation pairs of SNLI have none, because their annotators did not agree. A copy that lost rows on its way (the hub's
SICK has 4439 and 495) is hence marked as a subset.
"""

from __future__ import annotations

from finetune_bench.tasks.hub import HubTask

THREE_WAY = ("entailment", "neutral", "contradiction")
PREMISE_HYPOTHESIS = ("premise", "hypothesis")

snli = HubTask(
    "snli",
    labels=THREE_WAY,
    path="stanfordnlp/snli",
    config="plain_text",
    columns=PREMISE_HYPOTHESIS,
    rows={"train": 549367, "validation": 9842},
    licence="CC BY-SA 4.0",
)
sick = HubTask(
    "sick",
    labels=THREE_WAY,
    path="sick",
    columns=("sentence_A", "sentence_B"),
    rows={"train": 4500, "validation": 500},
    licence="CC BY-NC-SA 3.0",
)
scitail = HubTask(
    "scitail",
    labels=("entails", "neutral"),
    path="allenai/scitail",
    config="tsv_format",
    columns=PREMISE_HYPOTHESIS,
    rows={"train": 23596, "validation": 1304},
    licence="not stated on its card",
)
