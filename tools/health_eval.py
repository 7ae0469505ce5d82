"""Evaluates camera health: seeded faults on real clips and pictures, and false alarms over the same without faults.

    python tools/health_eval.py --videos FOLDER [--images FOLDER] [--seeds 2] [--hours 1]

Every other scene is for tuning, the rest for judging; both are reported. Time is simulated.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from health_faults import FAULTS, SIZE, SLOW_S, Fault, Scene, Simulation, another, daylight, twilight

from streamd.analysis.glance.health import HealthCore
from streamd.analysis.glance.health_settings import CameraHealthSettings

RATE = 2.0
WARM_S, LIMIT_S, AFTER_S = 60.0, 10.0, 30.0
DUSKS_S = (5.0, 10.0, 20.0, 40.0, 60.0, 120.0)


def load_clip(path: Path, rate: float = RATE) -> Scene:
    """A clip as small pictures, about `rate` a second (more of a short one)."""
    import av

    pictures = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or 25)
        step = max(1, round(fps / rate)) if (stream.frames or 1000) / fps > 10 else max(1, round(fps / rate / 2))
        for number, frame in enumerate(container.decode(stream)):
            if number % step == 0:
                pictures.append(cv2.resize(frame.to_ndarray(format="gray"), SIZE, interpolation=cv2.INTER_AREA))
    return Scene(path.name, np.stack(pictures))


def load_image(path: Path) -> Scene:
    """A picture as a still scene with the noise of a camera."""
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise SystemExit(f"{path}: cannot be read as a picture")
    small = cv2.resize(image, SIZE, interpolation=cv2.INTER_AREA).astype(np.float32) * (219 / 255) + 16
    return Scene(path.name, np.rint(small).astype(np.uint8)[None], noise=0.5)


class Trial(NamedTuple):
    """One fault in one scene."""

    scene: str
    fault: str
    slow: bool
    seed: int
    early: tuple[str, ...]
    """What was reported before the fault."""
    after_s: float | None
    """From the fault at full strength to its report; None if it came too late or never."""
    others: tuple[str, ...]
    """What else was reported during the fault."""
    over_s: float | None
    """From the fault's end to the first picture without any state; None if it took too long."""


def trial(scene: Scene, fault: Fault, slow: bool, seed: int) -> Trial:
    """Runs one fault: a minute without, the fault for ten seconds at full strength, half a minute without."""
    simulation, core = Simulation(scene, seed, RATE), HealthCore(CameraHealthSettings())
    if fault.after == "clock":
        simulation.has_clock = True
    early: set[str] = set()
    t = 0.0
    for _ in range(int(WARM_S * RATE)):
        t += 1 / RATE
        early.update(core.step(simulation.picture(), t))
    apply = simulation.make(fault)
    rise = SLOW_S if slow else 0.0
    steps = int((rise + LIMIT_S) * RATE)
    after: float | None = None
    others: set[str] = set()
    for n in range(1, steps + 1):
        t += 1 / RATE
        strength = min(1.0, n / RATE / rise) if slow else 1.0
        states = core.step(simulation.picture(fault, apply, strength, n), t)
        if fault.state in states and after is None:
            after = n / RATE - rise
        others.update(s for s in states if s != fault.state)
    over: float | None = None
    for n in range(1, int(AFTER_S * RATE) + 1):
        t += 1 / RATE
        if not core.step(simulation.picture(), t):
            over = n / RATE
            break
    return Trial(scene.name, fault.name, slow, seed, tuple(early), after, tuple(others), over)


def trials(scenes: list[Scene], seeds: int) -> Iterable[Trial]:
    """All faults, sudden and slow, on all scenes."""
    for index, scene in enumerate(scenes):
        other = scenes[(index + 1) % len(scenes)]
        for fault in (*FAULTS, *([another(other)] if len(scenes) > 1 else [])):
            for slow in (False, True) if fault.slow else (False,):
                for seed in range(seeds):
                    yield trial(scene, fault, slow, 1000 * index + seed)


