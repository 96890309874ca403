"""The plan: figures recomputed by hand, and what does not fit is refused with the way out."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from caspi.corpus.manifest import Utterance, write_manifest
from caspi.errors import UserError
from caspi.families.counts import parameter_counts
from caspi.files import write_json
from caspi.plan import make_plan, render
from caspi.plan.memory import micro_batch_seconds
from caspi.records.record import Circumstances, Record, write_record
from caspi.records.results import ExportResults, SourceLedger
from caspi.records.round_dir import RoundDir, create
from caspi.spec import ClusterSpec, RoundSpec, load_cluster, load_round, parse
from tests.command import caspi
from tests.test_bad_input import GOOD, changed

HOUSE = Path(__file__).parents[1]
A100 = {"product": "NVIDIA-A100-SXM4-40GB", "memory": "40GiB", "price": "1.60 USD/h"}


@pytest.mark.parametrize("cluster", ["2xa100-40gb", "8xa100-40gb"])
def test_hebrew_r2(cluster: str) -> None:
    """Counted on the meta device, and steps as the arithmetic says: ceil(186,812 / 64) = 2,919 an epoch."""
    plan = make_plan(load_round(HOUSE / "rounds/hebrew-r2.yaml"), load_cluster(HOUSE / f"clusters/{cluster}.yaml"))
    assert plan.parameters == 2_038_052_480
    assert [phase.trainable for phase in plan.phases] == [918_347_776, 1_019_117_568]
    assert plan.steps_per_epoch == 2_919
    assert plan.steps == 14_595
    assert [(phase.first_step, phase.last_step) for phase in plan.phases] == [(0, 5_837), (5_838, 14_594)]
    assert plan.memory is not None
    assert plan.memory.strategy == "ddp"
    assert plan.memory.total <= plan.memory.capacity
    text = render(plan)
    for figure in ("918,347,776", "1,019,117,568", "steps 5,838-14,594", "+ audio_top:8", "lm_head"):
        assert figure in text


def test_hebrew_r1_needs_sharding() -> None:
    """Full fine-tuning of 2.04 B parameters: 16 bytes each and their bf16 copy are more than one A100 has."""
    plan = make_plan(load_round(HOUSE / "rounds/hebrew-r1.yaml"), load_cluster(HOUSE / "clusters/8xa100-40gb.yaml"))
    assert plan.steps_per_epoch == 781
    assert plan.steps == 2_343
    assert plan.memory is not None
    assert plan.memory.strategy == "fsdp"
    assert any("FSDP" in warning for warning in plan.warnings)
    parts = plan.memory.parts
    assert parts["weights"] == parts["gradients"] == parts["optimizer"] // 2 == 4 * 2_038_052_480 // 8
    assert parts["gathered"] > 4 * 311_164_928  # the embedding, for one
    assert "bf16 copies" not in parts and plan.memory.total <= plan.memory.capacity


def test_as_many_processes_as_came_decide_whether_it_fits() -> None:
    """An elastic job may run on fewer than its cluster has: on one GPU nothing can be sharded."""
    spec, cluster = load_round(HOUSE / "rounds/hebrew-r1.yaml"), load_cluster(HOUSE / "clusters/8xa100-40gb.yaml")
    caps = [micro_batch_seconds(spec, cluster, parameter_counts(spec.model), came)[0] for came in (1, 2, 8)]
    assert caps[0] < spec.data.keep.seconds[1] < caps[1] <= caps[2]


def test_commonvoice_on_a_laptop() -> None:
    """A tenth of 195,366 clips: ceil(18,560 / 8) = 2,320 steps an epoch. The convolutions and the mask stand still."""
    plan = make_plan(
        load_round(HOUSE / "rounds/commonvoice-wav2vec2.yaml"), load_cluster(HOUSE / "clusters/rtx4090-laptop.yaml")
    )
    assert (plan.steps_per_epoch, plan.steps) == (2_320, 6_960)
    assert plan.parameters == 315_461_792
    assert [phase.trainable for phase in plan.phases] == [315_461_792 - 4_200_448 - 1_024]
    assert plan.memory is not None
    assert plan.memory.strategy == "ddp"
    assert plan.memory.total <= plan.memory.capacity == 16_376 * 2**20
    assert (plan.tied, plan.warnings) == ([], [])
    text = render(plan)
    for line in ("a subset of 10%", "8 utterances a step, none over", "encoder 2.0e-05, lm_head 2.0e-05"):
        assert line in text
    assert len({line[:12].rstrip() == line[:12] for line in text.splitlines()[2:]}) == 1, "one column"


def test_adapters_are_planned() -> None:
    """Rank 16 beside q, k, v, o of 28 layers: 16 x 28 x (2 x (2,048 + 2,048) + 2 x (2,048 + 1,024))."""
    spec = load_round(HOUSE / "rounds/hebrew-r1.yaml")
    train = spec.train.model_dump() | {"lora": {"rank": 16}}
    train["phases"] = [{"name": "lora", "epochs": 3, "rates": {"lora": 1e-4}}]
    adapted = spec.model_copy(update={"train": type(spec.train).model_validate(train)})
    plan = make_plan(adapted, load_cluster(HOUSE / "clusters/8xa100-40gb.yaml"))
    assert plan.phases[0].groups == {"lora": 16 * 28 * (2 * (2048 + 2048) + 2 * (2048 + 1024))}
    assert plan.memory is not None
    assert plan.memory.strategy == "ddp", "adapters need no optimizer for what stands still"


def test_a_vocabulary_of_the_corpus_is_not_known_before_it() -> None:
    model = {"family": "ctc", "base": "facebook/wav2vec2-xls-r-300m", "revision": "ab", "vocabulary": "corpus"}
    spec = parse(changed(model=model), RoundSpec, "x")
    plan = make_plan(spec, ClusterSpec(memory=64 * 2**30))
    assert "the head is counted with 32 tokens; it gets those of the training text" in plan.warnings


def test_json_has_the_same_under_stable_names() -> None:
    done = caspi(
        "plan", str(HOUSE / "rounds/hebrew-r2.yaml"), "--cluster", str(HOUSE / "clusters/2xa100-40gb.yaml"), "--json"
    )
    values = json.loads(done.out)
    assert values["phases"][1]["first_step"] == 5_838
    assert values["batch"]["world_size"] == 2
    assert values["time"] == {"utterances_per_second": None, "hours": None, "cost": None}


def test_too_long_for_the_gpu_names_what_fits() -> None:
    spec = load_round(HOUSE / "rounds/hebrew-r2.yaml")
    small = ClusterSpec.model_validate({"gpus_per_node": 2, "gpu": {**A100, "memory": "26GiB"}})
    long = spec.model_copy(
        update={
            "data": spec.data.model_copy(update={"keep": spec.data.keep.model_copy(update={"seconds": (0.5, 900.0)})})
        }
    )
    with pytest.raises(
        UserError, match=r"data\.keep\.seconds\[1\] = 900: .* does not fit; at most (\d+) on this cluster"
    ) as caught:
        make_plan(long, small)
    most = int(str(caught.value).rsplit("at most ", 1)[1].split()[0])
    make_plan(
        long.model_copy(
            update={
                "data": spec.data.model_copy(
                    update={"keep": spec.data.keep.model_copy(update={"seconds": (0.5, float(most))})}
                )
            }
        ),
        small,
    )


def test_data_not_known_yet() -> None:
    plan = make_plan(parse(GOOD, RoundSpec, "good"), ClusterSpec())
    assert plan.steps is None
    assert "not known yet" in render(plan)


def _exported(tmp_path: Path, count: int) -> RoundDir:
    """A round directory after an export of `count` utterances of 1-15 s."""
    rng = np.random.default_rng(0)
    round_dir = create(tmp_path, parse(changed(train__global_batch=64), RoundSpec, "good"), ClusterSpec(), tmp_path)
    folder = round_dir.folder("export")
    seconds = np.clip(rng.lognormal(1.3, 0.6, count), 0.6, 15)
    write_manifest(
        folder / "train.jsonl",
        (
            Utterance(
                f"crowd/{i}",
                f"crowd/a.parquet#{i}",
                "שלום עולם " * 3,
                round(float(s), 3),
                "crowd",
                "phone",
                f"r{i // 9}",
                f"s{i // 99}",
            )
            for i, s in enumerate(seconds)
        ),
    )
    hours = float(seconds.sum()) / 3600
    ledger = SourceLedger(name="crowd", read=count, kept=count, dropped={}, train=count, eval=0, hours=hours)
    results = ExportResults(
        sources=[ledger], sets=[], train=count, eval=0, train_hours=hours, eval_hours=0, text="plain-1"
    )
    write_record(
        folder / "record.json",
        Record(
            stage="export",
            status="succeeded",
            round="tidy",
            spec=round_dir.spec.digest,
            seed=42,
            inputs={},
            results=results.model_dump(),
            circumstances=Circumstances(started="", seconds=0, host="", git=None, versions={}),
        ),
    )
    return round_dir


def test_packing_after_the_export(tmp_path: Path) -> None:
    round_dir = _exported(tmp_path, 1000)
    plan = make_plan(round_dir.spec, ClusterSpec(processes_per_node=2), round_dir)
    assert plan.data.known_from == "export"
    assert plan.steps_per_epoch == 16
    assert plan.batch.micro_batches is not None
    assert plan.batch.worst_seconds is not None
    assert plan.batch.speech is not None
    assert 1 <= plan.batch.micro_batches[0] <= plan.batch.micro_batches[1]
    assert plan.batch.worst_seconds <= plan.batch.micro_batch_seconds
    assert 0.5 < plan.batch.speech <= 1


def test_what_the_audit_leaves_out_is_not_planned(tmp_path: Path) -> None:
    round_dir = _exported(tmp_path, 1000)
    write_json(round_dir.folder("audit") / "left_out.json", [f"crowd/{i}" for i in range(500)])
    plan = make_plan(round_dir.spec, ClusterSpec(), round_dir)
    assert (plan.data.train, plan.data.left_out, plan.data.an_epoch) == (1000, 500, 500)
    assert plan.steps_per_epoch == 8
    assert "500 left out by the audit" in render(plan)


def test_200_000_utterances_are_planned_quickly(tmp_path: Path) -> None:
    """Reading the manifest included. benchmarks/command_line.py has the figure; this bound is for a busy machine."""
    round_dir = _exported(tmp_path, 200_000)
    make_plan(round_dir.spec, ClusterSpec(), round_dir)  # imports
    start = time.perf_counter()
    plan = make_plan(round_dir.spec, ClusterSpec(), round_dir)
    assert time.perf_counter() - start < 1.0
    assert plan.steps_per_epoch == 3_125
