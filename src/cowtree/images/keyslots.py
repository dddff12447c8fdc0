"""Passphrases of encrypted images: added, replaced, taken away.

All that can be refused, and all keys, are there before the first byte is written. What is written in which order, and
why no stop loses the last key, is in `plan/keyslots.py`.
"""

import secrets

from cowtree.chain.gate import LUKS, Layer
from cowtree.chain.unlock import VolumeFile, passphrase
from cowtree.errors import BrokenHeader, Locked
from cowtree.images.encryption import draw_filling, secret_named
from cowtree.luks.keys import fill_slot
from cowtree.luks.volume import ITERATION_TIME_MS
from cowtree.plan import keyslots as plan
from cowtree.plan.keyslots import KeyChange, Place
from cowtree.steps import Step
from cowtree.storage.contract import FileSystem, Storage
from cowtree.storage.passing import PassingFile


def outer_file(layer: Layer) -> Storage:
    """The file of an unlocked layer as it is on disk: the header of the encryption lies in the open."""
    file = layer.file
    return file.inner if layer.format == LUKS and layer.is_unlocked and isinstance(file, PassingFile) else file


def change_steps(files: FileSystem, layer: Layer, change: KeyChange) -> list[Step]:
    """What is to be written to the outer file of an unlocked layer.
    Raises: Refused in QEMU's words, WrongUse when there is no such secret, BrokenHeader, StorageFailed.
    """
    if layer.volume is None:
        raise BrokenHeader(path=layer.path, reason="Missing CRYPTO header for crypt method 2")
    held = VolumeFile(layer.path, outer_file(layer), layer.volume_place, layer.volume)
    plan.check_words(change)
    return _fill(files, layer, held, change) if change.is_active else _erase(files, held, change)


def _place(held: VolumeFile, index: int) -> Place:
    return Place(held.volume.slots[index], held.head_offset(index), held.material_offset(index))


def _erase(files: FileSystem, held: VolumeFile, change: KeyChange) -> list[Step]:
    secret = None if change.old_secret is None else secret_named(files, change.old_secret)
    indexes = plan.slots_to_try(held.volume, change)
    opened = [] if secret is None else [index for index, _ in held.opened_slots(secret, indexes)]
    places = [_place(held, index) for index in plan.slots_to_erase(held.volume, change, opened)]
    return plan.erase(places, [secrets.token_bytes(held.volume.material_bytes) for _ in places])


def _fill(files: FileSystem, layer: Layer, held: VolumeFile, change: KeyChange) -> list[Step]:
    volume = held.volume
    index = plan.slot_to_fill(volume, change)
    opener, key = _master_key(files, layer, held)
    secret = secret_named(files, change.new_secret or "")
    time_ms = ITERATION_TIME_MS if change.iteration_time_ms is None else change.iteration_time_ms
    filled, material = fill_slot(volume, index, key, draw_filling(volume.suite, secret, time_ms))
    slot = filled.slots[index]
    steps = plan.fill(_place(held, index), slot, material)
    spare = plan.spare_slot(volume)
    others = [each for each in volume.active if each != index]
    if opener != index or spare is None or any(held.opened_slots(secret, others)):
        return steps
    # While the only slot that is known to open is replaced, the spare one opens with the new secret.
    beside = _place(held, spare)
    lent = plan.fill(beside, slot, material)
    return [*lent, *steps, *plan.erase([beside], [secrets.token_bytes(volume.material_bytes)])]


def _master_key(files: FileSystem, layer: Layer, held: VolumeFile) -> tuple[int, bytes]:
    """The first slot that the secret of the layer's own address opens, and the master key."""
    name = layer.address.key_secret if layer.address else None
    if name is None:
        raise Locked(path=layer.path, reason=f"Parameter '{layer.key_option}' is required for cipher")
    return held.find_key(passphrase(files, layer.path, name))
