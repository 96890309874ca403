"""CTC: wav2vec2, HuBERT, WavLM, w2v-BERT and Parakeet (FastConformer), as `transformers.AutoModelForCTC` loads them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from caspi.errors import UserError
from caspi.families import CARD, ctc_tiny
from caspi.families.base import Batch, Clip, Example, Family, Hypothesis, disjoint
from caspi.families.ctc_backend import backend
from caspi.families.ctc_features import Features, load_features
from caspi.families.ctc_folder import PARAKEET, read_layout, with_corpus_vocabulary
from caspi.families.ctc_network import Network, output_frames
from caspi.families.ctc_tokens import Vocabulary, load_vocabulary
from caspi.families.hub_folder import Layout, download
from caspi.families.labels import IGNORED
from caspi.files import write_json
from caspi.spec.models import CtcModel, is_made_here, is_repository

UNUSED = "masked_spec_embed"
"""A parameter that only the base's own SpecAugment reads: it takes no part in training here."""

_ATTENTION = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj"}
_WAV2VEC2 = {**_ATTENTION, "o_proj": "out_proj", "up_proj": "intermediate_dense", "down_proj": "output_dense"}
MATRICES = {
    "wav2vec2": _WAV2VEC2,
    "hubert": _WAV2VEC2,
    # Its attention reads q_proj.weight and never calls q_proj: an adapter beside it would be ignored in silence.
    "wavlm": {name: _WAV2VEC2[name] for name in ("up_proj", "down_proj")},
    "wav2vec2-bert": {
        "q_proj": "linear_q",
        "k_proj": "linear_k",
        "v_proj": "linear_v",
        "o_proj": "linear_out",
        "up_proj": "intermediate_dense",
        "down_proj": "output_dense",
    },
    PARAKEET: {**_ATTENTION, "o_proj": "o_proj", "up_proj": "linear1", "down_proj": "linear2"},
}
"""model_type -> what the family calls a matrix of attention or of the feed-forward part, and what the model does."""


class CtcFamily:
    """Bases: whatever of these `AutoModelForCTC` loads, what is fine-tuned from it, `tiny` and `tiny-parakeet`."""

    name = "ctc"

    def prepare(self, spec: CtcModel, texts: Sequence[str], seed: int, folder: Path) -> Path:
        if is_made_here(spec.base):
            return ctc_tiny.make(spec.base, folder, texts, seed)
        if is_repository(spec.base) and not Path(spec.base).is_dir():
            assert spec.revision is not None
            base = download(spec.base, spec.revision)
        else:
            base = Path(spec.base).expanduser()
        if spec.vocabulary == "corpus":
            return with_corpus_vocabulary(base, texts, seed, folder)
        read_layout(base)
        return base

    def load(self, folder: Path, spec: CtcModel, device: torch.device | str) -> Ctc:
        layout = read_layout(folder)
        model_type = str(layout.config["model_type"])
        vocabulary = load_vocabulary(folder, model_type)
        _check_head(folder, layout, vocabulary)
        features = load_features(folder, model_type)
        return Ctc(_load_weights(folder, layout).to(device), layout, vocabulary, features, spec)


CTC: Family = CtcFamily()