def still_hour(scene: Scene, hours: float, seed: int) -> tuple[Scene, float]:
    """The first picture of a scene, for hours, with noise."""
    return Scene(f"{scene.name} still", scene.pictures[:1], noise=0.5), hours


def false_alarms(scene: Scene, hours: float, seed: int) -> Counter[str]:
    """Reports over a scene without faults, as it is."""
    simulation, core = Simulation(scene, seed, RATE), HealthCore(CameraHealthSettings())
    told: Counter[str] = Counter()
    before: tuple[str, ...] = ()
    for n in range(int(hours * 3600 * RATE)):
        states = core.step(simulation.picture(), n / RATE)
        told.update(s for s in states if s not in before)
        before = states
    return told


def night(scene: Scene, hours: float, seed: int) -> Counter[str]:
    """Reports over dusk, night and dawn."""
    return _under(scene, daylight(hours, RATE), seed)


def dusk(scene: Scene, seconds: float, seed: int) -> Counter[str]:
    """The same with a dusk and a dawn of so many seconds."""
    return _under(scene, twilight(seconds, RATE), seed)


def _under(scene: Scene, lights: Iterable[tuple[float, float]], seed: int) -> Counter[str]:
    simulation, core = Simulation(scene, seed, RATE), HealthCore(CameraHealthSettings())
    rng = np.random.default_rng(seed)
    told: Counter[str] = Counter()
    before: tuple[str, ...] = ()
    for n, (light, noise) in enumerate(lights):
        picture = (simulation.picture().astype(np.float32) - 16) * light + 16
        picture += rng.normal(0, noise, picture.shape).astype(np.float32)
        states = core.step(np.clip(np.rint(picture), 0, 255).astype(np.uint8), n / RATE)
        told.update(s for s in states if s not in before)
        before = states
    return told


def report(name: str, found: list[Trial]) -> None:
    """Prints a table by fault."""
    print(f"\n{name}: {len(found)} trials")
    groups: dict[tuple[str, bool], list[Trial]] = defaultdict(list)
    for each in found:
        groups[each.fault, each.slow].append(each)
    for (fault, slow), some in sorted(groups.items()):
        times = [t.after_s for t in some if t.after_s is not None]
        others = Counter(o for t in some for o in t.others)
        late = sum(t.over_s is None for t in some)
        worst = max(times, default=float("nan"))
        print(
            f"  {fault:13} {'slow' if slow else 'sudden':7} {len(times)}/{len(some)}  worst {worst:5.1f} s  "
            f"not over {late}  besides {dict(others)}"
        )
    share = sum(t.after_s is not None for t in found) / max(len(found), 1)
    print(f"  detected {share:.4f}; reports before the fault: {sum(bool(t.early) for t in found)}")


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--every", type=int, default=8, help="take every so many images")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--hours", type=float, default=1.0, help="simulated hours of each scene without faults")
    parser.add_argument("--misses", action="store_true", help="list what was missed")
    args = parser.parse_args(argv)
    scenes = [load_clip(path) for path in sorted(args.videos.iterdir()) if path.suffix in (".mp4", ".avi", ".mkv")]
    stills = [load_image(p) for p in sorted(args.images.rglob("*.jpg"))[:: args.every]] if args.images else []
    for name, clips, images in (("tuning", scenes[0::2], stills[0::2]), ("judging", scenes[1::2], stills[1::2])):
        found = [*trials(clips, args.seeds), *trials(images, args.seeds)]
        report(name, found)
        if args.misses:
            for t in found:
                if t.after_s is None or t.early:
                    print("   missed", t)
        for scene in clips:
            print(f"  {scene.name}: as it is {dict(false_alarms(scene, args.hours, 1))}", end="; ")
            still, hours = still_hour(scene, args.hours, 1)
            print(f"still {dict(false_alarms(still, hours, 2))}; night {dict(night(scene, args.hours, 3))}", end="; ")
            print(*(f"dusk of {t:.0f} s {dict(dusk(scene, t, 4))}" for t in DUSKS_S), sep=", ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
