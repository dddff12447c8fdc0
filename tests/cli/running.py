"""Owns how tests run one of cowtree's own verbs, in this process."""

import pytest

from cowtree.cli.main import main


class Ran:
    """What a command said."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *words: str) -> None:
        capsys.readouterr()
        self.status = main(["cowtree", *words])
        self.out, self.err = capsys.readouterr()
