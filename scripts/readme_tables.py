"""Writes the measured tables of scripts/results into README.md.

python scripts/readme_tables.py
"""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent


def with_tables(readme: str, tables: dict[str, str]) -> str:
    """Replaces what stands between `<!-- name -->` and `<!-- /name -->`.

    Args:
      readme: text of README.md.
      tables: Markdown by name.

    Raises:
      ValueError: if the text lacks the marks of a table.
    """
    for name, table in tables.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        if not re.search(pattern, readme, flags=re.DOTALL):
            raise ValueError(
                f"README.md has no marks for {name!r}; add <!-- {name} --> and "
                f"<!-- /{name} --> on lines of their own."
            )
        body = f"\n{table.strip()}\n\n"
        readme = re.sub(
            pattern,
            lambda marks, body=body: marks[1] + body + marks[2],
            readme,
            flags=re.DOTALL,
        )
    return readme


def main() -> None:
    """Rewrites README.md in place."""
    results = ROOT / "scripts" / "results"
    tables = {path.stem: path.read_text() for path in sorted(results.glob("*.md"))}
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text(), tables))


if __name__ == "__main__":
    main()
