"""The README's examples run as they stand."""

import re
from pathlib import Path

import pytest

import fedlearn
from fedlearn import cli
from fedlearn.config import catalog

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
YAML = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)


def test_the_python_face_is_about_ten_lines_and_runs(capsys):
    face, _ = PYTHON
    assert len(face.split("clients = ")[1].strip().splitlines()) <= 10
    exec(compile(face, "README", "exec"), {})
    accuracy, sha256 = capsys.readouterr().out.splitlines()[0].split()
    assert float(accuracy) > 0.9 and len(sha256) == 64


def test_the_example_algorithm_is_complete_and_runs_from_the_command_line(tmp_path, monkeypatch):
    _, algorithm = PYTHON
    assert len(algorithm.strip().splitlines()) <= 40
    (tmp_path / "my_module.py").write_text(algorithm)
    (tmp_path / "algorithm").mkdir()
    (tmp_path / "algorithm" / "my_fedavgm.yaml").write_text(YAML[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = ["run", "algorithm=my_fedavgm", "rounds=2", "clients=4", "cohort=2", "progress=none", "--config-dir", "."]
    assert cli.main([*run, "algorithm.beta=0.5"]) == 0
    assert cli.main([*run, "algorithm.gamma=0.5"]) == 2


@pytest.mark.parametrize("option", re.findall(r"`(\w+)=(\w+)`((?:, `\w+`)*)(?: or `(\w+)`)?", README))
def test_options_that_the_readme_names_exist(option):
    group, first, more, last = option
    groups = catalog.options()
    if group in groups:
        for name in [first, *re.findall(r"\w+", more), *([last] if last else [])]:
            assert name in groups[group], f"README: {group}={name}"


def test_names_of_the_python_face_can_be_imported():
    for name in fedlearn.__all__:
        assert getattr(fedlearn, name) is not None
    with pytest.raises(AttributeError):
        _ = fedlearn.FedAvgg
