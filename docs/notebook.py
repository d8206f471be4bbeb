"""notebook.py: lesson.md -> lesson.ipynb, both say the same.  `python docs/notebook.py`

The lesson has four kinds of fenced blocks. The first line of a block says which it is:

    ```python            code to run: a cell of the notebook
    ```text              right after such code: what it prints, the output of that cell
    ```python loss.py    lines that are copied from this file: shown and not run
    ```bash, ```text     anything else: shown and not run

tests/test_lesson.py compares copied lines with their file, and what is printed with the output.
It also proves that the notebook is what this script writes.
"""
import json
import re
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
BLOCK = re.compile(r"^```(.*)\n((?:.*\n)*?)```\n", re.MULTILINE)

FIRST_CELL = '''\
# Installs what the lesson needs, where it is missing. It downloads nothing else: open this notebook
# in a copy of the whole project, where it is in the folder docs/.
import importlib.util
import os
import subprocess
import sys

if not os.path.exists("train_rm.py"):
    os.chdir("..")
if not os.path.exists("train_rm.py"):
    raise SystemExit("train_rm.py is not here: open this notebook in the project's folder docs/")
names = ("torch", "numpy", "safetensors", "tokenizers")
if any(importlib.util.find_spec(name) is None for name in names):
    pip = [sys.executable, "-m", "pip", "install", "-q", "-r", "requirements.txt"]
    subprocess.check_call(pip)
sys.path.insert(0, os.getcwd())
'''


class Block(NamedTuple):
    """A part of the lesson."""

    kind: str  # "text to read", or what follows ```: "python", "python loss.py", "bash" …
    text: str
    output: str = ""  # of code to run


def blocks(lesson: str) -> list[Block]:
    """The lesson in parts, in order. The output that follows a code block belongs to it."""
    found, end = [], 0
    for match in BLOCK.finditer(lesson):
        between = lesson[end : match.start()]
        kind, text = match[1].strip(), match[2]
        follows_code = bool(found) and found[-1].kind == "python" and not between.strip()
        end = match.end()
        if kind == "text" and follows_code:
            found[-1] = found[-1]._replace(output=text)
            continue
        if between.strip():
            found.append(Block("text to read", between))
        found.append(Block(kind, text))
    if lesson[end:].strip():
        found.append(Block("text to read", lesson[end:]))
    return found


def code_cell(code: str, output: str = "") -> dict:
    """A cell to run, with what it printed."""
    outputs = []
    if output:
        lines = output.splitlines(keepends=True)
        outputs.append({"name": "stdout", "output_type": "stream", "text": lines})
    source = code.rstrip("\n").splitlines(keepends=True)
    cell = {"cell_type": "code", "execution_count": None, "metadata": {}}
    return cell | {"outputs": outputs, "source": source}


def text_cell(text: str) -> dict:
    """A cell to read."""
    source = text.strip("\n").splitlines(keepends=True)
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def notebook(lesson: str) -> dict:
    """The notebook of a lesson."""
    cells, waiting = [code_cell(FIRST_CELL)], ""
    for block in blocks(lesson):
        if block.kind == "text to read":
            waiting += block.text
        elif block.kind != "python":
            language = block.kind.split()[0]
            waiting += f"```{language}\n{block.text}```\n"
        else:
            if waiting.strip():
                cells.append(text_cell(waiting))
            waiting = ""
            cells.append(code_cell(block.text, block.output))
    if waiting.strip():
        cells.append(text_cell(waiting))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": python, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}


def text_of_notebook() -> str:
    """What lesson.ipynb has to hold."""
    lesson = (HERE / "lesson.md").read_text("utf-8")
    return json.dumps(notebook(lesson), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (HERE / "lesson.ipynb").write_text(text_of_notebook(), "utf-8")
