"""Qwen3-ASR: an audio encoder, a projector and a Qwen3 language model that writes `language X<asr_text>...`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from caspi.errors import UserError
from caspi.families import CARD, qwen3_audio, tiny
from caspi.families.base import SAMPLE_RATE, Batch, Clip, Example, Family, Hypothesis, disjoint
from caspi.families.hub_folder import Layout, download
from caspi.families.labels import IGNORED
from caspi.families.mel import LogMel
from caspi.families.qwen3_backend import backend
from caspi.families.qwen3_folder import read_layout
from caspi.families.qwen3_network import Network
from caspi.files import write_json
from caspi.spec.models import TINY, Qwen3AsrModel, is_repository

TEXT_TAG = "<asr_text>"
END = "<|im_end|>"
FILLING = "<|endoftext|>"
AUDIO = "<|audio_pad|>"


class Qwen3AsrFamily:
    """Bases: `Qwen/Qwen3-ASR-1.7B` and `-0.6B`, anything fine-tuned from them, and `tiny`."""

    name = "qwen3-asr"

    def prepare(self, spec: Qwen3AsrModel, texts: Sequence[str], seed: int, folder: Path) -> Path:
        if spec.base == TINY:
            return tiny.make(folder, texts, spec.language, spec.context, seed)
        if is_repository(spec.base) and not Path(spec.base).is_dir():
            assert spec.revision is not None
            return download(spec.base, spec.revision)
        local = Path(spec.base).expanduser()
        read_layout(local)
        return local

    def load(self, folder: Path, spec: Qwen3AsrModel, device: torch.device | str) -> Qwen3Asr:
        layout = read_layout(folder)
        outer, tokenizer = _load_weights(folder), _load_tokenizer(folder)
        rows = outer.thinker.model.embed_tokens.num_embeddings
        if len(tokenizer) > rows:
            raise UserError(
                f"{folder}: the tokenizer has {len(tokenizer)} tokens, and the model {rows}; copy the "
                "tokenizer's files from the base"
            )
        return Qwen3Asr(outer.to(device), layout, tokenizer, spec)


QWEN3_ASR: Family = Qwen3AsrFamily()


class Qwen3Asr:
    """A loaded Qwen3-ASR."""

    def __init__(self, outer: Any, layout: Layout, tokenizer: Any, spec: Qwen3AsrModel) -> None:
        self.network = Network(outer.thinker)
        self.tokenizer = tokenizer
        self._outer = outer
        self._layout = layout
        self._spec = spec
        self._mel = LogMel(outer.thinker.audio_tower.num_mel_bins)
        self._window = qwen3_audio.window_of(outer.thinker.audio_tower)
        self._audio, self._end, self._filling = (
            tokenizer.convert_tokens_to_ids(token) for token in (AUDIO, END, FILLING)
        )
        # The chat template's words, with an empty system turn too: the served prompt must be the trained one.
        self._before = self.encode(f"<|im_start|>system\n{spec.context}{END}\n<|im_start|>user\n<|audio_start|>")
        self._after = self.encode(f"<|audio_end|>{END}\n<|im_start|>assistant\n")
        self._control = frozenset(tokenizer.added_tokens_decoder)
        self.unknown: int | None = tokenizer.unk_token_id

    # --- parameters

    def groups(self, names: Sequence[str]) -> dict[str, list[torch.nn.Parameter]]:
        return disjoint({name: self._group(name) for name in names})

    def tied(self) -> list[str]:
        thinker = self.network.thinker
        same = thinker.lm_head.weight is thinker.model.embed_tokens.weight
        return ["lm_head is embed_tokens: both move"] if same else []

    def blocks(self) -> list[torch.nn.Module]:
        return [*self.network.thinker.audio_tower.layers, *self.network.thinker.model.layers]

    def adapted(self, targets: Sequence[str]) -> str:
        # The language model alone: a plain `q_proj` is in the audio encoder too, and servers ignore adapters there.
        return rf"thinker\.model\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(targets)})"

    def unfit(self, seconds: float, text: str) -> str | None:
        return None  # text of any length may follow audio of any length

    def enable_recompute(self) -> None:
        """Recompute activations in the backward pass instead of keeping them: less memory, a third more time."""
        # Reentrant checkpointing silently gives no gradient to layers whose input needs none: thawed top layers
        # of a frozen encoder.
        self._outer.gradient_checkpointing_enable({"use_reentrant": False})

    def _group(self, name: str) -> list[torch.nn.Parameter]:
        if problem := self._spec.group_problem(name):
            raise UserError(problem)
        thinker, tower = self.network.thinker, self.network.thinker.audio_tower
        kind, _, number = name.partition(":")
        if kind == "all":
            return list(self.network.parameters())
        if kind == "projector":
            return [p for module in (tower.ln_post, tower.proj1, tower.proj2) for p in module.parameters()]
        if kind == "lm_head":
            return [thinker.lm_head.weight]
        layers, part = {
            "llm_top": (thinker.model.layers, "language model"),
            "audio_top": (tower.layers, "audio encoder"),
        }[kind]
        if int(number) > len(layers):
            raise UserError(f'"{name}": the {part} has {len(layers)} layers')
        return [p for layer in layers[len(layers) - int(number) :] for p in layer.parameters()]

    # --- training data

    def example(self, clip: Clip, text: str) -> Example:
        labels = self.encode(self.written(text))
        if sum(token in self._control for token in labels) > 2:  # the text tag and the end
            raise UserError(f"the text holds a control token of the model: {_short(text)}")
        return Example(self._mel(clip), tuple(labels))

    def written(self, text: str) -> str:
        """What the model is to write for `text`."""
        return f"language {self._spec.language}{TEXT_TAG}{text}{END}"

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return text

    def collate(self, examples: Sequence[Example]) -> Batch:
        rows = [[*self._prompt(each.features.shape[1]), *each.labels] for each in examples]
        input_ids, attended = pad(rows, self._filling, side="right")
        labels = place_labels(input_ids, attended, [len(each.labels) for each in examples])
        return Batch(
            {
                "input_ids": input_ids,
                "labels": labels,
                "labelled": _where(labels != IGNORED),
                "listening": _where(input_ids == self._audio),
                **qwen3_audio.pack([each.features for each in examples], self._window)._asdict(),
            },
            sum(len(each.labels) for each in examples),
        )

    def _prompt(self, frames: int) -> list[int]:
        return [*self._before, *[self._audio] * qwen3_audio.audio_tokens(frames), *self._after]

    # --- use

    def transcribe(self, clips: Sequence[Clip]) -> list[Hypothesis]:
        if not clips:
            return []
        features = [self._mel(clip) for clip in clips]
        prompts, attended = pad([self._prompt(each.shape[1]) for each in features], self._filling, side="left")
        packed = qwen3_audio.pack(features, self._window)
        device = next(self.network.parameters()).device
        training = self.network.training
        self.network.eval()
        try:
            written = self.network.generate(
                prompts.to(device),
                attended.to(device),
                _where(prompts == self._audio).to(device),
                qwen3_audio.Packed(*(tensor.to(device) for tensor in packed)),
                limits=[most_tokens(len(clip) / SAMPLE_RATE) for clip in clips],
                ends=(self._end, self._filling),
            )
        finally:
            self.network.train(training)
        return [
            parse(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
            for ids in written
        ]

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        self._layout.write(folder)
        write_json(folder / CARD, self._spec.model_dump(mode="json"))  # what a server needs of the round
        seen: set[int] = set()
        tensors = {}
        for name, tensor in self._outer.state_dict().items():
            if tensor.data_ptr() not in seen:  # a tied tensor once, under its first name
                seen.add(tensor.data_ptr())
                tensors[name] = tensor.detach().to("cpu").contiguous()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def pad(rows: Sequence[Sequence[int]], filling: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of token ids as one tensor, and where it is not filling; both [rows, longest]."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), filling, dtype=torch.long)
    attended = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[index, place] = torch.tensor(row, dtype=torch.long)
        attended[index, place] = True
    return ids, attended


def place_labels(input_ids: torch.Tensor, attended: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Labels: in each row its last `counts[row]` attended tokens, IGNORED elsewhere, whatever side is padded."""
    from_end = attended.flip(1).cumsum(1).flip(1)  # 1 at the last attended token, 2 before it, ...
    labelled = attended & (from_end <= torch.tensor(counts)[:, None])
    return torch.where(labelled, input_ids, IGNORED)


