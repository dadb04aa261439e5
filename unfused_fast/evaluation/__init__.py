"""Evaluation of frozen encoders, as tables with confidence intervals.

In: encoders and labelled sets. Out: evaluation.md and .json, predictions.parquet, LAPE's table, ablations.
Read first: comparison.py, then measure.py.
"""

from unfused_fast.evaluation.ablation import ablate, ablation_sentences, ablation_table, cells_of
from unfused_fast.evaluation.compare import common_values, compare
from unfused_fast.evaluation.compare_report import comparison_sentences, comparison_tables
from unfused_fast.evaluation.comparison import evaluate, evaluation_tables
from unfused_fast.evaluation.lape_benchmark import LapePlan, lape, sentences, tables
from unfused_fast.evaluation.measure import Plan
from unfused_fast.evaluation.report import (
    REPORT_COLUMNS,
    SELECTED_ON_TEST,
    TextTable,
    collect_results,
    held_out_text,
    markdown,
    mean_and_error,
    percent,
    table_rows,
)
from unfused_fast.evaluation.report_page import write_report_page
from unfused_fast.evaluation.run_pool import RunPool, continuing
from unfused_fast.evaluation.run_store import read_runs, write_rows, write_runs
from unfused_fast.evaluation.scores import score_once
