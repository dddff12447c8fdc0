"""What names mean."""

import pytest

from cowtree.chain.address import Window, flatten, name_of, parse, plain_name
from cowtree.errors import ChainError


@pytest.mark.parametrize(
    ("name", "path", "image_format"),
    [
        ("a", "a", None),
        ("d/a:b", "d/a:b", None),
        ("file:a:b", "./a:b", None),
        ("json:{'file.filename':'json:{}'}", "json:{}", None),
        ('json:{"driver":"qcow2","file":{"driver":"file","filename":"a"}}', "a", "qcow2"),
        ('json:{"driver":"file","filename":"a"}', "a", "raw"),
    ],
)
def test_a_name_leads_to_a_file(name: str, path: str, image_format: str | None):
    assert (parse(name).path, parse(name).format) == (path, image_format)


def test_a_path_with_a_colon_has_a_name():
    assert [parse(plain_name(path)).path for path in ("a", "a:b", "file:a")] == ["a", "./a:b", "./file:a"]
    assert parse(name_of({"driver": "raw", "file.filename": "a"})).path == "a"


def test_objects_and_lists_become_keys_with_dots():
    assert flatten({"a": {"b": [1, {"c": 2}]}, "d": {}}) == {"a.b.0": 1, "a.b.1.c": 2, "d": {}}


def test_options_that_count_are_known():
    found = parse("json:{'driver':'raw','file.filename':'a','offset':512,'size':'1k','read-only':true,'backing':null}")
    assert found.window == Window(512, 1024)
    assert found.is_read_only
    assert not found.has_backing
    over = parse(
        "json:{'driver':'qcow2','file':{'driver':'raw','offset':'4k','file.filename':'a'},'backing.driver':'raw'}"
    )
    assert over.inner == (Window(4096, None),)
    assert over.has_backing
    assert over.backing == {"driver": "raw"}
    assert parse("json:{'driver':'luks','key-secret':'s','file.filename':'a'}").key_secret == "s"
    assert parse("json:{'file':{'filename':'a','locking':'off'}}").is_shared


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("json:{'driver':'nbd'}", "NBD server address missing"),
        ("json:{'driver':'nbd','host':'a','nope':1}", "Block protocol 'nbd' doesn't support the option 'nope'"),
        ("json:{'driver':'http'}", "Unknown driver 'http'"),
        ("json:{'driver':'qcow2'}", 'A block device must be specified for "file"'),
        ("json:{}", "Must specify either driver or file"),
        ("json:{'file':'a'}", "Cannot find device='a' nor node-name='a'"),
        ("json:{'file.driver':'file'}", "The 'file' block driver requires a file name"),
        ("json:{'driver':'raw','file':{'driver':'qcow2','file.filename':'a'}}", "'qcow2' inside another format"),
        ("json:[]", "Invalid JSON object given"),
        ("json:{", "Could not parse the JSON options: JSON parse error, premature EOI"),
    ],
)
def test_what_is_no_local_file_is_refused(name: str, reason: str):
    with pytest.raises(ChainError, match=reason):
        parse(name)


@pytest.mark.parametrize(
    ("name", "path", "location"),
    [
        ("nbd:host:9", "nbd://host:9", "nbd://host:9/"),
        ("nbd+unix:///a?socket=s", "nbd+unix:///a?socket=s", "nbd+unix:///a?socket=s"),
        ("json:{'driver':'nbd','path':'s ?'}", "nbd+unix://?socket=s ?", "nbd+unix:///?socket=s%20%3F"),
        (
            "json:{'driver':'qcow2','file':{'driver':'nbd','server':{'type':'inet','host':'a','port':'9'}}}",
            *("nbd://a:9", "nbd://a:9/"),
        ),
        ("nbds://host/a", "nbds://host:10809/a", "nbds://host:10809/a"),
    ],
)
def test_what_a_server_exports_is_shown_as_stock_shows_it(name: str, path: str, location: str):
    found = parse(name)
    assert (found.path, found.location) == (path, location)
    assert not parse("a").location


def test_a_part_of_an_export_is_shown_with_its_server():
    found = parse("json:{'driver':'raw','offset':512,'file':{'driver':'nbd','path':'s','export':'a'}}")
    node = {"driver": "nbd", "path": "s", "export": "a"}
    assert found.full_options("raw") == {"driver": "raw", "offset": 512, "file": node}


def test_a_file_is_never_taken_for_an_address():
    assert parse("json:{'driver':'file','filename':'nbd:host:9'}").path == "./nbd:host:9"
    assert parse("file:nbd:host:9").path == "./nbd:host:9"


def test_options_that_a_format_does_not_take_are_refused():
    found = parse("json:{'file.filename':'a','offset':512}")
    found.check("raw")
    with pytest.raises(ChainError, match="Block format 'qcow2' does not support the option 'offset'"):
        found.check("qcow2")
