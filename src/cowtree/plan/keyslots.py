"""Key slots of a LUKS volume: which of them a change is about, and what is written in which order.

The state of a slot is four bytes that no torn write can part. All else of a slot is written while the state says that
it holds nothing, and is durable before it says otherwise; a slot is given up, durably, before what it held is
overwritten. So a stop leaves each slot with a key that opens, or without one.

A slot that is the only one known to open is never replaced in place: its new key is put into a spare slot before, and
taken out of it again afterwards.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from cowtree.errors import Refused
from cowtree.luks.header import SALT_BYTES, SLOT_COUNT, Slot, Volume, pack_slot, pack_state
from cowtree.steps import Flush, Step, Write

_LAST: Final = SLOT_COUNT - 1
_WORD: Final = (1 << 32) - 1
_IRREVERSIBLY: Final = "erase all the data in the image irreversibly - refusing operation"


class KeyChange(NamedTuple):
    """What shall become of key slots: hold a key that the new secret opens, or no key. Secrets are names; without
    `keyslot` the first free slot is filled, or all are erased that the old secret opens.
    """

    is_active: bool
    new_secret: str | None = None
    old_secret: str | None = None
    keyslot: int | None = None
    iteration_time_ms: int | None = None
    is_forced: bool = False


def check_words(change: KeyChange) -> None:
    """Refuse what makes no sense together. Raises: Refused in QEMU's words."""
    if change.is_active:
        rules = (
            (change.new_secret is None, "'new-secret' is required to activate a keyslot"),
            (change.old_secret is not None, "'old-secret' must not be given when activating keyslots"),
        )
    else:
        rules = (
            (change.new_secret is not None, "'new-secret' must not be given when erasing keyslots"),
            (change.iteration_time_ms is not None, "'iter-time' must not be given when erasing keyslots"),
        )
    for is_broken, reason in rules:
        if is_broken:
            raise Refused(reason=reason)


def slot_to_fill(volume: Volume, change: KeyChange) -> int:
    """The slot that the new key goes into. Raises: Refused in QEMU's words."""
    index = change.keyslot
    if index is None:
        index = spare_slot(volume)
        if index is None:
            raise Refused(reason="Can't add a keyslot - all keyslots are in use", hint="erase one that nobody needs")
    _check_index(index, index & _WORD if index < 0 else index)
    if volume.slots[index].is_active and not change.is_forced:
        raise Refused(reason=f"Refusing to overwrite active keyslot {index} - please erase it first")
    return index


def spare_slot(volume: Volume) -> int | None:
    """The first slot that holds nothing."""
    return next((index for index, slot in enumerate(volume.slots) if not slot.is_active), None)


def slots_to_try(volume: Volume, change: KeyChange) -> list[int]:
    """The slots that the old secret may open. Raises: Refused in QEMU's words."""
    index = change.keyslot
    if index is None:
        return volume.active
    _check_index(index, index)
    return [index] if volume.slots[index].is_active else []


def slots_to_erase(volume: Volume, change: KeyChange, opened: Sequence[int]) -> list[int]:
    """The slots that shall be erased; the old secret opens those that are given.
    Raises: Refused in QEMU's words, most of all when no key would be left.
    """
    index, is_forced = change.keyslot, change.is_forced
    if index is None:
        only = "All the active keyslots match the (old) password that was given and erasing them will"
        rules = (
            (change.old_secret is None, _NOTHING_GIVEN),
            (not opened, "No keyslots match given (old) password for erase operation"),
            (not is_forced and len(opened) == len(volume.active), f"{only} {_IRREVERSIBLY}"),
        )
    else:
        is_other, is_active = change.old_secret is not None and not opened, volume.slots[index].is_active
        only = f"Attempt to erase the only active keyslot {index} which will"
        rules = (
            (is_other, f"Given keyslot {index} doesn't contain the given old password for erase operation"),
            (not is_forced and not is_active, f"Given keyslot {index} is already erased (inactive) "),
            (not is_forced and len(volume.active) == 1, f"{only} {_IRREVERSIBLY}"),
        )
    for is_broken, reason in rules:
        if is_broken:
            raise Refused(reason=reason)
    return list(opened) if index is None else [index]


_NOTHING_GIVEN: Final = (
    "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given"
)


def _check_index(index: int, shown: int) -> None:
    if not 0 <= index < SLOT_COUNT:
        raise Refused(reason=f"Invalid keyslot {shown} specified, must be between 0 and {_LAST}")


class Place(NamedTuple):
    """A slot, where its head begins in the file, and where its key material does."""

    slot: Slot
    head_offset: int
    material_offset: int


def fill(place: Place, new: Slot, material: bytes) -> list[Step]:
    """Put a key into a slot, which may hold another one."""
    held = new._replace(is_active=False, offset=place.slot.offset)
    steps = give_up([place]) if place.slot.is_active else []
    return [
        *steps,
        Write(place.head_offset, pack_slot(held)),
        Write(place.material_offset, material),
        Flush(),
        Write(place.head_offset, pack_state(is_active=True)),
        Flush(),
    ]


def give_up(places: Sequence[Place]) -> list[Step]:
    """Let slots hold no key any more; what they held is still there."""
    return [*(Write(each.head_offset, pack_state(is_active=False)) for each in places), Flush()]


def erase(places: Sequence[Place], noise: Sequence[bytes]) -> list[Step]:
    """Let slots hold no key, and overwrite what they held with noise."""
    steps = give_up(places)
    for place, material in zip(places, noise, strict=True):
        empty = Slot(is_active=False, iteration_count=0, salt=bytes(SALT_BYTES), offset=place.slot.offset)
        steps += [Write(place.head_offset, pack_slot(empty)), Write(place.material_offset, material)]
    return [*steps, Flush()]
