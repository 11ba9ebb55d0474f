"""What one engine may copy out of its tenant's memory at this moment.

Invariants
1. While a grant is open, its object is leased: nobody evicts it, and no page of it is reserved again.
2. A grant ends once: by RELEASE, by its word in the returns, by its deadline, or with the connection, and so in a crash
   of the engine too.
3. The ledger says that a grant has ended before its lease is let go. Whoever looks at the ledger after a copy, and
   finds that the grant holds, has copied bytes that nobody reserved meanwhile: however long the process was stopped.
4. Grants of one connection end by their deadlines in the order in which they were made.
"""

from __future__ import annotations

from kvgate.memory.ledger import Ledger, Returns
from kvgate.store.loan import Loan


class Grants:
    """See the module. `lease_s` is how long each grant lasts."""

    def __init__(self, ledger: Ledger, returns: Returns, lease_s: float) -> None:
        """Takes the memory of both over."""
        self._ledger, self._returns = ledger, returns
        self._lease_s = lease_s
        self._open: dict[int, tuple[float, Loan]] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def full(self) -> bool:
        """Whether no further grant can be opened, what was given back taken back."""
        if self._ledger.full:
            self.take_back()
        return self._ledger.full

    def open(self, loan: Loan, now: float) -> int:
        """Take a loan over and return the number of its grant."""
        number = self._ledger.open()
        self._open[number] = (now + self._lease_s, loan)
        return number

    def release(self, number: int) -> Loan | None:
        """End a grant, and return the loan that it was; None for one that has ended already."""
        held = self._open.pop(number, None)
        if held is None:
            return None
        self._ledger.end(number)
        held[1].end()
        return held[1]

    def take_back(self) -> None:
        """End the grants that the engine has given back."""
        for number in [number for number in self._open if self._returns.has(number)]:
            self.release(number)

    def expire(self, now: float) -> int:
        """End the grants whose deadline has passed; how many."""
        expired = 0
        while self._open:
            number = next(iter(self._open))
            if self._open[number][0] > now:
                break
            self.release(number)
            expired += 1
        return expired

    def close(self) -> None:
        """End every grant."""
        for number in list(self._open):
            self.release(number)
        self._ledger.close()
        self._returns.close()
