"""`cowtree img create` beside qemu-img."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cowtree.qcow2 import header as qcow2
from cowtree.qcow2 import lineage
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from tests.cli.img.differential import Both, assert_one_sentence, run_both, run_cowtree, run_stock
from tests.qemu import qemu_img, qemu_io, run_well

FEATURES = (
    *(f"cluster_size={size}" for size in ("512", "1k", "2K", "4k", "8k", "64k", "2M", "1000", "256", "4M", "0", "x")),
    *(f"compat={level}" for level in ("0.10", "1.1", "v2", "v3", "1.2")),
    *(
        f"refcount_bits={width}"
        for width in ("1", "2", "4", "8", "32", "64", "3", "128", "0", "x", "0x10", "020", "9" * 30)
    ),
    *("compression_type=zlib", "compression_type=zstd", "compression_type=lzma"),
    *(f"lazy_refcounts{switch}" for switch in ("", "=on", "=off", "=yes", "=n", "=maybe", "=")),
    *("nolazy_refcounts", "nocow", "nocow=on", "cow", "id=5", "nope=1", "=1"),
    *("size=1M", "size", "size=x", "size=16E", "size=1.5k,size=2k"),
    *("extended_l2=on", "extended_l2=on,cluster_size=16k", "extended_l2=on,cluster_size=8k"),
    *(f"compat=v2,{rest}" for rest in ("lazy_refcounts=on", "refcount_bits=8", "extended_l2=on", "data_file=d")),
    "compat=v2,compression_type=zstd",
    *(f"preallocation={mode}" for mode in ("off", "metadata", "falloc", "full", "some")),
    *(
        f"data_file=d,{rest}"
        for rest in ("nocow=off", "data_file_raw=on", "preallocation=full", "preallocation=falloc")
    ),
    *("data_file_raw=on", "backing_fmt=raw", "backing_file=base.qcow2", "backing_file="),
    *("backing_file=base.qcow2,backing_fmt=qcow2", "backing_file=a,,b,backing_fmt=raw"),
    *("encryption=off", "encryption=on", "encrypt.format=luks", "encrypt.iter-time=10", "encrypt.iter-time=x"),
    "encrypt.format=luks,encryption=on",
    *("extent_size_hint=1M", "extent_size_hint=5G", "help", "?", "nope=1,help", "help=1", "", ",x", "x,", "x,,"),
)
FILLED = (
    *("cluster_size=512,preallocation=metadata", "cluster_size=1k,preallocation=falloc,refcount_bits=64"),
    *(
        "cluster_size=2M,preallocation=full",
        "compat=v2,preallocation=metadata",
        "extended_l2=on,preallocation=metadata",
    ),
    *(
        "extended_l2=on,cluster_size=16k,preallocation=falloc",
        "cluster_size=512,refcount_bits=1,preallocation=metadata",
    ),
    "data_file=d,preallocation=metadata",
)
QCOW2 = "create -f qcow2"
OVER = "-b base.qcow2 -F qcow2"
CALLS = (
    *("create", "create new", "create new 1M 2M", "create -f vmdk3 new 1M", "create -f", "create -o", "create -b x"),
    *("create -Z new 1M", "create --nope new 1M", "create -o x=1", "create -f nope -o help", "create -f raw -o help"),
    *("create -f raw -o help new", f"{QCOW2} -o help", f"{QCOW2} -o help new", "create new -1M", "create -- new 1M"),
    *(f"create new {size}" for size in ("1001", "0", "1.5k", "1.5", "1.", "0x200", "10b", "1kb", "8E", "9" * 20, "k")),
    *("create new 1M -q", "create -q new 1M", "create --object secret,id=a,data=b new 1M", f"{QCOW2} -q new 1M"),
    *(f"create -o preallocation={mode} new 1M" for mode in ("off", "falloc", "full", "some")),
    *("create -o cluster_size=1k new 1M", f"create {OVER} new", "create -F qcow2 new 1M"),
    *(f"{QCOW2} new {size}" for size in ("0", "1001", "1T", "64T", "64P", "2E")),
    *(f"{QCOW2} -o cluster_size=512 new {size}" for size in ("1G", "1T")),
    *(f"{QCOW2} -o compat=0.10 new 0", f"{QCOW2} -o size=1M new", f"{QCOW2} -o size=1M new 1M"),
    *(f"{QCOW2} file:new 1M", f"{QCOW2} a:b 1M", f"{QCOW2} ./a:b 1M", "create . 1M", "create nope/new 1M"),
    *(f"{QCOW2} {OVER} new", f"{QCOW2} {OVER} new 2G", f"{QCOW2} {OVER} new 1M", f"{QCOW2} {OVER} base.qcow2"),
    *(f"{QCOW2} -b base.raw -F raw new", f"{QCOW2} -b base.raw new", f"{QCOW2} -b base.qcow2 new 1M"),
    *(f"{QCOW2} -b base.qcow2 -F raw new", f"{QCOW2} -b base.raw -F qcow2 new", f"{QCOW2} -b mid.qcow2 -F qcow2 new"),
    *(f"{QCOW2} -b nope -F qcow2 new", f"{QCOW2} -b nope new 1M", f"{QCOW2} -b orphan.qcow2 -F qcow2 new"),
    *(f"{QCOW2} -b ./base.qcow2 -F qcow2 new", f"{QCOW2} -b file:base.qcow2 -F qcow2 new"),
    *(f"{QCOW2} -b base.qcow2 -F nope new", f"{QCOW2} -F raw new 1M", f"{QCOW2} {OVER} -o backing_file=nope new"),
    *(f"{QCOW2} -u -b nope -F {image_format} new 1M" for image_format in ("raw", "qcow2", "vmdk", "nbd", "nope")),
    *(f"{QCOW2} -u -b nope new 1M", f"{QCOW2} -u -b nope -F qcow2 new", f"{QCOW2} -u -b nbd://x/ -F raw new 1M"),
    *(
        f"{QCOW2} {OVER} -o {rest} new"
        for rest in ("cluster_size=512", "compat=0.10", "preallocation=full", "data_file=d")
    ),
    *(f"{QCOW2} {OVER} -o extended_l2=on,preallocation={mode} new" for mode in ("off", "metadata", "falloc")),
    *(f"{QCOW2} {OVER} -o data_file=d,data_file_raw=on new", f"{QCOW2} -o cluster_size=4k -o refcount_bits=8 new 1M"),
    *(f"{QCOW2} base.raw 2M", f"{QCOW2} base.qcow2 2M", "create base.qcow2 2M", f"{QCOW2} {OVER} base.raw"),
)


@pytest.fixture
def bases(tmp_path: Path) -> Path:
    """A folder with something to build upon."""
    folder = tmp_path / "bases"
    folder.mkdir()
    qemu_img("create", "-q", "-f", "qcow2", folder / "base.qcow2", "100M")
    qemu_img("create", "-q", folder / "base.raw", "3000k")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", folder / "mid.qcow2")
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", "gone", "-F", "raw", folder / "orphan.qcow2", "1M")
    return folder


def run_in(both: Both) -> Iterator[tuple[Path, Path]]:
    """Pairs of (ours, that of qemu-img) for each file that the call made or replaced."""
    for path in sorted(both.own_folder.iterdir()):
        other = both.stock_folder / path.name
        if not (both.folder / path.name).exists() or path.read_bytes() != (both.folder / path.name).read_bytes():
            yield path, other


def assert_same_creation(bases: Path, tmp_path: Path, *words: str) -> None:
    """Fail unless both made the same: the same files with the same permissions, and the same first cluster."""
    both = run_both(bases, tmp_path, *words)
    both.assert_same_result()
    assert_one_sentence(both.own)
    if both.own.status:
        assert both.own.stderr
        both.assert_unchanged()
        return
    assert not both.own.stderr
    assert sorted(os.listdir(both.own_folder)) == sorted(os.listdir(both.stock_folder))
    for own, stock in run_in(both):
        assert own.stat().st_mode == stock.stat().st_mode
        assert own.stat().st_size == stock.stat().st_size
        is_filled = any("preallocation=" in word for word in words) or "data_file_raw=on" in words
        if not is_filled and "cluster_size=512" not in words:
            assert _without_record(own.read_bytes()) == stock.read_bytes()
    if "-u" not in words:
        _assert_sound(both.own_folder, both.stock_folder, [own.name for own, _ in run_in(both)])


def _without_record(data: bytes) -> bytes:
    """The image but for what it keeps of its base, which QEMU knows nothing of."""
    if not qcow2.is_qcow2(data) or lineage.LINEAGE.to_bytes(4, "big") not in data[:4096]:
        return data
    header = qcow2.parse("image", data, len(data))
    plain = qcow2.pack(lineage.with_record(header, None))
    return plain.ljust(1 << header.cluster_bits, b"\0") + data[1 << header.cluster_bits :]


def _assert_sound(own_folder: Path, stock_folder: Path, names: list[str]) -> None:
    """Fail unless qemu-img sees the same in all of them, and nothing wrong with ours."""
    for name in names:
        answers = [run_stock(folder, "info", "--output=json", name) for folder in (own_folder, stock_folder)]
        assert answers[0].text == answers[1].text
        if '"format": "qcow2"' in answers[0].text:
            check = run_stock(own_folder, "check", name)
            assert check.status == 0, check
            maps = [
                run_stock(folder, "map", "--output=json", "-l", "4G", name) for folder in (own_folder, stock_folder)
            ]
            assert _joined(maps[0].stdout) == _joined(maps[1].stdout)


def _joined(text: str) -> list[tuple[object, ...]]:
    """What a map says of the guest's ranges, wherever their bytes are, and whether or not these are a hole there."""
    found: list[tuple[object, ...]] = []
    for entry in json.loads(text):
        says = entry["depth"], entry["present"], entry["data"], entry["zero"] and not entry["data"]
        if not found or found[-1][1:] != says:
            found.append((entry["start"], *says))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("features", FEATURES)
