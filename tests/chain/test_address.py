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
        ("nbd://host/a", "What an NBD server exports cannot be opened by its address"),
        ("json:{'driver':'nbd'}", "Unknown driver 'nbd'"),
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


def test_options_that_a_format_does_not_take_are_refused():
    found = parse("json:{'file.filename':'a','offset':512}")
    found.check("raw")
    with pytest.raises(ChainError, match="Block format 'qcow2' does not support the option 'offset'"):
        found.check("qcow2")
