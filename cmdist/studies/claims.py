"""A paper's claims and what studies see of them: tables of pages, and one page of all."""

from collections.abc import Sequence

from cmdist.report import grids
from cmdist.studies.grid import Claim, Study
from cmdist.system import storage

HEAD = "| claim of the paper | what is seen | |\n|---|---|---|"


def table(claims: Sequence[Claim], folder: str) -> str:
    """Markdown of a study's claims, whose numbers are read from FOLDER/medians.csv. Raises ConfigError."""
    rows = (f"| {' | '.join(row(claim, folder))} |" for claim in claims)
    return "\n".join([HEAD, *rows]) if claims else ""


def row(claim: Claim, folder: str) -> tuple[str, str, str]:
    """Claim, what is seen, verdict and reason. Raises ConfigError."""
    why = f": {claim.why.strip()}" if claim.why else ""
    return claim.claim.strip(), grids.filled(claim.seen, folder).strip(), f"{claim.verdict}{why}"


def page(studies: Sequence[tuple[str, Study]], out: str) -> str:
    """OUT/claims.md for the studies (name, study) that have claims and were made; its place. Raises ConfigError."""
    place = storage.join(out, "claims.md")
    storage.write(place, text(studies, out).encode())
    return place


def text(studies: Sequence[tuple[str, Study]], out: str) -> str:
    """The page as the studies' tables have it."""
    told = [
        (name, study) for name, study in studies
        if study.claims and storage.exists(storage.join(out, name, "medians.csv"))
    ]  # fmt: skip
    claims = [claim for _, study in told for claim in study.claims]
    counts = ", ".join(
        f"{sum(claim.verdict == verdict for claim in claims)} {verdict}"
        for verdict in ("reproduced", "reproduced in part", "not reproduced", "out of reach here")
    )
    parts = [
        "# What the paper claims, and what we see",
        "Claims of Song et al. (2023) and of the continuous-time limits, on 8x8 digits with one small network and a "
        f"budget of minutes. Of {len(claims)} claims: {counts}. Numbers are Frechet distances, medians over the seeds "
        "of the study that they come from, and are read from its table.",
        "    python pipelines/study.py --claims configs/studies/*.yaml",
    ]
    for name, study in told:
        parts += [f"## [{study.title}]({name}.md)", table(study.claims, storage.join(out, name))]
    return "\n\n".join(parts) + "\n"
