"""Graders: mathematics, Countdown and code, judged by processes that can be killed."""

from steer_core.rewards.base import Grader, Status, Thinking, Verdict

__all__ = ["Grader", "Status", "Thinking", "Verdict", "graders_of"]


def graders_of(kind: str, sandbox: str = "bubblewrap", thinking: Thinking = "skip") -> list[Grader]:
    """The graders of a kind of problem (maths, code, countdown); the first is the one to go by.

    sandbox: what code runs in. thinking: whether the strict maths grader reads what stands before `</think>`. Raises
    SteerError where this machine has no such sandbox, for code.
    """
    if kind == "maths":
        from steer_core.rewards.maths import MathsGrader
        from steer_core.rewards.release import ReleaseGrader

        return [MathsGrader(thinking=thinking), ReleaseGrader()]
    if kind == "code":
        from steer_core.rewards.code import CodeGrader

        return [CodeGrader(mode=sandbox)]
    if kind == "countdown":
        from steer_core.rewards.countdown import CountdownGrader

        return [CountdownGrader()]
    raise ValueError(f"kind: {kind!r} is none of maths, code, countdown")