def test_options_mean_what_they_mean_to_stock(bases: Path, tmp_path: Path, features: str):
    assert_same_creation(bases, tmp_path, *QCOW2.split(), "-o", features, "new.qcow2", "1M")


@pytest.mark.slow
@pytest.mark.parametrize("features", FILLED)
def test_preallocated_images_are_like_those_of_stock(bases: Path, tmp_path: Path, features: str):
    both = run_both(bases, tmp_path, *QCOW2.split(), "-o", features, "new.qcow2", "5000k")
    both.assert_same_result()
    _assert_sound(both.own_folder, both.stock_folder, ["new.qcow2"])


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_words_mean_what_they_mean_to_stock(bases: Path, tmp_path: Path, call: str):
    assert_same_creation(bases, tmp_path, *call.split())


def test_a_preallocated_image_can_be_written_everywhere(tmp_path: Path):
    for mode in ("metadata", "falloc", "full"):
        path = tmp_path / f"{mode}.qcow2"
        run_cowtree(tmp_path, *QCOW2.split(), "-o", f"preallocation={mode},cluster_size=4k", path.name, "1000k")
        size = path.stat().st_size
        qemu_io(path, "read -P 0 0 1000k", "write -P 7 0 1000k", "read -P 7 0 1000k")
        assert path.stat().st_size == size
        run_well("qemu-img", "check", path)


