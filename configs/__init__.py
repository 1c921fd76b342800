"""Run configurations; see teacher.py, baseline.py and student.py."""
