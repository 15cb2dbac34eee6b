"""Dagster's UI as a person uses it: what is clicked, and what is then seen."""

from __future__ import annotations

import re
from collections.abc import Sequence

from playwright.sync_api import Locator, Page, expect

PATIENCE = 30_000
"""Milliseconds until something that needs no run is seen, on a busy machine."""
RUN_PATIENCE = 240_000
"""Milliseconds until a run, a backfill or a sensor's tick has ended."""


class DagsterUI:
    """One browser page over a server's UI."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self._url = page, url
        page.set_default_timeout(PATIENCE)
        page.set_default_navigation_timeout(PATIENCE)

    def open(self, path: str) -> None:
        """Open a path of the UI."""
        self.page.goto(self._url + path)

    def open_graph(self, *groups: str) -> None:
        """Open the graph of all assets, with some groups unfolded."""
        self.open("/asset-groups?expanded=" + ",".join(f"global%40global%3A{group}" for group in groups))

    def open_partition(self, asset: str, partition: str) -> None:
        """Open an asset's page of one partition."""
        self.open(f"/assets/{asset}?view=partitions&partition={partition}")
        self.page.get_by_text("Latest materialization").first.wait_for()

    def launch(self, asset: str, partition: str) -> None:
        """Launch a run of one partition, and follow the link to its page."""
        self.open_partition(asset, partition)
        dialog = self._materialize_dialog()
        dialog.get_by_role("button", name="Launch 1 run").click()
        self._view_created()

    def materialize(self, asset: str, partition: str) -> None:
        """Materialize one partition, and watch its run end well."""
        self.launch(asset, partition)
        self.see_status("Success")

    def materialize_whole(self, asset: str) -> None:
        """Materialize an asset without partitions, watch its run end well, and return to its page."""
        self.open(f"/assets/{asset}")
        self.page.get_by_role("button", name="Materialize").first.click()
        self._view_created()
        self.see_status("Success")
        self.open(f"/assets/{asset}")

    def run_job(self, job: str, partition: str) -> None:
        """Run a job for one partition, and watch it end well."""
        self.open(f"/locations/clipfarm/jobs/{job}")
        dialog = self._materialize_dialog()
        self._choose_partitions(dialog, [partition])
        dialog.get_by_role("button", name="Launch 1 run").click()
        self._view_created()
        self.see_status("Success")

    def backfill(self, asset: str, partitions: Sequence[str]) -> None:
        """Launch a backfill of some partitions, and follow the link to its page."""
        self.open(f"/assets/{asset}?view=partitions")
        dialog = self._materialize_dialog()
        self._choose_partitions(dialog, partitions)
        expect(dialog.get_by_text(f"{len(partitions)} partitions", exact=True)).to_be_visible()
        dialog.get_by_role("button", name="Launch backfill").click()
        self._view_created()

    def see_status(self, status: str) -> None:
        """Wait until the run on the page has this status."""
        expect(self.page.get_by_text(status, exact=True).first).to_be_visible(timeout=RUN_PATIENCE)

    def see_backfill(self, *, targeted: int, succeeded: int, failed: int) -> None:
        """Wait until the backfill on the page has ended with these numbers of partitions."""
        status = "Failed" if failed else "Succeeded"
        expect(
            self.page.get_by_text(status, exact=True).and_(self.page.locator(":not(a)")).first
        ).to_be_visible(timeout=RUN_PATIENCE)
        row = self.page.locator("[class*=row], tr").filter(has_text="100% completed").last
        expect(row).to_contain_text(f"{targeted}0{succeeded}{failed}")

    def runs_of_backfill(self) -> int:
        """The number of runs of the backfill on the page."""
        self.page.get_by_role("tab", name="Runs").click()
        runs = self.page.get_by_text(re.compile("^[0-9a-f]{8}$"))
        runs.first.wait_for()
        return len(set(runs.all_inner_texts()))

    def open_failed_run(self) -> None:
        """Follow the link from a failed partition to its run."""
        notice = self.page.get_by_text("failed, and did not materialize this asset")
        notice.get_by_role("link").click()

    def filter_log(self, words: str) -> None:
        """Show only some events of the run on the page."""
        box = self.page.get_by_placeholder("Filter…")
        box.fill(words)
        box.press("Enter")

    def open_markdown(self, name: str) -> Locator:
        """Open what is shown on demand among the metadata of the asset or partition on the page."""
        self.page.get_by_role("row").filter(has_text=name).get_by_text("[Show Markdown]").click()
        return self.page.get_by_role("dialog")

    def turn_sensor_on(self, sensor: str) -> None:
        """Open a sensor's page, and turn it on unless it is."""
        self.open("/automation")
        self.page.get_by_text(sensor, exact=True).first.click()
        self.page.wait_for_url("**/sensors/*")
        row = self.page.get_by_role("row").filter(has_text="Running")
        if not row.get_by_role("checkbox").is_checked():
            row.locator("label").click()
        expect(row.get_by_role("checkbox")).to_be_checked()

    def see_counts(self, asset: str, *, materialized: int, failed: int) -> None:
        """See how many partitions of an asset are materialized, and how many failed."""
        self.open(f"/assets/{asset}?view=partitions")
        for name, count in {"Materialized": materialized, "Failed": failed}.items():
            expect(self.page.get_by_text(f"{name} ({count})", exact=True)).to_be_visible()

    def _materialize_dialog(self) -> Locator:
        self.page.get_by_role("button", name="Materialize").first.click()
        return self.page.get_by_role("dialog").filter(has_text="Launch runs to materialize").first

    def _choose_partitions(self, dialog: Locator, partitions: Sequence[str]) -> None:
        dialog.get_by_text("Select a partition or create one").click()
        menu = self.page.get_by_role("dialog").filter(has=self.page.get_by_placeholder("Filter partitions"))
        for partition in partitions:
            menu.last.get_by_role("menuitem").filter(has_text=partition).click()
        self.page.keyboard.press("Escape")

    def _view_created(self) -> None:
        """Follow the notice that something was created."""
        self.page.get_by_role("button", name="View", exact=True).or_(
            self.page.get_by_role("link", name="View", exact=True)
        ).first.click()
