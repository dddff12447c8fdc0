"""Key slots changed, stopped everywhere: some passphrase that the user knows opens the image in every state."""

import random
import secrets
from functools import cache
from typing import NamedTuple

import pytest

from cowtree.chain import gate
from cowtree.chain.address import name_of
from cowtree.chain.gate import Layer
from cowtree.errors import BrokenHeader, Locked, Refused, WrongUse
from cowtree.images import encryption
from cowtree.images.amend import amend
from cowtree.images.create import create
from cowtree.images.keyslots import outer_file
from cowtree.luks import header as luks
from cowtree.luks.header import Suite
from cowtree.luks.volume import Encryption
from cowtree.plan.amend import Asked
from cowtree.plan.create import NewImage
from cowtree.plan.keyslots import KeyChange
from cowtree.storage.contract import Access, FileSystem, find_secret
from cowtree.storage.memory import MemoryFiles
from cowtree.storage.passing import PassingFiles
from tests.crash import Trial, assert_sound, cut_power_everywhere, fail_everywhere, kill_everywhere

SECRETS = {"s": b"one", "t": b"two", "u": b"three"}
DISK = "disk"
# Short keys, so that a state is judged in a moment.
SUITE = Suite("aes-128", "cbc")
ADD, ERASE = KeyChange(is_active=True, new_secret="t", iteration_time_ms=0), KeyChange(is_active=False)
DATA = bytes(range(256)) * 2
# What says that there is nothing left to do.
DONE = ("is already erased", "No keyslots match", "Refusing to overwrite active")


class Keyring(PassingFiles):
    """Files of somebody who knows all secrets, and lets images name each other with them."""

    follows_addresses = True

    def secret(self, name: str) -> bytes:
        return find_secret(SECRETS, name)


def name(image_format: str, secret: str) -> str:
    prefix = "" if image_format == "luks" else "encrypt."
    return name_of({"driver": image_format, "file.filename": DISK, f"{prefix}key-secret": secret})


def open_by(files: FileSystem, image_format: str, secret: str) -> Layer | None:
    """The image under a secret, if that opens it."""
    try:
        return gate.open_readable(Keyring(files), name(image_format, secret), None, Access.WRITE)
    except Locked:
        return None


def change(files: FileSystem, image_format: str, wanted: KeyChange, secret: str = "s") -> None:
    amend(Keyring(files), name(image_format, secret), asked=Asked(keys=wanted))


@cache
def made(image_format: str, slots: tuple[str, ...]) -> bytes:
    """An image with data whose slots these secrets open; `-` is an empty one."""
    files = MemoryFiles()
    new = NewImage(DISK, image_format, 4096, cluster_bits=12, encryption=Encryption("luks", "s", SUITE, 0))
    create(Keyring(files), new)
    layer = open_by(files, image_format, "s")
    assert layer is not None
    with_data = layer.data_file
    offset = 0
    if layer.header is None:
        with_data.pwrite(offset, DATA)
    layer.close()
    for index, secret in enumerate(slots):
        if index and secret != "-":
            change(files, image_format, ADD._replace(new_secret=secret, keyslot=index))
    return files.content(DISK)


class Case(NamedTuple):
    """A change, the secrets of the slots before it, those of which one opens always, and those that do at the end."""

    slots: str
    change: KeyChange
    always: str
    after: str


CASES = {
    "a key is added": Case("s", ADD, "s", "st"),
    "a key is added where a sector ends": Case("s", ADD._replace(keyslot=6), "s", "st"),
    "the only key is replaced": Case("s", ADD._replace(keyslot=0, is_forced=True), "st", "t"),
    "the only key is replaced by itself": Case("s", ADD._replace(keyslot=0, new_secret="s", is_forced=True), "s", "s"),
    "another key is replaced": Case("su", ADD._replace(keyslot=1, is_forced=True), "s", "st"),
    "one key is erased": Case("s-----t", ERASE._replace(keyslot=6), "s", "s"),
    "two keys are erased": Case("st----t", ERASE._replace(old_secret="t"), "s", "s"),
}


def trial_of(case: Case, image_format: str) -> Trial:
    initial = {DISK: made(image_format, tuple(case.slots))}

    def operation(files: FileSystem) -> None:
        for secret in "st":
            try:
                change(files, image_format, case.change, secret)
            except Locked:
                continue
            except Refused as error:
                if not any(words in error.reason for words in DONE):
                    raise
            return
        raise AssertionError("neither the old passphrase nor the new one opens the image")

    def check(files: MemoryFiles, is_done: bool) -> None:
        for secret in case.after if is_done else case.always:
            if (layer := open_by(files, image_format, secret)) is None:
                assert not is_done, secret
                continue
            seen = layer.data_file.pread(0, len(DATA))
            layer.close()
            assert layer.header or seen == DATA
            break
        else:
            raise AssertionError(f"none of {case.always} opens it")
        if is_done:
            assert [each for each in "stu" if opens(files, image_format, each)] == list(case.after)
        if image_format == "qcow2":
            assert_sound(files, DISK, is_done=True)

    return Trial(initial, operation, check)


def opens(files: FileSystem, image_format: str, secret: str) -> bool:
    layer = open_by(files, image_format, secret)
    if layer is not None:
        layer.close()
    return layer is not None


