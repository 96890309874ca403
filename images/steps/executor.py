"""In a build: runs a step as Kubeflow Pipelines would, through kfp's executor and without kfp's dependencies.

It has parameters, an artifact and its metadata in and out. Fails unless all arrive.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

STEP = """
from kfp import dsl
from kfp.dsl import *
from typing import NamedTuple

def step(text: str, number: int, read: dsl.Input[dsl.Dataset], made: dsl.Output[dsl.Metrics]) -> NamedTuple(
    "Outputs", [("verdict", str)]
):
    made.log_metric("wer", 0.25)
    with open(read.path) as source, open(made.path, "w") as target:
        target.write(source.read() * number)
    return (text,)
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        (where / "step.py").write_text(STEP)
        (where / "read").write_text("ab")
        given = {
            "inputs": {
                "parameterValues": {"text": "pass", "number": 2},
                "artifacts": {"read": {"artifacts": [_artifact(where / "read", "system.Dataset")]}},
            },
            "outputs": {
                "parameters": {"verdict": {"outputFile": str(where / "verdict")}},
                "artifacts": {"made": {"artifacts": [_artifact(where / "made", "system.Metrics")]}},
                "outputFile": str(where / "output.json"),
            },
        }
        arguments = ["--component_module_path", str(where / "step.py"), "--function_to_execute", "step"]
        subprocess.run(
            [sys.executable, "-m", "kfp.dsl.executor_main", *arguments, "--executor_input", json.dumps(given)],
            env=os.environ | {"_KFP_RUNTIME": "true"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        found = json.loads((where / "output.json").read_text())
        assert found["parameterValues"] == {"verdict": "pass"}, found
        assert found["artifacts"]["made"]["artifacts"][0]["metadata"] == {"wer": 0.25}, found
        assert (where / "made").read_text() == "abab"


def _artifact(path: Path, title: str) -> dict[str, object]:
    return {
        "name": path.name,
        "uri": str(path),
        "type": {"schemaTitle": title, "schemaVersion": "0.0.1"},
        "metadata": {},
    }


if __name__ == "__main__":
    main()
