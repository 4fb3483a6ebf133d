"""The page of `leoclr certify`: what was checked, on what, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leoclr.cli.reporting.document import document
from leoclr.cli.reporting.markup import Html, element, table

_MEANING = {
    "every image once": "In an epoch every image is trained on once, whatever the number of processes.",
    "two processes equal one": "Two processes compute the loss, the gradients and the state of one, in float64.",
    "stopped equals uninterrupted": "A run that is stopped by SIGTERM and resumed ends with the same bits.",
    "killed equals uninterrupted": "A run that is ended by SIGKILL and resumed ends with the same bits.",
    "other numbers of processes": "A run goes on in other numbers of processes with the same images in each step.",
}


def certificate_page(record: Mapping[str, Any]) -> Html:
    """The page of a record."""
    failed = [check for check in record["checks"] if not check["passed"]]
    verdict = f"{len(failed)} of {len(record['checks'])} checks failed." if failed else "All checks passed."
    checks = [
        [_MEANING.get(check["check"], check["check"]), "pass" if check["passed"] else "FAIL", check["detail"]]
        for check in record["checks"]
    ]
    changes = [[key, change["yours"], change["checked"]] for key, change in record["changes"].items()]
    digests = {"data": record["data"]["digest"], "weights after six steps": record["weights"] or "none"}
    facts = digests | {"images": record["data"]["samples"]} | record["environment"] | record["versions"]
    sections = {
        "Checks": table(["promise", "result", "what was found"], checks),
        "Settings that differ": table(["setting", "yours", "in the checks"], changes),
        "Settings": table(["setting", "value"], [[key, value] for key, value in record["settings"].items()]),
        "Digests, machine and versions": table(["", "value"], [[key, value] for key, value in facts.items()]),
    }
    body = [
        element("section", element("h2", title), element("div", one, class_="card")) for title, one in sections.items()
    ]
    header = element("header", element("h1", "Certificate of a run"), element("p", verdict, class_="lead"))
    made = element("footer", f"Made by leoclr certify on {record['date']}.")
    return document("leoclr certify", header, element("main", *body, made))
