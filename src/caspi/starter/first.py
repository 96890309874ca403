"""A first round and a first cluster, from a template."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from caspi.errors import UserError
from caspi.files import write_text
from caspi.spec import load_round

ROUND = """\
# {name}: what is trained, on what, how it is judged. Where it runs is in clusters/.
round: {name}
# parent: the-round-before           # start from its weights; the baseline to beat
seed: 42

model:
  family: qwen3-asr
  base: Qwen/Qwen3-ASR-1.7B
  revision: 7278e1e70fe206f11671096ffdd38061171dd6e5
  language: {language}

data:
  sources:
    - {{name: train, {data}, domain: general}}
  text: {text}
  keep: {{seconds: [0.5, 30], characters_per_second: [3, 25]}}
  split: {{by: [recording, speaker, text], eval: 5%}}

audit:
  sample: {{share: 10%, at_least: 2000}}
  proceed: {{low_quality: 10%, any_domain: 15%}}   # upper ends of the 95% interval
  caution: {{low_quality: 15%, any_domain: 20%}}   # beyond: STOP

train:
  global_batch: 64                   # utterances a step; how they are split follows from the cluster
  phases:
    - {{name: A, epochs: 3, rates: {{projector: 1.0e-4, "audio_top:8": 3.0e-5, "llm_top:12": 3.0e-5, lm_head: 1.0e-4}}}}
  schedule: {{shape: cosine, warmup_steps: 200}}
  augment: {{specaugment: {{freq: [2, 27], time: [2, 80]}}, speed: [0.9, 1.0, 1.1]}}
  evaluate: {{every_steps: 500, utterances: 1000}}

benchmark:
  sets:
    - {{name: test, {test}}}
  profiles: [{profiles}]
"""

CLUSTER = """\
# laptop: one process on this machine's CPU. With GPUs, for example:
#   gpus_per_node: 2
#   gpu: {product: NVIDIA-A100-SXM4-40GB, memory: 40GiB, price: 1.60 USD/h}
nodes: 1
processes_per_node: 1
memory: 4GiB
"""


def write_starter(folder: Path, name: str, data: str, test: str, language: str) -> list[Path]:
    """Write rounds/NAME.yaml and, where there is none, clusters/laptop.yaml. Never overwrites a round."""
    round_file, cluster_file = folder / "rounds" / f"{name}.yaml", folder / "clusters" / "laptop.yaml"
    if round_file.exists():
        raise UserError("is there already; choose another name, or edit it", where=str(round_file))
    hebrew = language == "Hebrew"
    text = ROUND.format(
        name=name,
        language=language,
        data=_place(data, "--data"),
        test=_place(test, "--test"),
        text="hebrew-2" if hebrew else "plain-1",
        profiles="hebrew-fair, ivrit-leaderboard" if hebrew else "plain",
    )
    check_draft(text, round_file, load_round)
    write_text(round_file, text)
    if cluster_file.exists():
        return [round_file]
    write_text(cluster_file, CLUSTER)
    return [round_file, cluster_file]


def _place(where: str, option: str) -> str:
    if hub := re.fullmatch(r"([\w][\w.-]*/[\w][\w.-]*)@([\w.-]+)", where):
        return f"hub: {hub[1]}, revision: {hub[2]}"
    if not where or set(where) & set('{}[],:#"\n'):
        raise UserError(f'{option} "{where}": give a folder, or a repository as owner/name@revision')
    return f"path: ../{where}" if not Path(where).is_absolute() else f"path: {where}"


def check_draft(text: str, file: Path, load: Callable[[Path], object]) -> None:
    """A file that would not load must not be written: a bad name or language is said now."""
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / file.name
        draft.write_text(text, encoding="utf-8")
        try:
            load(draft)
        except UserError as error:
            raise UserError(*error.problems, where="caspi init") from None