def _where(holds: torch.Tensor) -> torch.Tensor:
    """Places in the flattened tensor. Asked on the host, where it costs nothing: a device would be waited for."""
    return holds.flatten().nonzero().squeeze(1)


def most_tokens(seconds: float) -> int:
    """The bound of a transcript's length: nobody says 30 tokens a second, a model in a loop writes forever."""
    return 32 + int(30 * seconds)


def parse(raw: str) -> Hypothesis:
    """`language X<asr_text>TEXT` -> X and TEXT. Output without the tag is text; repeats stay as they are."""
    head, tag, text = raw.partition(TEXT_TAG)
    if not tag:
        return Hypothesis(raw.strip(), raw)
    language = re.search(r"^\s*language[ ]+(\S.*?)\s*$", head, re.IGNORECASE | re.MULTILINE)
    named = language[1] if language and language[1].lower() != "none" else None
    return Hypothesis(text.strip(), raw, named)


def _load_weights(folder: Path) -> Any:
    from safetensors import SafetensorError

    classes = backend()
    config = classes.Qwen3ASRConfig.from_pretrained(folder, local_files_only=True)
    thinker = config.thinker_config
    for part in (config, thinker, thinker.audio_config, thinker.text_config):
        part.dtype = torch.float32  # buffers are made in the config's type, before any weight is read
    try:
        outer, report = classes.Qwen3ASRForConditionalGeneration.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: the weights do not load ({' '.join(str(error).split())[:240]})") from None
    wrong = {kind: sorted(report[f"{kind}_keys"]) for kind in ("missing", "unexpected") if report[f"{kind}_keys"]}
    if wrong:
        some = "; ".join(f"{len(names)} {kind}, for example {names[0]}" for kind, names in wrong.items())
        raise UserError(f"{folder}: the weights are not those of its config.json ({some}); another layout or model?")
    return outer.eval()


def _load_tokenizer(folder: Path) -> Any:
    from transformers import Qwen2TokenizerFast

    tokenizer = Qwen2TokenizerFast.from_pretrained(folder, local_files_only=True)
    unknown = [token for token in (AUDIO, END, FILLING, TEXT_TAG) if token not in tokenizer.get_added_vocab()]
    if unknown:
        raise UserError(f"{folder}: the tokenizer lacks {', '.join(unknown)}; copy its files from the base model")
    return tokenizer


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
