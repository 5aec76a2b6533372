"""Generated tasks with short answers, for small pretrained models.

`problems` is a data source: `{_target_: bandpo.data.generated.problems, task: next_number,
difficulty: 3, split: train, count: 600}`.
"""

from bandpo.data.generated.source import Split, problems
from bandpo.data.generated.tasks import TASKS, Item, Task

__all__ = ["TASKS", "Item", "Split", "Task", "problems"]
