"""A family small enough to check the engine against: a recurrent encoder over band energies that spells bytes.

Same contract as the real ones; a step takes a millisecond, so the engine's tests can try every split.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from caspi.families.base import Batch, Clip, Example, Hypothesis
from caspi.files import write_json

BANDS, WIDTH, LONGEST, VOCABULARY, END = 12, 24, 16, 128, 1
HOP = 400


class ToyNetwork(torch.nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.front = torch.nn.Linear(BANDS, WIDTH)  # audio_top:1
        self.recurrent = torch.nn.GRU(WIDTH, WIDTH, batch_first=True)  # llm_top:1
        self.projector = torch.nn.Linear(WIDTH, WIDTH)
        self.place = torch.nn.Embedding(LONGEST, WIDTH)
        self.head = torch.nn.Linear(WIDTH, VOCABULARY)
        self.dropout = torch.nn.Dropout(dropout)

    def logits(self, features: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        """[batch, LONGEST, VOCABULARY]"""
        hidden, _ = self.recurrent(self.dropout(torch.tanh(self.front(features))))
        inside = (torch.arange(features.shape[1], device=features.device) < frames[:, None]).unsqueeze(-1)
        pooled = (hidden * inside).sum(1) / frames[:, None]
        return self.head(torch.tanh(self.projector(pooled)[:, None] + self.place.weight))

    def forward(self, features: torch.Tensor, frames: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self.logits(features, frames)[:, : labels.shape[1]]
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum"
        )


class ToyModel:
    unknown: int | None = None

    def __init__(self, network: ToyNetwork, device: torch.device) -> None:
        self.network = network.to(device)
        self.device = device

    def groups(self, names: Sequence[str]) -> dict[str, list[torch.nn.Parameter]]:
        net = self.network
        parts = {
            "all": net,
            "audio_top:1": net.front,
            "llm_top:1": net.recurrent,
            "projector": net.projector,
            "lm_head": torch.nn.ModuleList([net.head, net.place]),
        }
        return {name: list(parts[name].parameters()) for name in names}

    def tied(self) -> list[str]:
        return []

    def blocks(self) -> list[torch.nn.Module]:
        return [self.network.front, self.network.projector]

    def adapted(self, targets: Sequence[str]) -> str:
        return "front|projector"

    def unfit(self, seconds: float, text: str) -> str | None:
        return None

    def enable_recompute(self) -> None:
        pass

    def encode(self, text: str) -> list[int]:
        return list(text.encode("ascii"))

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(one for one in ids if one != END).decode("ascii")

    def written(self, text: str) -> str:
        return text[: LONGEST - 1]

    def example(self, clip: Clip, text: str) -> Example:
        frames = np.resize(clip, (max(1, len(clip) // HOP), HOP))
        energy = np.abs(np.fft.rfft(frames, axis=1))[:, : BANDS * 4].reshape(len(frames), BANDS, 4).mean(2)
        return Example(np.log1p(energy).T.astype(np.float32), (*text.encode("ascii")[: LONGEST - 1], END))

    def collate(self, examples: Sequence[Example]) -> Batch:
        frames = torch.tensor([example.features.shape[1] for example in examples])
        features = torch.zeros(len(examples), int(frames.max()), BANDS)
        labels = torch.full((len(examples), max(len(example.labels) for example in examples)), -100)
        for row, example in enumerate(examples):
            features[row, : frames[row]] = torch.from_numpy(example.features.T)
            labels[row, : len(example.labels)] = torch.tensor(example.labels)
        tokens = sum(len(example.labels) for example in examples)
        return Batch({"features": features, "frames": frames, "labels": labels}, tokens)

    def transcribe(self, clips: Sequence[Clip]) -> list[Hypothesis]:
        batch = self.collate([self.example(clip, "") for clip in clips]).to(self.device).tensors
        rows = self.network.logits(batch["features"], batch["frames"]).argmax(-1).tolist()
        texts = [bytes(row[: row.index(END)] if END in row else row).decode("ascii") for row in rows]
        return [Hypothesis(text, text) for text in texts]

    def save(self, folder: Path) -> None:
        write_json(folder / "config.json", {"model_type": "toy", "dropout": self.network.dropout.p})
        save_file({k: v.contiguous().cpu() for k, v in self.network.state_dict().items()}, folder / "model.safetensors")


class ToyFamily:
    name = "toy"

    def __init__(self, dropout: float = 0.0) -> None:
        self.dropout = dropout

    def prepare(self, spec: Any, texts: Sequence[str], seed: int, folder: Path) -> Path:
        made = folder / "toy"
        if not made.exists():
            torch.manual_seed(seed)
            made.mkdir(parents=True)
            ToyModel(ToyNetwork(self.dropout), torch.device("cpu")).save(made)
        return made

    def load(self, folder: Path, spec: Any, device: torch.device) -> ToyModel:
        network = ToyNetwork(self.dropout)
        network.load_state_dict(load_file(folder / "model.safetensors"))
        return ToyModel(network, device)
