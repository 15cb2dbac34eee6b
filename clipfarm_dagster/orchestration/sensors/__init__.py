"""The sensors, and what they remember between ticks."""
