"""Graders: mathematics, Countdown and code, judged by processes that can be killed."""

from steer_core.rewards.base import Grader, Status, Verdict

__all__ = ["Grader", "Status", "Verdict", "graders_of"]


def graders_of(kind: str) -> list[Grader]:
    """The graders of a kind of problem (maths, code, countdown); the first is the one to go by."""
    if kind == "maths":
        from steer_core.rewards.maths import MathsGrader
        from steer_core.rewards.release import ReleaseGrader

        return [MathsGrader(), ReleaseGrader()]
    if kind == "code":
        from steer_core.rewards.code import CodeGrader

        return [CodeGrader()]
    if kind == "countdown":
        from steer_core.rewards.countdown import CountdownGrader

        return [CountdownGrader()]
    raise ValueError(f"kind: {kind!r} is none of maths, code, countdown")
