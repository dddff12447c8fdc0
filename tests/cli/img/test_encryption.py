"""Encrypted images: described, made, filled, measured and mapped, each beside qemu-img."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cowtree.cli.img.encryption import read_encryption
from cowtree.errors import WrongUse
from cowtree.luks.header import Suite
from tests.cli.img.differential import Result, run_cowtree, run_stock
from tests.qemu import run, run_well

pytestmark = pytest.mark.slow

SECRETS = ("--object", "secret,id=s,data=correct horse", "--object", "secret,id=wrong,data=battery staple")
QCOW2 = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
RETRY_COUNT = 20
LUKS = "key-secret=s,iter-time=10"
SUITES = (
    {"cipher-alg": "aes-128"},
    {"cipher-alg": "aes-192", "hash-alg": "sha1"},
    {"cipher-mode": "cbc", "ivgen-alg": "essiv"},
    {"cipher-mode": "cbc", "ivgen-alg": "plain", "hash-alg": "sha512"},
    {"cipher-mode": "ctr", "hash-alg": "ripemd160"},
    {"cipher-mode": "ecb", "hash-alg": "md5"},
)
# How each image is laid out differs from its neighbours in one way.
SHAPES = (
    *("", "compat=0.10", "cluster_size=512", "cluster_size=2M", "extended_l2=on", "refcount_bits=1", "data_file=data"),
    *("preallocation=metadata", "preallocation=full", "preallocation=falloc,compat=0.10"),
)


def opened(name: str, secret: str = "s", *, image_format: str = "qcow2") -> str:
    """The list of options by which an image is opened."""
    prefix = "encrypt." if image_format == "qcow2" else ""
    return f"driver={image_format},file.filename={name},{prefix}key-secret={secret}"


def io(path: Path, *commands: str, secret: str = "s", image_format: str = "qcow2") -> str:
    """Read and write an encrypted image through qemu-io."""
    words = [word for command in commands for word in ("-c", command)]
    place = opened(str(path), secret, image_format=image_format)
    return run_well("qemu-io", *SECRETS, "--image-opts", *words, place)


def well(folder: Path, *words: str) -> Result:
    """Run the words through cowtree, and fail unless it succeeds."""
    result = run_cowtree(folder, *words)
    assert result.status == 0, (words, result)
    return result


def facts(path: Path) -> dict[str, Any]:
    """What qemu-img says of an image, but for what is drawn or measured."""
    text = run_well("qemu-img", "info", "--output=json", path)
    found: dict[str, Any] = json.loads(
        re.sub(r'"(uuid|iters|master-key-iters|actual-size|filename)": ("[^"]*"|\d+)', r'"\1": 0', text)
    )
    return found


def make_source(folder: Path) -> Path:
    """A raw disk with data, zeroes among it, and an end inside a cluster."""
    folder.mkdir(exist_ok=True)
    path = folder / "source"
    path.write_bytes(bytes(range(256)) * 512 + bytes(300_032) + b"x" * 512 + bytes(70_144) + b"end!" * 384)
    return path


@pytest.mark.slow
def test_info_says_what_qemu_img_says(tmp_path: Path):
    run_stock(tmp_path, "create", *SECRETS, "-f", "luks", "-o", LUKS, "a.luks", "1M")
    well(tmp_path, "create", *SECRETS, "-f", "luks", "-o", f"{LUKS},cipher-mode=cbc,ivgen-alg=essiv", "b.luks", "1M")
    well(tmp_path, "create", *SECRETS, "-f", "qcow2", "-o", QCOW2, "a.qcow2", "1M")
    well(tmp_path, "create", *SECRETS, "-f", "qcow2", "-o", f"{QCOW2},encrypt.ivgen-hash-alg=sha1", "b.qcow2", "1M")
    well(tmp_path, "create", *SECRETS, "-f", "qcow2", "-o", "encryption=on,encrypt.key-secret=s", "aes.qcow2", "1M")
    for name in ("a.luks", "b.luks", "a.qcow2", "b.qcow2", "aes.qcow2"):
        for how in ("--output=human", "--output=json"):
            expected = run_stock(tmp_path, "info", how, name)
            assert "encrypted" in expected.stdout
            assert run_cowtree(tmp_path, "info", how, name) == expected


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["cluster_size=512,compat=0.10", "extended_l2=on,data_file=data"])
def test_an_encrypted_image_is_made_as_qemu_img_makes_it(tmp_path: Path, shape: str):
    own, other = tmp_path / "own", tmp_path / "stock"
    words = ("create", *SECRETS, "-f", "qcow2", "-o", ",".join(filter(None, (QCOW2, shape))), "image", "3000000")
    for folder in (own, other):
        folder.mkdir()
    assert well(own, *words).stdout == run_stock(other, *words).stdout
    assert facts(own / "image") == facts(other / "image")
    assert (own / "image").stat().st_size == (other / "image").stat().st_size or "preallocation" in shape
    check = ("check", *SECRETS, "--image-opts", opened("image"))
    assert (run_cowtree(own, *check).status, run_stock(own, *check).status) == (0, 0)


@pytest.mark.slow
def test_the_first_clusters_are_byte_for_byte_what_qemu_img_writes(tmp_path: Path):
    run_stock(tmp_path, "create", *SECRETS, "-f", "qcow2", "-o", QCOW2, "stock", "1G")
    well(tmp_path, "create", *SECRETS, "-f", "qcow2", "-o", QCOW2, "own", "1G")
    own, other = ((tmp_path / who).read_bytes() for who in ("own", "stock"))
    assert own[: 4 << 16] == other[: 4 << 16]
    assert len(own) == len(other)


@pytest.mark.parametrize("suite", SUITES, ids=str)
def test_qemu_reads_and_writes_what_is_made(tmp_path: Path, suite: dict[str, str]):
    for image_format, prefix, options in (("qcow2", "encrypt.", QCOW2), ("luks", "", LUKS)):
        path, place = tmp_path / f"a.{image_format}", opened(f"a.{image_format}", image_format=image_format)
        words = ",".join([options, *(f"{prefix}{key}={value}" for key, value in suite.items())])
        well(tmp_path, "create", *SECRETS, "-f", image_format, "-o", words, path.name, "1M")
        io(path, "write -P 65 1000 200000", image_format=image_format)
        well(tmp_path, "dd", *SECRETS, "--image-opts", f"if={place}", "of=plain", "bs=1000", "skip=1", "count=201")
        assert (tmp_path / "plain").read_bytes()[:200_000] == b"A" * 200_000


@pytest.mark.parametrize("image_format", ["qcow2", "luks"])
def test_a_wrong_passphrase_opens_nothing(tmp_path: Path, image_format: str):
    options = QCOW2 if image_format == "qcow2" else LUKS
    well(tmp_path, "create", *SECRETS, "-f", image_format, "-o", options, "a", "1M")
    place = opened("a", "wrong", image_format=image_format)
    for result in (
        run_stock(tmp_path, "map", *SECRETS, "--image-opts", place),
        run_cowtree(tmp_path, "map", *SECRETS, "--image-opts", place),
    ):
        assert result.status == 1
        assert "Invalid password, cannot unlock any keyslot" in result.stderr


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        *(("qcow2", f"{QCOW2},{shape}".rstrip(",")) for shape in SHAPES),
        ("luks", LUKS),
        ("luks", f"{LUKS},preallocation=falloc"),
        ("luks", f"{LUKS},preallocation=metadata"),
    ],
)
def test_a_converted_image_shows_the_same_disk(tmp_path: Path, image_format: str, options: str):
    make_source(tmp_path)
    well(tmp_path, "convert", *SECRETS, "-f", "raw", "-O", image_format, "-o", options, "source", "new")
    place = opened(str(tmp_path / "new"), image_format=image_format)
    if "data_file" in options:
        place += f",data-file.filename={tmp_path / 'data'},data-file.driver=file"
        options = options.replace("data_file", "data-file")
    run_well("qemu-img", "compare", *SECRETS, "--image-opts", f"driver=raw,file.filename={tmp_path / 'source'}", place)
    well(tmp_path, "compare", *SECRETS, "--image-opts", "driver=raw,file.filename=source", place)
    if image_format == "qcow2":
        run_well("qemu-img", "check", *SECRETS, "--image-opts", place)
        well(tmp_path, "check", *SECRETS, "--image-opts", place)
    # No secret lies open on the disk.
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.name in ("new", "data"))
    assert bytes(range(256)) not in written
    assert b"end!" not in written


def test_an_encrypted_overlay_holds_what_differs(tmp_path: Path):
    source = make_source(tmp_path)
    (tmp_path / "base").write_bytes(b"B" * source.stat().st_size)
    words = ("-O", "qcow2", "-o", QCOW2, "-B", "base", "-F", "raw", "source", "new")
    well(tmp_path, "convert", *SECRETS, "-f", "raw", *words)
    other = f"driver=raw,file.filename={source}"
    run_well("qemu-img", "compare", *SECRETS, "--image-opts", other, opened(str(tmp_path / "new")))


WRONG = (
    *("encrypt.key-secret=s", "encrypt.format=foo,encrypt.key-secret=s", "encryption=on", "encrypt.iter-time=x"),
    *("encrypt.format=luks", "encrypt.format=luks,encrypt.key-secret=nobody", f"{QCOW2},encryption=on"),
    *("encrypt.format=aes,encrypt.key-secret=s,encrypt.cipher-alg=aes-128", f"{QCOW2},encrypt.cipher-alg=foo"),
    *(f"{QCOW2},encrypt.cipher-mode=foo", f"{QCOW2},encrypt.ivgen-alg=foo", f"{QCOW2},encrypt.ivgen-hash-alg=foo"),
    *(f"{QCOW2},encrypt.hash-alg=foo", f"{QCOW2},encrypt.cipher-alg=des", f"{QCOW2},encrypt.cipher-alg=3des"),
    f"{QCOW2},encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha1",
)


@pytest.mark.parametrize(
    ("verb", "image_format", "options"),
    [
        *(("create", "qcow2", options) for options in WRONG),
        ("create", "luks", "iter-time=10"),
        ("create", "luks", "key-secret=nobody"),
        ("create", "luks", f"{LUKS},cipher-alg=foo"),
        ("create", "luks", f"{LUKS},preallocation=foo"),
        ("create", "luks", f"{LUKS},backing_file=source"),
        ("convert", "luks", "iter-time=10"),
        ("convert", "luks", "key-secret=nobody"),
        ("convert", "qcow2", "encrypt.format=luks"),
        ("convert", "qcow2", f"{QCOW2},encrypt.cipher-alg=foo"),
    ],
)
def test_wrong_words_are_refused_as_qemu_img_refuses_them(tmp_path: Path, verb: str, image_format: str, options: str):
    make_source(tmp_path)
    words: tuple[str, ...]
    if verb == "create":
        words = ("create", *SECRETS, "-f", image_format, "-o", options, "new", "1M")
    else:
        words = ("convert", *SECRETS, "-f", "raw", "-O", image_format, "-o", options, "source", "new")
    expected, result = run_stock(tmp_path, *words), run_cowtree(tmp_path, *words)
    assert (result.status, expected.status) == (1, 1)
    message = next(line for line in expected.stderr.splitlines() if line.startswith("qemu-img: "))
    assert result.stderr.startswith(message), (message, result.stderr)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("image_format", "options"),
    [("qcow2", QCOW2), ("luks", LUKS), ("qcow2", "encryption=on,encrypt.key-secret=s")],
)
def test_what_is_encrypted_is_not_compressed(tmp_path: Path, image_format: str, options: str):
    make_source(tmp_path)
    words = ("convert", *SECRETS, "-c", "-f", "raw", "-O", image_format, "-o", options, "source", "new")
    expected, result = run_stock(tmp_path, *words), run_cowtree(tmp_path, *words)
    assert (result.status, expected.status) == (1, 1)
    assert result.stderr.startswith(expected.stderr.strip())


def test_the_old_way_is_made_empty_and_not_filled(tmp_path: Path):
    make_source(tmp_path)
    for options in ("encryption=on,encrypt.key-secret=s", "encrypt.format=aes,encrypt.key-secret=s,compat=0.10"):
        run_stock(tmp_path, "create", *SECRETS, "-f", "qcow2", "-o", options, "stock", "1M")
        well(tmp_path, "create", *SECRETS, "-f", "qcow2", "-o", options, "own", "1M")
        assert (tmp_path / "own").read_bytes() == (tmp_path / "stock").read_bytes()
        result = run_cowtree(tmp_path, "convert", *SECRETS, "-O", "qcow2", "-o", options, "source", "new")
        assert result.status == 1
        assert "AES-CBC" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image_format", "options", "size"),
    [
        ("luks", f"{LUKS},cipher-alg=aes-128", ("--size", "1000")),
        ("luks", "iter-time=10", ("--size", "1M")),
        ("luks", "key-secret=nobody", ("--size", "1M")),
        ("qcow2", f"{QCOW2},cluster_size=512,encrypt.cipher-mode=cbc", ("-f", "raw", "source")),
        ("qcow2", "encrypt.format=luks", ("--size", "1M")),
        ("qcow2", "encrypt.format=aes", ("--size", "1M")),
    ],
)
def test_an_encrypted_image_is_measured(tmp_path: Path, image_format: str, options: str, size: tuple[str, ...]):
    make_source(tmp_path)
    words = ("measure", *SECRETS, "-O", image_format, "-o", options, *size)
    expected, result = run_stock(tmp_path, *words), run_cowtree(tmp_path, *words)
    for _ in range(RETRY_COUNT):
        # On a busy machine stock cannot tell how fast it is.
        if "CPU usage" in expected.stderr:
            expected = run_stock(tmp_path, *words)
    assert (result.status, result.stdout) == (expected.status, expected.stdout)
    assert result.stderr.startswith(expected.stderr.strip())


@pytest.mark.parametrize("how", ["--output=human", "--output=json"])
def test_map_shows_no_place_of_encrypted_data(tmp_path: Path, how: str):
    for image_format, options in (("qcow2", QCOW2), ("luks", LUKS)):
        well(tmp_path, "create", *SECRETS, "-f", image_format, "-o", options, image_format, "1M")
        place = opened(image_format, image_format=image_format)
        written = (["write -P 1 65536 70000", "write -z 262144 131072"], [])[image_format == "luks"]
        for commands in ([], written):
            if commands:
                io(tmp_path / image_format, *commands, image_format=image_format)
            words = ("map", *SECRETS, how, "--image-opts", place)
            expected, result = run_stock(tmp_path, *words), run_cowtree(tmp_path, *words)
            assert (result.status, result.stdout) == (expected.status, expected.stdout)
            assert result.stderr.startswith(expected.stderr.strip())


@pytest.mark.parametrize("name", [(), ("new",)])
def test_the_options_of_luks_are_listed(tmp_path: Path, name: tuple[str, ...]):
    words = ("create", "-f", "luks", "-o", "help", *name)
    assert run_cowtree(tmp_path, *words) == run_stock(tmp_path, *words)


def test_options_become_a_suite():
    given = {"format": "luks", "key-secret": "s", "cipher-mode": "cbc", "ivgen-alg": "essiv", "iter-time": "7"}
    found = read_encryption(given)
    assert found.suite == Suite("aes-256", "cbc", "essiv", "sha256", "sha256")
    assert (found.iteration_time_ms, found.header_bytes) == (7, 4096 + 8 * 131072)


def test_a_missing_format_is_named_with_its_prefix():
    with pytest.raises(WrongUse, match=r"'encrypt\.format' is missing"):
        read_encryption({"key-secret": "s"}, "encrypt.")


def test_a_run_that_fails_leaves_no_image(tmp_path: Path):
    words = ("create", *SECRETS, "-f", "luks", "-o", f"{LUKS},cipher-alg=serpent-256", "new", "1M")
    result = run_cowtree(tmp_path, *words)
    assert result.status == 1
    assert "serpent-256" in result.stderr
    assert run("ls", "-A", tmp_path).stdout == ""


@pytest.mark.parametrize("how", [(), ("-U",), ("-u",)])
def test_an_encrypted_overlay_gets_another_base(tmp_path: Path, how: tuple[str, ...]):
    (tmp_path / "one").write_bytes(b"1" * (256 << 10))
    (tmp_path / "two").write_bytes(b"2" * (128 << 10))
    well(tmp_path, "create", *SECRETS, "-f", "qcow2", "-o", QCOW2, "-b", "one", "-F", "raw", "image", "256k")
    io(tmp_path / "image", "write -P 65 100k 40k")
    place = opened("image")
    well(tmp_path, "convert", *SECRETS, "--image-opts", place, "-O", "raw", "before")
    well(tmp_path, "rebase", *SECRETS, *how, "--image-opts", "-b", "two", "-F", "raw", place)
    well(tmp_path, "convert", *SECRETS, "--image-opts", place, "-O", "raw", "after")
    seen = (tmp_path / "after").read_bytes()
    if how == ("-u",):
        assert seen[:65536] == b"2" * 65536
    else:
        assert seen == (tmp_path / "before").read_bytes()
    assert run_stock(tmp_path, "check", *SECRETS, "--image-opts", place).status == 0
    wrong = run_cowtree(tmp_path, "rebase", *SECRETS, *how, "--image-opts", "-b", "", opened("image", "wrong"))
    assert (wrong.status, "Invalid password" in wrong.stderr) == (1, True)


def test_a_new_base_without_its_key_is_told_as_qemu_img_tells_it(tmp_path: Path):
    well(tmp_path, "create", *SECRETS, "-f", "qcow2", "-o", QCOW2, "base", "256k")
    run_stock(tmp_path, "create", "-f", "qcow2", "plain", "256k")
    results = [
        run(tmp_path, "rebase", *SECRETS, "-b", "base", "-F", "qcow2", "plain") for run in (run_stock, run_cowtree)
    ]
    assert results[0].status == results[1].status == 1
    assert results[1].stderr.startswith(results[0].stderr.rstrip("\n"))