class Ctc:
    """A loaded CTC model."""

    def __init__(self, model: Any, layout: Layout, vocabulary: Vocabulary, features: Features, spec: CtcModel) -> None:
        self.network = Network(model)
        self.unknown = vocabulary.unknown
        self._model = model
        self._type = str(layout.config["model_type"])
        self._layout = layout
        self._vocabulary = vocabulary
        self._features = features
        self._spec = spec

    # --- parameters

    def groups(self, names: Sequence[str]) -> dict[str, list[torch.nn.Parameter]]:
        return disjoint({name: self._group(name) for name in names})

    def tied(self) -> list[str]:
        return []  # a CTC head has no embedding to share

    def blocks(self) -> list[torch.nn.Module]:
        return list(self._layers)

    def adapted(self, targets: Sequence[str]) -> str:
        named = MATRICES[self._type]
        lacking = [target for target in targets if target not in named]
        if lacking:
            raise UserError(
                f"train.lora.targets: {', '.join(lacking)} can't be adapted in {self._type}; it has {', '.join(named)}"
            )
        layers = next(name for name, module in self.network.named_modules() if module is self._layers)
        return rf"{re.escape(layers)}\.\d+\.\w+\.({'|'.join(named[target] for target in targets)})"

    def unfit(self, seconds: float, text: str) -> str | None:
        frames = output_frames(self._model.config, self._features.steps(seconds))
        if frames >= 2 * (len(text.encode()) + 1):
            return None  # a label is a byte at least, and a blank parts two: most need no encoding, which takes long
        labels = self.encode(text)
        repeats = sum(one == other for one, other in pairwise(labels))  # a blank parts them
        return "ctc: the text is longer than its audio can spell" if frames < len(labels) + repeats else None

    def enable_recompute(self) -> None:
        # Reentrant checkpointing silently gives no gradient to layers whose input needs none: thawed top layers
        # above a frozen front.
        self._model.gradient_checkpointing_enable({"use_reentrant": False})
        self.network.recompute = True

    @property
    def _layers(self) -> torch.nn.ModuleList:
        backbone = self.network.backbone
        layers: torch.nn.ModuleList = (backbone if self._type == PARAKEET else backbone.encoder).layers
        return layers

    def _group(self, name: str) -> list[torch.nn.Parameter]:
        if problem := self._spec.group_problem(name):
            raise UserError(problem)
        kind, _, number = name.partition(":")
        if kind == "audio_top":
            layers = self._layers
            if int(number) > len(layers):
                raise UserError(f'"{name}": the encoder has {len(layers)} layers')
            return [p for layer in layers[len(layers) - int(number) :] for p in layer.parameters()]
        backbone = self.network.backbone
        front = {PARAKEET: "subsampling", "wav2vec2-bert": "feature_projection"}.get(self._type, "feature_extractor")
        own = list(getattr(backbone, front).parameters())
        if kind == "front":
            return own
        head = list((self._model.ctc_head if self._type == PARAKEET else self._model.lm_head).parameters())
        if kind == "lm_head":
            return head
        apart = {id(parameter) for parameter in (*own, *head)} if kind == "encoder" else set()
        named = self.network.named_parameters()
        return [p for name, p in named if not name.endswith(UNUSED) and id(p) not in apart]

    # --- training data

    def example(self, clip: Clip, text: str) -> Example:
        labels = self.encode(text)
        if self._vocabulary.blank in labels:
            raise UserError(f"the text holds a control token of the model: {text[:60]}")
        return Example(self._features(clip), tuple(labels))

    def written(self, text: str) -> str:
        """What the model is to write for `text`: nothing more, CTC ends with the audio."""
        return text

    def encode(self, text: str) -> list[int]:
        return self._vocabulary.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._vocabulary.decode(ids)

    def collate(self, examples: Sequence[Example]) -> Batch:
        features, steps = self._features.collate([each.features for each in examples])
        labels = torch.full((len(examples), max(len(each.labels) for each in examples)), IGNORED)
        for row, each in enumerate(examples):
            labels[row, : len(each.labels)] = torch.tensor(each.labels)
        tokens = sum(len(each.labels) for each in examples)
        return Batch({"features": features, "steps": steps, "labels": labels}, tokens)

    # --- use

    def transcribe(self, clips: Sequence[Clip]) -> list[Hypothesis]:
        if not clips:
            return []
        device = next(self.network.parameters()).device
        features, steps = self._features.collate([self._features(clip) for clip in clips])
        training = self.network.training
        self.network.eval()
        try:
            heard = self.network.likeliest(features.to(device), steps.to(device))
        finally:
            self.network.train(training)
        return [Hypothesis(*self._vocabulary.hear(frames), language=self._spec.language) for frames in heard]

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        self._layout.write(folder)
        write_json(folder / CARD, self._spec.model_dump(mode="json"))  # what a server needs of the round
        tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in self._model.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _check_head(folder: Path, layout: Layout, vocabulary: Vocabulary) -> None:
    rows, blank = layout.config.get("vocab_size"), layout.config.get("pad_token_id", 0)
    if not isinstance(rows, int) or vocabulary.size() > rows:
        raise UserError(
            f"{folder}: the tokenizer has {vocabulary.size()} tokens, and the head of config.json spells {rows}; they "
            "are of two models: copy the tokenizer again, or say vocabulary: corpus"
        )
    if vocabulary.blank != blank:
        raise UserError(
            f"{folder}: the tokenizer's pad token is {vocabulary.blank}, and config.json says pad_token_id {blank}; "
            "it is the blank of CTC, and both must name the same"
        )


def _load_weights(folder: Path, layout: Layout) -> Any:
    from safetensors import SafetensorError

    classes = backend(layout.config["model_type"])
    try:
        config = classes.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config.dtype = torch.float32
        for part in (config, getattr(config, "encoder_config", None)):
            if part is not None:
                part.layerdrop = 0.0  # every process would drop other layers, for the whole of a micro-batch
        config.apply_spec_augment = False  # the engine's own is a function of the seed
        model, report = classes.AutoModelForCTC.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder}: the weights do not load ({str(error).splitlines()[0]})") from None
    wrong = {
        kind: names
        for kind in ("missing", "unexpected")
        if (names := sorted(name for name in report[f"{kind}_keys"] if not name.endswith(UNUSED)))
    }
    if any(name.startswith(("lm_head.", "ctc_head.")) for name in wrong.get("missing", ())):
        raise UserError(
            f"{folder}: there is no CTC head (it was only pre-trained?); say vocabulary: corpus for a new one"
        )
    if wrong:
        some = "; ".join(f"{len(names)} {kind}, for example {names[0]}" for kind, names in wrong.items())
        raise UserError(f"{folder}: the weights are not those of its config.json ({some}); another layout or model?")
    return model.eval()
