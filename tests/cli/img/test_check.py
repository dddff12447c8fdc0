"""`cowtree img check` beside qemu-img."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from tests.cli.img.differential import read_both, run_both, run_cowtree
from tests.cli.img.zoo import field, names, patch
from tests.qemu import assert_clean, qemu_img, qemu_io

CALLS = (
    *("check", "check a b", "check nope", "check .", "check -r", "check -r some v3.qcow2", "check -r all -U v3.qcow2"),
    *("check --output=xml v3.qcow2", "check -T nope v3.qcow2", "check -T none v3.qcow2", "check -f nope v3.qcow2"),
    *(
        "check -q v3.qcow2",
        "check -q raw.img",
        "check -q --output=json v3.qcow2",
        "check -U --output json filled.qcow2",
    ),
    *("check --image-opts driver=qcow2,file.filename=v3.qcow2 --output=json", "check file:v3.qcow2 --output=json"),
    *("check -f raw v3.qcow2", "check -f qcow2 raw.img", "check over-gone.qcow2", "check data-gone.qcow2"),
)
CLUSTER = 65536
BLOCK, L1_OFFSET, INCOMPATIBLE = 2 * CLUSTER, 40, 79
COPIED, OFFSET = 1 << 63, 0x00FFFFFFFFFFFE00

Damage = Callable[[Path], None]


def count(cluster: int, value: int) -> Damage:
    """Give a host cluster another reference count."""
    return lambda path: patch(path, BLOCK + 2 * cluster, ">H", value)


def l1(change: Callable[[int], int]) -> Damage:
    """Change the first L1 entry."""
    return lambda path: patch(path, field(path, L1_OFFSET), ">Q", change(field(path, field(path, L1_OFFSET))))


def l2(change: Callable[[int], int]) -> Damage:
    """Change the first L2 entry."""

    def damage(path: Path) -> None:
        table = field(path, field(path, L1_OFFSET)) & OFFSET
        patch(path, table, ">Q", change(field(path, table)))

    return damage


def flags(value: int) -> Damage:
    """Set the dirty bit, 1, or the corrupt bit, 2."""
    return lambda path: patch(path, INCOMPATIBLE, ">B", value)


# Damage that both repair the same way: to this exit status with `-r leaks`, and with `-r all`.
DAMAGES = {
    "none": lambda path: None,
    "a leak": count(30, 1),
    "a count too high": count(5, 2),
    "a table's flag": l1(lambda entry: entry & ~COPIED),
    "a cluster's flag": l2(lambda entry: entry & ~COPIED),
    "data past the end": l2(lambda entry: COPIED | 1 << 28),
    "data not aligned": l2(lambda entry: entry | 512),
    "a reserved bit": l2(lambda entry: entry | 2),
    "a table past the end": l1(lambda entry: COPIED | 7 << 28),
    "the dirty bit": flags(1),
    "the corrupt bit": flags(2),
}
# Damage that stock repairs differently, or not at all.
WORSE = {
    "a count of zero": count(5, 0),
    "a block not aligned": lambda path: patch(path, CLUSTER, ">Q", BLOCK + 512),
    "a block past the end": lambda path: patch(path, CLUSTER, ">Q", 1 << 29),
    "data in a block": l2(lambda entry: COPIED | BLOCK),
    "data in the header": l2(lambda entry: COPIED),
    "a file cut short": lambda path: path.write_bytes(path.read_bytes()[: 4 * CLUSTER + 32768]),
}
REPAIRS = (("-r", "leaks"), ("-r", "all"), ("-r", "leaks", "--output=json"), ("-q", "--repair=all"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one image, `disk`, that holds clusters of every kind."""
    folder = tmp_path_factory.mktemp("sound")
    qemu_img("create", "-q", "-f", "qcow2", folder / "disk", "4M")
    qemu_io(folder / "disk", "write -P 1 0 256k", "write -P 2 1M 192k", "write -z 2M 64k", "write -c -P 3 3M 64k")
    return folder


def damaged(sound: Path, tmp_path: Path, damage: Damage) -> Path:
    """A damaged copy."""
    folder = tmp_path / "damaged"
    subprocess.run(["cp", "-a", sound, folder], check=True)
    damage(folder / "disk")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("way", ["", "--output=json", "-f raw", "-f qcow2"])
def test_every_kind_of_image_is_checked_as_stock_does(zoo: Path, way: str):
    for name in names(zoo):
        # QEMU asks the server of what backs the image and wants a key to look at tables; neither is needed here.
        if name not in ("over-nbd.qcow2", "aes.qcow2"):
            read_both(zoo, "check", *way.split(), name).assert_same_reading()


@pytest.mark.parametrize("call", CALLS)
def test_words_mean_what_they_mean_to_stock(zoo: Path, call: str):
    both = read_both(zoo, *call.split())
    both.assert_same_reading()
    assert both.own.status != 1 or both.own.stderr.startswith("qemu-img: ")


@pytest.mark.parametrize("name", [*DAMAGES, *WORSE])
def test_damage_is_told_as_stock_tells_it(sound: Path, tmp_path: Path, name: str):
    folder = damaged(sound, tmp_path, {**DAMAGES, **WORSE}[name])
    for way in ("", "--output=json", "-q"):
        both = read_both(folder, "check", *way.split(), "disk")
        both.assert_same_result()
        own, stock = (
            [line for line in each.stderr.splitlines() if not line.startswith("qcow2: ")]
            for each in (both.own, both.stock)
        )
        assert own == stock


@pytest.mark.slow
@pytest.mark.parametrize("way", REPAIRS, ids=" ".join)
@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_repaired_as_stock_repairs_it(sound: Path, tmp_path: Path, name: str, way: tuple[str, ...]):
    both = run_both(damaged(sound, tmp_path, DAMAGES[name]), tmp_path, "check", *way, "disk")
    both.assert_same_result()
    assert both.own.stderr == both.stock.stderr
    left = [
        run_cowtree(folder, "check", "--output=json", "disk").stdout for folder in (both.own_folder, both.stock_folder)
    ]
    assert left[0] == left[1]


@pytest.mark.parametrize("name", ["a count of zero", "a block not aligned", "a block past the end"])
def test_what_counts_clusters_is_made_anew(sound: Path, tmp_path: Path, name: str):
    folder = damaged(sound, tmp_path, WORSE[name])
    done = run_cowtree(folder, "check", "-r", "all", "disk")
    assert done.status == 0
    assert done.stdout.startswith("The following inconsistencies were found and repaired:\n\n    0 leaked clusters\n")
    assert_clean(folder / "disk")
    qemu_io(folder / "disk", "read -P 1 0 256k", "read -P 2 1M 192k", "read -P 0 2M 64k", "read -P 3 3M 64k")


def test_an_image_in_use_is_checked_only_when_asked_to_share_it(sound: Path):
    file = LocalFiles().open(str(sound / "disk"), Access.WRITE)
    try:
        for call in ("check disk", "check -r all disk", "check -U disk"):
            read_both(sound, *call.split()).assert_same_reading()
    finally:
        file.close()
