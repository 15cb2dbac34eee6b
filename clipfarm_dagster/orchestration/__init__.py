"""All of Dagster: assets, jobs, sensors, runs and what they record. Nothing below imports it."""
