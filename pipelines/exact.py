"""Three questions answered exactly, as pages with their tables and figures: why the number of steps must go to
infinity, why several steps of sampling help, and what each objective's loss says at its own solution.

python pipelines/exact.py identities
python pipelines/exact.py limit
python pipelines/exact.py multistep --runs runs/digits/cd runs/digits/ct runs/digits/ict
"""

import argparse
from collections.abc import Sequence

from cmdist.errors import ConfigError
from cmdist.system import cli
from cmdist.theory import pages


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=list(pages.QUESTIONS))
    parser.add_argument("--out", default="docs/studies", help="folder for the page and a folder of its tables, figures")
    parser.add_argument("--most", type=int, default=1280, help="numbers of levels above this are left out")
    parser.add_argument("--runs", nargs="+", default=(), help="multistep: trained runs to set beside the exact curve")
    parser.add_argument("--only", nargs="+", default=(), metavar="TABLE", help="these tables, then figures and page")
    parser.add_argument("--page", action="store_true", help="only figures and page again, from the tables of --out")
    options = parser.parse_args(arguments)
    if options.most < 80:
        raise ConfigError(f"--most {options.most}: at least 80, which the page's sentences are about")
    if options.runs and options.question != "multistep":
        raise ConfigError("--runs belongs to `multistep`, whose page sets trained runs beside the exact curve")
    if not options.page:
        pages.compute(options.question, options.out, options.most, options.runs, options.only)
    print(f"page: {pages.draw(options.question, options.out)}")


if __name__ == "__main__":
    cli.run(main)
