"""What README and docstrings say is what the code does: names, options, numbers, commands."""
import importlib.util
import json
import math
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import data
import eval as evaluation
import loss
import model
import train_rm

README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = {"loss.py": loss, "model.py": model, "data.py": data, "eval.py": evaluation, "train_rm.py": train_rm}


def help_text(main) -> str:
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        main(["--help"])
    return out.getvalue()


def test_every_test_the_readme_and_the_docs_name_exists():
    tests = "\n".join(f.read_text("utf-8") for f in (ROOT / "tests").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", "".join([README, *(f.read_text("utf-8") for f in (ROOT / "docs").glob("*.md"))]))
    assert len(named) > 20
    assert [name for name in named if f"def {name}(" not in tests] == []


def test_every_function_the_readme_places_in_a_file_is_there():
    placed = re.findall(r"`([\w.]+)` in (\w+\.py)", README)
    assert len(placed) >= 8
    for name, file in placed:
        thing = FILES[file]
        for part in name.split("."):
            thing = getattr(thing, part)


def test_every_option_the_readme_and_docstrings_name_exists():
    known = set(re.findall(r"--[a-z][a-z0-9-]+", help_text(train_rm.main)))
    for command in ("report", "score", "rank"):
        known |= set(re.findall(r"--[a-z][a-z0-9-]+", help_text(lambda argv: evaluation.main([command, *argv]))))
    known |= {"--nproc-per-node", "--tables", "--index-url", "--help"}
    known |= {"--trl", "--llamafactory", "--transformers", "--shape", "--dtype", "--data", "--device"}  # benchmarks/speed.py
    known |= {"--nnodes", "--rdzv-id", "--rdzv-backend", "--rdzv-endpoint"}  # torchrun's
    for text in (README, (ROOT / "docs" / "scaling.md").read_text("utf-8"), *(f.__doc__ for f in FILES.values())):
        assert set(re.findall(r"--[a-z][a-z0-9-]+", text)) <= known


@pytest.mark.parametrize("script", ["run", "speed", "parity", "overoptimisation", "scaling"])
def test_the_tables_of_readme_and_docs_are_those_of_the_result_files(script):
    spec = importlib.util.spec_from_file_location(script, ROOT / "benchmarks" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / "benchmarks"))  # where they find each other
    spec.loader.exec_module(module)
    tables, text = module.tables(), README + (ROOT / "docs" / "scaling.md").read_text("utf-8")
    assert tables and all(table in text for table in tables.values())


def test_the_readmes_toy_output_is_what_the_result_file_holds():
    toy = json.loads((ROOT / "benchmarks" / "results.json").read_text())["toy, seed 0"]["report"]
    assert evaluation.describe(toy) in README


def test_the_layouts_in_the_readme_are_read():
    rows = [json.loads(line) for line in README.splitlines() if line.startswith('{"')]
    assert len(rows) == 7
    assert all(data.parse_preference(row).pairs() for row in rows)


def test_the_coin_is_log_2_wherever_it_is_mentioned():
    for text in (README, *(f.read_text("utf-8") for f in ROOT.glob("*.py"))):
        for number in re.findall(r"log 2 = (\d\.\d+)", text):
            assert float(number) == round(math.log(2), len(number) - 2)


def test_the_files_import_only_what_the_design_allows():
    allowed = {"loss.py": set(), "model.py": set(), "data.py": set(), "eval.py": {"loss", "model", "data"},
               "train_rm.py": {"loss", "model", "data", "eval"}}
    libraries = {"torch", "tokenizers", "safetensors", "numpy", "jinja2", "tqdm", "huggingface_hub", "matplotlib"}
    for file, own in allowed.items():
        names = {n.split(".")[0] for n in re.findall(r"^\s*(?:import|from) ([\w.]+)", (ROOT / file).read_text("utf-8"), re.M)}
        assert names - set(sys.stdlib_module_names) - libraries == own


def test_matplotlib_is_imported_in_one_function_only():
    texts = {f: (ROOT / f).read_text("utf-8") for f in FILES}
    assert [f for f, text in texts.items() if re.search(r"(import|from) matplotlib", text)] == ["eval.py"]
    before, _, inside = texts["eval.py"].partition("def pyplot():")
    assert "import matplotlib" not in before and "matplotlib" not in inside.partition("\ndef ")[2].replace("matplotlib)", "")


def test_requirements_name_five_packages():
    names = [re.split("[=<>]", line)[0] for line in (ROOT / "requirements.txt").read_text().split()]
    assert names == ["torch", "tokenizers", "safetensors", "numpy", "pytest"]


def test_every_tracked_file_stands_where_it_should():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not tracked:  # a downloaded archive has no git
        tracked = [p.name for p in ROOT.iterdir()]
    top = {path.split("/")[0] for path in tracked if not path.startswith(".")}
    assert {*FILES, "tests", "README.md", "LICENSE", "requirements.txt", "benchmarks"} <= top
