"""Evaluation: graded answers of a model, and what they say.

    in_process.py            asks a model in this process and grades its answers
    openai_client.py         asks an OpenAI-compatible server and grades its answers
    recorder.py              answers on their way to a result, kept as they come
    result.py                graded answers of one model; tables and paired differences
    statistics.py            means, pass@k and standard errors over problems
    importance_sampling.py   the score of a gated adapter, estimated from answers of the base
    heldout_scorer.py        such estimates for a model's adapter, from the base's held-out answers

The command is `training/evaluate.py`.
"""

from training.evaluation.in_process import Evaluation, evaluate_generator
from training.evaluation.openai_client import Endpoint, ServerError, evaluate_url
from training.evaluation.recorder import Recorder
from training.evaluation.result import Reply, Result, compare, table
from training.evaluation.statistics import Estimate

__all__ = [
    "Endpoint",
    "Estimate",
    "Evaluation",
    "Recorder",
    "Reply",
    "Result",
    "ServerError",
    "compare",
    "evaluate_generator",
    "evaluate_url",
    "table",
]
