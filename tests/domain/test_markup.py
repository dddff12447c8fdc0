"""Owns the proof that hostile texts are refused in a sentence and soon, and that what is printed is what was read."""

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowtree.domain import markup
from cowtree.errors import BrokenXml

LAUGHS = "".join(f"<!ENTITY l{level} '" + f"&l{level - 1};" * 10 + "'>" for level in range(1, 10))
NAMESPACES = " ".join(f"xmlns:a{number}='{number}'" for number in range(20_000))
HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "billion laughs": (f'<!DOCTYPE r [<!ENTITY l0 "lol">{LAUGHS}]><r>&l9;</r>', "line 1: there is a DOCTYPE"),
    "external entity": (
        '<!DOCTYPE r [<!ENTITY a SYSTEM "file:///etc/passwd">]>\n<r>&a;</r>',
        "line 1: there is a DOCTYPE",
    ),
    "late DOCTYPE": ("\ufeff<?xml version='1.0'?>\n<!-- > -->\n<?a b?><!DOCTYPE r><r/>", "line 3: there is a DOCTYPE"),
    "DOCTYPE inside": ("<r>\n<!DOCTYPE r></r>", "line 2: StartTag: invalid element name"),
    "unknown entity": ("<r>&a;</r>", "line 1: Entity 'a' not defined"),
    "unknown entity in an attribute": ("<r a='&a;'/>", "line 1: Entity 'a' not defined"),
    "deep": ("<r>" * 100_000 + "</r>" * 100_000, "elements lie in each other more than 250 deep"),
    "just too deep": ("<r>" * 251 + "</r>" * 251, "elements lie in each other more than 250 deep"),
    "long": ("<r>" + "x" * 10_000_000 + "</r>", "the text is longer than 1048576 bytes"),
    "long in bytes": ("<r>" + "é" * 600_000 + "</r>", "the text is longer than 1048576 bytes"),
    "blank": (" " * (1 << 20), "there is no element in it"),
    "empty": ("", "there is no element in it"),
    "comments alone": ("<!-- a -->" * 100_000, "there is no element in it"),
    "open comments": ("<!--" * 200_000, "line 1: Double hyphen within comment"),
    "open instructions": ("<?a " * 200_000, "line 1: ParsePI: PI a never end"),
    "wide": ("<r>" + "<a/>" * 250_000 + "</r>", "there are more than 50000 elements"),
    "grows when laid out": ("<r>" * 240 + "<a/>" * 40_000 + "</r>" * 240, "an element a line the text is longer"),
    "grows by quotes": ("<r a='" + '"' * 1_000_000 + "'/>", "an element a line the text is longer"),
    "namespaces": (f"<r {NAMESPACES}/>", "more than 32 namespaces"),
    "attribute twice": ("<r a='1'\na='2'/>", "line 2: Attribute a redefined"),
    "zero byte": ("<r>\n\0</r>", "line 2: there is a zero byte"),
    "control character": ("<r>\n\x01</r>", "line 2: PCDATA invalid Char value 1"),
    "no XML": ("hello", "line 1: Start tag expected"),
    "an image": (b"QFI\xfb" + bytes(1000), "not in UTF-8"),
    "half a text": ("<r>\n<a>\n", "line 3: Premature end of data in tag a line 2"),
    "crossed": ("<r>\n<a>\n</r>", "line 3: Opening and ending tag mismatch: a line 2 and r"),
    "two roots": ("<r/>\n<r/>", "line 2: Extra content at the end of the document"),
    "wrong root": ("\n<q/>", "line 2: unexpected root element <q>, expecting <r>"),
    "root of a namespace": ("<r xmlns='u'/>", "unexpected root element <r> of namespace 'u', expecting <r>"),
    "another encoding": ("<r>é</r>".encode("latin-1"), "not in UTF-8"),
    "two bytes a letter": ("<r/>".encode("utf-16"), "not in UTF-8"),
    "a false encoding": ("<?xml version='1.0' encoding='KOI8-R'?><r>é</r>", "it is in KOI8-R, and only UTF-8 is read"),
    "half a pair": ("<r>\udcff</r>", "not in UTF-8"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_text_is_refused_in_a_sentence_and_soon(case: str):
    text, expected = HOSTILE[case]
    start_s = time.process_time()
    with pytest.raises(BrokenXml) as caught:
        markup.layout(markup.parse(text, "r"))
    assert time.process_time() - start_s < 0.5
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 300


def test_no_file_is_opened_for_a_text(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("<a>secret</a>")
    text = f"<r><xi:include xmlns:xi='http://www.w3.org/2001/XInclude' href='{secret}'/></r>"
    assert "<a>" not in markup.layout(markup.parse(text, "r"))


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ('<r a="1"><b/><c>x</c></r>', "<r a='1'>\n  <b/>\n  <c>x</c>\n</r>\n"),
        ("<r>\n\n <b>\n </b>  </r>", "<r>\n  <b/>\n</r>\n"),
        ("<r><b> </b></r>", "<r>\n  <b> </b>\n</r>\n"),
        ("<r><b>x\n y</b></r>", "<r>\n  <b>x\n y</b>\n</r>\n"),
        ("<r><b>x <i>y</i> z<br/></b></r>", "<r>\n  <b>x <i>y</i> z<br/></b>\n</r>\n"),
        ("<r><b><i/>\n<i>x</i>z</b></r>", "<r>\n  <b><i/>\n<i>x</i>z</b>\n</r>\n"),
        ("<r><b>x<i>\n<j/>\n</i><k>\n</k></b></r>", "<r>\n  <b>x<i>\n<j/>\n</i><k>\n</k></b>\n</r>\n"),
        ("<!-- a --><r><!--b\n c--><b/></r><!--d-->", "<!-- a -->\n<r>\n  <!--b\n c-->\n  <b/>\n</r>\n<!--d-->\n"),
        ("<?a b?><?c?><r/>", "<?a b?>\n<?c?>\n<r/>\n"),
        ("<r><![CDATA[<&]]></r>", "<r>&lt;&amp;</r>\n"),
        ("""<r a="'&quot;&lt;&#10;&#9;é"/>""", "<r a='&apos;&quot;&lt;&#10;&#9;é'/>\n"),
        ("<r>&#13;&#34;'</r>", "<r>&#13;&quot;&apos;</r>\n"),
        ("<r xmlns:q='u' a='1'><q:b q:c='2'/></r>", "<r a='1' xmlns:q='u'>\n  <q:b q:c='2'/>\n</r>\n"),
        ("<r><b xmlns='u'><c xmlns=''/></b></r>", "<r>\n  <b xmlns='u'>\n    <c xmlns=''/>\n  </b>\n</r>\n"),
        ("<r><q:b xmlns:q='u'><q:c/></q:b></r>", "<r>\n  <q:b xmlns:q='u'>\n    <q:c/>\n  </q:b>\n</r>\n"),
        ("<r xmlns:q='u'><b xmlns:q='v' q:c=''/></r>", "<r xmlns:q='u'>\n  <b q:c='' xmlns:q='v'/>\n</r>\n"),
        ("<r xmlns:p='u' xmlns:q='u'><q:b q:c=''/></r>", "<r xmlns:p='u' xmlns:q='u'>\n  <q:b q:c=''/>\n</r>\n"),
        ("<r xml:lang='de'/>", "<r xml:lang='de'/>\n"),
        ("<?xml version='1.0' encoding='UTF-16'?><r/>", "<r/>\n"),
    ],
)
def test_a_tree_is_laid_out_as_libvirt_prints_one(given_text: str, expected: str):
    laid_out = markup.layout(markup.parse(given_text, "r"))
    assert laid_out == expected
    assert markup.layout(markup.parse(laid_out, "r")) == expected