@pytest.fixture
def always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let equal states be equal, so that each is judged once: nothing is drawn, and no time is measured."""
    monkeypatch.setattr(secrets, "token_bytes", lambda count: random.Random(count).randbytes(count))
    monkeypatch.setattr(encryption, "MEASURED_S_MIN", 1e-9)
    monkeypatch.setattr(encryption, "MEASURED_COUNT_MIN", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("always_the_same")
@pytest.mark.parametrize("case", CASES)
def test_a_change_of_keys_can_be_stopped_anywhere(case: str):
    trial = trial_of(CASES[case], "luks")
    kill_everywhere(trial)
    cut_power_everywhere(trial)


@pytest.mark.slow
@pytest.mark.usefixtures("always_the_same")
@pytest.mark.parametrize("case", ["a key is added", "one key is erased"])
def test_a_change_of_keys_may_fail_anywhere(case: str):
    fail_everywhere(trial_of(CASES[case], "luks"))


@pytest.mark.slow
@pytest.mark.usefixtures("always_the_same")
def test_so_it_can_inside_an_image():
    cut_power_everywhere(trial_of(CASES["a key is added"], "qcow2"))
    kill_everywhere(trial_of(CASES["the only key is replaced"], "qcow2"))


@pytest.mark.slow
def test_with_all_slots_in_use_the_keys_of_others_stay():
    files = MemoryFiles({DISK: made("luks", tuple("suuuuuuu"))})
    change(files, "luks", ADD._replace(keyslot=0, is_forced=True))
    assert [opens(files, "luks", secret) for secret in "stu"] == [False, True, True]
    with pytest.raises(Refused, match="all keyslots are in use"):
        change(files, "luks", ADD, "t")


@pytest.mark.parametrize("image_format", ["luks", "qcow2"])
def test_what_a_slot_held_is_overwritten(image_format: str):
    files = MemoryFiles({DISK: made(image_format, ("s", "t"))})
    before = slots_of(files, image_format)
    change(files, image_format, ERASE._replace(keyslot=1))
    after = slots_of(files, image_format)
    assert after[0] == before[0]
    assert after[1][0] == (False, 0, bytes(32))
    assert sum(one == other for one, other in zip(after[1][1], before[1][1], strict=True)) < len(before[1][1]) // 50


@pytest.mark.parametrize("image_format", ["luks", "qcow2"])
def test_no_trace_of_the_spare_slot_is_left(image_format: str):
    files = MemoryFiles({DISK: made(image_format, ("s",))})
    change(files, image_format, ADD._replace(keyslot=0, is_forced=True))
    found = slots_of(files, image_format, "t")
    assert [head[0] for head, _ in found] == [True, *[False] * 7]
    assert found[1][0] == (False, 0, bytes(32))
    assert found[1][1] != found[0][1]


def slots_of(files: FileSystem, image_format: str, secret: str = "s") -> list[tuple[tuple[object, ...], bytes]]:
    """The head and the key material of each slot."""
    layer = open_by(files, image_format, secret)
    assert layer is not None
    assert layer.volume is not None
    origin, length = layer.volume_place, layer.volume.material_bytes
    found = [(tuple(each[:3]), outer_file(layer).pread(origin[0] + each.offset, length)) for each in layer.volume.slots]
    layer.close()
    return found


def test_the_last_key_goes_only_by_force():
    files = MemoryFiles({DISK: made("luks", ("s",))})
    for wanted in (ERASE._replace(keyslot=0), ERASE._replace(old_secret="s")):
        with pytest.raises(Refused, match="irreversibly - refusing operation"):
            change(files, "luks", wanted)
    assert files.content(DISK) == made("luks", ("s",))
    change(files, "luks", ERASE._replace(old_secret="s", is_forced=True))
    assert not opens(files, "luks", "s")


def test_a_secret_that_is_not_there_changes_nothing():
    files = MemoryFiles({DISK: made("qcow2", ("s",))})
    for wanted in (ADD._replace(new_secret="nobody"), ERASE._replace(old_secret="nobody")):
        with pytest.raises(WrongUse, match="No secret with id 'nobody'"):
            change(files, "qcow2", wanted)
    assert files.content(DISK) == made("qcow2", ("s",))


def test_keys_are_not_written_outside_of_their_place():
    data = bytearray(made("qcow2", ("s",)))
    layer = open_by(MemoryFiles({DISK: bytes(data)}), "qcow2", "s")
    assert layer is not None
    assert layer.header is not None
    place = layer.header.encryption_header
    assert place is not None
    layer.close()
    short = (luks.ALIGNMENT_BYTES + 2 * 65536).to_bytes(8, "big")
    at = data.index(place[0].to_bytes(8, "big") + place[1].to_bytes(8, "big"))
    data[at + 8 : at + 16] = short
    files = MemoryFiles({DISK: bytes(data)})
    with pytest.raises(BrokenHeader, match="Request for data outside of extension header"):
        change(files, "qcow2", ADD._replace(keyslot=5))
    assert files.content(DISK) == bytes(data)


def test_keys_are_not_written_over_a_table():
    data = bytearray(made("qcow2", ("s",)))
    at = data.index(b"LUKS\xba\xbe")
    # The L1 table moves into the key material of a slot that holds nothing.
    data[40:48] = (at + luks.ALIGNMENT_BYTES + 3 * 65536).to_bytes(8, "big")
    files = MemoryFiles({DISK: bytes(data)})
    with pytest.raises(BrokenHeader, match="lies inside Encryption header"):
        change(files, "qcow2", ADD._replace(keyslot=3))
    assert files.content(DISK) == bytes(data)
