"""The tiny base, the spectrogram, the counts and the download: against their references."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from caspi.families import tiny
from caspi.families.counts import parameter_counts
from caspi.families.counts_qwen3 import Qwen3Counts
from caspi.families.mel import SHORTEST, LogMel
from caspi.families.qwen3_folder import read_layout
from caspi.spec.models import Qwen3AsrModel

TEXTS = ["שלום עולם", "בית ספר", "אחת שתיים שלוש"] * 10


def spec(base: str = "tiny", revision: str | None = None) -> Qwen3AsrModel:
    return Qwen3AsrModel(family="qwen3-asr", base=base, revision=revision, language="Hebrew")


# --- the spectrogram


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("samples", [1_600, 1_759, 4_001, 16_000, 87_199, 480_000, 500_123])
def test_the_spectrogram_is_the_package_s_to_the_last_bit(samples: int, bins: int) -> None:
    from transformers import WhisperFeatureExtractor

    clip = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    theirs = WhisperFeatureExtractor(feature_size=bins)(
        [clip], sampling_rate=16_000, padding=True, truncation=False, return_attention_mask=True
    )
    ours = LogMel(bins)(clip)
    assert ours.shape == (bins, int(theirs["attention_mask"].sum())) == (bins, LogMel(bins).frames(samples))
    assert np.abs(ours - theirs["input_features"][0]).max() == 0.0


def test_silence_and_a_very_short_clip_have_a_spectrogram() -> None:
    assert np.isfinite(LogMel(80)(np.zeros(16_000, np.float32))).all()
    for samples in (0, 1, 100):
        assert LogMel(80)(np.ones(samples, np.float32)).shape == (80, SHORTEST // 160)


# --- the tiny base


def test_the_tiny_base_is_the_same_bytes_for_the_same_arguments(tmp_path: Path) -> None:
    first = tiny.make(tmp_path / "a", TEXTS, "Hebrew", "", 7)
    second = tiny.make(tmp_path / "b", TEXTS[::-1], "Hebrew", "", 7)
    assert first.name == second.name
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert [name for name in names if (first / name).read_bytes() != (second / name).read_bytes()] == []


def test_the_tokenizer_is_the_same_in_another_process() -> None:
    """Its trainer counts in hash maps."""
    code = "import sys; from caspi.families import tiny; print(tiny._learn(sys.argv[1:]).to_str())"
    words = tiny._words(TEXTS, "Hebrew", "")
    other = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True).stdout
    assert other.strip() == tiny._learn(words).to_str()


def test_the_tiny_base_is_made_once(tmp_path: Path) -> None:
    made = tiny.make(tmp_path, TEXTS, "Hebrew", "", 7)
    stamp = (made / "model.safetensors").stat().st_mtime_ns
    assert tiny.make(tmp_path, TEXTS, "Hebrew", "", 7) == made
    assert (made / "model.safetensors").stat().st_mtime_ns == stamp
    others = {tiny.make(tmp_path, TEXTS, "Hebrew", "", 8), tiny.make(tmp_path, [*TEXTS, "עוד"], "Hebrew", "", 7)}
    assert len({made, *others}) == 3
    assert not list(tmp_path.glob(".*"))


def test_a_broken_off_make_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "_write_weights", fail)
    with pytest.raises(KeyboardInterrupt):
        tiny.make(tmp_path, TEXTS, "Hebrew", "", 7)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("texts", [[], ["א"], [f"מילה{i} עוד{i * 7}" for i in range(2_000)]])
def test_any_texts_fit_the_vocabulary(tmp_path: Path, texts: list[str]) -> None:
    from transformers import Qwen2TokenizerFast

    base = tiny.make(tmp_path, texts, "Hebrew", "", 0)
    tokenizer = Qwen2TokenizerFast.from_pretrained(base)
    assert len(tokenizer) <= tiny.VOCABULARY
    assert parameter_counts(spec()) == Qwen3Counts.count(read_layout(base).config)
    ids = tokenizer.encode("language Hebrew<asr_text>שלום 日本 😀<|im_end|>")
    assert tokenizer.decode(ids) == "language Hebrew<asr_text>שלום 日本 😀<|im_end|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "language Hebrew<asr_text>שלום 日本 😀"


# --- the download

DOWNLOAD = """
import sys
from caspi.errors import UserError
from caspi.families.hub_folder import download
try:
    print(download("someone/some-asr", sys.argv[1]))
except UserError as error:
    print("REFUSED", error)
"""
REVISION = "0123456789abcdef0123456789abcdef01234567"


def _download(home: Path, revision: str, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DOWNLOAD, revision],
        env={**os.environ, "HF_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.strip()


def test_a_base_in_the_cache_is_used_and_a_missing_one_is_one_clear_line(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--someone--some-asr" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert _download(tmp_path, REVISION, HF_HUB_OFFLINE="1") == str(snapshot)
    refused = _download(tmp_path / "empty", REVISION, HF_ENDPOINT="http://127.0.0.1:9")  # nobody listens there
    assert refused.startswith(f"REFUSED someone/some-asr at {REVISION}: download failed (")
    assert "\n" not in refused
