"""How often each source was really seen: what the weights of a round came to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from caspi.corpus.manifest import Utterance
from caspi.records.results import SourceSeen
from caspi.training.data import Orders


def epochs_by_source(orders: Orders, utterances: Sequence[Utterance], steps: int) -> dict[str, SourceSeen]:
    """Of the first `steps` steps, counted from the same batches that every process trained on."""
    taken = np.zeros(len(utterances), dtype=np.int64)
    for epoch in range(-(-steps // orders.steps_per_epoch)):
        batches, _ = orders.epoch(epoch)
        left = steps - epoch * orders.steps_per_epoch
        taken += np.bincount(np.concatenate(batches[:left]), minlength=len(utterances))
    names = np.array([utterance.source for utterance in utterances])
    return {
        str(name): SourceSeen(
            utterances=int((names == name).sum()), epochs=round(float(taken[names == name].mean()), 4)
        )
        for name in np.unique(names)
    }
