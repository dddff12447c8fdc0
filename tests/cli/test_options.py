"""Owns the proof that an option which several verbs have is spelled the same in all of them."""

import argparse

from cowtree.cli import options
from cowtree.cli.verbs import make_parser

SHARED = {
    "--output": options.add_output,
    "--progress": options.add_progress,
    "--catalog": options.add_catalog,
    "--pool": lambda parser: options.add_pools(parser, ""),
}


def parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """All parsers of verbs, those of `plan` too."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser, *(found for each in below for verb in each.choices.values() for found in parsers(verb))]


def words(action: argparse.Action) -> tuple[object, ...]:
    return action.option_strings, action.nargs, action.default, action.choices, action.metavar, type(action)


def test_shared_options_are_the_same_everywhere():
    found = 0
    for name, add in SHARED.items():
        model = argparse.ArgumentParser()
        add(model)
        expected = words(model._option_string_actions[name])
        for parser in parsers(make_parser()):
            action = parser._option_string_actions.get(name)
            if action is not None:
                assert words(action) == expected, (parser.prog, name)
                found += 1
    assert found > 25


def test_a_pool_may_be_given_several_times():
    parser = argparse.ArgumentParser()
    options.add_pools(parser, "where")
    assert parser.parse_args(["--pool", "a", "--pool", "b"]).pool == ["a", "b"]
    assert parser.parse_args([]).pool == []
