"""What the demo clips show and sound like: one module per theme, drawn with numpy and Pillow.

Each theme is a function from a frame's width and height and a seeded generator to a `Scene`.
"""

from clipfarm_dagster.demo.scenes.balls import balls
from clipfarm_dagster.demo.scenes.fire import campfire, fireworks
from clipfarm_dagster.demo.scenes.ocean import ocean
from clipfarm_dagster.demo.scenes.scene import Scene
from clipfarm_dagster.demo.scenes.traffic import traffic

__all__ = ["Scene", "balls", "campfire", "fireworks", "ocean", "traffic"]
