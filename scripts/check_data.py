"""Looks at a data directory and says what to run next.

    python scripts/check_data.py imagenet2012 --data_dir /data

Exit status: 0 when something there can be trained on, 1 when not, 2 for a wrong call.
"""

import argparse
import sys

from lvb.data import layout_check, layout_folders


def main(argv: list[str] | None = None) -> int:
    """Prints the findings and returns the exit status."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Looks at a data directory and says what to run next.",
    )
    parser.add_argument("dataset", choices=["imagenet2012"])
    parser.add_argument("--data_dir", required=True, help="the directory to look at")
    parser.add_argument(
        "--sort_flat",
        action="store_true",
        help="move images lying flat in train/ or val/ into their class folders first",
    )
    args = parser.parse_args(argv)
    if args.sort_flat:
        print(f"{layout_folders.sort_flat(args.data_dir):,} images moved")
    findings = layout_check.check_imagenet(args.data_dir)
    print(layout_check.report(findings))
    return 0 if any(finding.state == "ready" for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
