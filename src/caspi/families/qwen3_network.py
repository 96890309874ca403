"""Qwen3-ASR as a module that trains and decodes: the package's weights and layers, this project's loss.

What differs from the package's own forward: the loss is a sum over the labelled tokens, logits exist for those
alone (never batch x time x vocabulary), and the clips of a batch are encoded together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from caspi.families import qwen3_audio


class Network(torch.nn.Module):
    """The thinker (audio encoder, projector, language model), wrapped."""

    def __init__(self, thinker: Any) -> None:
        super().__init__()
        self.thinker = thinker

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        labelled: torch.Tensor,
        listening: torch.Tensor,
        **audio: torch.Tensor,
    ) -> torch.Tensor:
        """The sum of the token losses, fp32.

        input_ids, labels: [batch, time], padded on the right; a label stands at the position of its own token.
        labelled: [labels], where in the flattened batch they stand. listening: [audio tokens], the same of the
        places that take the encoded audio. audio: what `Packed` holds. Nothing in here waits for the device.
        """
        embedded = self._embed(input_ids, listening, qwen3_audio.Packed(**audio))
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        hidden = self._decode(embedded, positions).flatten(0, 1)
        logits = self.thinker.lm_head(hidden.index_select(0, labelled - 1))  # each token is foretold by the one before
        target = labels.flatten().index_select(0, labelled)
        return functional.cross_entropy(logits.float(), target, reduction="sum")

    @torch.inference_mode()
    def generate(
        self,
        prompts: torch.Tensor,
        attended: torch.Tensor,
        listening: torch.Tensor,
        audio: qwen3_audio.Packed,
        limits: Sequence[int],
        ends: Sequence[int],
    ) -> list[list[int]]:
        """The likeliest token after each other, up to one of `ends` (not returned) or `limits[row]` tokens.

        prompts: [batch, time], padded on the left; attended: [batch, time], False on padding.
        """
        from transformers import DynamicCache

        device = prompts.device
        cache = DynamicCache()
        positions = attended.long().cumsum(1) - 1
        # A padding position sees itself: a row of a softmax over nothing is NaN, and NaN spreads through values.
        causal = torch.ones(prompts.shape[1], prompts.shape[1], dtype=torch.bool, device=device).tril()
        mask = causal & (attended[:, None] | torch.eye(prompts.shape[1], dtype=torch.bool, device=device))
        embedded = self._embed(prompts, listening, audio)
        hidden = self._decode(embedded, positions.clamp(min=0), mask[:, None], cache)

        written: list[list[int]] = [[] for _ in limits]
        rows = list(range(len(limits)))  # which transcript each row of the tensors writes
        going = [limit > 0 for limit in limits]
        position = positions[:, -1:]
        while any(going):
            chosen = self.thinker.lm_head(hidden[:, -1]).argmax(-1)
            for row, token in zip(rows, chosen.tolist(), strict=True):
                if going[row] and token not in ends:
                    written[row].append(token)
                going[row] = going[row] and token not in ends and len(written[row]) < limits[row]
            left = [place for place, row in enumerate(rows) if going[row]]
            if not left:
                break
            if len(left) <= len(rows) // 2:  # most rows have ended: they would go on computing
                rows = [rows[place] for place in left]
                kept = torch.tensor(left, device=device)
                cache.batch_select_indices(kept)
                chosen, position, attended = chosen[kept], position[kept], attended[kept]
            position = position + 1
            attended = functional.pad(attended, (0, 1), value=True)
            hidden = self._decode(
                self.thinker.model.embed_tokens(chosen[:, None]), position, attended[:, None, None], cache
            )
        return written

    def _embed(self, input_ids: torch.Tensor, listening: torch.Tensor, audio: qwen3_audio.Packed) -> torch.Tensor:
        """Token embeddings, with the encoded audio in the place of the audio tokens: [batch, time, width]."""
        embedded: torch.Tensor = self.thinker.model.embed_tokens(input_ids)
        heard = qwen3_audio.encode(self.thinker.audio_tower, audio).to(embedded.dtype)
        return embedded.flatten(0, 1).index_copy(0, listening, heard).view_as(embedded)

    def _decode(
        self,
        embedded: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None = None,
        cache: Any = None,
    ) -> torch.Tensor:
        """Last hidden states, [batch, time, width]. Without a mask attention is causal: right for padding on the
        right, which no labelled position sees, and the fast path on a GPU."""
        text = self.thinker.model
        rope = text.rotary_emb(embedded, positions)
        hidden = embedded
        for layer in text.layers:
            hidden = layer(hidden, position_embeddings=rope, attention_mask=mask, past_key_values=cache)
        normed: torch.Tensor = text.norm(hidden)
        return normed
