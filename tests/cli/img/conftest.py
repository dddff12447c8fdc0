"""Images that are made once, for every test that wants them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.cli.img.differential import Shape, make_chain
from tests.cli.img.zoo import make_zoo


@pytest.fixture(scope="session")
def chain_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Shape], Path]:
    """The folder of a chain of this shape; not to be written to."""
    return cache(lambda shape: make_chain(tmp_path_factory.mktemp("chain") / "chain", shape))


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with one image of every kind; not to be written to."""
    return make_zoo(tmp_path_factory.mktemp("zoo") / "zoo")
