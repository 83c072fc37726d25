"""Columns of numbers as few bytes: what a rule over very many pairs is pickled and saved as.

What it must satisfy: the numbers come back bit by bit, and what is read can only become numbers.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def packed(column: NDArray[Any]) -> bytes:
    """Compress a column of n numbers, the k-th bytes of all of them side by side.

    The first bytes of scores are much alike and compress well; the last ones do not, and cost no
    time at the fastest level.
    """
    planes = np.ascontiguousarray(column).view(np.uint8).reshape(len(column), column.itemsize).T
    return zlib.compress(planes.tobytes(), 1)


def unpacked(content: bytes, dtype: str, length: int) -> NDArray[Any]:
    """Read what `packed` wrote.

    Raises
    ------
    ValueError
        If the bytes are damaged, or not those of so many numbers of this type.
    """
    kind = np.dtype(dtype)
    if kind.kind not in "biuf":
        raise ValueError(f"a column of {dtype!r} holds no numbers")
    try:
        planes = np.frombuffer(zlib.decompress(content), dtype=np.uint8)
    except zlib.error as error:
        raise ValueError(f"a column is damaged ({error})") from error
    rows = planes.reshape(kind.itemsize, length).T
    column: NDArray[Any] = np.ascontiguousarray(rows).view(kind).reshape(length)
    return column
