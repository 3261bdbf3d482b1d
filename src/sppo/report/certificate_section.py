"""The section about how exploitable a run's policies are, if `sppo game certify` has measured it."""

from pathlib import Path

from sppo.compare.certificate import FILE
from sppo.progress import printable
from sppo.reading import read_mapping
from sppo.report.charts import Table
from sppo.report.run_figures import is_number
from sppo.report.sections import Section


def section(run: Path, prefix: str, notes: list[str]) -> Section | None:
    """The lower bounds; None where there are none."""
    path = run / FILE
    if not path.is_file():
        return None
    try:
        rows, sentences = [], []
        for target, of in read_mapping(path).items():
            values = [of[name] for name in ("mean", "low", "high", "prompts")]
            if not all(map(is_number, values)):
                raise ValueError("a bound is not a number")
            mean, low, high, prompts = values
            best = printable(str(of["best_response"]))
            rows.append([printable(target), best, f"{mean:.3f} [{low:.3f}, {high:.3f}]", f"{prompts:.0f}"])
            sentences.append(printable(str(of["sentence"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        notes.append(printable(f"{path}: the certificate cannot be read: {error!r}"))
        return None
    heads = ["policy", "best response", "exploitable by at least", "prompts"]
    return Section(
        f"{prefix}-certificate",
        "Exploitability",
        f"{' '.join(sentences)} A best response was trained against each policy with the policy held fixed, chosen on one half of"
        " the held-out prompts and measured on the other half. A better response may exist, so this is a lower bound.",
        tables=[("The best response found, and its win rate beyond one half", Table(heads, rows))],
    )
