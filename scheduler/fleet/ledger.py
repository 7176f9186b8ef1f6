"""What was sent and has not ended: who is where, since when, and whether it was seen there."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

LOST_AFTER_S = 5.0


@dataclass(slots=True)
class Booking:
    """A request that was sent; ``seen`` once a state of its instance has listed it."""

    key: int
    instance: int
    sent_s: float
    seen: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """What a state said of the bookings: ``unseen`` are still on the way, ``gone`` are there no
    more, of which ``lost`` were never seen there."""

    unseen: list[int]
    gone: list[int]
    lost: list[int]


class Ledger:
    """Bookings by request and by instance; a request is booked once at a time."""

    def __init__(self) -> None:
        self._bookings: dict[int, Booking] = {}
        self._by_instance: dict[int, dict[int, Booking]] = {}

    def __len__(self) -> int:
        return len(self._bookings)

    def book(self, key: int, instance: int, now_s: float) -> None:
        """The request goes to the instance; ValueError where it is booked already."""
        if (there := self._bookings.get(key)) is not None:
            raise ValueError(f"request {key} is booked already, on instance {there.instance}")
        booking = Booking(key, instance, now_s)
        self._bookings[key] = booking
        self._by_instance.setdefault(instance, {})[key] = booking

    def end(self, key: int) -> int | None:
        """The request has ended; its instance, None where it was not booked any more."""
        booking = self._bookings.pop(key, None)
        if booking is None:
            return None
        del self._by_instance[booking.instance][key]
        return booking.instance

    def settle(self, instance: int, listed: Collection[int], taken_s: float) -> Settled:
        """Hold the instance's bookings against what it had at ``taken_s``.

        Who was seen and is not listed has ended there; who was never seen is on the way, or lost
        when it was sent LOST_AFTER_S before. Both kinds of the gone are no longer booked.
        """
        unseen, gone, lost = [], [], []
        for key, booking in self._by_instance.get(instance, {}).items():
            if key in listed:
                booking.seen = True
            elif booking.sent_s > taken_s or (
                not booking.seen and taken_s - booking.sent_s <= LOST_AFTER_S
            ):
                unseen.append(key)
            else:
                gone.append(key)
                if not booking.seen:
                    lost.append(key)
        for key in gone:
            self.end(key)
        return Settled(unseen, gone, lost)

    def drop(self, instance: int) -> list[int]:
        """The instance is gone; the requests that were booked there, by time of sending."""
        keys = list(self._by_instance.pop(instance, {}))
        for key in keys:
            del self._bookings[key]
        return keys

    def sent_s(self, key: int) -> float:
        """When the request was sent; KeyError for one that is not booked."""
        return self._bookings[key].sent_s

    def where(self, key: int) -> int | None:
        """The instance a request is booked on."""
        booking = self._bookings.get(key)
        return None if booking is None else booking.instance

    def outstanding(self, instance: int) -> int:
        """Requests sent there that have not ended."""
        return len(self._by_instance.get(instance, ()))

    def keys(self, instance: int) -> list[int]:
        """The requests booked there, by time of sending."""
        return list(self._by_instance.get(instance, ()))
