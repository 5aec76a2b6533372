"""`python on_day.py 2031-05-06 train …`: a command as it runs on another day."""

import sys
from datetime import datetime

from transformers.utils import chat_template_utils

from bandpo import cli
from bandpo.data import prompts


class Clock(datetime):
    """Ten seconds before the end of the day that the first argument names."""

    @classmethod
    def now(cls, tz=None):
        return cls.fromisoformat(f"{sys.argv[1]}T23:59:50")


if __name__ == "__main__":
    prompts.datetime = chat_template_utils.datetime = Clock
    sys.exit(cli.main(sys.argv[2:]))
