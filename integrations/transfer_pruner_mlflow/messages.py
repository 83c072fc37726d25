"""What the user is told, from whichever thread; nothing that is told stops training."""

from __future__ import annotations

import logging
import warnings
from collections import deque
from collections.abc import Callable

from transfer_pruner.exceptions import TransferPrunerWarning

logger = logging.getLogger(__name__)


class Messages:
    """Warnings that wait until a thread of ours tells them."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque()

    def add(self, message: str) -> None:
        """Have something told later."""
        self._waiting.append(message)

    def tell(self) -> None:
        """Warn of what there is to tell; where warnings are errors, training must not see them."""
        while True:
            try:
                message = self._waiting.popleft()
            except IndexError:
                return
            try:
                warnings.warn(message, TransferPrunerWarning, stacklevel=3)
            except TransferPrunerWarning:
                logger.warning(message)

    def guard(self, write: Callable[[], object], what: str = "left out of MLflow") -> None:
        """Do what may fail; if it does, that is told."""
        try:
            write()
        except Exception as error:
            logger.info("%s", what, exc_info=error)
            self.add(f"{what}: {type(error).__name__}: {error}")
