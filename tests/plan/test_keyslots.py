"""Which slots a change of keys is about, and in what order they are written."""

import pytest

from cowtree.errors import Refused
from cowtree.luks import header as luks
from cowtree.luks.header import Slot, Suite, Volume
from cowtree.plan import keyslots as plan
from cowtree.plan.keyslots import KeyChange, Place
from cowtree.steps import Flush, Write

SUITE = Suite()
EMPTY = Volume(SUITE, luks.payload_offset(SUITE), b"d" * 20, b"s" * 32, 1000, "uuid", luks.new_slots(SUITE))
ADD, ERASE = KeyChange(is_active=True, new_secret="t"), KeyChange(is_active=False)


def volume(*active: int) -> Volume:
    found = EMPTY
    for index in active:
        found = found.with_slot(index, found.slots[index]._replace(is_active=True, iteration_count=9))
    return found


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (ADD._replace(new_secret=None), "'new-secret' is required to activate a keyslot"),
        (ADD._replace(old_secret="s"), "'old-secret' must not be given when activating keyslots"),
        (ERASE._replace(new_secret="t"), "'new-secret' must not be given when erasing keyslots"),
        (ERASE._replace(iteration_time_ms=1), "'iter-time' must not be given when erasing keyslots"),
    ],
)
def test_words_that_contradict_each_other_are_refused(change: KeyChange, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        plan.check_words(change)


def test_the_first_free_slot_is_filled_or_the_one_that_is_named() -> None:
    assert plan.slot_to_fill(volume(0, 1, 3), ADD) == 2
    assert plan.slot_to_fill(volume(0), ADD._replace(keyslot=7)) == 7
    assert plan.slot_to_fill(volume(0), ADD._replace(keyslot=0, is_forced=True)) == 0


@pytest.mark.parametrize(
    ("active", "change", "reason"),
    [
        (range(8), ADD, "Can't add a keyslot - all keyslots are in use"),
        ([0], ADD._replace(keyslot=0), "Refusing to overwrite active keyslot 0 - please erase it first"),
        ([0], ADD._replace(keyslot=8), "Invalid keyslot 8 specified, must be between 0 and 7"),
        ([0], ADD._replace(keyslot=-1), "Invalid keyslot 4294967295 specified"),
        ([0], ADD._replace(keyslot=(1 << 32) + 1), "Invalid keyslot 4294967297 specified"),
    ],
)
def test_a_slot_that_cannot_be_filled_is_told(active: list[int], change: KeyChange, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        plan.slot_to_fill(volume(*active), change)


def test_slots_are_erased_by_number_or_by_what_opens_them() -> None:
    assert plan.slots_to_erase(volume(0, 1), ERASE._replace(keyslot=1), []) == [1]
    assert plan.slots_to_erase(volume(0, 1, 2), ERASE._replace(old_secret="s"), [0, 2]) == [0, 2]
    assert plan.slots_to_erase(volume(0), ERASE._replace(keyslot=0, is_forced=True), []) == [0]
    assert plan.slots_to_erase(volume(0), ERASE._replace(keyslot=5, is_forced=True), []) == [5]
    assert plan.slots_to_try(volume(0, 4), ERASE._replace(old_secret="s")) == [0, 4]
    assert plan.slots_to_try(volume(0, 4), ERASE._replace(old_secret="s", keyslot=3)) == []


@pytest.mark.parametrize(
    ("active", "change", "opened", "reason"),
    [
        ([0], ERASE, [], "To erase keyslot"),
        ([0], ERASE._replace(old_secret="s"), [], "No keyslots match given"),
        ([0, 1], ERASE._replace(old_secret="s"), [0, 1], "All the active keyslots match"),
        (
            [0, 1],
            ERASE._replace(old_secret="s", keyslot=1),
            [],
            "Given keyslot 1 doesn't contain the given old password",
        ),
        ([0], ERASE._replace(keyslot=1), [], "Given keyslot 1 is already erased"),
        ([3], ERASE._replace(keyslot=3), [], "Attempt to erase the only active keyslot 3"),
    ],
)
def test_no_key_is_lost_unasked(active: list[int], change: KeyChange, opened: list[int], reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        plan.slots_to_erase(volume(*active), change, opened)


def test_a_slot_that_is_not_there_is_not_tried() -> None:
    with pytest.raises(Refused, match="Invalid keyslot -1 specified"):
        plan.slots_to_try(EMPTY, ERASE._replace(keyslot=-1))


NEW = Slot(True, 5000, b"t" * 32, 0)


def test_a_slot_says_that_it_holds_a_key_when_the_key_is_durable() -> None:
    steps = plan.fill(Place(EMPTY.slots[2], 1000, 9000), NEW, b"key")
    head = luks.pack_slot(NEW._replace(is_active=False, offset=EMPTY.slots[2].offset))
    assert steps == [
        Write(1000, head),
        Write(9000, b"key"),
        Flush(),
        Write(1000, luks.pack_state(is_active=True)),
        Flush(),
    ]


def test_a_slot_is_given_up_before_another_key_goes_over_it() -> None:
    steps = plan.fill(Place(volume(2).slots[2], 1000, 9000), NEW, b"key")
    assert steps[:2] == [Write(1000, luks.pack_state(is_active=False)), Flush()]
    assert steps[2:] == plan.fill(Place(EMPTY.slots[2], 1000, 9000), NEW, b"key")


def test_slots_are_given_up_before_they_are_wiped() -> None:
    places = [Place(volume(1, 6).slots[index], 1000 * index, 9000 * index) for index in (1, 6)]
    steps = plan.erase(places, [b"one", b"six"])
    off = luks.pack_state(is_active=False)
    assert steps[:3] == [Write(1000, off), Write(6000, off), Flush()]
    assert [step.offset for step in steps[3:] if isinstance(step, Write)] == [1000, 9000, 6000, 54000]
    assert steps[-1] == Flush()


def test_no_sector_ends_inside_a_state() -> None:
    for origin, index in [(0, index) for index in range(luks.SLOT_COUNT)]:
        start = origin + luks.slot_place(index)
        assert start // 512 == (start + luks.STATE_BYTES - 1) // 512
