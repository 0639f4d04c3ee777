"""Makes README's table of results from results/*/result.json.

python -m benchmarks.readme            # writes it between the two marks
python -m benchmarks.readme --check    # exit code 1 if it is not up to date
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.commands import guarded
from dit_jax.errors import UserError

BEGIN, END = "<!-- results: made by python -m benchmarks.readme -->", "<!-- end of results -->"
HEAD = ["| run | hardware | steps x batch | time | result |", "|---|---|---|---|---|"]


def table(results: Path) -> str:
    """Returns the table: a row for each result.json with a `readme` entry, in the order of folder names."""
    lines = list(HEAD)
    for path in sorted(results.glob("*/result.json")):
        row = json.loads(path.read_text()).get("readme")
        if row:
            link = f"[{row['run']}]({path.relative_to(results.parent).as_posix()})"
            lines.append(f"| {link} | {row['hardware']} | {row['size']} | {row['time']} | {row['result']} |")
    return "\n".join(lines)


def fill(readme: str, made: str) -> str:
    """Returns README's text with the table between the marks. Raises UserError unless each is there once."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise UserError(f"README.md needs the lines {BEGIN} and {END} once each")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.split(END)[1]}"


def main(argv: Sequence[str]) -> None:
    """Writes the table to README.md, or checks it."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--check", action="store_true")
    flags = parser.parse_args(argv)
    path = Path("README.md")
    filled = fill(path.read_text(), table(Path("results")))
    if filled == path.read_text():
        return
    if flags.check:
        sys.exit("README.md is not up to date with results/; run python -m benchmarks.readme")
    path.write_text(filled)


if __name__ == "__main__":
    sys.exit(guarded(main))
