"""The table of iterations, line by line."""

from sppo.stages.iterations_table import IterationsTable


def test_a_row_fits_80_columns_and_nothing_is_minus_nought():
    rate = {"mean": 0.5, "low": 0.4, "high": 0.6}
    record = {
        "win_rate_vs_base": rate,
        "win_rate_vs_previous": rate,
        "by_oracle": {"win_rate_vs_base": rate},
        "response_tokens": 1234.56,
        "kl_to_base": -0.001,
        "truncated_share": 1.0,
        "trained": {"trained_prompts": 19800, "prompts": 20000},
    }
    table = IterationsTable(by_oracle=True)
    head, figures, below = [table.head(), *table.row(12, record, 123456).splitlines()]
    assert max(map(len, (head, figures, below))) <= 80
    assert figures.split() == ["12", "0.500", "0.500", "0.500", "1234.6", "0.00", "100.0%", "123456"]
    assert below.split()[:3] == ["0.400-0.600"] * 3 and below.endswith("trained on 19800 of 20000 prompts")
