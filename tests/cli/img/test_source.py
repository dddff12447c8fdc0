"""Which image a name means."""

import pytest

from cowtree.cli.img.command import FORMAT, IMAGE_OPTS, SHARE, SOURCE_CACHE, Command, Given, Option, parse
from cowtree.cli.img.source import Source, access_of, check_cache_modes, local_path, source_of
from cowtree.errors import ChainError, WrongUse
from cowtree.storage.contract import Access

CACHE = Option(("-t",), "", "CACHE")
COMMAND = Command("show", "", (FORMAT, IMAGE_OPTS, SHARE, CACHE, SOURCE_CACHE), "NAME", lambda given: 0)


def given(*words: str) -> Given:
    return parse(COMMAND, words, "tool")


@pytest.mark.parametrize(
    ("name", "path"),
    [("a", "a"), ("file:a", "a"), ("file:a:b", "a:b"), ("./a:b", "./a:b"), ("d/a:b", "d/a:b"), ("", "")],
)
def test_a_name_may_say_that_it_is_a_file(name: str, path: str):
    assert local_path(name) == path


@pytest.mark.parametrize("name", ["nbd:x", "nbd://x/y", "json:{}", "a:b"])
def test_what_could_be_an_address_is_not_taken_for_a_file(name: str):
    with pytest.raises(ChainError, match=rf"Unknown protocol '.*'\. Try: \./{name} for a file"):
        local_path(name)


def test_a_format_is_named_by_an_option():
    assert source_of(given(), "a") == Source("a", None)
    assert source_of(given("-f", "raw"), "file:a") == Source("a", "raw")
    assert source_of(given("-f", "raw", "-t", "qcow2"), "a", "-t") == Source("a", "qcow2")


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("driver=qcow2,file.filename=a", Source("a", "qcow2")),
        ("driver=qcow2,file.driver=file,file.filename=a,,b", Source("a,b", "qcow2")),
        ("file.filename=a", Source("a", None)),
        ("driver=file,filename=a", Source("a", "raw")),
    ],
)
def test_a_list_of_options_names_format_and_file(text: str, source: Source):
    assert source_of(given("--image-opts"), text) == source


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a", "the option 'a' is unknown"),
        ("driver=qcow2", "no file is named"),
        ("driver=qcow2,file.filename=a,nope=1", "the option 'nope' is unknown"),
        ("driver=qcow2,file.driver=nbd,file.filename=a", "Unknown driver 'nbd'"),
    ],
)
def test_what_is_no_local_file_is_refused(text: str, reason: str):
    with pytest.raises(ChainError, match=reason):
        source_of(given("--image-opts"), text)


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
