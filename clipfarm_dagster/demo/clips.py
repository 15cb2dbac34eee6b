"""The dozen clips of the demo corpus: what is drawn, and what people wrote and said about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from clipfarm_dagster.demo.scenes import Scene, balls, campfire, fireworks, ocean, traffic


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One written clip. `draw` takes a frame's width and height and a seeded generator."""

    video_id: str
    theme: str
    title: str
    description: str
    query: str
    transcript: str
    channel: str
    draw: Callable[[int, int, np.random.Generator], Scene]
    portrait: bool = False
    earlier_titles: tuple[str, ...] = ()
    """Titles that older snapshots of the metadata show, oldest first."""


CLIPS: tuple[Clip, ...] = (
    Clip(
        video_id="ocean-sunset",
        theme="ocean",
        title="Golden hour waves rolling in",
        description="Long evening swell, a low sun and one small sailing boat on the horizon. Sound on.",
        query="ocean waves sunset",
        transcript="Listen to that. The tide is coming in, and every seventh wave is a bigger one. "
        "There is a little sailing boat far out on the sea.",
        channel="Saltwater Diary",
        draw=partial(
            ocean,
            sky=[(58, 64, 122), (196, 104, 112), (255, 190, 120)],
            sea=((22, 44, 84), (206, 128, 108)),
            sun=(255, 214, 140),
            swell=0.9,
            boat=True,
        ),
        portrait=True,
        earlier_titles=("Waves at golden hour",),
    ),
    Clip(
        video_id="city-dusk",
        theme="city",
        title="Rush hour on Market Street",
        description="Cars, headlights and a hundred office windows as the city heads home from work.",
        query="city traffic evening",
        transcript="It is half past six and the whole town is trying to get home at once. "
        "You hear horns, engines and somebody's radio.",
        channel="Street Level",
        draw=partial(
            traffic,
            sky=[(42, 44, 96), (142, 86, 130), (250, 160, 110)],
            wall=(46, 42, 66),
            lit=0.5,
        ),
    ),
    Clip(
        video_id="physics-bounce",
        theme="physics",
        title="Why does a bouncing ball stop?",
        description="Each bounce gives back only part of the energy. Watch the arcs get lower.",
        query="bouncing ball physics experiment",
        transcript="We drop the ball and count the bounces. Every time it hits the floor it loses about "
        "a quarter of its energy, so the next arc is lower.",
        channel="Pocket Physics",
        draw=partial(balls, paper=[(236, 242, 248), (206, 220, 234)], count=1),
        earlier_titles=("Ball bounce test", "Bouncing ball: where does the energy go?"),
    ),
    Clip(
        video_id="fire-finale",
        theme="fire",
        title="Fireworks finale over the old town",
        description="The last minute of midsummer fireworks: gold, blue and violet bursts above the roofs.",
        query="fireworks night sky",
        transcript="Here comes the finale. Three, two, one. Look at the golden one, it fills the night sky!",
        channel="Night Lights",
        draw=partial(fireworks, sky=[(6, 8, 26), (18, 18, 48), (46, 30, 60)]),
        portrait=True,
    ),
    Clip(
        video_id="ocean-beach",
        theme="ocean",
        title="Barefoot on the beach: gentle surf",
        description="Clear water, warm sand and small foamy waves that run up the shore and back again.",
        query="beach waves relaxing",
        transcript="The water is just warm enough to stand in. Watch how the foam draws a new line in the "
        "sand with every wave.",
        channel="Saltwater Diary",
        draw=partial(
            ocean,
            sky=[(72, 152, 222), (168, 214, 240)],
            sea=((10, 104, 150), (116, 206, 210)),
            sun=(255, 250, 226),
            swell=0.7,
            beach=True,
        ),
    ),
    Clip(
        video_id="city-rain",
        theme="city",
        title="Rainy night drive downtown",
        description="Wet asphalt, blurred reflections of the buildings and cars passing in the rain.",
        query="city rain night cars",
        transcript="Nobody walks tonight. The road is a mirror, and the taxis leave long streaks of light.",
        channel="Street Level",
        draw=partial(
            traffic, sky=[(12, 16, 34), (30, 36, 62), (66, 66, 88)], wall=(26, 28, 44), lit=0.55, rain=True
        ),
        portrait=True,
        earlier_titles=("Downtown in the rain",),
    ),
    Clip(
        video_id="physics-box",
        theme="physics",
        title="Five balls in a box: chaos in slow motion",
        description="Same gravity, different sizes and starting speeds. Which ball keeps its energy longest?",
        query="physics simulation balls gravity",
        transcript="All five balls start at rest in height but not in speed. They bounce off the walls and "
        "off the floor, and gravity treats them all the same.",
        channel="Pocket Physics",
        draw=partial(balls, paper=[(250, 240, 224), (240, 214, 184)], count=5),
        portrait=True,
    ),
    Clip(
        video_id="fire-camp",
        theme="fire",
        title="Crackling campfire under the stars",
        description="A steady flame and flying sparks between the pines. Cosy sounds to fall asleep to.",
        query="campfire crackling night",
        transcript="We put on one more log. Mind the sparks! If you are quiet you hear nothing but the "
        "crackling of the fire.",
        channel="Ember and Pine",
        draw=campfire,
    ),
    Clip(
        video_id="ocean-storm",
        theme="ocean",
        title="Storm swell at the headland",
        description="Grey sea, high waves and white crests after two days of strong wind from the west.",
        query="stormy sea big waves",
        transcript="The harbour is closed today. These waves have crossed the whole ocean and they break "
        "right under the cliff.",
        channel="Coast Watch",
        draw=partial(
            ocean,
            sky=[(70, 80, 94), (134, 144, 152)],
            sea=((20, 40, 52), (96, 122, 128)),
            sun=(150, 160, 164),
            swell=1.25,
            overcast=True,
        ),
        earlier_titles=("Big waves today",),
    ),
    Clip(
        video_id="city-tram",
        theme="city",
        title="The red tram crosses the avenue",
        description="Morning commute by tram: a ring of the bell, cars in both lanes, office towers behind.",
        query="tram city street morning commute",
        transcript="Mind the doors. The number nine tram runs every six minutes, straight through the "
        "traffic of the city centre.",
        channel="Rails and Wires",
        draw=partial(
            traffic,
            sky=[(118, 178, 226), (206, 226, 238), (250, 234, 208)],
            wall=(126, 140, 164),
            lit=0.12,
            tram=True,
        ),
    ),
    Clip(
        video_id="physics-cradle",
        theme="physics",
        title="Newton's cradle explained in four seconds",
        description="One ball in, one ball out: momentum and energy pass through the row of steel balls.",
        query="newton's cradle momentum physics",
        transcript="Lift one ball and let it swing. It stops dead, and the ball at the far end flies off "
        "with the same momentum.",
        channel="Pocket Physics",
        draw=partial(balls, paper=[(226, 238, 228), (190, 216, 202)], count=0, cradle=True),
    ),
    Clip(
        video_id="fire-lake",
        theme="fire",
        title="New Year's fireworks mirrored in the lake",
        description="Rockets and bright sparks at midnight, twice as many thanks to the still dark water.",
        query="new year fireworks lake reflection",
        transcript="Happy New Year! Look down at the water: every rocket and every spark is there twice.",
        channel="Night Lights",
        draw=partial(fireworks, sky=[(4, 6, 22), (14, 22, 54), (40, 44, 84)], lake=True),
        earlier_titles=("Midnight fireworks by the lake",),
    ),
)
"""Themes take turns, so that a short corpus has some of each."""
