"""The table of tasks, and a file for each system.

tasks.py       `TASKS`, a row for each task
<system>.py    `settings(task) -> Config`, and the system's own variants, which are its
               other public functions, `Config -> Config`
<task>.py      the task's own variants, where it has any
"""
