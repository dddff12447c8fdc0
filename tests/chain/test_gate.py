"""Owns the proof that a name found inside an image opens only what its user meant."""

import contextlib
import os
import random
import subprocess
import sys

import pytest

from cowtree.chain import gate
from cowtree.errors import (
    BrokenHeader,
    ChainError,
    ChainTooDeep,
    CowtreeError,
    ImageLocked,
    Locked,
    LoopInChain,
    MissingImage,
    NotAnImage,
)
from cowtree.plan.create import NewImage
from cowtree.storage.contract import Access
from cowtree.storage.file import LocalFiles
from cowtree.storage.memory import MemoryFiles
from tests.pictures import draw, family, view
from tests.qemu import content, qemu_img, qemu_io, run

FILES = LocalFiles()
NAMES = {
    "base": "folder/base",
    "./base": "folder/./base",
    "../base": "folder/../base",
    "/far/base": "/far/base",
    "./a:b": "folder/./a:b",
    "a/b:c": "folder/a/b:c",
    "file:base": "base",
    "file:/far/base": "/far/base",
    "file:///far/base": "///far/base",
}
ADDRESSES = ("json:{}", "nbd://host/disk", "nbd:unix:/socket", "a:b", "1 a:b/c", "http://host/a", ":", "c:base")


@pytest.mark.parametrize(("name", "path"), NAMES.items())
def test_a_name_starts_from_the_folder_of_the_image_that_holds_it(name, path):
    assert gate.resolve_name("folder/top", name) == path


@pytest.mark.parametrize("name", ADDRESSES)
def test_an_address_is_no_file_name(name):
    with pytest.raises(ChainError, match="is an address, not a file name"):
        gate.resolve_name("folder/top", name)


