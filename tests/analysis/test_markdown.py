"""Markdown tables."""

from lvb.analysis import markdown


def test_columns_are_aligned_and_numbers_flush_right():
    text = markdown.table(("row", "value"), [("a long name", "1"), ("b", "1,000")])
    assert text.splitlines() == [
        "| row         | value |",
        "| :---------- | ----: |",
        "| a long name |     1 |",
        "| b           | 1,000 |",
    ]