def test_a_tree_can_be_laid_out_further_in():
    root = markup.parse("<r><b>x\ny</b></r>", "r")
    assert markup.layout(root, "    ") == "    <r>\n      <b>x\ny</b>\n    </r>\n"


LETTERS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(
    lambda text: markup._NO_XML.search(text) is None
)


@given(LETTERS, LETTERS)
def test_what_one_element_holds_is_what_is_read_from_it(text: str, value: str):
    root = markup.parse(markup.element("r", text, a=value), "r")
    # Nothing but lines without a word is given up.
    kept = text if text.strip() or "\n" not in text else ""
    assert (markup.text_of(root), root.get("a")) == (kept, value)
    again = markup.parse(markup.layout(root), "r")
    assert (markup.text_of(again), again.get("a")) == (kept, value)


@pytest.mark.parametrize("text", ["\0", "\x1b[0m", "\ud800", "a\udcff", "\ufffe"])
def test_what_no_xml_can_hold_is_refused(text: str):
    with pytest.raises(BrokenXml, match="which no XML may hold"):
        markup.element("r", text)


def test_a_comment_in_an_element_is_not_its_text():
    root = markup.parse("<r><a>x<!-- y -->z</a><b c='1'/></r>", "r")
    assert [markup.text_at(root, path) for path in ("a", "b", "c")] == ["xz", "", None]
    assert [markup.attribute_at(root, path, "c") for path in ("a", "b", "c")] == [None, "1", None]


def test_the_parser_is_loaded_when_the_first_text_is_parsed():
    code = (
        "import sys; from cowtree.domain import definition, moment, specs; specs.disk_spec('vda');"
        "print('lxml' in sys.modules); definition.make('a', '0' * 32, []); print('lxml' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_no_part_of_the_command_loads_the_parser_before_it_is_needed():
    code = (
        "import sys, pkgutil, importlib, cowtree.cli as cli;"
        "[importlib.import_module(each.name) for each in pkgutil.walk_packages(cli.__path__, 'cowtree.cli.')];"
        "print('cowtree.cli.domain.table' in sys.modules, 'lxml' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
