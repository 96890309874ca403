"""The page: gathered facts through the templates into one file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from caspi.corpus.audio import AudioReader
from caspi.corpus.hub import downloaded
from caspi.corpus.roots import EXPORT, locate, places
from caspi.errors import UserError
from caspi.files import digest, folder_digest, write_text
from caspi.records.record import Record
from caspi.records.results import SourceLedger
from caspi.records.round_dir import RoundDir
from caspi.report import summary
from caspi.report.charts import Part, bar
from caspi.report.diffs import visible
from caspi.report.formats import FILTERS
from caspi.report.page import Page, gather
from caspi.report.sound import Encoded

HERE = Path(__file__).parent


def write_report(round_dir: RoundDir) -> Page:
    """Write report/index.html from whatever records there are; equal records give equal bytes."""
    page = gather(round_dir, _encoded(round_dir))
    write_text(round_dir.folder("report") / "index.html", render(page))
    return page


def render(page: Page) -> str:
    return _environment().get_template("page.html.j2").render(page=page)


def version() -> str:
    """sha256 of the code and templates of the report: a newer Caspi makes a new page."""
    return digest([folder_digest(HERE, [path.name for path in HERE.glob("*.py")]), folder_digest(HERE / "templates")])


def _encoded(round_dir: RoundDir) -> Encoded:
    """Reads clips from what lies on this machine: a report never downloads."""
    roots = {EXPORT: round_dir.folder("export")}
    for field, source in places(round_dir.spec).items():
        try:
            place = (
                downloaded(source.hub, source.revision or "", source.files)
                if source.hub
                else locate(source, round_dir.data_root, field)
            )
        except UserError:
            continue
        if place is not None:
            roots[source.name] = place.parent if place.is_file() else place
    reader = AudioReader(roots)

    def encoded(audio: str) -> tuple[bytes, str]:
        if audio.partition("/")[0] not in roots:
            raise UserError("its source isn't on this machine")
        return reader.encoded(audio)

    return encoded


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= FILTERS | {
        "visible": visible,
        "in_order": summary.in_order,
        "profiles": summary.profiles,
        "group_name": summary.group_name,
        "group_kind": summary.group_kind,
        "ledger_bar": _ledger_bar,
        "reasons": _reasons,
        "balances": _balances,
        "revisions": _revisions,
    }
    return environment


def _reasons(ledger: SourceLedger) -> list[tuple[str, int]]:
    """Why utterances were dropped, most first."""
    return sorted(((k, v) for k, v in ledger.dropped.items() if v), key=lambda item: (-item[1], item[0]))


def _ledger_bar(ledger: SourceLedger) -> Markup:
    dropped = [Part(reason, number, f"drop-{i % 5 + 1}") for i, (reason, number) in enumerate(_reasons(ledger))]
    return bar(f"{ledger.name}, {ledger.read:,} read", [Part("kept", ledger.kept, "tone-1"), *dropped], ledger.read)


def _balances(ledger: SourceLedger, split: bool) -> bool:
    whole = ledger.read == ledger.kept + sum(ledger.dropped.values())
    return whole and (not split or ledger.kept == ledger.train + ledger.eval)


def _revisions(records: Iterable[Record]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Git revision and package versions: (name, [(value, the stages that ran with it)])."""
    found: dict[str, dict[str, list[str]]] = {"Git revision": {}, "Packages": {}}
    for record in records:
        packages = ", ".join(f"{name} {version}" for name, version in record.circumstances.versions.items())
        for name, value in (("Git revision", record.circumstances.git or "none"), ("Packages", packages)):
            found[name].setdefault(value, []).append(record.stage)
    return [(name, list(values.items())) for name, values in found.items() if values]
