"""What can be wrong with a teacher and its students."""

from tradeoff.core.errors import TradeoffError


class InvalidSetting(TradeoffError, ValueError):
    """A setting of LoT is out of range."""


class InvalidStudent(TradeoffError, ValueError):
    """A student shares tensors with another network, starts as a copy of the teacher, or answers otherwise
    shaped."""


class MissingBatches(TradeoffError, ValueError):
    """The students' additional batches are absent, or too few."""


class StudentDiverged(TradeoffError, ArithmeticError):
    """A student's outputs became infinite or not a number; the teacher was not changed by them.

    Attributes:
        student: its index.
    """

    def __init__(self, student: int, where: str) -> None:
        super().__init__(
            f"the outputs of student {student} are not finite in {where}; the teacher is unchanged by them. "
            "Lower the students' learning rate or set clip_norm"
        )
        self.student = student
