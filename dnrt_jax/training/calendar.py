"""When a run logs, evaluates and saves: functions of the step alone."""

from typing import NamedTuple


class Due(NamedTuple):
    """What to do after a step."""

    log: bool
    evaluate: bool
    save: bool


class Calendar(NamedTuple):
    """The schedule of logging, evaluation and checkpoints, in steps."""

    log: int
    evaluate: int
    save: int
    epoch: int
    total: int

    def until_next(self, step: int, most: int) -> int:
        """Number of steps from `step` to the next event or end of an epoch, at most `most`."""
        periods = (self.log, self.evaluate, self.save, self.epoch)
        return min(most, self.total - step, *(n - step % n for n in periods))

    def due(self, step: int) -> Due:
        last = step == self.total
        evaluate = step % self.evaluate == 0 or last
        return Due(step % self.log == 0 or evaluate, evaluate, step % self.save == 0 or last)