def test_names_mean_to_cowtree_what_they_mean_to_qemu(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    top = tmp_path / "folder" / "top"
    for name in ("base", "folder/base", "folder/a:b"):
        (tmp_path / name).write_bytes(name.encode().ljust(512, b"."))
    for name in ("base", "../base", "file:base", f"file:{tmp_path}/base", f"file://{tmp_path}/base", "./a:b", "a:b"):
        qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw", top, "512")
        if run("qemu-img", "map", top).returncode:
            with pytest.raises(ChainError):
                gate.open_chain(FILES, "folder/top")
        else:
            assert view(FILES, "folder/top") == content(top)


def test_a_name_for_a_file_leads_back_to_it(tmp_path):
    for folder in ("a/b", "c"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    paths = [str(tmp_path / name) for name in ("top", "a/x:y", "a/b/base", "c/base", "link/other")]
    for path in paths:
        open(path, "w").close()
    for holder in paths:
        for target in paths:
            for is_relative in (True, False):
                name = gate.name_for(FILES, holder, target, is_relative=is_relative)
                assert gate.is_same(FILES, gate.resolve_name(holder, name), target)
                assert is_relative or os.path.isabs(name)
    assert gate.name_for(FILES, paths[0], paths[1], is_relative=True) == "a/x:y"
    assert gate.name_for(FILES, paths[1], paths[2], is_relative=True) == "b/base"
    assert gate.name_for(FILES, paths[2], paths[1], is_relative=True) == "../x:y"
    # From the folder that the link leads to, two steps up are somewhere else.
    assert gate.name_for(FILES, paths[4], paths[3], is_relative=True) == paths[3]


def test_what_was_declared_raw_is_not_looked_into(tmp_path):
    inner, base, top = (tmp_path / name for name in ("inner", "base", "top"))
    qemu_img("create", "-q", "-f", "qcow2", inner, "1M")
    # The guest has written the header of an image to the start of its disk.
    base.write_bytes(inner.read_bytes().ljust(1 << 20, b"\0"))
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", top)
    layers = gate.open_chain(FILES, str(top))
    assert [(layer.format, layer.was_probed) for layer in layers] == [("qcow2", True), ("raw", False)]
    gate.close_all(layers)
    assert view(FILES, str(top)) == content(top) == base.read_bytes()


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_where_nobody_says_the_format_it_is_looked_for_and_that_is_told(tmp_path, kind):
    base, top = tmp_path / "base", tmp_path / "top"
    qemu_img("create", "-q", "-f", kind, base, "1M")
    qemu_io(base, "write -P 5 64k 64k", image_format=kind)
    qemu_img("create", "-q", "-f", "qcow2", "-o", "compat=0.10", top, "1M")
    with top.open("r+b") as file:
        file.seek(8)
        file.write((512).to_bytes(8, "big") + (4).to_bytes(4, "big"))
        file.seek(512)
        file.write(b"base")
    layers = gate.open_chain(FILES, str(top), "qcow2")
    assert [(layer.format, layer.was_probed) for layer in layers] == [("qcow2", False), (kind, True)]
    gate.close_all(layers)
    assert view(FILES, str(top)) == content(top)


def test_a_missing_backing_file_is_told_with_who_wants_it():
    made = family("A", "B", "C")
    made.files.unlink(made.names[2])
    with pytest.raises(MissingImage) as caught:
        gate.open_chain(made.files, made.top)
    assert caught.value.facts["overlay"] == "layer-1"
    assert str(caught.value).startswith("layer-2: No such file or directory (it backs layer-1)")


def test_a_backing_file_that_is_no_image_is_told_with_who_wants_it():
    made = family("A", "B", "C")
    file = made.files.open(made.names[2], Access.WRITE)
    file.pwrite(0, b"text")
    file.close()
    with pytest.raises(NotAnImage) as caught:
        gate.open_chain(made.files, made.top)
    assert str(caught.value).startswith("layer-2: Image is not in qcow2 format (it backs layer-1)")


def test_a_format_that_nobody_here_knows():
    files = MemoryFiles()
    draw(files, NewImage("base", "raw", 512), "A")
    draw(files, NewImage("top", "qcow2", 512, 9, backing_file="base", backing_format="qed"), "-")
    with pytest.raises(ChainError, match="base: Unknown driver 'qed'") as caught:
        gate.open_chain(files, "top")
    assert caught.value.facts["overlay"] == "top"
    with pytest.raises(ChainError, match="Unknown driver 'qed'"):
        gate.open_layer(files, "base", "qed")


def test_what_is_no_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    top = tmp_path / "top"
    for name in ("pipe", ".", "/dev/null", "/dev/zero"):
        qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", "raw", top, "1M")
        with pytest.raises(MissingImage, match=r"it is a (pipe|folder|character device), not a file"):
            gate.open_chain(FILES, str(top))


def test_a_file_that_comes_twice(tmp_path):
    for name, backing in (("a", "b"), ("b", "link"), ("c", "c")):
        qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "qcow2", tmp_path / name, "1M")
    (tmp_path / "link").symlink_to("a")
    for name in "ac":
        with pytest.raises(LoopInChain, match="creates an infinite loop"):
            gate.open_chain(FILES, str(tmp_path / name))


def test_a_chain_ends_somewhere():
    made = family(*["-"] * 257)
    with pytest.raises(ChainTooDeep, match="the chain below it is deeper than 256 layers"):
        gate.open_chain(made.files, made.top)
    layers = gate.open_chain(made.files, made.names[1])
    assert len(layers) == 256
    gate.close_all(layers)


def test_whatever_stops_the_opening_nothing_stays_open():
    choose = random.Random(1)
    made = family("A", "B", "C")
    for _ in range(200):
        files = made.files.copy()
        file = files.open(choose.choice(made.names), Access.WRITE)
        file.pwrite(choose.randrange(120), choose.randbytes(choose.randint(1, 8)))
        file.close()
        with contextlib.suppress(CowtreeError):
            gate.close_all(gate.open_chain(files, made.top))
        for each in made.names:
            files.open(each, Access.WRITE).close()


def test_what_backs_an_image_is_opened_for_reading():
    made = family("A", "B")
    layers = gate.open_chain(made.files, made.top, access=Access.WRITE)
    made.files.open(made.names[1], Access.READ).close()
    with pytest.raises(ImageLocked):
        made.files.open(made.top, Access.READ)
    gate.close_all(layers)
    held = made.files.open(made.names[1], Access.WRITE)
    with pytest.raises(ImageLocked):
        gate.open_chain(made.files, made.top)
    gate.close_all(gate.open_chain(made.files, made.top, access=Access.SHARED))
    held.close()


def test_an_encrypted_image_is_refused():
    made = family("A", "B")
    file = made.files.open(made.names[1], Access.WRITE)
    file.pwrite(32, (2).to_bytes(4, "big"))
    file.close()
    with pytest.raises(Locked, match="is required for cipher"):
        gate.open_chain(made.files, made.top)
    # What its header says can still be shown.
    gate.open_layer(made.files, made.names[1]).close()


def test_an_external_data_file_is_opened_with_its_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=data", "image", "1M")
    qemu_io(tmp_path / "image", "write -P 5 64k 64k")
    assert view(FILES, "image") == content(tmp_path / "image")
    gate.open_alone(FILES, "image").close()
    os.unlink("data")
    with pytest.raises(MissingImage, match="data: No such file"):
        gate.open_layer(FILES, "image")


def test_an_image_that_does_not_say_where_its_data_are():
    made = family("A")
    file = made.files.open(made.top, Access.WRITE)
    file.pwrite(72, (4).to_bytes(8, "big"))
    file.close()
    with pytest.raises(BrokenHeader, match="'data-file' is required"):
        gate.open_layer(made.files, made.top)


def test_a_raw_image_ends_with_a_sector():
    for length, size_bytes in ((0, 0), (1, 512), (512, 512), (513, 1024)):
        layer = gate.open_layer(MemoryFiles({"raw": b"a" * length}), "raw", "raw")
        assert layer.size_bytes == size_bytes


def test_the_gate_needs_no_numpy():
    code = "import sys; import cowtree.chain.gate; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
