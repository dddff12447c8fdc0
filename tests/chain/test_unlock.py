"""Encrypted images that QEMU made are read and written, and never without their key."""

import pytest

from cowtree.chain import gate
from cowtree.chain.address import name_of
from cowtree.chain.view import open_chain
from cowtree.errors import Locked
from cowtree.storage.file import LocalFiles
from tests.cli.img.differential import run_cowtree
from tests.qemu import qemu_img, run_well

pytestmark = pytest.mark.slow

SECRET = ("--object", "secret,id=s,data=abc")
KINDS = {
    "luks": ("luks", "", "key-secret=s,iter-time=10"),
    "qcow2": ("qcow2", "encrypt.", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"),
    "cbc": (
        "qcow2",
        "encrypt.",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,encrypt.cipher-alg=aes-128,"
        "encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.hash-alg=sha1",
    ),
    "old": ("qcow2", "encrypt.", "encrypt.format=aes,encrypt.key-secret=s"),
}


@pytest.fixture(params=KINDS)
def image(request, tmp_path):
    image_format, prefix, options = KINDS[request.param]
    path = tmp_path / request.param
    qemu_img("create", "-q", "-f", image_format, *SECRET, "-o", options, path, "1M")
    words = f"driver={image_format},{prefix}key-secret=s,file.filename={path}"
    run_well("qemu-io", *SECRET, "--image-opts", words, "-c", "write -P 65 0 1M", "-c", "write -P 66 3000 200001")
    return path, words


def test_what_qemu_wrote_is_read(image, tmp_path):
    _, words = image
    qemu_img("convert", *SECRET, "--image-opts", words, "-O", "raw", tmp_path / "stock")
    result = run_cowtree(tmp_path, "convert", *SECRET, "--image-opts", words, "-O", "raw", "own")
    assert result.status == 0, result
    assert (tmp_path / "own").read_bytes() == (tmp_path / "stock").read_bytes()


def test_qemu_reads_what_was_written_but_the_old_way_is_not_written(image, tmp_path):
    path, words = image
    (tmp_path / "raw").write_bytes(bytes(range(256)) * 4096)
    before = path.read_bytes()
    result = run_cowtree(tmp_path, "convert", *SECRET, "-f", "raw", "-n", "--target-image-opts", "raw", words)
    if path.name == "old":
        assert result.status == 1
        assert path.read_bytes() == before
        return
    assert result.status == 0, result
    qemu_img("compare", *SECRET, "--image-opts", f"driver=raw,file.filename={tmp_path / 'raw'}", words)


def test_a_wrong_key_and_a_missing_one_are_told_in_qemus_words(image, tmp_path):
    path, words = image
    chain_format = "luks" if path.name == "luks" else "qcow2"
    with pytest.raises(Locked, match="key-secret' is required for cipher"):
        open_chain(LocalFiles(), str(path), chain_format)
    with pytest.raises(Locked, match="No secret with id 's'"):
        gate.unlock(LocalFiles(), gate.open_alone(LocalFiles(), str(path), chain_format), "s")
    if path.name != "old":
        result = run_cowtree(
            tmp_path, "convert", "--object", "secret,id=s,data=hunter2", "--image-opts", words, "-O", "raw", "own"
        )
        assert "Invalid password, cannot unlock any keyslot" in result.stderr
        assert "hunter2" not in result.stderr


def test_nothing_is_compressed_into_an_encrypted_image(tmp_path):
    qemu_img("create", "-q", *SECRET, "-f", "qcow2", "-o", KINDS["qcow2"][2], tmp_path / "disk", "1M")
    (tmp_path / "raw").write_bytes(bytes(range(256)) * 4096)
    before = (tmp_path / "disk").read_bytes()
    target = "driver=qcow2,encrypt.key-secret=s,file.filename=disk"
    result = run_cowtree(tmp_path, "convert", *SECRET, "-f", "raw", "-c", "-n", "--target-image-opts", "raw", target)
    assert result.status == 1
    assert "Compression and encryption" in result.stderr
    assert (tmp_path / "disk").read_bytes() == before


def test_a_chain_of_encrypted_layers_is_committed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options, base = KINDS["qcow2"][2], "driver=qcow2,encrypt.key-secret=s,file.filename=base"
    qemu_img("create", "-q", *SECRET, "-f", "qcow2", "-o", options, "base", "1M")
    qemu_img("create", "-q", *SECRET, "-f", "qcow2", "-u", "-b", "base", "-F", "qcow2", "-o", options, "top", "1M")
    top = (
        "driver=qcow2,encrypt.key-secret=s,file.filename=top,"
        "backing.driver=qcow2,backing.encrypt.key-secret=s,backing.file.filename=base"
    )
    run_well("qemu-io", *SECRET, "--image-opts", base, "-c", "write -P 65 0 512k")
    run_well("qemu-io", *SECRET, "--image-opts", top, "-c", "write -P 66 300k 400k", "-c", "write -z 0 64k")
    qemu_img("convert", *SECRET, "--image-opts", top, "-O", "raw", "before")
    assert run_cowtree(tmp_path, "commit", *SECRET, "--image-opts", top).status == 0
    for words in (base, top):
        qemu_img("compare", *SECRET, "--image-opts", words, "driver=raw,file.filename=before")
        qemu_img("check", *SECRET, "--image-opts", words)
    assert b"B" * 4096 not in (tmp_path / "base").read_bytes()


def test_a_layer_can_be_asked_for_its_key_before_anything_is_read(image):
    path, _ = image
    image_format = "luks" if path.name == "luks" else "qcow2"
    files, prefix = LocalFiles({"s": b"abc"}), "" if image_format == "luks" else "encrypt."
    name = name_of({"driver": image_format, "file.filename": str(path), f"{prefix}key-secret": "s"})
    gate.open_readable(files, name).close()
    for act in (gate.open_readable, lambda files, name: gate.check_key(files, gate.open_alone(files, name))):
        with pytest.raises(Locked, match="key-secret' is required for cipher") as caught:
            act(files, str(path))
        assert caught.value.facts["name"] == str(path)
    layer = gate.open_alone(files, name)
    gate.check_key(files, layer)
    gate.check_key(files, gate.unlock(files, layer, "s"))
    layer.close()
