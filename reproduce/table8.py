"""Table 8: every estimate on every model, from one state to the exact first order, against the measured change.

    python reproduce/table8.py                          the embedded cases, minutes
    python reproduce/table8.py --cases smollm2-gsm8k smollm2-math500
    python reproduce/table8.py --cases qwen2.5-math-7b qwen2.5-14b llama-3.2-3b    the paper's, on GPUs

Cases are in estimators.yaml; those that table1.py measured are not measured again. `state`: against the change at
the token's own state, as in the paper. `influence`: against its effect on the batch's mean entropy. `size`: absolute
values of both. `baseline` is -A (1 - p), which looks at no entropy.
Prints and writes results/table8.md, with what the paper and an independent replication report as the last rows.
"""

from __future__ import annotations

from estimators import cases_of, measured_cases, print_table, published_rows

from steer_core import ENTROPY_CHANGE
from steer_core.cli.ending import end
from steer_core.estimation.tables import QUESTIONS, label_of, with_interval

COLUMNS = ("case", "update", "against", "estimate", "MSE", "Pearson", "Spearman", "right sign", "factor")


def main() -> None:
    """Measure what is not measured yet and print the table."""
    rows = []
    for case, update, summary in measured_cases(cases_of(__doc__)):
        for question, about in QUESTIONS.items():
            for form, scores in summary.get(question, {}).items():
                bounded = [with_interval(scores[name]) for name in ("pearson", "spearman", "sign")]
                rows.append(
                    [
                        case,
                        update,
                        about,
                        label_of(form),
                        f"{scores['mse'][0]:.1e}",
                        *bounded,
                        f"{scores['slope'][0]:.2g}",
                    ]
                )
    rows += [
        [case, update, QUESTIONS["target"], label_of(form), *scores, "", ""]
        for case, update, form, scores in published_rows(ENTROPY_CHANGE)
    ]
    print_table("Table 8: every estimate on every model", COLUMNS, rows, "table8.md")


if __name__ == "__main__":
    end(main)
