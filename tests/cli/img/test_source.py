"""Which image a name means."""

import contextlib
import shutil
from pathlib import Path

import pytest

from cowtree.cli.img.command import FORMAT, IMAGE_OPTS, SHARE, SOURCE_CACHE, Command, Given, Option, parse
from cowtree.cli.img.source import Source, access_of, check_cache_modes, local_path, source_of
from cowtree.errors import ChainError, WrongUse
from cowtree.storage.contract import Access
from tests.cli.img.differential import read_both
from tests.qemu import qemu_img, qemu_io

CACHE = Option(("-t",), "", "CACHE")
COMMAND = Command("show", "", (FORMAT, IMAGE_OPTS, SHARE, CACHE, SOURCE_CACHE), "NAME", lambda given: 0)


def given(*words: str) -> Given:
    return parse(COMMAND, words, "tool")


@pytest.mark.parametrize(
    ("name", "path"),
    [("a", "a"), ("file:a", "a"), ("file:a:b", "./a:b"), ("./a:b", "./a:b"), ("d/a:b", "d/a:b"), ("", "")],
)
def test_a_name_may_say_that_it_is_a_file(name: str, path: str):
    assert local_path(name) == path


@pytest.mark.parametrize("name", ["nbd:x", "nbd://x/y", "json:{}", "a:b"])
def test_what_could_be_an_address_is_not_taken_for_a_file(name: str):
    with pytest.raises(WrongUse, match=rf"(Unknown protocol '|What an NBD ).*\. Try: \./{name} for a file"):
        local_path(name)


def test_a_format_is_named_by_an_option():
    assert source_of(given(), "a") == Source("a", None)
    assert source_of(given("-f", "raw"), "file:a") == Source("file:a", "raw")
    assert source_of(given("-f", "raw"), "file:a").path == "a"
    assert source_of(given("-f", "raw", "-t", "qcow2"), "a", "-t") == Source("a", "qcow2")


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("driver=qcow2,file.filename=a", Source("a", "qcow2")),
        ("driver=qcow2,file.filename=a,,b", Source("a,b", "qcow2")),
        ("driver=qcow2,file.filename=a:b", Source('json:{"driver": "qcow2", "file.filename": "a:b"}', None)),
        ("file.filename=a", Source("a", None)),
        ("driver=file,filename=a", Source('json:{"driver": "file", "filename": "a"}', None)),
    ],
)
def test_a_list_of_options_names_format_and_file(text: str, source: Source):
    assert source_of(given("--image-opts"), text) == source


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a", "Cannot find device='a' nor node-name='a'"),
        ("driver=qcow2", 'A block device must be specified for "file"'),
        ("driver=qcow2,file.driver=nbd,file.filename=a", "No valid URL specified"),
        ("driver=nbd,host=a", "What an NBD server exports cannot be opened by its address"),
        ("driver=qcow2,file.filename=a,file.nope=1", "Block protocol 'file' doesn't support the option 'nope'"),
    ],
)
def test_what_is_no_local_file_is_refused(text: str, reason: str):
    with pytest.raises(ChainError, match=reason):
        _ = source_of(given("--image-opts"), text).path


def test_a_list_of_options_and_a_format_exclude_each_other():
    with pytest.raises(WrongUse, match="mutually exclusive"):
        source_of(given("--image-opts", "-f", "raw"), "file.filename=a")


def test_sharing_is_asked_for():
    assert access_of(given()) == Access.READ
    assert access_of(given("-U")) == Access.SHARED


def test_a_cache_mode_that_does_not_exist_is_refused():
    for mode in ("none", "writeback", "writethrough", "directsync", "unsafe"):
        check_cache_modes(given("-t", mode, "-T", mode))
    for option, what in (("-t", "cache"), ("-T", "source cache")):
        with pytest.raises(WrongUse, match=f"^Invalid {what} option: fast$"):
            check_cache_modes(given(option, "fast"))


NAMES = (
    "json:{'driver':'raw','file.filename':'top.qcow2','offset':512}",
    "json:{'driver':'raw','file':{'driver':'file','filename':'top.qcow2'},'offset':1,'size':'1k'}",
    "json:{'driver':'raw','file.filename':'top.qcow2','size':51}",
    "json:{'driver':'qcow2','file':{'driver':'raw','file.filename':'top.qcow2'}}",
    "json:{'driver':'file','filename':'top.qcow2'}",
    "json:{'driver':'qcow2','file.filename':'top.qcow2','backing':null}",
    "json:{'driver':'qcow2','file.filename':'top.qcow2','backing.driver':'raw'}",
    "json:{'driver':'qcow2','file.filename':'top.qcow2','l2-cache-size':'x'}",
    "json:{'driver':'qcow2','file.filename':'top.qcow2','nope':1}",
    "json:{'file':'top.qcow2'}",
    "json:{'file.filename':'none'}",
    *("json:{", "json:[]", "json:", "json:{a:1}", "json:{'driver':'nope'}", "nope:x"),
)
LISTS = (
    *("top.qcow2", "driver=qcow2", "driver=qcow2,file.filename=none", "driver=qcow2,file.filename=top.qcow2,nope=1"),
    *(
        "file.filename=c:d",
        "driver=qcow2,file.filename=top.qcow2,file.nope=1",
        "driver=raw,file.filename=c:d,offset=512",
    ),
    *("driver=qcow2,file.filename=top.qcow2,backing=x", "driver=qcow2,file.filename=top.qcow2,backing.driver=raw"),
    "driver=qcow2,file.filename=top.qcow2,read-only=on,discard=unmap,cache.direct=off,file.aio=threads",
)
CALLS = [
    *((command, *output, name) for command in ("info", "map") for output in ((), ("--output=json",)) for name in NAMES),
    *((command, "--image-opts", text) for command in ("info", "map") for text in LISTS),
    *(("compare", name, "top.qcow2") for name in NAMES[3:9]),
    *((command, name) for command in ("info", "map") for name in ("j.qcow2", "chain.qcow2")),
    ("info", "--backing-chain", "j.qcow2"),
]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("named")
    with contextlib.chdir(folder):
        qemu_img("create", "-q", "-f", "qcow2", "base.qcow2", "1M")
        qemu_io(Path("base.qcow2"), "write -P 7 64k 64k")
        shutil.copy("base.qcow2", "c:d")
        qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
        for name, inner in (("j.qcow2", "base.qcow2"), ("chain.qcow2", "top.qcow2")):
            backing = f"json:{{'driver':'qcow2','file':{{'driver':'file','filename':'{inner}'}}}}"
            qemu_img("create", "-q", "-f", "qcow2", "-b", backing, "-F", "qcow2", name)
    return folder


@pytest.mark.parametrize("words", CALLS, ids=" ".join)
def test_names_mean_what_they_mean_to_stock(named: Path, words: tuple[str, ...]):
    both = read_both(named, *words)
    both.assert_same_result()
    if both.stock.stderr.startswith("qemu-img: Could") and "containing file" not in both.stock.stderr:
        expected = next(line for line in both.stock.stderr.splitlines() if line.startswith("qemu-img: "))
        assert both.own.stderr.startswith(expected.removesuffix("."))
