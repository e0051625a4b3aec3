"""Many rows in little memory: as columns, of which a row is made when it is asked for."""

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import pyarrow as pa
from pydantic import ValidationError

from solon.errors import RunError
from solon.records import Row, arrow_schema

R = TypeVar("R", bound=Row)
_CHUNK = 512  # Rows that are objects at once while all are walked through.


class Rows(Sequence[R], Generic[R]):
    """Rows of one type over a table. A slice is such a view as well, and copies nothing.

    Raises RunError where a row that is asked for does not fit its type; `what` names its file.
    """

    def __init__(
        self, row: type[R], table: pa.Table, places: Sequence[int] | None = None, what: str = "a row"
    ) -> None:
        """`places` are the table's rows that are seen, in this order; None: all of them."""
        self._row = row
        self._table = table
        self._places: Sequence[int] = range(table.num_rows) if places is None else places
        self._what = what

    @classmethod
    def of(cls, rows: Sequence[R], row: type[R]) -> "Rows[R]":
        return rows if isinstance(rows, Rows) else cls(row, as_table(rows, row))

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> "Rows[R]": ...
    def __getitem__(self, index: int | slice) -> "R | Rows[R]":
        if isinstance(index, slice):
            return self._seen(self._places[index])
        return self._made([self._places[index]])[0]

    def __iter__(self) -> Iterator[R]:
        for start in range(0, len(self), _CHUNK):
            yield from self._made(self._places[start : start + _CHUNK])

    def column(self, name: str) -> list[Any]:
        """The values of one field, in order."""
        values: list[Any] = self._table.column(name).to_pylist()
        return [values[place] for place in self._places]

    def take(self, indices: Sequence[int]) -> "Rows[R]":
        """These of the rows, in this order."""
        return self._seen([self._places[i] for i in indices])

    def _seen(self, places: Sequence[int]) -> "Rows[R]":
        return Rows(self._row, self._table, places, self._what)

    def _made(self, places: Sequence[int]) -> list[R]:
        data = self._table.take(pa.array(places, type=pa.int64())).to_pylist()
        try:
            return [self._row.model_validate(one) for one in data]
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(str(part) for part in fault["loc"])
            raise RunError(
                f"{self._what} cannot be read ({where}: {fault['msg']}). Remove its folder and run again."
            ) from error


def as_table(rows: Sequence[R], row: type[R]) -> pa.Table:
    return pa.Table.from_pylist([r.model_dump(mode="json") for r in rows], schema=arrow_schema(row))
