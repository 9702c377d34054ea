"""A smaller student out of its teacher, with the teacher's weights: fewer layers, and narrower ones."""

from brewer_builtins.surgery.settings import FromTeacher
from brewer_builtins.surgery.student import student_from_teacher

__all__ = ["FromTeacher", "student_from_teacher"]
