"""Our part of Locust's web UI: a tab with live charts, the fields of the form, and the report.

The tab shows a page of ours, which can also be opened alone at `/live`. private_locust.py says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from flask import Blueprint, Response, jsonify, request, send_file
from locust.env import Environment
from werkzeug.datastructures import ImmutableMultiDict

from toolkit.errors import ToolkitError
from toolkit.load import private_locust
from toolkit.load.coordinator import Coordinator
from toolkit.load.options import FIELDS
from toolkit.load.requests import RequestSource
from toolkit.reports.html.render import render
from toolkit.reports.loadtest import report
from toolkit.reports.wording import load as load_in_words
from toolkit.slo.target import limits_of_a_request


def extend(environment: Environment, coordinator: Coordinator, users_of: Callable[[RequestSource], int]) -> None:
    """Add our tab, our fields and the report. `users_of` gives the number of Locust users for a source."""
    ui: Any = environment.web_ui
    options: Any = environment.parsed_options
    pages = Blueprint("toolkit", __name__, url_prefix=options.web_base_path)

    @pages.route("/live")
    @ui.auth_required_if_enabled
    def page() -> str:
        return render(
            "load/live.html.j2",
            limits=limits_of_a_request(coordinator.deployment.slo),
            theme_key=private_locust.THEME,
        )

    @pages.route("/live/data")
    @ui.auth_required_if_enabled
    def data() -> Response:
        return jsonify(state_of(coordinator))

    @pages.route("/live/report")
    @ui.auth_required_if_enabled
    def last_report() -> Response | tuple[str, int]:
        if coordinator.verdict is None:
            return "No test has ended yet.", 404
        return send_file(report.report_page(coordinator.deployment).resolve())

    def take_form() -> Response | None:
        """Read our fields before Locust does: it would convert their text to the type of the old value."""
        if request.endpoint != private_locust.SWARM:
            return None
        if coordinator.running:
            return _refusal("A test is running. Stop it before you start another.")
        try:
            source = coordinator.run_options.by_form(request.form)
        except ToolkitError as error:
            return _refusal(str(error))
        other_fields = {name: text for name, text in request.form.items() if name not in FIELDS}
        request.form = ImmutableMultiDict({**other_fields, **_of_locust(users_of(source))})
        return None

    def put_tab(answer: Response) -> Response:
        if request.endpoint == private_locust.INDEX and answer.mimetype == "text/html":
            answer.set_data(answer.get_data(as_text=True).replace("</body>", f"{private_locust.TAB_SCRIPT}</body>"))
        return answer

    def _of_locust(users: int) -> dict[str, str]:
        return {"user_count": str(users), "spawn_rate": request.form.get("spawn_rate", str(users))}

    ui.app.register_blueprint(pages)
    ui.app.before_request(take_form)
    ui.app.after_request(put_tab)
    ui.template_args |= {
        "extended_tabs": [{"title": "Live", "key": private_locust.TAB_KEY}],
        "extended_csv_files": [{"href": "./live/report", "title": "Verdict and report of the last test"}],
    }


def _refusal(message: str) -> Response:
    return jsonify({"success": False, "message": message})


def state_of(coordinator: Coordinator) -> dict[str, Any]:
    """All that the page shows. Nothing before the first test; after a test, its last state."""
    live, verdict = coordinator.live, coordinator.verdict
    if live is None:
        return {"state": "waiting", "run": 0}
    now = coordinator.now() if coordinator.running else (live.points[-1] if live.points else None)
    return {
        "state": "running" if coordinator.running else "ended",
        "run": coordinator.runs,
        "load": load_in_words(coordinator.settings),
        "now": now and asdict(now),
        **live.as_dict(),
        "verdict": verdict and {"outcome": str(verdict.outcome), "reason": verdict.reason},
        "report": verdict and str(report.report_page(coordinator.deployment)),
    }
