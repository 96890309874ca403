"""Exit code 0 when the server of this pod has transcribed a clip, 1 with a line why not.

The startup probe of charts/caspi-serve for vLLM, whose /health says that the engine runs, not that the model hears.
Needs nothing but Python's own library.
"""

from __future__ import annotations

import argparse
import array
import http.client
import io
import json
import math
import sys
import wave

RATE = 16_000  # samples a second
BOUNDARY = "caspi-ready-0d9b2f4c"


def clip(seconds: float = 1.0) -> bytes:
    """A tone as a WAV file (mono, 16 bit): what is heard does not matter, that it is heard does."""
    samples = array.array(
        "h", (int(3000 * math.sin(2 * math.pi * 220 * sample / RATE)) for sample in range(int(seconds * RATE)))
    )
    if sys.byteorder == "big":
        samples.byteswap()
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(RATE)
        writer.writeframes(samples.tobytes())
    return file.getvalue()


def form(fields: dict[str, str], audio: bytes) -> bytes:
    """A multipart form with a file, as curl -F sends it."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = 'Content-Disposition: form-data; name="file"; filename="ready.wav"\r\nContent-Type: audio/wav'
    return b"".join([*parts, f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode(), audio, f"\r\n--{BOUNDARY}--\r\n".encode()])


def problem(port: int, model: str, timeout: float) -> str | None:
    """Why the server on this machine can't transcribe with `model`; None when it did."""
    body = form({"model": model, "response_format": "json", "temperature": "0"}, clip())
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("POST", "/v1/audio/transcriptions", body, headers)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            return f"status {response.status}: {answer[:300].decode(errors='replace')}"
        text = json.loads(answer)["text"]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return None if isinstance(text, str) else f"no text in the answer: {text!r:.100}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Whether the server of this pod transcribes.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", required=True, help="the name under which it serves")
    parser.add_argument("--timeout", type=float, default=50.0, help="seconds")
    given = parser.parse_args()
    found = problem(given.port, given.model, given.timeout)
    if found:
        print("not ready:", " ".join(found.split()), file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
