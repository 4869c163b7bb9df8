"""Control characters of other programs are shown, and not obeyed, on terminals and on pages."""

from __future__ import annotations

import io
import sys

import pytest
from rich.table import Table
from rich.text import Text

from toolkit.cli.common import note
from toolkit.cli.main import cli
from toolkit.config.load import load_deployment
from toolkit.errors import LONGEST_LINE, ToolkitError, clipped, harmless, printable, shown
from toolkit.reports.terminal import Terminal

NASTY = "a\x1b[31mb\x07\rc\x9bd\u202ee\ud800f\x00g"
HARMLESS = r"a\x1b[31mb\x07\rc\x9bd\u202ee\ud800f\x00g"


def test_what_is_escaped_and_what_is_not():
    assert harmless(NASTY) == HARMLESS and harmless(HARMLESS) == HARMLESS
    assert harmless("a\tb\nc \xa0\u3000é💥👩\u200d🚀") == "a\tb\nc \xa0\u3000é💥👩\u200d🚀"
    assert printable("a\nb\xa0") == r"a\nb\xa0"
    assert clipped("x" * 201) == "x" * 200 + "..." and clipped("a\n b") == "a b"


def test_an_error_is_one_line_of_some_length_whatever_is_in_it():
    for what in ("x" * 10**6, "\x00" * 3000, "\U0001f4a9 \ue000" * 3000, NASTY):
        error = ToolkitError(what, where="file.yaml", hint="Do this.")
        assert str(error).isprintable() and len(str(error)) <= LONGEST_LINE
        assert str(error).startswith("file.yaml: ") and str(error).endswith(" Do this.")
    assert len(str(ToolkitError("x", where="y" * 5000, hint="z" * 5000))) <= LONGEST_LINE
    assert len(shown("x" * 10**6)) <= 200 and len(shown([["x" * 500] * 50] * 50)) <= 2000


def test_tables_and_texts_of_rich():
    file, table = io.StringIO(), Table("name")
    table.add_row(Text(NASTY))
    Terminal(file=file, width=200, force_terminal=False).print(Text(NASTY), table)
    assert file.getvalue().count(r"\x1b[31mb") == 2
    assert all(c.isprintable() or c == "\n" for c in file.getvalue())
    coloured = io.StringIO()
    Terminal(file=coloured, width=200, force_terminal=True).print(Text(NASTY, style="bold red"))
    assert r"\x1b[31mb" in coloured.getvalue() and "\x1b[1;31m" in coloured.getvalue(), "our own colours stay"


def test_notes(capsys):
    note(f"x\n{NASTY}")
    assert capsys.readouterr().err == f"x\n{HARMLESS}\n"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_an_answer_is_shown_on_a_terminal_and_exact_in_a_pipe(tiny_llama, tmp_path, monkeypatch, is_terminal):
    """A model can be made to write what moves the cursor, as any other text."""
    from toolkit.client import Event

    config = tmp_path / "x.yaml"
    config.write_text(f"engine: rehearsal\nmodel: {{path: {tiny_llama}}}\nlimits: {{max_seq_len: 512}}\n")
    monkeypatch.setattr("toolkit.cli.ask._events", lambda *_: iter([Event("a\x1b[2Jb\n", 1.0, {})]))
    monkeypatch.setattr("toolkit.load.target.first_ready", lambda *_: load_deployment(config))
    monkeypatch.setattr("toolkit.load.target.can_stream", lambda *_: True)
    output = io.StringIO()
    output.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stdout", output)
    cli(["ask", str(config), "Why?"], standalone_mode=False)
    assert output.getvalue().startswith("a\\x1b[2Jb\n" if is_terminal else "a\x1b[2Jb\n")
