"""The one partitions definition: a dynamic partition per `video_id`."""

import dagster as dg

VIDEO_PARTITIONS = dg.DynamicPartitionsDefinition(name="video_id")
"""Partitions are added by the sensor and by `clipfarm sync`; their keys are valid `video_id`s."""
