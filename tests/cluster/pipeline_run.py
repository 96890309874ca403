"""One run of the pipeline by kfp.local in the real images, in a process of its own: several at once, and to be watched.

    python -m tests.cluster.pipeline_run FILE.json

FILE has `folder` (where artifacts go), `mounts` (source -> place in every step), `environment`, `label` (of every
container), `retries` (of every step) and `arguments` of the pipeline. Prints how each step ended: ENDED STEP CODE.
"""

# No `from __future__ import annotations`: kfp reads the pipeline's types from its annotations themselves.
import json
import os
import sys
from pathlib import Path

from docker.types import Mount
from kfp import local
from pipelines.caspi_round import Settings, pipeline
from pipelines.containers import docker_runner, ends_known


def main(file: Path) -> int:
    given = json.loads(file.read_text())
    os.umask(0)  # kfp makes folders as this user, steps write into them as the user of the images
    mounts = [Mount(place, source, type="bind") for source, place in given["mounts"].items()]
    runner = docker_runner(mounts, given["environment"], labels={"caspi-test": given["label"]})
    local.init(runner, pipeline_root=given["folder"])
    arguments = given["arguments"]
    images = arguments["image"], arguments["launcher"]
    with ends_known() as ended:
        try:
            # Soon, so that a job that a step has left is still there for its next try, however fast the machine is.
            settings = Settings(retries=given["retries"], retry_after=2, images=images, trainer=arguments["trainer"])
            pipeline(settings)(**arguments)
        except RuntimeError as error:
            print(error, file=sys.stderr, flush=True)
            return 1
        finally:
            for one in ended():
                print(f"ENDED {one.step} {one.code}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
