"""Print what pyproject.toml says fedlearn needs to run, one requirement a line, and the extras named."""

import sys
import tomllib
from pathlib import Path

path, *extras = sys.argv[1:] or ["pyproject.toml"]
extras = extras or ["ray", "tensorboard", "wandb"]  # what the image has
project = tomllib.loads(Path(path).read_text(encoding="utf-8"))["project"]
chosen = (project["optional-dependencies"][extra] for extra in extras)
print(*project["dependencies"], *(line for group in chosen for line in group), sep="\n")
