"""The scheduler and the rehearsal engine stay small enough to be read in one sitting.

What a request may hold is not counted (engine/request.py, engine/request_tensors.py): it is NVIDIA's table of inputs.
Nor is the step before (engine/rehearsal/build.py), nor the wall before PyTorch's private parts (gloo.py).
"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

TOOLKIT = Path(__file__).parents[1] / "toolkit"
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def lines_of_code(file: Path) -> int:
    """Lines that hold code: no blank lines, comments or docstrings."""
    source = file.read_text()
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT:
            code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            code.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(code)


def test_the_scheduler_and_the_rehearsal_engine_are_under_1000_lines_of_code() -> None:
    files = [*TOOLKIT.glob("inflight/*.py"), *TOOLKIT.glob("engine/rehearsal/*.py")]
    files += [TOOLKIT / "engine" / name for name in ("settings.py", "sampling.py")]
    files.append(TOOLKIT / "model" / "rotary.py")
    for name in ("build.py", "gloo.py"):
        files.remove(TOOLKIT / "engine" / "rehearsal" / name)
    assert len(files) > 10
    total = sum(map(lines_of_code, files))
    assert 500 < total < 1000, total
