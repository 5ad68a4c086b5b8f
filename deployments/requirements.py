"""Print the requirements of pyproject.toml, and of the extras that are named: for a container's layer without code."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())
lines = list(project["build-system"]["requires"]) + project["project"]["dependencies"]
for extra in sys.argv[1:]:
    lines += project["project"]["optional-dependencies"][extra]
print("\n".join(lines))
