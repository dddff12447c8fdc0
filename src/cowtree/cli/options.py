"""Options that several of cowtree's own verbs have: each is declared here, and means the same everywhere."""

import argparse


def add_output(parser: argparse.ArgumentParser) -> None:
    """Declare for whom the answer is."""
    parser.add_argument("--output", choices=("human", "json"), default="human", help="human (the default) or json")


def add_progress(parser: argparse.ArgumentParser) -> None:
    """Declare that a bar is wanted."""
    parser.add_argument("-p", "--progress", action="store_true", help="show a bar when standard error is a terminal")


def add_catalog(parser: argparse.ArgumentParser) -> None:
    """Declare where the catalogue is."""
    parser.add_argument("--catalog", metavar="FILE", help="the catalogue, if not the one that is always used")


def add_pools(parser: argparse.ArgumentParser, act: str) -> None:
    """Declare more folders than the pools that are kept; `act` says what the images do that may lie there."""
    text = f"a folder beside the pools in which images may lie that {act}; may be given several times"
    parser.add_argument("--pool", action="append", default=[], metavar="FOLDER", help=text)
