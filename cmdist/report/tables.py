"""The tables behind a page of docs/studies:
CSV files whose numbers have four digits, so that other machines write the same ones.
"""

import csv
import io
from collections.abc import Mapping, Sequence

from cmdist.system import storage

Value = str | int | float
Row = Mapping[str, Value]
Table = list[dict[str, str]]


def shown(value: Value) -> str:
    """A number with four significant digits, everything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write(folder: str, name: str, rows: Sequence[Row]) -> None:
    """FOLDER/NAME.csv with the keys of the first row as its head."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows([shown(value) for value in row.values()] for row in rows)
    storage.write(storage.join(folder, f"{name}.csv"), text.getvalue().encode())


def read(folder: str, name: str) -> Table:
    """The rows of FOLDER/NAME.csv, all of text. Raises FileNotFoundError."""
    return list(csv.DictReader(io.StringIO(storage.read(storage.join(folder, f"{name}.csv")).decode())))


def pick(table: Table, **where: Value) -> Table:
    """The rows that have these values."""
    return [row for row in table if all(row[key] == shown(value) for key, value in where.items())]


def one(table: Table, column: str, **where: Value) -> str:
    """A column of the only row that has these values."""
    rows = pick(table, **where)
    assert len(rows) == 1, f"{len(rows)} rows with {where}"
    return rows[0][column]


def points(table: Table, x: str, y: str, **where: Value) -> tuple[list[float], list[float]]:
    """Two columns as numbers, for a curve."""
    rows = pick(table, **where)
    return [float(row[x]) for row in rows], [float(row[y]) for row in rows]
