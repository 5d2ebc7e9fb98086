"""Table 1: how well the paper's estimate and the covariance estimate tell the measured entropy change.

    python reproduce/table1.py                          the embedded cases, minutes
    python reproduce/table1.py --cases smollm2-gsm8k    a real language model, half an hour on one core
    python reproduce/table1.py --cases qwen2.5-math-7b  the paper's own, on a GPU

Cases are in estimators.yaml. Prints and writes results/table1.md, with what the paper and an independent
replication report beside what was measured here.
"""

from __future__ import annotations

from estimators import cases_of, measured_cases, print_table, published_rows

from steer_core.cli.ending import end
from steer_core.estimation.tables import with_interval

FORMS = {"paper": "paper (STEER)", "covariance": "covariance"}
COLUMNS = ("case", "update", "estimate", "MSE", "Pearson", "Spearman", "right sign")


def main() -> None:
    """Measure what is not measured yet and print the table."""
    rows = []
    for case, update, summary in measured_cases(cases_of(__doc__)):
        for form, label in FORMS.items():
            scores = summary["target"][form]
            bounded = [with_interval(scores[name]) for name in ("pearson", "spearman", "sign")]
            rows.append([case, update, label, f"{scores['mse'][0]:.1e}", *bounded])
    rows += [[case, update, FORMS[form], *scores, ""] for case, update, form, scores in published_rows(FORMS)]
    print_table("Table 1: estimated against measured entropy change, by token", COLUMNS, rows, "table1.md")


if __name__ == "__main__":
    end(main)
