"""Somebody's project that uses ClipFarm: the tests load it as Dagster would."""