def test_space_is_taken_as_told(tmp_path: Path):
    taken = {}
    for mode in ("off", "metadata", "falloc", "full"):
        for image_format in ("raw", "qcow2") if mode != "metadata" else ("qcow2",):
            name = f"{mode}.{image_format}"
            run_cowtree(tmp_path, "create", "-f", image_format, "-o", f"preallocation={mode}", name, "4M")
            taken[name] = (tmp_path / name).stat().st_blocks * 512
    assert max(taken["off.raw"], taken["off.qcow2"], taken["metadata.qcow2"]) < 1 << 20
    assert min(taken["falloc.raw"], taken["full.raw"], taken["falloc.qcow2"], taken["full.qcow2"]) >= 4 << 20


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_that_the_process_gives(tmp_path: Path, mask: int):
    before = os.umask(mask)
    try:
        run_cowtree(tmp_path, "create", "own", "1M")
        run_stock(tmp_path, "create", "stock", "1M")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("own", "stock")]
    assert modes[0] == modes[1] == 0o644 & ~mask


def test_what_is_replaced_keeps_its_permissions(tmp_path: Path):
    (tmp_path / "disk").touch()
    (tmp_path / "disk").chmod(0o660)
    run_cowtree(tmp_path, "create", "disk", "1M")
    assert stat.S_IMODE((tmp_path / "disk").stat().st_mode) == 0o660


def test_a_link_is_followed(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to("sub/disk")
    for _ in range(2):
        assert run_cowtree(tmp_path, "create", "link", "1M").status == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "sub/disk").stat().st_size == 1 << 20
    assert os.listdir(tmp_path / "sub") == ["disk"]


@pytest.mark.parametrize("access", [Access.READ, Access.WRITE])
def test_an_image_in_use_is_not_replaced(bases: Path, access: str):
    before = (bases / "base.qcow2").read_bytes()
    file = LocalFiles().open(str(bases / "base.qcow2"), access)
    try:
        done, stock = (program(bases, *QCOW2.split(), "base.qcow2", "1M") for program in (run_cowtree, run_stock))
    finally:
        file.close()
    assert (done.status, done.stdout) == (stock.status, stock.stdout)
    assert done.stderr.startswith("qemu-img: base.qcow2: Failed to get ")
    assert (bases / "base.qcow2").read_bytes() == before


def test_an_image_is_not_made_its_own_ancestor(bases: Path):
    before = (bases / "base.raw").read_bytes()
    for words in (
        "-b mid.qcow2 -F qcow2 base.raw",
        "-b mid.qcow2 -F qcow2 mid.qcow2",
        "-b mid.qcow2 -F qcow2 ./mid.qcow2",
    ):
        done = run_cowtree(bases, *QCOW2.split(), *words.split())
        assert done.status == 1
        assert_one_sentence(done)
    done = run_cowtree(bases, *QCOW2.split(), "-b", "mid.qcow2", "-F", "qcow2", "-o", "data_file=base.raw", "new")
    assert done.status == 1
    assert (bases / "base.raw").read_bytes() == before


def test_nothing_is_left_of_a_failure(tmp_path: Path):
    assert run_cowtree(tmp_path, *QCOW2.split(), "-o", "cluster_size=512", "new", "1T").status == 1
    assert run_cowtree(tmp_path, *QCOW2.split(), "-o", "data_file=sub/d", "new", "1M").status == 1
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("sub", "pipe", "/dev/null"):
        done = run_cowtree(tmp_path, "create", name, "1M")
        assert done.status == 1
        assert_one_sentence(done)
    assert sorted(os.listdir(tmp_path)) == ["pipe", "sub"]
